"""A script finds under dtrain the process that it finds under `python` and `torchrun`."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from live import PROGRAMS, finished, running, start, wait_for
from warm import COLD

PROGRAM = "process_dump.py"
TORCHRUN = {
    "GROUP_RANK", "GROUP_WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS", "RANK",
    "ROLE_NAME", "ROLE_RANK", "ROLE_WORLD_SIZE", "TORCHELASTIC_ERROR_FILE", "TORCHELASTIC_MAX_RESTARTS", "TORCHELASTIC_RESTART_COUNT",
    "TORCHELASTIC_RUN_ID", "TORCHELASTIC_USE_AGENT_STORE", "TORCH_NCCL_ASYNC_ERROR_HANDLING", "WORLD_SIZE",
}  # fmt: skip
"""Its contract: what both launchers set."""
DIFFERENT_VALUES = {
    "MASTER_ADDR": "the loopback address by number, not by name",
    "MASTER_PORT": "a port of the attempt's own",
    "OMP_NUM_THREADS": "the processors are shared among the workers; torchrun gives each one",
    "TORCHELASTIC_ERROR_FILE": "in the run folder",
    "TORCHELASTIC_MAX_RESTARTS": "recovery.restarts",
    "TORCHELASTIC_RUN_ID": "the id of the run",
    "TORCHELASTIC_USE_AGENT_STORE": "rank 0 serves the rendezvous",
    "_": "the program that the shell started",
}
ONLY_DTRAIN = {
    "DTRAIN_ATTEMPT": "documented", "DTRAIN_RANK": "documented", "DTRAIN_RUN": "documented",
    "GLOO_SOCKET_IFNAME": "nothing listens outside of this machine", "NCCL_SOCKET_IFNAME": "the same", "TP_SOCKET_IFNAME": "the same",
    "OMP_WAIT_POLICY": "threads sleep while they wait for each other: those that spin stop a busy machine",
    "TF_CPP_MIN_LOG_LEVEL": "TensorFlow writes pages of notes into the logs",
    "PYTHONHASHSEED": "sets have the same order in every process",
}  # fmt: skip
ONLY_TORCHRUN = {"TORCHELASTIC_SIGNALS_TO_HANDLE": "for torchrun's own agent"}
OF_EVERY_PROCESS = {"authkey", "seed of torch", "temporary folder of multiprocessing"}
"""New in every process, under every launcher."""
SIGNALS = {"SIGQUIT": "has the stacks of all threads written to the log"}


def dump(launcher: str, *command: str, folder: Path) -> dict[str, Any]:
    """What rank 0 of the program sees; of both ranks, what must be of every process."""
    done = subprocess.run(
        [*command, str(folder / launcher)],
        cwd=folder,
        env=os.environ | COLD,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return read(folder, launcher)


def read(folder: Path, launcher: str, rank: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / f"{launcher}-{rank}.json").read_text())
    return found


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Launcher → what the program saw."""
    folder = tmp_path_factory.mktemp("seen")
    (folder / PROGRAM).write_text((PROGRAMS / PROGRAM).read_text())
    (folder / "r.yaml").write_text(f"script: {PROGRAM}\nargs: ['{folder}/dtrain']\nresources: {{workers: 2}}\n")
    live = finished(str(folder / "r.yaml"), runs=folder / "runs", **COLD)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
    return {
        "python": dump("python", sys.executable, PROGRAM, folder=folder),
        "torchrun": dump("torchrun", *torchrun, PROGRAM, folder=folder),
        "dtrain": read(folder, "dtrain"),
        "dtrain's rank 1": read(folder, "dtrain", 1),
        "run": {"log": str(live.run.rank_log(0)), "id": live.run.id},
    }


