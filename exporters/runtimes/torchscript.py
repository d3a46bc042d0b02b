"""Runs a file of TorchScript."""

from __future__ import annotations

import warnings
from typing import Any


def load(path: str) -> Any:
    """Return a function from input arrays to output arrays."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is deprecated
        module = torch.jit.load(path)

    def run(inputs: list[Any]) -> list[Any]:
        with torch.inference_mode():
            given = module(*map(torch.from_numpy, inputs))
        return [output.numpy() for output in (given if isinstance(given, tuple | list) else (given,))]

    return run


def versions() -> dict[str, str]:
    """Return the versions of the runtime."""
    import torch

    return {"torch": str(torch.__version__)}
