"""One recipe trains on the local machine, on Ray and on SLURM, and survives what goes wrong there.

`dtrain.load` and `dtrain.load_weights` read the weights of a run in any Python process; everything else is behind the command line.
"""

from __future__ import annotations

import os
from typing import Any

__all__ = ["load", "load_weights"]


def load(
    run: str | os.PathLike[str], step: int | None = None, best: str | None = None, *,
    runs: str | os.PathLike[str] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """The weights of a run on the CPU: a state dict of PyTorch, or numpy arrays in the order of a Keras model's `weights`.

    `run` is an id, a prefix of one, `last`, a run folder or a URL; `runs` the folder of runs (`./runs` or DTRAIN_RUNS). The newest
    checkpoint, or the one of a `step`, or the `best` by a metric of the evaluations; its files are verified by their digests."""
    from dtrain.weights import source

    return source.load(run, step, best, runs=runs)


def load_weights(
    model: Any, run: str | os.PathLike[str], step: int | None = None, best: str | None = None, *, strict: bool = True,
    runs: str | os.PathLike[str] | None = None,
) -> Any:  # fmt: skip
    """Put the weights of a run into a PyTorch module or a Keras model (a dict of modules if the run trained several), and give it back.

    Raises an error that lists every name and shape that does not fit; with `strict=False`, what fits is loaded. See `load`."""
    from dtrain.weights import source

    return source.load_weights(model, run, step, best, strict=strict, runs=runs)
