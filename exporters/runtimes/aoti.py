"""Runs a package of AOTInductor."""

from __future__ import annotations

from typing import Any


def load(path: str) -> Any:
    """Return a function from input arrays to output arrays."""
    import torch

    model = torch._inductor.aoti_load_package(path)

    def run(inputs: list[Any]) -> list[Any]:
        with torch.inference_mode():
            return [output.numpy() for output in model(*map(torch.from_numpy, inputs))]

    return run


def versions() -> dict[str, str]:
    """Return the versions of the runtime."""
    import torch

    return {"torch": str(torch.__version__)}
