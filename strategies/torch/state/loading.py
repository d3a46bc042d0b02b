"""Putting weights into a model of torch, the tensors of one module at a time, on the devices that a map names.

Importing this module imports no framework.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from dtrain.api.weights import DeviceMap, Weights
from dtrain.common.errors import UserError

from .tensor_files import TensorFiles


class Devices:
    """The devices of a map: the longest name of a module that a tensor's name begins with says where it goes."""

    def __init__(self, given: DeviceMap) -> None:
        import torch

        named = given if isinstance(given, Mapping) else {"": given}
        try:
            self._devices = {name: torch.device(device) for name, device in named.items()}
        except (RuntimeError, TypeError) as error:
            raise UserError(
                f"device_map: {str(error).partition(chr(10))[0]}",
                "Give a device ('cuda:0') or {name of a module: device}; accelerate.infer_auto_device_map(model) makes one.",
            ) from None

    def of(self, name: str) -> Any:
        """The device of a tensor; raises `UserError` if the map has none for it."""
        path = name
        while path not in self._devices:
            if not path:
                raise UserError(f"device_map has no device for {name}", "Name its module, or '' for all others.")
            path = path.rpartition(".")[0]
        return self._devices[path]


def load(
    module: Any, weights: Weights, names: Mapping[str, str], ties: Sequence[Collection[str]], devices: Devices | None
) -> None:
    """Load weights (name in the module → name in `weights`). With `devices` each tensor is a new one, on its device; raises `UserError` for
    those that stay without content."""
    import torch

    with torch.no_grad():
        if devices is None and type(module).load_state_dict is not torch.nn.Module.load_state_dict:
            module.load_state_dict({name: weights[source] for name, source in names.items()}, strict=False)
            return
        _load_by_module(module, weights, names, devices)
        if devices:
            for group in ties:
                _tie(module, group, next((name for name in group if name in names), ""))
            _place_rest(module, devices)


def _load_by_module(module: Any, weights: Weights, names: Mapping[str, str], devices: Devices | None) -> None:
    """Call what `load_state_dict` calls for each module, so that no more than its own tensors are in memory."""
    from torch.nn.modules.module import _IncompatibleKeys

    parts = dict(module.named_modules(remove_duplicate=False))
    own: dict[str, list[str]] = defaultdict(list)
    for name in names:
        path = name.rpartition(".")[0]
        while path not in parts:
            path = path.rpartition(".")[0]
        own[path].append(name)
    errors: list[str] = []
    strict = False
    for path, found in own.items():
        values = {name: _value(weights[names[name]], name, module, devices) for name in found}
        prefix, settings = f"{path}." if path else "", {"assign_to_params_buffers": devices is not None}
        parts[path]._load_from_state_dict(values, prefix, settings, strict, [], [], errors)
        if isinstance(weights, TensorFiles):
            for name in found:
                weights.leave(names[name])
    if errors:
        raise UserError("the weights cannot be loaded:\n  " + "\n  ".join(errors))
    for part in reversed(parts.values()):
        for hook in part._load_state_dict_post_hooks.values():
            hook(part, _IncompatibleKeys([], []))


def _value(value: Any, name: str, module: Any, devices: Devices | None) -> Any:
    """A weight, on its device as a tensor of its own."""
    if devices is None or not hasattr(value, "dtype"):
        return value
    here = _at(module, name)
    return value.to(devices.of(name), here.dtype if hasattr(here, "dtype") else value.dtype, copy=True)


def _place_rest(module: Any, devices: Devices) -> None:
    """Move what was not loaded to its device, too."""
    import torch

    left = []
    for part, table, key, name in _tensors(module):
        value = table[key]
        if value.is_meta:
            left.append(name)
        elif value.device != devices.of(name):
            moved = value.detach().to(devices.of(name))
            table[key] = torch.nn.Parameter(moved, value.requires_grad) if key in part._parameters else moved
    if left:
        raise UserError(
            f"no weight fills {', '.join(left[:5])}{f' and {len(left) - 5} more' if left[5:] else ''}, which the model has on the meta device",
            "Build them on the CPU: accelerate.init_empty_weights() leaves buffers there.",
        )


def _tensors(module: Any) -> Iterator[tuple[Any, dict[str, Any], str, str]]:
    """Yield each tensor as its module, the table and the key that it is registered under, and its whole name."""
    for path, part in module.named_modules():
        for table in (part._parameters, part._buffers):
            for key in [key for key, value in table.items() if value is not None]:
                yield part, table, key, f"{path}.{key}".removeprefix(".")


def _tie(module: Any, group: Collection[str], loaded: str) -> None:
    """Register the tensor that was loaded under all names of it."""
    if not loaded:
        return
    tensor = _at(module, loaded)
    for name in group:
        path, _, key = name.rpartition(".")
        setattr(module.get_submodule(path), key, tensor)


def _at(module: Any, name: str) -> Any:
    """The tensor of this name; None if it is no attribute of its module."""
    path, _, key = name.rpartition(".")
    try:
        return getattr(module.get_submodule(path), key, None)
    except AttributeError:
        return None
