"""How scripts, tasks and functions end when something in them or before them fails, and whom the failure names."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from live import PROGRAMS, Live, finished, start


def run(folder: Path, text: str, *, code: int, **sections: Any) -> Live:
    """A script of this text, to its end."""
    with running(folder, text, **sections) as live:
        live.finish(code)
    return live


def running(folder: Path, text: str, *, workers: int = 2, **sections: Any) -> AbstractContextManager[Live]:
    """A script of this text."""
    (folder / "program.py").write_text(text)
    lines = ["script: program.py", f"resources: {{workers: {workers}}}"]
    lines += [f"{key}: {value}" for key, value in sections.items()]
    (folder / "r.yaml").write_text("\n".join(lines) + "\n")
    return start(str(folder / "r.yaml"), runs=folder / "runs")


LOST = """
import os, socket, time
if os.environ["RANK"] == "1":
    raise SystemExit(0)
time.sleep(0.5)
raise RuntimeError("Connection closed by peer")
"""


def test_a_rank_that_left_early_is_named_and_not_the_one_that_lost_it(tmp_path: Path) -> None:
    live = run(tmp_path, LOST, code=1)
    failure = live.events("failure_occurred")[0]
    assert (failure["kind"], failure["rank"]) == ("chance", 1)
    assert failure["message"].startswith(
        "exited with code 0 while others still ran, which then failed: rank 0: RuntimeError: Connection"
    )
    assert len(live.events("attempt_started")) == 2, "a confirming retry"


def test_a_rank_that_left_early_is_named_in_a_hang_of_the_others(tmp_path: Path) -> None:
    text = "import os, time\ntime.sleep(1000 * (os.environ['RANK'] == '0'))\n"
    live = run(tmp_path, text, code=3, recovery="{hang_seconds: 1, restarts: 0}")
    failure = live.events("failure_occurred")[0]
    assert (failure["kind"], failure["rank"]) == ("hang", 0)
    assert "rank 1 had exited with code 0" in failure["message"]


def test_ranks_of_a_script_may_end_at_different_times(tmp_path: Path) -> None:
    live = run(tmp_path, "import os, time\ntime.sleep(int(os.environ['RANK']))\n", code=0)
    assert not live.events("failure_occurred")


@pytest.mark.parametrize(
    ("how", "words"),
    [("leave", "the code called sys.exit(0) before the run's steps were done"), ("vanish", "exited with code 0 before the run's steps were done")],
)  # fmt: skip
def test_a_worker_of_a_task_that_leaves_with_0_too_early_is_to_blame(tmp_path: Path, how: str, words: str) -> None:
    options = ("--set", "params.fail_at=10", "--set", f"params.fail_how={how}", "--set", "params.fail_rank=1")
    live = finished(str(PROGRAMS / "tiny.yaml"), *options, runs=tmp_path, code=1)
    failure = live.events("failure_occurred")[0]
    assert (failure["kind"], failure["rank"]) == ("bug", 1)
    assert words in failure["message"]
    assert len(live.events("attempt_started")) == 1


def test_exit_codes_that_ask_for_it_are_retried_and_no_others(tmp_path: Path) -> None:
    text = "import os, sys\nsys.exit(75 if os.environ['DTRAIN_ATTEMPT'] < '4' else 0)\n"
    live = run(tmp_path, text, code=0, recovery="{retry_exit_codes: [75, 76], backoff_seconds: 0.1}")
    assert [event["kind"] for event in live.events("failure_occurred")] == ["crash"] * 3
    live = run(tmp_path, text, code=1, recovery="{retry_exit_codes: [76]}")
    assert live.events("failure_occurred")[0]["kind"] == "bug"


def test_a_preload_that_raises_ends_the_run_soon_with_its_traceback(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("raise OSError('libcudart.so.99: cannot open shared object file')\n")
    live = run(tmp_path, "print('never')\n", code=1, preload="[broken]", env=f"{{PYTHONPATH: '{tmp_path}'}}")
    failure = live.events("failure_occurred")[0]
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
    failure = live.events("failure_occurred")[0]
    assert (failure["kind"], failure["node"]) == ("hang", "node0")
    assert "started no workers within 3 s (recovery.provision_seconds)" in failure["message"]
    assert "endless.py" in live.agent_logs()


def test_tracebacks_of_a_script_are_as_pythons_and_alone(tmp_path: Path) -> None:
    text = "import json\ndef read():\n    return json.loads('{')\nread()\n"
    live = run(tmp_path, text, code=1, workers=1)
    failure = live.events("failure_occurred")[0]
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
    assert live.events("failure_occurred")[0]["kind"] == "out of memory"


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
    failure = live.events("failure_occurred")[0]
    assert (failure["kind"], failure["rank"], failure["where"]) == ("bug", 1, "program.py:11 in main")
    assert failure["message"] == "ValueError: recorded"
    assert "recorded" in live.run.error_file(1).read_text()


EQUAL = """
import os, time
from pathlib import Path

