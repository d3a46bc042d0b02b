"""Loads checkpoints one after the other, whoever wrote them, and prints a digest of the whole state each time."""

import hashlib
from pathlib import Path

import torch
from tiny_mlp import Mlp
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict


def flattened(state, name=""):
    if isinstance(state, torch.Tensor):
        yield name, state.detach().float().contiguous().numpy().tobytes()
    elif isinstance(state, dict):
        for key in sorted(state, key=str):
            yield from flattened(state[key], f"{name}.{key}")
    elif isinstance(state, float | int | bool):
        yield name, repr(float(state)).encode()


def train(context):
    task = Mlp()
    model, optimizer = context.prepare(task.model, task.optimizer)
    for folder in context.params["folders"]:
        context.backend.load(Path(folder))
        whole = get_state_dict(model, optimizer, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
        if context.rank == 0:  # which alone gets the whole state
            digest = hashlib.sha256()
            for name, data in flattened({"model": whole[0], "optimizer": whole[1]["state"]}):
                digest.update(name.encode() + data)
            print(f"digest {Path(folder).parent.parent.parent.name} {digest.hexdigest()}")
