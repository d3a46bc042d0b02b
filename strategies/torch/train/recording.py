"""Records what constructors do to tensors that have no content, and does it again with content: the same numbers are drawn in the same order,
one tensor after the other. Importing this module imports no framework.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple


class Undeferrable(Exception):
    """A constructor does what cannot be recorded; the text says what."""


class View(NamedTuple):
    """A tensor without content: a window on a storage."""

    storage: int
    dtype: Any
    size: Any
    stride: tuple[int, ...]
    offset: int


@dataclass(frozen=True)
class Operation:
    """One call that wrote to storages. Tensors without content stand as `View` in the arguments."""

    function: Any
    arguments: Any
    named: Any
    results: Sequence[View]
    storages: frozenset[int]
    """All that it reads or writes."""
    overwrites: int | None
    """The storage whose whole content it replaces without reading it."""


@dataclass(frozen=True)
class Reseeded:
    """The user's code set the state of a generator."""

    generator: Any
    state: Any


OVERWRITING = (
    "fill_",
    "zero_",
    "copy_",
    "normal_",
    "uniform_",
    "bernoulli_",
    "exponential_",
    "random_",
    "log_normal_",
    "cauchy_",
)
"""Operations in place that read nothing of the tensor they change."""
RANGES = ("arange", "linspace", "logspace")
"""Factories of small tensors whose values constructors may want to know."""
WITHOUT_CONTENT = ("empty", "empty_like", "empty_strided", "empty_permuted", "new_empty", "new_empty_strided", "set_")


@dataclass
class Record:
    """What constructors did to tensors without content, in their order."""

    operations: list[Operation | Reseeded] = field(default_factory=list)
    storages: dict[int, Any] = field(default_factory=dict)
    """Storages by their identity, kept so that no two have the same."""

    def replay(self, wanted: Mapping[int, Sequence[Callable[[Callable[[View], Any]], None]]]) -> None:
        """Do everything again with content. What wants a storage is called, with a function from a view to a tensor, when no later operation
        touches it; its content is freed then, as is every content that no later operation reads."""
        import torch

        content: dict[int, Any] = {}

        def real(view: View) -> Any:
            if view.storage not in content:
                size = self.storages[view.storage].nbytes()
                content[view.storage] = torch.empty(size, dtype=torch.uint8).untyped_storage()
            return torch.empty(0, dtype=view.dtype).set_(content[view.storage], view.offset, view.size, view.stride)

        finished, freed = self._ends()
        with torch.no_grad():
            for number, operation in enumerate(self.operations):
                if isinstance(operation, Reseeded):
                    operation.generator.set_state(operation.state)
                    continue
                given = operation.function(
                    *_with_tensors(operation.arguments, real), **_with_tensors(operation.named, real)
                )
                for view, result in zip(operation.results, _tensors(given), strict=False):
                    if view.storage not in content:
                        _keep(content, view, result, real)
                for storage in finished[number]:
                    for take in wanted.get(storage, ()):
                        take(real)
                for storage in (*finished[number], *freed[number]):
                    content.pop(storage, None)
            touched = {storage for storages in finished for storage in storages}
            for storage in wanted.keys() - touched:  # it was never written
                for take in wanted[storage]:
                    take(real)
                content.pop(storage, None)

    def _ends(self) -> tuple[list[list[int]], list[list[int]]]:
        """For each operation, the storages that are complete after it, and those whose content nothing reads before it is replaced."""
        replaced: dict[int, bool] = {}
        finished, freed = [], []
        for operation in reversed(self.operations):
            storages = () if isinstance(operation, Reseeded) else operation.storages
            finished.append([one for one in storages if one not in replaced])
            freed.append([one for one in storages if replaced.get(one)])
            replaced |= {one: one == operation.overwrites for one in storages}  # type: ignore[union-attr]
        return finished[::-1], freed[::-1]


def _keep(content: dict[int, Any], view: View, result: Any, real: Callable[[View], Any]) -> None:
    """Keep the result of an operation as the content of a new storage."""
    same = (result.size(), result.stride(), result.storage_offset()) == (view.size, view.stride, view.offset)
    if same and result.dtype == view.dtype:
        content[view.storage] = result.untyped_storage()
    else:
        real(view).copy_(result)


def recorded(make: Callable[[], dict[str, Any]]) -> tuple[dict[str, Any], Record]:
    """Models whose tensors have no content, and how they get it. Raises `Undeferrable`, or what the user's code raises because of such tensors."""
    import torch

    before = torch.default_generator.get_state()
    recorder = Recorder()
    try:
        with _noting(recorder), _seen_on_the_host(recorder), _rejections_as_one(recorder):
            models = make()
        recorder.note_state(torch.default_generator)
    finally:
        torch.default_generator.set_state(before)
    if recorder.refused:
        raise Undeferrable(recorder.refused)
    return models, recorder.record