print("reading shard", os.environ["RANK"], flush=True)
Path("up-" + os.environ["RANK"]).touch()
while len(list(Path(".").glob("up-*"))) < 3:
    time.sleep(0.001)
def convert(text):
    return int(text)
convert("x" + os.environ["RANK"])
"""


def test_equal_errors_of_ranks_are_told_once_with_the_end_of_a_log(tmp_path: Path) -> None:
    with running(tmp_path, EQUAL, workers=3) as live:
        out = live.finish(code=1)
    (failure,) = live.events("failure_occurred")
    first = failure["rank"]
    assert (failure["kind"], failure["where"]) == ("bug", "program.py:10 in convert")
    others = [rank for rank in range(3) if rank != first]
    assert (failure["same"], failure["others"]) == (others, {})
    assert failure["log_tail"] == f"reading shard {first}"
    named = {0: "ranks 1, 2", 1: "ranks 0, 2", 2: "ranks 0, 1"}[first]
    assert f"; {named}: the same\n" in out
    assert (
        f"the last lines of rank {first}'s log (dtrain logs --rank {first}):\n  | reading shard {first}\n\nTraceback"
        in out
    )


PEERS = """
import os, sys
import torch
import torch.distributed as dist

def step(number):
    if number == 3 and dist.get_rank() == 1:
        print("batch 3 is broken", flush=True)
        raise ValueError("no such label: 17")
    dist.all_reduce(torch.ones(1))

dist.init_process_group("gloo")
for number in range(10):
    step(number)
"""


def test_the_rank_that_failed_first_is_named_and_not_those_that_lost_it(tmp_path: Path) -> None:
    live = run(tmp_path, PEERS, code=1, workers=3)
    (failure,) = live.events("failure_occurred")
    assert (failure["kind"], failure["rank"], failure["where"]) == ("bug", 1, "program.py:9 in step")
    assert failure["message"] == "ValueError: no such label: 17"
    assert not failure["same"]
    assert set(failure["others"]) <= {"lost another worker"}
    assert failure["log_tail"] == "batch 3 is broken"


def test_a_program_of_another_language_is_explained_by_its_last_lines(tmp_path: Path) -> None:
    program = tmp_path / "program.sh"
    program.write_text(
        '#!/bin/sh\n[ "$RANK" = 1 ] || sleep 1000\necho opening data\necho data.bin: no such file >&2\nexit 3\n'
    )
    program.chmod(0o755)
    (tmp_path / "r.yaml").write_text("script: program.sh\nresources: {workers: 2}\n")
    with start(str(tmp_path / "r.yaml"), runs=tmp_path / "runs") as live:
        out = live.finish(code=1)
    assert "bug: rank 1 exited with code 3" in out
    assert "  | opening data\n  | data.bin: no such file\n" in out


HANGS = """
import time
import torch
import torch.distributed as dist

def load_image(number):
    if number == 3 and dist.get_rank() == 1:
        time.sleep(1000)

def step(number):
    load_image(number)
    dist.all_reduce(torch.ones(1))

dist.init_process_group("gloo")
for number in range(10):
    step(number)
"""


def test_a_hang_says_who_waits_in_which_collective_and_who_did_not_join(tmp_path: Path) -> None:
    live = run(tmp_path, HANGS, code=3, workers=3, recovery="{hang_seconds: 3, restarts: 0}")
    (failure,) = live.events("failure_occurred")
    assert (failure["kind"], failure["rank"]) == ("hang", 1)
    assert failure["message"] == (
        "the ranks made no step, no output and used no CPU time for 3 s: ranks 0, 2 wait in all_reduce; "
        "rank 1 is in load_image (program.py:8) and did not join (all stacks are in the logs)"
    )
    assert (failure["same"], failure["others"]) == ([], {})
    assert "in load_image" in live.output(1)
    assert "in all_reduce" in live.output(0)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_hang_of_a_task_names_the_line_of_its_code(tmp_path: Path, strategy: str) -> None:
    options = (
        "params.fail_at=10",
        "params.fail_how=wait",
        "params.fail_rank=1",
        "recovery.hang_seconds=3",
        "recovery.restarts=0",
    )
    wanted = [part for one in (*options, f"strategy={strategy}") for part in ("--set", one)]
    live = finished(str(PROGRAMS / "tiny.yaml"), *wanted, runs=tmp_path, code=3)
    (failure,) = live.events("failure_occurred")
    assert (failure["kind"], failure["rank"]) == ("hang", 1)
    assert "; rank 1 is in fail (tiny.py:51) and did not join" in failure["message"]
    assert ": rank 0 waits in " in failure["message"]
