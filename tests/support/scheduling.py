"""How tests are shared among the workers of pytest-xdist: those that share something stay together, the longest begin first."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

from xdist.scheduler.loadscope import LoadScopeScheduling

ROOT = Path(__file__).parents[2]
SHARED = re.compile(r'scope="(module|class)"|\bdigits_of_|^@cache\b|xdist_group', re.MULTILINE)
"""What a file has whose tests share something that is made once for all of them, or must not run at once."""


@cache
def shares(file: str) -> bool:
    """Whether the tests of a file share something."""
    return bool(SHARED.search((ROOT / file).read_text()))


ON_RAY = re.compile(r"/ray/|\[ray-")
"""Tests of Ray, in the names of their files or of their parameters: every node of a cluster keeps a dozen processes busy, and is
taken for dead if they are late, so there is one cluster at a time."""


class ByWhatIsShared(LoadScopeScheduling):  # type: ignore[misc]
    """Gives the tests of a file that share something to one worker, and every other test to whoever is free."""

    def __init__(self, config: Any, log: Any) -> None:
        super().__init__(config, log)
        config.option.loadscopereorder = False  # the tests are in their order already

    def _split_scope(self, nodeid: str) -> str:
        if ON_RAY.search(nodeid):
            return "ray"
        file = nodeid.partition("::")[0]
        return file if shares(file) else nodeid