def test_environment_variables_are_torchruns(seen: dict[str, dict[str, Any]]) -> None:
    python, torchrun, ours = (seen[name]["environment"] for name in ("python", "torchrun", "dtrain"))
    expected = {**torchrun, **python, **{name: torchrun[name] for name in TORCHRUN}}
    assert ours.keys() - expected.keys() == ONLY_DTRAIN.keys() - python.keys()
    assert expected.keys() - ours.keys() == ONLY_TORCHRUN.keys()
    differing = {name for name in ours.keys() & expected.keys() if ours[name] != expected[name]}
    assert differing - {"PWD"} <= DIFFERENT_VALUES.keys(), {name: (ours[name], expected[name]) for name in differing}


def test_the_process_is_an_ordinary_one(seen: dict[str, dict[str, Any]]) -> None:
    python, ours = seen["python"], seen["dtrain"]
    apart = {
        "environment",
        "descriptors",
        "inheritable",
        "signals",
        "threads of torch",
        "argv",
        "orig_argv",
        "main",
        "flags",
    }
    for name in python.keys() - apart - OF_EVERY_PROCESS:
        assert ours[name] == python[name], name
    for name in OF_EVERY_PROCESS:
        assert len({seen[process][name] for process in ("python", "dtrain", "dtrain's rank 1")}) == 3, name
    assert ours["flags"] == python["flags"].replace("hash_randomization=1", "hash_randomization=0")
    assert ours["argv"][0] == python["argv"][0] == PROGRAM
    assert ours["orig_argv"][:2] == [python["orig_argv"][0], PROGRAM]
    assert without_addresses(ours["main"]) == without_addresses(python["main"])
    differing = {name for name in python["signals"] if ours["signals"][name] != python["signals"][name]}
    assert differing <= SIGNALS.keys()
    assert ours["threads of torch"] == seen["torchrun"]["threads of torch"]


def without_addresses(attributes: dict[str, str]) -> dict[str, str]:
    return {name: re.sub("0x[0-9a-f]+", "", value) for name, value in attributes.items()}


def test_nothing_is_open_but_the_log_and_a_pipe_to_the_agent(seen: dict[str, dict[str, Any]]) -> None:
    ours = seen["dtrain"]
    assert ours["descriptors"].pop("0") == os.devnull
    assert [ours["descriptors"].pop(number) for number in "12"] == [seen["run"]["log"]] * 2
    assert [target.partition(":")[0] for target in ours["descriptors"].values()] == ["socket"]
    assert ours["inheritable"] == [], "and the program's children get none of it"


LOADER = """
import multiprocessing, torch
from torch.utils.data import DataLoader
loader = DataLoader(range(8), num_workers=2, collate_fn=lambda samples: torch.tensor(samples) * 2)
print("batches", [int(batch.sum()) for batch in loader])
context = multiprocessing.get_context("forkserver")
class Nothing:
    pass
if __name__ == "__main__":
    from multiprocessing import forkserver, resource_tracker
    process = context.Process(target=print, args=("hello from the forkserver",), kwargs={"flush": True})
    process.start()
    process.join()
    print("left", forkserver._forkserver._forkserver_pid, resource_tracker._resource_tracker._pid, process.exitcode)
"""


def script(folder: Path, text: str, *, workers: int = 1, **sections: str) -> str:
    """A recipe for a script of this text."""
    (folder / "program.py").write_text(text)
    lines = [
        f"script: program.py\nresources: {{workers: {workers}}}",
        *(f"{key}: {value}" for key, value in sections.items()),
    ]
    (folder / "r.yaml").write_text("\n".join(lines) + "\n")
    return str(folder / "r.yaml")


def test_data_loaders_work_without_a_guard_and_with_a_lambda_and_leave_nothing(tmp_path: Path) -> None:
    live = finished(script(tmp_path, LOADER), runs=tmp_path / "runs")
    # The forkserver imports the program again, as `__mp_main__`: its first line is there twice.
    assert "batches [2, 10, 18, 26]" in live.output(0) or "batches [0, 2" in live.output(0), live.output(0)
    assert "hello from the forkserver" in live.output(0)
    *pids, code = map(int, live.output(0).split("left ")[1].split())
    assert code == 0
    wait_for(lambda: not running(set(pids)), "the end of the program's own forkserver")


