"""The sum of sharded gradients on CPUs has the bits of torch's own, and takes no copy."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from dtrain.strategies.torch.train import host_reduction

RANKS, ELEMENTS = 3, 3 << 22
SIZE = 4 * ELEMENTS


def resident(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(name))


def reduced(rank: int, store: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(store, RANKS), rank=rank, world_size=RANKS)
    group, own = dist.group.WORLD, host_reduction.reduce_scatter()
    for dtype in (torch.float32, torch.bfloat16):
        given = torch.randn(ELEMENTS, generator=torch.Generator().manual_seed(rank)).to(dtype)
        expected, found = torch.empty(2, ELEMENTS // RANKS, dtype=dtype)
        dist.reduce_scatter_single(expected, given, group=group)
        Path("/proc/self/clear_refs").write_text("5")
        before = resident("VmRSS")
        own(found, given, group, dist.ReduceOp.SUM)
        assert resident("VmHWM") - before < SIZE / 2, "torch's own takes all of it once more"
        assert torch.equal(found, expected)
        assert not given.untyped_storage().nbytes()
    dist.destroy_process_group()


def test_gradients_are_summed_in_their_place_with_the_bits_of_gloo(tmp_path: Path) -> None:
    mp.start_processes(reduced, (str(tmp_path / "store"),), nprocs=RANKS, start_method="fork")
