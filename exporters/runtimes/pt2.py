"""Runs a .pt2 file of torch.export."""

from __future__ import annotations

from typing import Any


def load(path: str) -> Any:
    """Return a function from input arrays to output arrays."""
    import torch

    module = torch.export.load(path).module()

    def run(inputs: list[Any]) -> list[Any]:
        with torch.inference_mode():
            return [output.numpy() for output in module(*map(torch.from_numpy, inputs))]

    return run


def versions() -> dict[str, str]:
    """Return the versions of the runtime."""
    import torch

    return {"torch": str(torch.__version__)}
