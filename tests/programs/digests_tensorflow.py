"""Loads checkpoints one after the other, whoever wrote them, and prints a digest of the whole state each time."""

import hashlib
from pathlib import Path

from tiny_mlp_tf import Mlp


def train(context):
    task = Mlp()
    context.prepare(task.model, task.optimizer)
    for folder in context.params["folders"]:
        context.backend.load(Path(folder))
        digest = hashlib.sha256()
        for part, arrays in sorted(context.backend.arrays().items()):
            for name, array in sorted(arrays.items()):
                digest.update(f"{part} {name}".encode() + array.tobytes())
        if context.rank == 0:
            print(f"digest {Path(folder).parent.parent.parent.name} {digest.hexdigest()}")
