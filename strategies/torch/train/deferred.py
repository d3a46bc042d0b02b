"""Models that are built without memory for their weights, which each rank then gets part by part.

Importing this module imports no framework.
"""

from __future__ import annotations

import gc
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from dtrain.common import allocator
from dtrain.common.errors import UserError

from ..state.shards import fill
from ..state.state import ONLY
from .models import made
from .recording import Record, Undeferrable, View, recorded, view_of

Models = dict[str, Any]


def attempted(make: Callable[[], Models], *, needed: bool) -> Deferred | None:
    """The models without content, or None, which is said in the log, if their constructors need values. If it is `needed`, that is
    a `UserError`."""
    import numpy

    generators = random.getstate(), numpy.random.get_state()
    try:
        return Deferred(*recorded(make))
    except UserError:
        raise
    except Exception as error:
        why = str(error).partition("\n")[0]
        if needed:
            raise UserError(
                f"strategy.build is meta, and the model cannot be made without values: {why}",
                "Leave strategy.build out: every worker makes the whole model then, and keeps its part.",
            ) from error
    random.setstate(generators[0])
    numpy.random.set_state(generators[1])
    print(
        f"every worker makes the whole model before it keeps its part of it, since the model cannot be made without values: {why}"
    )
    return None


class Place(NamedTuple):
    """Where a tensor of a model is registered."""

    module: Any
    table: str
    """`_parameters` or `_buffers`."""
    name: str
    value: Any
    """The tensor that the constructor made if that has content, otherwise its `View`."""

    @property
    def tensor(self) -> Any:
        """The tensor that is registered there now."""
        return getattr(self.module, self.table)[self.name]


class Deferred:
    """Models whose tensors have no content, and how they get it."""

    def __init__(self, models: Models, record: Record) -> None:
        self.models = models
        self._record = record
        self._places = list(_places(models))
        self._strays = self._others()
        self._put_on_meta()

    @property
    def size(self) -> int:
        """Bytes of all parameters."""
        return sum(one.nbytes for model in self.models.values() for one in model.parameters())

    def _others(self) -> list[Any]:
        """Tensors without content that the user's code keeps elsewhere than as parameters and buffers of the models."""
        import torch

        registered = {id(place.tensor) for place in self._places}
        tensors = [one for one in gc.get_objects() if issubclass(type(one), torch.Tensor) and id(one) not in registered]
        found = [one for one in tensors if one.is_meta and one.untyped_storage()._cdata in self._record.storages]
        if any(one.grad_fn is not None for one in found):
            raise Undeferrable("a tensor that was computed from parameters is kept")
        return found

    def _put_on_meta(self) -> None:
        """Take the content out of the tensors that have it, too, until they are sharded."""
        import torch

        empty: dict[int, Any] = {}
        for module, table, name, value in self._places:
            if isinstance(value, View):
                continue
            if id(value) not in empty:
                bare = torch.empty_like(value, device="meta")
                empty[id(value)] = torch.nn.Parameter(bare, value.requires_grad) if table == "_parameters" else bare
            getattr(module, table)[name] = empty[id(value)]

    def fill(self, states: Mapping[str, Mapping[str, Any]]) -> None:
        """Take over the tensors of these state dicts, and make what is in none of them."""
        import torch

        ties = _ties(self._places)
        for key, model in self.models.items():
            model.load_state_dict(states[key], assign=True)
        _tie(ties)
        left = [place for place in self._places if place.tensor.is_meta]
        for place in left:
            getattr(place.module, place.table)[place.name] = torch.empty_like(place.tensor, device="cpu")
        self._replay(left)

    def materialise(self, device: Any) -> None:
        """Give every rank its part of each tensor's content, on its device."""
        ties = _ties(self._places)
        for model in self.models.values():
            model.to_empty(device=device)
        _tie(ties)
        self._replay(self._places)

    def _replay(self, places: Sequence[Place]) -> None:
        """Give content to the tensors at these places, and to those that the user's code keeps elsewhere."""
        import torch

        wanted: dict[int, list[Callable[[Callable[[View], Any]], None]]] = {}
        for place in places:
            if isinstance(place.value, View):
                wanted.setdefault(place.value.storage, []).append(partial(_fill, place))
            else:
                with torch.no_grad():
                    fill(place.tensor, place.value)
        for stray in self._strays:
            view = view_of(stray)
            wanted.setdefault(view.storage, []).append(partial(_become, stray, view))
        if wanted:
            self._record.replay(wanted)


def gathered(models: Mapping[str, Any], task: Any, name: str, rank: int) -> Models:
    """Collective. Sharded models with all their weights, built once more on the host of rank 0; {} on the others."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    states = {key: get_model_state_dict(model, options=options) for key, model in models.items()}
    if rank:
        return {}
    size = sum(one.nbytes for state in states.values() for one in state.values() if hasattr(one, "nbytes"))
    if size >= allocator.LARGE_MODEL_BYTES:
        print(f"{name}.finish is given the whole model, which takes {size / 1e9:.2g} GB of rank 0's memory")
    make = partial(made, task, name, several=ONLY not in states)
    found = attempted(make, needed=False)
    if found is None:
        whole = make()
        for key, model in whole.items():
            model.load_state_dict(states[key])
        return whole
    found.fill(states)
    return found.models


def _tie(ties: Sequence[Sequence[Place]]) -> None:
    """Register one tensor at all places that had one."""
    for first, *others in ties:
        for other in others:
            getattr(other.module, other.table)[other.name] = first.tensor


def _fill(place: Place, real: Callable[[View], Any]) -> None:
    fill(place.tensor, real(place.value))


def _become(stray: Any, view: View, real: Callable[[View], Any]) -> None:
    """Turn a tensor without content into one that has it, wherever the user's code keeps it."""
    import torch

    try:
        torch.utils.swap_tensors(stray, real(view).requires_grad_(stray.requires_grad))
    except RuntimeError as error:
        raise UserError(
            f"a tensor that the model keeps beside its parameters and buffers cannot be filled: {error}",
            "Set strategy.build to whole, or register it as a buffer.",
        ) from error


def _places(models: Models) -> Iterator[Place]:
    for model in models.values():
        for module in model.modules():
            for table in ("_parameters", "_buffers"):
                for name, value in getattr(module, table).items():
                    if value is not None:
                        yield Place(module, table, name, view_of(value) if value.is_meta else value)


def _ties(places: Sequence[Place]) -> list[list[Place]]:
    """Places that have one and the same tensor, first ones first."""
    groups: dict[int, list[Place]] = {}
    for place in places:
        groups.setdefault(id(place.tensor), []).append(place)
    return [group for group in groups.values() if len(group) > 1]
