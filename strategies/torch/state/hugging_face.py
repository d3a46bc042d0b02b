"""Folders of Hugging Face: weights in one file or in several with an index, beside the files that say what model they are of.

Importing this module imports no framework.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from dtrain.api.weights import Weights
from dtrain.checkpoint.tensor_file import SUFFIX

from . import tensor_files
from .tensor_files import TensorFiles

CONFIG = "config.json"
WEIGHTS = f"model{SUFFIX}"
FILES = (WEIGHTS, "pytorch_model.bin")
INDEX = ".index.json"
"""Ending of the file that says which tensor is in which of several files."""
SHARD_BYTES = 5 << 30
"""Of tensors in a file."""


def read(path: Path, of_file: Callable[[Path], TensorFiles]) -> TensorFiles:
    """Read a folder that `save_pretrained` wrote; raises `ValueError` if it is none."""
    if not (path / CONFIG).is_file():
        raise ValueError(f"a folder without {CONFIG} is none of Hugging Face's")
    for name in FILES:
        if (path / name).is_file():
            return of_file(path / name)
        index = path / f"{name}{INDEX}"
        if index.is_file():
            parts = sorted(set(json.loads(index.read_text())["weight_map"].values()))
            return functools.reduce(TensorFiles.joined, [of_file(path / Path(part).name) for part in parts])
    raise ValueError(f"there is no {' and no '.join(FILES)} in it")


def names_of(model: Any, ties: Sequence[Collection[str]]) -> dict[str, str] | None:
    """Name in the files → name in the model, of the weights that `model.save_pretrained` writes; None if it does more than rename them."""
    try:
        from transformers import PreTrainedModel
        from transformers.core_model_loading import revert_weight_conversion
    except ImportError:
        return None
    if not isinstance(model, PreTrainedModel) or type(model).save_pretrained is not PreTrainedModel.save_pretrained:
        return None
    if getattr(model, "hf_quantizer", None) is not None or getattr(model, "_hf_peft_config_loaded", False):
        return None
    left_out = set(model._keys_to_ignore_on_save or ())
    derived = set(model.all_tied_weights_keys or ())
    for group in ties:
        stands = next((name for name in group if name not in derived), next(iter(group)))
        left_out |= {name for name in group if name != stands}
    state = {name: value.to("meta") for name, value in model.state_dict().items() if name not in left_out}
    names = {id(value): name for name, value in state.items()}
    found = {name: names.get(id(value)) for name, value in revert_weight_conversion(model, dict(state)).items()}
    return {name: own for name, own in found.items() if own} if None not in found.values() else None


def write(
    path: Path, weights: Weights, model: Any, names: Mapping[str, str], ties: Sequence[Collection[str]], metadata: Mapping[str, str]
) -> None:  # fmt: skip
    """Write a new folder, the weights one after the other; see `names_of`."""
    model.save_pretrained(path, state_dict={})
    state = model.state_dict()
    shards: list[dict[str, Any]] = [{}]
    room = SHARD_BYTES
    for name, own in names.items():
        size = state[own].nbytes
        if shards[-1] and size > room:
            shards.append({})
            room = SHARD_BYTES
        shards[-1][name] = state[own]
        room -= size
    alike = {name: group for group in ties for name in group}
    sources = {name: next(one for one in (own, *alike.get(own, ())) if one in weights) for name, own in names.items()}
    files = [f"model-{number:05}-of-{len(shards):05}{SUFFIX}" for number in range(1, len(shards) + 1)]
    if len(shards) == 1:
        files = [WEIGHTS]
    else:
        index = {
            "metadata": {"total_size": sum(state[own].nbytes for own in names.values())},
            "weight_map": {name: file for file, shard in zip(files, shards, strict=True) for name in shard},
        }
        (path / f"{WEIGHTS}{INDEX}").write_text(json.dumps(index, indent=2) + "\n")
    for file, shard in zip(files, shards, strict=True):
        tensor_files.write(path / file, weights, shard, metadata, sources)
