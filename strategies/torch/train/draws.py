"""Random numbers that optimizers draw: the same on every rank, whatever each of them has drawn for its own samples.

Importing this module imports no framework.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from typing import Any

from dtrain.data.randomness import seed_host

TORCHS = "torch.optim."
"""Optimizers of these modules draw nothing."""


class Draws:
    """The global generators of a process while it trains."""

    def __init__(self, device: Any) -> None:
        self._cuda = device.type == "cuda"
        self._seed = 0
        self._before: list[Any] = []

    def seed(self, seed: int) -> None:
        """Seed torch's generators."""
        import torch

        torch.default_generator.manual_seed(seed)
        if self._cuda:
            torch.cuda.manual_seed(seed)

    def begin(self, seed: int) -> None:
        """All that optimizers draw in the next step follows from this seed, and from which optimizer of the step it is."""
        self._seed = seed

    def watch(self, optimizers: Iterable[Any], stepped: Callable[..., None]) -> None:
        """Call `stepped` after each step of these; before those of optimizers that are not torch's own set the generators, and restore
        them afterwards."""
        for optimizer in optimizers:
            steps = next(
                one for one in type(optimizer).__mro__ if "step" in vars(one) and "horovod" not in one.__module__
            )
            if not steps.__module__.startswith(TORCHS):
                optimizer.register_step_pre_hook(self._set)
                optimizer.register_step_post_hook(self._restore)
            optimizer.register_step_post_hook(stepped)

    def _set(self, *_: Any) -> None:
        import numpy as np
        import torch

        self._before = [random.getstate(), np.random.get_state(), torch.get_rng_state()]
        self._before += [torch.cuda.get_rng_state()] if self._cuda else []
        seed_host(self._seed)
        self.seed(self._seed)
        self._seed += 1

    def _restore(self, *_: Any) -> None:
        import numpy as np
        import torch

        host, arrays, own, *device = self._before
        random.setstate(host)
        np.random.set_state(arrays)
        torch.set_rng_state(own)
        if device:
            torch.cuda.set_rng_state(device[0])