class Recorder:
    """Notes every operation, and answers it with tensors without content."""

    def __init__(self) -> None:
        import torch

        self.record = Record()
        self.refused = ""
        self._states = {torch.default_generator: _moved_on(torch.default_generator)}
        """The states that generators have if the user's code does not set them."""

    @contextmanager
    def refusing(self) -> Iterator[None]:
        """Note an error even if the user's code catches it: with tensors that have content there is none."""
        try:
            yield
        except Exception as error:
            self.refused = self.refused or f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
            raise

    def call(self, function: Any, arguments: Any, named: dict[str, Any]) -> Any:
        """Answer an operation with tensors without content, or do it if it has tensors of values alone. Raises `Undeferrable`."""
        import torch

        name = function._schema.name.partition("::")[2]
        tensors = list(_tensors((arguments, named)))
        random = torch.Tag.nondeterministic_seeded in function.tags
        if tensors and not any(one.is_meta for one in tensors):
            if random:
                raise Undeferrable(f"{name} draws into a tensor that was made of values")
            return function(*arguments, **named)
        if named.get("device") is not None and torch.device(named["device"]).type not in ("cpu", "meta"):
            raise Undeferrable(f"{name} makes a tensor on {named['device']}")
        if name in RANGES:
            return function(*arguments, **named | {"device": "cpu"})
        if name == "resize_":
            raise Undeferrable("resize_ changes the size of a tensor")
        written = _written(function, arguments, named)
        if any(not one.is_meta for one in written):
            raise Undeferrable(f"{name} changes a tensor that was made of values")
        before = _with_views((arguments, named), self._view)
        without = {key: None if isinstance(value, torch.Generator) else value for key, value in named.items()}
        if any(one.name == "device" for one in function._schema.arguments):
            without |= {"device": "meta"} | ({"pin_memory": False} if without.get("pin_memory") else {})
        given = function(*_with_views(arguments, _empty), **_with_views(without, _empty))
        if name not in WITHOUT_CONTENT:
            self._note(function, before, given, random=random, written=bool(written))
        else:
            _with_views(given, self._view)
        return given

    def _note(self, function: Any, before: Any, given: Any, *, random: bool, written: bool) -> None:
        import torch

        arguments, named = before
        results = [self._view(one) for one in _tensors(given)]
        inputs = [one.storage for one in _views(before)]
        made = {one.storage for one in results} - set(inputs)
        if not made and not written:
            return  # a view
        if random:
            self.note_state(
                next((one for one in named.values() if isinstance(one, torch.Generator)), torch.default_generator)
            )
        if any(one.name == "device" for one in function._schema.arguments):
            named = named | {"device": "cpu"}
            if named.get("dtype") is None and not inputs and len(results) == 1:
                named["dtype"] = results[0].dtype  # the default may be another one later
        overwrites = None
        if function._schema.name.partition("::")[2] in OVERWRITING and inputs.count(arguments[0].storage) == 1:
            overwrites = self._whole(arguments[0])
        self.record.operations.append(
            Operation(function, arguments, named, results, frozenset(inputs) | made, overwrites)
        )

    def note_drawn(self, function: Any, tensor: Any, *rest: Any, generator: Any = None) -> Any:
        """Note a function that fills a tensor, in as many calls as the values that it draws demand."""
        import torch

        self.note_state(generator or torch.default_generator)
        view, named = self._view(tensor), {"generator": generator}
        storages = frozenset({view.storage})
        self.record.operations.append(Operation(function, (view, *rest), named, (), storages, self._whole(view)))
        return tensor

    def _whole(self, view: View) -> int | None:
        """The storage of a view, if that covers all of it."""
        covers = view.dtype.itemsize * view.size.numel() == self.record.storages[view.storage].nbytes()
        return view.storage if covers else None

    def note_state(self, generator: Any) -> None:
        """Note the state of a generator that the user's code has set: recording draws nothing that counts."""
        import torch

        expected, now = self._states.get(generator), generator.get_state()
        if expected is None or not torch.equal(now, expected):
            fresh = torch.Generator().manual_seed(generator.initial_seed()).get_state()
            if expected is not None and not torch.equal(now, fresh):
                raise Undeferrable("the state of a random generator is set back")
            self.record.operations.append(Reseeded(generator, now))
        self._states[generator] = _moved_on(generator)

    def _view(self, tensor: Any) -> Any:
        """Return the view of a tensor without content; one that has content is copied, since it may be changed later."""
        import torch

        if not tensor.is_meta:
            return tensor.detach().clone()
        if tensor.layout != torch.strided or tensor.is_conj() or tensor.is_neg():
            raise Undeferrable("a tensor is sparse, conjugated or negated")
        storage = tensor.untyped_storage()
        self.record.storages.setdefault(storage._cdata, storage)
        return view_of(tensor)