def test_sigint_is_a_keyboard_interrupt(tmp_path: Path) -> None:
    text = (
        "import atexit, time\natexit.register(print, 'exit handler')\nprint('ready')\n"
        "try:\n    time.sleep(1000)\nexcept KeyboardInterrupt:\n    print('interrupted')\n    raise\n"
    )
    with start(script(tmp_path, text, recovery="{restarts: 0}"), runs=tmp_path / "runs") as live:
        wait_for(lambda: "ready" in live.output(0), "the script")
        live.kill(0, number=signal.SIGINT)
        live.finish(code=3)
    assert (
        live.output(0).index("interrupted")
        < live.output(0).index("KeyboardInterrupt")
        < live.output(0).index("exit handler")
    )
    assert live.events("failure_occurred", kind="killed", code=-signal.SIGINT)


END = """
import atexit, sys, threading, time
def late():
    time.sleep(0.3)
    print("the thread is done")
threading.Thread(target=late).start()
atexit.register(lambda: print("the exit handler saw", sys.modules["__main__"].word))
word = "the program's own __main__"
class Loud:
    def __del__(self):
        print("taken apart")
kept = Loud()
sys.stdout.write("no newline at the end")
"""


def test_a_script_ends_with_its_threads_and_exit_handlers_and_is_not_taken_apart(tmp_path: Path) -> None:
    live = finished(script(tmp_path, END), runs=tmp_path / "runs")
    assert live.output(0).splitlines()[1:] == [
        "no newline at the endthe thread is done", "the exit handler saw the program's own __main__"
    ]  # fmt: skip


FORKED = """
import os, sys
pid = os.fork()
if not pid:
    sys.exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
pid = os.fork()
if not pid:
    raise ValueError("in a process of the program's own")
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1
"""


def test_what_a_script_forks_ends_with_its_own_exit_code_and_is_no_worker(tmp_path: Path) -> None:
    live = finished(script(tmp_path, FORKED), runs=tmp_path / "runs")
    assert not live.events("failure_occurred")
    assert "ValueError: in a process of the program's own" in live.output(0)


def test_the_recipes_variables_are_there_before_the_framework_is(tmp_path: Path) -> None:
    (tmp_path / "early.py").write_text(
        "import os\nSEEN = os.environ.get('WORD')\nos.environ['SET_BY_IMPORT'] = 'yes'\n"
    )
    text = "import early, os, subprocess, sys\nprint('seen', early.SEEN, os.environ['SET_BY_IMPORT'], sys.flags.hash_randomization)\n"
    variables = f"{{WORD: here, PYTHONHASHSEED: '0', PYTHONPATH: '{tmp_path}'}}"
    live = finished(script(tmp_path, text, preload="[early]", env=variables), runs=tmp_path / "runs")
    assert "seen here yes 0" in live.output(0)


def test_a_module_runs_as_with_python_m(tmp_path: Path) -> None:
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "__main__.py").write_text(
        "import sys\nfrom .beside import WORD\nprint(WORD, __name__, __package__, __spec__.name, sys.argv, sys.path[0], sys.orig_argv[1:])\n"
    )
    (package / "beside.py").write_text("WORD = 'found'\n")
    (tmp_path / "r.yaml").write_text("script: {module: package}\nargs: [1, two]\n")
    live = finished(str(tmp_path / "r.yaml"), runs=tmp_path / "runs")
    by_hand = subprocess.run(
        [sys.executable, "-m", "package", "1", "two"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert live.output(0).splitlines()[1:] == by_hand.stdout.splitlines()


def test_a_module_that_is_not_there_is_said_before_the_start(tmp_path: Path) -> None:
    from live import dtrain

    (tmp_path / "r.yaml").write_text("script: {module: nowhere.to.be.found}\n")
    done = dtrain("run", str(tmp_path / "r.yaml"), check=2)
    assert "r.yaml:1:" in done.stderr
    assert "there is no module 'nowhere.to.be.found'" in done.stderr
