"""PyTorch's weights outside of a training: of checkpoints, of safetensors and state_dict files, of folders.

Importing this module imports no framework.
"""

from __future__ import annotations

import pickle
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

from dtrain.api.training_backend import nothing_to_fetch
from dtrain.api.weights import FOLDER, HINT, DeviceMap, Shape, Unmatched, Weights, compared
from dtrain.checkpoint.tensor_file import SUFFIX
from dtrain.common.errors import UserError
from dtrain.job.task_answers import gave

from ..train import deferred
from ..train.models import made
from . import hugging_face, loading, tensor_files
from .index import INDEX
from .inference import TorchInference
from .safe_reader import METADATA
from .state import ONLY, Stored, plain_name
from .tensor_files import TensorFiles

PICKLED = (".pt", ".pth", ".bin", ".ckpt")
NESTED = ("state_dict", "model_state_dict", "model")
"""Keys that a state dict often lies under in a file."""
WRAPPERS = ("module.", "_orig_mod.")
"""Prefixes that DDP and torch.compile put before every name."""


class TorchWeights:
    """State dicts of PyTorch modules."""

    framework: ClassVar[str] = "torch"
    written: ClassVar[Mapping[str, str]] = MappingProxyType({
        SUFFIX: "safetensors", ".pt": "state dict of torch.save", ".pth": "state dict of torch.save",
        FOLDER: "folder of Hugging Face, if the model has save_pretrained",
    })  # fmt: skip

    @staticmethod
    def wrote(files: Collection[str]) -> bool:
        return not {INDEX, METADATA}.isdisjoint(files)

    @staticmethod
    def read(folder: Path) -> Weights:
        return Stored(folder, None, nothing_to_fetch).weights()

    @staticmethod
    def read_file(path: Path, model: Callable[[], Any]) -> Weights:
        """A state dict may lie in a dict of `torch.save`, and begin with the names of wrappers."""
        try:
            found = hugging_face.read(path, _of_file) if path.is_dir() else _of_file(path)
        except (ValueError, RuntimeError, pickle.UnpicklingError, EOFError, KeyError) as error:
            text = str(error).partition("\n")[0] or type(error).__name__
            raise UserError(
                f"{path} holds no weights that can be read: {text}",
                "Give a .safetensors file, a state dict of torch.save (tensors only), or a folder of Hugging Face with config.json.",
            ) from None
        for wrapper in WRAPPERS:
            if found and all(name.startswith(wrapper) for name in found):
                found = found.without(wrapper)
        return found

    @staticmethod
    def shapes(model: Any) -> dict[str, Shape]:
        return {name: _shape(value) for name, value in _state(model).items()}

    @staticmethod
    def load_into(
        model: Any, weights: Weights, *, strict: bool, source: str, device_map: DeviceMap | None = None
    ) -> Unmatched:
        here = TorchWeights.shapes(model)
        there = tensor_files.shapes(weights)
        ties = tied(model)
        found = compared(there, here, ties)
        if strict:
            found.refuse(source, "the model", HINT)
        devices = None if device_map is None else loading.Devices(device_map)
        for prefix, module in _modules(model):
            names = [name for name in there if name.startswith(prefix) and here.get(name) == there[name]]
            own_ties = [[name.removeprefix(prefix) for name in group] for group in ties if group[0].startswith(prefix)]
            loading.load(module, weights, {name.removeprefix(prefix): name for name in names}, own_ties, devices)
        return found

    @staticmethod
    def build(task: Any, name: str, *, empty: bool = False) -> Any:
        make = partial(made, task, name, several=hasattr(task, "models"))
        found = deferred.attempted(make, needed=False) if empty else None
        streamed = found and all(hugging_face.names_of(one, tied(one)) for one in found.models.values())
        models = found.models if found and streamed else make()
        for model in models.values():
            model.eval()
        return models.get(ONLY, models)

    @staticmethod
    def inference(model: Any) -> TorchInference:
        return TorchInference(model)

    @staticmethod
    def needs_model(ending: str) -> bool:
        return ending == FOLDER

    @staticmethod
    def write(
        path: Path, weights: Weights, model: Any, metadata: Mapping[str, str], source: str = "the weights"
    ) -> list[str]:
        import torch

        if model is not None:
            _write_folder(path, weights, model, metadata, source)
            return []
        if path.suffix != SUFFIX:
            torch.save(dict(weights), path)
            return []
        empty = weights.empty() if isinstance(weights, TensorFiles) else weights
        tensors = {name: value for name, value in empty.items() if isinstance(value, torch.Tensor)}
        tensor_files.write(path, weights, tensors, metadata)
        left = [name for name in weights if name not in tensors]
        return [f"{', '.join(left)}: no tensors, which a safetensors file holds alone (.pt holds all)"] if left else []


def _write_folder(path: Path, weights: Weights, model: Any, metadata: Mapping[str, str], source: str) -> None:
    """Write a folder of Hugging Face, tensor by tensor if `model.save_pretrained` changes nothing but names."""
    if not hasattr(model, "save_pretrained"):
        raise UserError(
            f"{type(model).__name__} has no save_pretrained, so that there is no folder of Hugging Face to write",
            "Write its weights: --to model.safetensors or --to state_dict.pt.",
        )
    ties = tied(model)
    names = hugging_face.names_of(model, ties)
    if names is None:
        TorchWeights.load_into(model, weights, strict=True, source=source)
        model.save_pretrained(path)
        return
    compared(tensor_files.shapes(weights), TorchWeights.shapes(model), ties).refuse(source, "the model", HINT)
    hugging_face.write(path, weights, model, names, ties, metadata)


def tied(model: Any) -> list[list[str]]:
    """Names of the parameters that are one tensor, for each such tensor."""
    names: dict[int, list[str]] = defaultdict(list)
    for prefix, module in _modules(model):
        for name, parameter in module.named_parameters(remove_duplicate=False):
            names[id(parameter)].append(prefix + plain_name(name))
    return [group for group in names.values() if len(group) > 1]


def _modules(model: Any) -> Iterable[tuple[str, Any]]:
    """Yield each module with the beginning of its names."""
    import torch

    several = isinstance(model, Mapping)
    modules = {f"{name}.": module for name, module in model.items()} if several else {"": model}
    for module in modules.values():
        if not isinstance(module, torch.nn.Module):
            raise UserError(f"these are weights of PyTorch, and the model is {gave(module)}, no torch.nn.Module")
    return modules.items()


def _state(model: Any) -> dict[str, Any]:
    return {
        f"{prefix}{name}": value for prefix, module in _modules(model) for name, value in module.state_dict().items()
    }


def _shape(value: Any) -> Shape:
    return tuple(value.shape) if hasattr(value, "shape") else ()


def _of_file(path: Path) -> TensorFiles:
    import torch

    if path.suffix == SUFFIX:
        return tensor_files.of_file(path)
    if path.suffix not in PICKLED:
        raise ValueError(f"its name ends with none of {', '.join((SUFFIX, *PICKLED))}")
    found = torch.load(path, map_location="cpu", weights_only=True)
    for key in NESTED:
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    if not isinstance(found, Mapping) or not found or not all(isinstance(name, str) for name in found):
        raise ValueError(f"it holds {gave(found)}, not a state dict")
    return TensorFiles({}, found)
