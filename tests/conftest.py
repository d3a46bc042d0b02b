"""Markers by folder: a folder named like a marker (`live`, `slurm`, `gpu` …) gives it to every test below it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import warm
from _pytest.mark.expression import Expression

HERE = Path(__file__).parent
BY_FOLDER = {
    "clusters": "live", "gpu": "gpu", "live": "live", "newcomer": "live", "oracle": "live", "ray": "ray", "slurm": "slurm", "tensorflow": "tensorflow",
}  # fmt: skip
"""Folder → marker. `tests/unit` mirrors `dtrain/`, so a test of SLURM's script is in unit/clusters and needs no SLURM."""
BY_HAND = ("extras", "horovod", "live", "quiet", "ray", "slurm", "tensorflow")
"""Markers that a test in any folder may have."""


def markers_of(path: Path) -> set[str]:
    """The markers that a file's folders give."""
    return {BY_FOLDER[name] for name in path.relative_to(HERE).parts[:-1] if name in BY_FOLDER}


def sets_of(names: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Every subset of the names."""
    for size in range(len(names) + 1):
        yield from combinations(names, size)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Skip files of which `-m` can select nothing: they import what may not be installed, and imports take time."""
    chosen = config.getoption("markexpr")
    if not chosen or collection_path.suffix != ".py":
        return None
    expression, given = Expression.compile(chosen), markers_of(collection_path)
    possible = any(expression.evaluate(lambda name, /, **_: name in {*given, *more}) for more in sets_of(BY_HAND))  # noqa: B023
    return None if possible else True


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give each test the markers of its folders."""
    for item in items:
        for name in markers_of(item.path):
            item.add_marker(name)


def pytest_configure(config: pytest.Config) -> None:
    """Have runs keep warm what they import, and start children alike however pytest itself was started."""
    for number in (signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_IGN:  # by `nohup`, or by a shell's `&`
            # Children inherit what is ignored and have the default for what is caught.
            signal.signal(number, lambda *_: None)
    if warm.FOLDER not in os.environ:
        config.add_cleanup(warm.begun())


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Share the tests out by what they share, whatever `--dist` says."""
    from scheduling import ByWhatIsShared

    return ByWhatIsShared(config, log)


@pytest.fixture(autouse=True)
def _environment() -> Iterator[None]:
    """Undo what a test, or a library that it calls, does to the environment: runs share what they import if theirs are equal."""
    before = dict(os.environ)
    yield
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)


@pytest.fixture(scope="session")
def digits_of_torch(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run of digits under DDP, trained once for all tests that only read it."""
    return _digits("digits_ddp", tmp_path_factory.mktemp("digits-of-torch"))


@pytest.fixture(scope="session")
def digits_of_tensorflow(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run of digits under MirroredStrategy, trained once for all tests that only read it."""
    return _digits("digits_mirrored", tmp_path_factory.mktemp("digits-of-tensorflow"))


def _digits(name: str, runs: Path) -> Any:
    from live import RECIPES, finished

    settings = ("train.steps=60", "train.evaluate_every=20", "checkpoint.every_steps=20")
    return finished(str(RECIPES / f"{name}.yaml"), *(part for one in settings for part in ("--set", one)), runs=runs)
