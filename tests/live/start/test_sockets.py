"""What a run on this machine listens on: the loopback alone, whatever trains."""

from __future__ import annotations

from pathlib import Path

import pytest
from live import PROGRAMS, process_tree, start
from processes import listening, open_to_others

RECIPE = str(PROGRAMS / "contract_torch.yaml")


@pytest.mark.parametrize(("nodes", "strategy"), [("1", "fsdp"), ("2", "ddp")])
def test_a_local_run_listens_on_the_loopback_alone(nodes: str, strategy: str, tmp_path: Path) -> None:
    options = ("--workers", "2", "--nodes", nodes, "--strategy", strategy, "--set", "params.pause=0.2")
    with start(RECIPE, *options, runs=tmp_path) as live:
        live.wait_step(3)
        pids = process_tree(live.process.pid)
        assert listening(pids), "the rendezvous at least"
        assert open_to_others(pids) == {}
        live.finish()
