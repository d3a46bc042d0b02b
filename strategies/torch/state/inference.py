"""A trained PyTorch model outside of a training: how a task calls it, and the same call as a function of tensors alone.

Importing this module imports no framework.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from dtrain.api.exporter import Arrays, Call, ExportError, TensorSpec
from dtrain.job.task_answers import loss_answer, weighted

from ..train.batches import Mover

LABELS = "labels"
"""An argument of Hugging Face's models that nobody has after the training."""


@dataclass(frozen=True)
class Form:
    """The arguments of a call: their structure, and the leaves that are no tensors."""

    arguments: Any
    """Structure of (args, kwargs)."""
    leaves: tuple[Any, ...]
    """None at the place of a tensor."""
    places: tuple[int, ...]
    """Places of the tensors among the leaves."""
    outputs: Any
    """Structure of what the model gave."""
    output_leaves: tuple[Any, ...]
    output_places: tuple[int, ...]
    output_names: tuple[str, ...]


class _Called(BaseException):
    """Ends what uses a model at its first call; not an `Exception`, so that the user's own handlers let it pass."""


class TorchInference:
    """Inference of one module; several calls of it give the same."""

    def __init__(self, model: Any) -> None:
        self._model = self.model = model.eval()
        """The object that a task's methods get as the model."""

    def batch(self, batch: Any) -> Any:
        import torch

        return Mover(torch.device("cpu"))(batch)

    def record(self, use: Callable[[], Any], only: Sequence[str] = ()) -> Call:
        import torch

        calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

        def recording(*arguments: Any, **named: Any) -> Any:
            calls.append((arguments, named))
            raise _Called

        self._model.forward = recording
        try:
            with torch.no_grad(), suppress(_Called):
                use()
        finally:
            del self._model.forward
        if not calls:
            raise ExportError(
                "the task's metrics (or loss) do not call the model itself, so that its inputs are not known",
                "Give the task a method example_input() that returns a batch of them.",
            )
        arguments, named = calls[0]
        kept = self._chosen(arguments, named, only)
        left_out = LABELS in named and LABELS not in kept[1]
        note = f"the model is exported without {LABELS}, which nobody has after the training" if left_out else ""
        return dataclasses.replace(self._called(*kept), note=note)

    def _chosen(
        self, arguments: tuple[Any, ...], named: dict[str, Any], only: Sequence[str]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if only:
            bound = inspect.signature(self._model.forward).bind(*arguments, **named).arguments
            known = {**bound, **bound.get("kwargs", {})}
            missing = [name for name in only if name not in known]
            if missing:
                raise ExportError(
                    f"example_input() names {', '.join(missing)}, which the task does not call its model with",
                    f"It calls it with {', '.join(known)}.",
                )
            return (), {name: known[name] for name in only}
        if LABELS in named and (arguments or len(named) > 1):
            named = {name: value for name, value in named.items() if name != LABELS}
        return arguments, named

    def called(self, example: Any) -> Call:
        if isinstance(example, Mapping):
            return self._called((), {name: _tensor(value) for name, value in example.items()})
        return self._called(
            tuple(map(_tensor, example)) if isinstance(example, tuple | list) else (_tensor(example),), {}
        )

    def _called(self, arguments: tuple[Any, ...], named: dict[str, Any]) -> Call:
        import torch
        from torch.utils import _pytree as tree

        with torch.no_grad():
            given = self._model(*arguments, **named)
        leaves, structure = tree.tree_flatten((arguments, named))
        places = tuple(place for place, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor))
        outputs, output_structure = tree.tree_flatten(given)
        output_places = tuple(place for place, leaf in enumerate(outputs) if isinstance(leaf, torch.Tensor))
        form = Form(
            structure, _without(leaves, places), places,
            output_structure, _without(outputs, output_places), output_places, _output_names(given, output_places),
        )  # fmt: skip
        inputs = tuple(
            (name, leaves[place].detach().numpy())
            for name, place in zip(self._names(arguments, named), places, strict=True)
        )
        return Call(inputs, [outputs[place].detach().numpy() for place in output_places], form)

    def _names(self, arguments: tuple[Any, ...], named: dict[str, Any]) -> list[str]:
        """Return the names of the tensors among the arguments, by the names of the parameters of `forward`."""
        parameters = inspect.signature(self._model.forward).parameters.values()
        positional = [one.name for one in parameters if one.kind is not one.VAR_POSITIONAL]
        found: list[str] = []
        for number, value in enumerate(arguments):
            found += _tensor_names(positional[number] if number < len(positional) else f"input_{number}", value)
        for name, value in named.items():
            found += _tensor_names(name, value)
        return found

    def outputs_of(self, call: Call) -> tuple[str, ...]:
        names: tuple[str, ...] = call.form.output_names
        return names

    def function(self, call: Call, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> Any:
        """A module from tensors to a tuple of tensors."""
        import torch
        from torch.utils import _pytree as tree

        form: Form = call.form

        class Function(torch.nn.Module):  # type: ignore[misc,unused-ignore]
            def __init__(self, model: Any) -> None:
                super().__init__()
                self.model = model

            def forward(self, *tensors: Any) -> Any:
                leaves = list(form.leaves)
                for place, tensor in zip(form.places, tensors, strict=True):
                    leaves[place] = tensor
                arguments, named = tree.tree_unflatten(leaves, form.arguments)
                given = tree.tree_leaves(self.model(*arguments, **named))
                return tuple(given[place] for place in form.output_places)

        return Function(self._model).eval()

    def run(self, call: Call, inputs: Arrays) -> Arrays:
        import torch

        with torch.inference_mode():
            given = self.function(call, (), ())(*map(torch.from_numpy, inputs))
        return [one.numpy() for one in given]

    def metrics(self, use: Callable[[], Any], call: Call, outputs: Arrays) -> dict[str, float] | None:
        import torch
        from torch.utils import _pytree as tree

        form: Form = call.form
        calls = 0

        def replayed(*_arguments: Any, **_named: Any) -> Any:
            nonlocal calls
            calls += 1
            leaves = list(form.output_leaves)
            for place, array in zip(form.output_places, outputs, strict=True):
                leaves[place] = torch.from_numpy(array)
            return tree.tree_unflatten(leaves, form.outputs)

        self._model.forward = replayed
        try:
            with torch.no_grad():
                given = use()
            numbers = given if isinstance(given, Mapping) else _of_loss(given)
            values = {name: float(value) for name, value in weighted(numbers, "metrics")[0].items()}
        except Exception:  # noqa: BLE001  the user's code does more than the stand-in can
            return None
        finally:
            del self._model.forward
        return values if calls == 1 else None


def _of_loss(given: Any) -> dict[str, Any]:
    answer = loss_answer(given, "loss")
    return {"loss": answer.loss.reshape(())} | answer.numbers


def _tensor(value: Any) -> Any:
    import torch

    return value if isinstance(value, torch.Tensor) else torch.as_tensor(value)


def _without(leaves: Sequence[Any], places: Sequence[int]) -> tuple[Any, ...]:
    return tuple(None if place in places else leaf for place, leaf in enumerate(leaves))


def _tensor_names(name: str, value: Any) -> list[str]:
    import torch
    from torch.utils import _pytree as tree

    count = sum(isinstance(leaf, torch.Tensor) for leaf in tree.tree_leaves(value))
    return [name] if count == 1 else [f"{name}_{number}" for number in range(count)]


def _output_names(given: Any, places: Sequence[int]) -> tuple[str, ...]:
    from torch.utils import _pytree as tree

    if len(places) == 1 and not isinstance(given, Mapping):
        return ("output",)
    if isinstance(given, Mapping):
        paths = tree.tree_leaves_with_path(dict(given))
        names = ["_".join(str(getattr(key, "key", getattr(key, "idx", key))) for key in path) for path, _ in paths]
        return tuple(names[place] for place in places)
    return tuple(f"output_{number}" for number in range(len(places)))
