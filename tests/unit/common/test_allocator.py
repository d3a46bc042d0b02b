"""What a training's process frees and takes again costs no page faults."""

from __future__ import annotations

import subprocess
import sys

import pytest

from dtrain.common.allocator import keep_freed_memory

PROGRAM = """
import resource, numpy
from dtrain.common.allocator import keep_freed_memory
if {keep}:
    assert keep_freed_memory({{}})
def faults():
    begin = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        parts = [numpy.ones(1 << 20) for _ in range(3)]
        del parts
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - begin
faults()
print(faults())
"""
PAGES = 10 * 3 * (8 << 20) // 4096


def page_faults(*, keep: bool) -> int:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(keep=keep)], capture_output=True, text=True, check=True, env={}
    )
    return int(done.stdout)


def test_freed_memory_is_used_again() -> None:
    assert page_faults(keep=True) < PAGES / 100 < page_faults(keep=False)


@pytest.mark.parametrize("name", ["MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES", "LD_PRELOAD"])
def test_who_has_chosen_an_allocator_keeps_it(name: str) -> None:
    assert not keep_freed_memory({name: "x"})
