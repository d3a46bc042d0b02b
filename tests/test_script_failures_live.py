"""How scripts, tasks and functions end when something in them or before them fails, and whom the failure names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from live import PROGRAMS, Live, finished


def run(folder: Path, text: str, *, code: int, workers: int = 2, **sections: Any) -> Live:
    """A script of this text, to its end."""
    (folder / "program.py").write_text(text)
    lines = ["script: program.py", f"resources: {{workers: {workers}}}"]
    lines += [f"{key}: {value}" for key, value in sections.items()]
    (folder / "r.yaml").write_text("\n".join(lines) + "\n")
    return finished(str(folder / "r.yaml"), runs=folder / "runs", code=code)


LOST = """
import os, socket, time
if os.environ["RANK"] == "1":
    raise SystemExit(0)
time.sleep(0.5)
raise RuntimeError("Connection closed by peer")
"""


def test_a_rank_that_left_early_is_named_and_not_the_one_that_lost_it(tmp_path: Path) -> None:
    live = run(tmp_path, LOST, code=1)
    failure = live.events("failure")[0]
    assert (failure["kind"], failure["rank"]) == ("chance", 1)
    assert failure["message"].startswith(
        "exited with code 0 while others still ran, which then failed: rank 0: RuntimeError: Connection"
    )
    assert len(live.events("attempt")) == 2, "a confirming retry"


def test_a_rank_that_left_early_is_named_in_a_hang_of_the_others(tmp_path: Path) -> None:
    text = "import os, time\ntime.sleep(1000 * (os.environ['RANK'] == '0'))\n"
    live = run(tmp_path, text, code=3, recovery="{hang_seconds: 1, restarts: 0}")
    failure = live.events("failure")[0]
    assert (failure["kind"], failure["rank"]) == ("hang", 0)
    assert "rank 1 had exited with code 0" in failure["message"]


def test_ranks_of_a_script_may_end_at_different_times(tmp_path: Path) -> None:
    live = run(tmp_path, "import os, time\ntime.sleep(int(os.environ['RANK']))\n", code=0)
    assert not live.events("failure")


@pytest.mark.parametrize(
    ("how", "words"),
    [("leave", "the code called sys.exit(0) before the run's steps were done"), ("vanish", "exited with code 0 before the run's steps were done")],
)  # fmt: skip
def test_a_worker_of_a_task_that_leaves_with_0_too_early_is_to_blame(tmp_path: Path, how: str, words: str) -> None:
    options = ("--set", "params.fail_at=10", "--set", f"params.fail_how={how}", "--set", "params.fail_rank=1")
    live = finished(str(PROGRAMS / "tiny.yaml"), *options, runs=tmp_path, code=1)
    failure = live.events("failure")[0]
    assert (failure["kind"], failure["rank"]) == ("bug", 1)
    assert words in failure["message"]
    assert len(live.events("attempt")) == 1


def test_exit_codes_that_ask_for_it_are_retried_and_no_others(tmp_path: Path) -> None:
    text = "import os, sys\nsys.exit(75 if os.environ['DTRAIN_ATTEMPT'] < '4' else 0)\n"
    live = run(tmp_path, text, code=0, recovery="{retry_exit_codes: [75, 76], backoff_seconds: 0.1}")
    assert [event["kind"] for event in live.events("failure")] == ["crash"] * 3
    live = run(tmp_path, text, code=1, recovery="{retry_exit_codes: [76]}")
    assert live.events("failure")[0]["kind"] == "bug"


def test_a_preload_that_raises_ends_the_run_soon_with_its_traceback(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("raise OSError('libcudart.so.99: cannot open shared object file')\n")
    live = run(tmp_path, "print('never')\n", code=1, preload="[broken]", env=f"{{PYTHONPATH: '{tmp_path}'}}")
    failure = live.events("failure")[0]
    assert failure["kind"] == "set-up"
    assert "importing broken before the workers were forked: OSError: libcudart.so.99" in failure["message"]
    assert "broken.py" in failure["traceback"]


def test_a_preload_that_never_ends_is_a_hang(tmp_path: Path) -> None:
    (tmp_path / "endless.py").write_text("import time\ntime.sleep(1000)\n")
    sections = {
        "preload": "[endless]",
        "env": f"{{PYTHONPATH: '{tmp_path}'}}",
        "recovery": "{provision_seconds: 3, restarts: 0}",
    }
    live = run(tmp_path, "print('never')\n", code=3, workers=2, **sections)
    failure = live.events("failure")[0]
    assert (failure["kind"], failure["node"]) == ("hang", "node0")
    assert "started no workers within 3 s (recovery.provision_seconds)" in failure["message"]
    assert "endless.py" in live.agent_logs()


def test_tracebacks_of_a_script_are_as_pythons_and_alone(tmp_path: Path) -> None:
    text = "import json\ndef read():\n    return json.loads('{')\nread()\n"
    live = run(tmp_path, text, code=1, workers=1)
    failure = live.events("failure")[0]
    lines = failure["traceback"].splitlines()
    assert [line for line in lines if line.startswith("  File")] == [
        f'  File "{tmp_path}/program.py", line 4, in <module>', f'  File "{tmp_path}/program.py", line 3, in read'
    ]  # fmt: skip
    assert failure["where"] == "program.py:3 in read"
    log = live.output(0)
    assert log.count("Traceback (most recent call last)") == 1
    assert "json/decoder.py" in log
    assert "dtrain/worker" not in log


def test_torchs_allocator_for_the_cpu_out_of_memory_is_no_bug(tmp_path: Path) -> None:
    live = run(tmp_path, "import torch\ntorch.empty(1 << 55, dtype=torch.uint8)\n", code=1, workers=1)
    assert live.events("failure")[0]["kind"] == "out of memory"


RECORDED = """
import os
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.errors import record

@record
def main():
    dist.init_process_group("gloo")
    assert os.environ["TORCHELASTIC_MAX_RESTARTS"] == "5"
    if dist.get_rank() == 1:
        raise ValueError("recorded")
    dist.barrier()

main()
"""


def test_record_of_torch_elastic_works(tmp_path: Path) -> None:
    live = run(tmp_path, RECORDED, code=1)
    failure = live.events("failure")[0]
    assert (failure["kind"], failure["rank"], failure["where"]) == ("bug", 1, "program.py:11 in main")
    assert failure["message"] == "ValueError: recorded"
    assert "recorded" in live.run.error_file(1).read_text()