def _noting(recorder: Recorder) -> Any:
    """Have every operation go to the recorder."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    class Noting(TorchDispatchMode):  # type: ignore[misc]
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            with recorder.refusing(), torch._C.DisableTorchFunction():
                return recorder.call(function, args, kwargs or {})

    return Noting()


def _seen_on_the_host(recorder: Recorder) -> Any:
    """Have Python code see tensors without content as what they stand for: it may look at the device and draw nothing otherwise."""
    import torch
    from torch.overrides import TorchFunctionMode

    tensor = torch.Tensor
    seen = {tensor.device: torch.device("cpu"), tensor.is_meta: False, tensor.is_cpu: True}
    answers = {getter.__get__: value for getter, value in seen.items()}
    addresses = (tensor.data_ptr, tensor.untyped_storage, tensor.storage)

    class SeenOnTheHost(TorchFunctionMode):  # type: ignore[misc]
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if kwargs and kwargs.get("device") is not None and torch.device(kwargs["device"]).type == "meta":
                recorder.refused = recorder.refused or f"{function.__name__} is called with the meta device"
            if args and isinstance(args[0], tensor) and args[0].is_meta:
                if function in answers:
                    return answers[function]
                if function in addresses:
                    recorder.refused = recorder.refused or f"{function.__name__}() looks at the memory of a tensor"
            with recorder.refusing():
                return function(*args, **(kwargs or {}))

    return SeenOnTheHost()


@contextmanager
def _rejections_as_one(recorder: Recorder) -> Iterator[None]:
    """Record torch's draws by rejection as one operation: how often they draw depends on what they drew."""
    import torch
    from torch.utils._python_dispatch import _disable_current_modes

    name = "_no_grad_trunc_normal_"
    drawn = getattr(torch.nn.init, name)

    def fill(tensor: Any, *rest: Any, **named: Any) -> Any:
        with torch._C.DisableTorchFunction(), _disable_current_modes():
            if tensor.is_meta:
                return recorder.note_drawn(drawn, tensor, *rest, **named)
        return drawn(tensor, *rest, **named)

    setattr(torch.nn.init, name, fill)
    try:
        yield
    finally:
        setattr(torch.nn.init, name, drawn)


def _moved_on(generator: Any) -> Any:
    """Draw a number, so that the state is like none that a seed gives: setting it is seen then."""
    import torch

    torch.empty(1).uniform_(generator=generator)
    return generator.get_state()


def view_of(tensor: Any) -> View:
    """Describe a tensor without content."""
    storage = tensor.untyped_storage()._cdata
    return View(storage, tensor.dtype, tensor.size(), tensor.stride(), tensor.storage_offset())


def _written(function: Any, arguments: Sequence[Any], named: Mapping[str, Any]) -> list[Any]:
    """Return the tensors among the arguments of a call that it changes."""
    schema = function._schema.arguments
    given = {one.name: value for one, value in zip(schema, arguments, strict=False)} | dict(named)
    return _tensors([given.get(one.name) for one in schema if one.alias_info is not None and one.alias_info.is_write])


def _tensors(values: Any) -> list[Any]:
    import torch
    from torch.utils._pytree import tree_leaves

    return [one for one in tree_leaves(values) if isinstance(one, torch.Tensor)]


def _views(values: Any) -> list[View]:
    from torch.utils._pytree import tree_leaves

    return [one for one in tree_leaves(values, is_leaf=_is_view) if _is_view(one)]


def _is_view(value: Any) -> bool:
    return isinstance(value, View)


def _with_views(values: Any, function: Callable[[Any], View]) -> Any:
    """Put views in the place of tensors."""
    import torch
    from torch.utils._pytree import tree_map_only

    return tree_map_only(torch.Tensor, function, values)


def _with_tensors(values: Any, function: Callable[[View], Any]) -> Any:
    """Put tensors in the place of views."""
    from torch.utils._pytree import tree_map

    return tree_map(lambda one: function(one) if _is_view(one) else one, values, is_leaf=_is_view)


def _empty(tensor: Any) -> Any:
    return tensor if tensor.is_meta else tensor.to("meta")
