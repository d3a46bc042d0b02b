"""The global random generators that a user's code may draw from, seeded together."""

from __future__ import annotations

import random
import sys


def seed_host(seed: int) -> None:
    """Seed Python's and NumPy's global generators."""
    import numpy as np  # the launcher reads this module and is not to pay for numpy

    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)


def seed_all(seed: int) -> None:
    """Seed Python's and NumPy's global generators and, if this process has imported PyTorch, its CPU generator.

    The generator itself is seeded: `torch.manual_seed` costs a hundred times as much, and this runs once a sample."""
    seed_host(seed)
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.default_generator.manual_seed(seed)
