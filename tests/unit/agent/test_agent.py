"""An agent, its zygote and its workers for real; the supervisor is played here, over the agent's own pipes."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
from live import PATIENCE_SECONDS, running, wait_for
from warm import COLD

from dtrain.api.protocol import (
    AgentReady,
    Command,
    DumpStacks,
    Heartbeat,
    Inspect,
    Inspected,
    LeaveAt,
    PortsReserved,
    ProposeStop,
    Quit,
    ReservePorts,
    StartWorkers,
    StopWorkers,
    WorkerExited,
    WorkerReport,
    decode,
    encode,
)
from dtrain.api.strategy import RankInfo, RendezvousInfo
from dtrain.common.processes import ProcessHandle, children, signal_process
from dtrain.job.job import Job, PluginChoice
from dtrain.record.events import WorkersStarted
from dtrain.record.folder import RunDir, create

T = TypeVar("T")
SLEEP = "import time\nprint('up', flush=True)\ntime.sleep(1000)\n"


def read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


class Played:
    """The supervisor of one agent."""

    def __init__(self, run: RunDir, *preload: str) -> None:
        self.run = run
        command = [sys.executable, "-P", "-m", "dtrain", "agent", str(run.path), "--node=node0", "--heartbeat=1"]
        command += [f"--preload={','.join(preload)}"] if preload else []
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ | COLD)
        self.heard: list[Any] = []
        self._buffer = b""

    def send(self, command: Command) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(encode(command))
        self.process.stdin.flush()

    def wait(self, kind: type[T], which: Callable[[T], bool] = lambda _: True) -> T:
        """The first such event that was not waited for yet."""
        assert self.process.stdout is not None
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            for event in self.heard:
                if isinstance(event, kind) and which(event):
                    self.heard.remove(event)
                    return event
            assert select.select([self.process.stdout], [], [], max(0.0, deadline - time.monotonic()))[0], kind
            data = os.read(self.process.stdout.fileno(), 1 << 16)
            assert data, f"the agent ended: {self.log()}"
            *lines, self._buffer = (self._buffer + data).split(b"\n")
            self.heard += [decode(line)[1] for line in lines]

    def start(self, attempt: int = 1, workers: int = 1) -> None:
        """Have the workers of an attempt started."""
        self.send(ReservePorts(attempt, workers + 1))
        ports = self.wait(PortsReserved).ports
        places = tuple(RankInfo(rank, workers, rank, workers, 0, 1, 1) for rank in range(workers))
        rendezvous = RendezvousInfo(("127.0.0.1",), ports[:1], "a-run", attempt, ports[-1])
        self.send(StartWorkers(attempt, places, rendezvous, None, 0))

    def started(self, attempt: int = 1, workers: int = 1) -> dict[int, int]:
        """Rank → process, as soon as they print something."""
        self.start(attempt, workers)
        pids = {int(rank): pid for rank, pid in self.wait(WorkersStarted).pids.items()}
        for rank in pids:
            wait_for(lambda: read(self.run.rank_log(rank)).count("up\n") >= attempt, "the worker")  # noqa: B023
        return pids

    def template(self) -> int:
        """The process that imports: the agent's only child."""
        return only_child(self.process.pid)

    def zygote(self) -> int:
        """The parent of the workers: the template's only child."""
        return only_child(self.template())

    def log(self) -> str:
        return (self.run.logs / "agent-node0.log").read_text()


def only_child(pid: int) -> int:
    (child,) = children(pid)
    return child


@pytest.fixture
def agents(tmp_path: Path) -> Iterator[Callable[..., Played]]:
    """Starts agents for a script of this text."""
    there: list[Played] = []

    def agent(text: str, *preload: str, **fields: Any) -> Played:
        (tmp_path / "program.py").write_text(text)
        job = Job("a-run", script="program.py", folder=str(tmp_path), strategy=PluginChoice("script"), **fields)
        there.append(Played(create(tmp_path / "runs", job), *preload))
        there[-1].wait(AgentReady)
        return there[-1]

    yield agent
    for one in there:
        one.process.kill()
        one.process.communicate()


def test_a_command_to_a_worker_that_has_just_ended_harms_nobody(agents: Callable[..., Played]) -> None:
    agent = agents(SLEEP)
    pids = agent.started(workers=2)
    zygote = agent.zygote()
    os.kill(zygote, signal.SIGSTOP)  # it cannot tell yet
    os.kill(pids[0], signal.SIGKILL)
    wait_for(lambda: not running({pids[0]}), "its end")
    for command in (ProposeStop(1), DumpStacks(1), LeaveAt(1, 3)):
        agent.send(command)
    agent.heard.clear()
    agent.wait(Heartbeat)
    os.kill(zygote, signal.SIGCONT)
    assert agent.wait(WorkerExited).code == -signal.SIGKILL
    agent.send(Quit())
    assert agent.process.wait(PATIENCE_SECONDS) == 0
    wait_for(lambda: not running({*pids.values(), zygote}), "the end of all")


def test_a_process_that_was_just_waited_for_can_be_signalled() -> None:
    done = subprocess.Popen(["true"])
    done.wait()
    signal_process(done.pid, signal.SIGQUIT)
    there = subprocess.Popen(["sleep", "60"])
    signal_process(there.pid, signal.SIGTERM)
    assert there.wait(PATIENCE_SECONDS) == -signal.SIGTERM


def test_a_killed_zygote_is_a_crash_of_its_workers_and_the_next_attempt_has_a_new_one(
    agents: Callable[..., Played],
) -> None:
    agent = agents(SLEEP)
    pids, template, zygote = agent.started(workers=2), agent.template(), agent.zygote()
    os.kill(zygote, signal.SIGKILL)
    for _ in pids:
        report = agent.wait(WorkerReport).report
        assert report["failure"] == "crash"
        assert f"the process that workers are forked from (process {zygote}) was killed by SIGKILL" in report["message"]
        assert agent.wait(WorkerExited).code == -signal.SIGKILL
    assert not running(set(pids.values()))
    assert agent.started(attempt=2)
    assert agent.zygote() != zygote
    assert agent.template() == template, "nothing is imported again"


def test_a_killed_template_harms_no_worker_and_the_next_zygote_has_a_new_one(agents: Callable[..., Played]) -> None:
    agent = agents(SLEEP)
    pids, template, zygote = agent.started(workers=2), agent.template(), agent.zygote()
    os.kill(template, signal.SIGKILL)
    wait_for(lambda: not running({template}), "its end")
    agent.heard.clear()
    agent.wait(Heartbeat)
    assert running(set(pids.values())) == set(pids.values())
    os.kill(zygote, signal.SIGKILL)
    for _ in pids:
        report = agent.wait(WorkerReport).report
        assert f"the process that workers are forked from (process {zygote}) has ended" in report["message"]
        assert agent.wait(WorkerExited).code == -signal.SIGKILL
    assert agent.started(attempt=2)
    assert agent.template() != template


def test_a_template_that_answers_nothing_is_given_up(agents: Callable[..., Played]) -> None:
    agent = agents(SLEEP)
    agent.started()
    template = agent.template()
    os.kill(template, signal.SIGSTOP)
    os.kill(agent.zygote(), signal.SIGKILL)
    agent.wait(WorkerExited)
    agent.started(attempt=2)
    assert agent.template() != template
    assert not running({template})


def test_children_of_workers_end_with_the_agent_even_if_the_zygote_can_do_nothing(
    agents: Callable[..., Played],
) -> None:
    agent = agents("import subprocess\nsubprocess.Popen(['sleep', '1000'])\n" + SLEEP)
    (worker,) = agent.started().values()
    there = {agent.template(), agent.zygote(), worker, only_child(worker)}
    assert running(there) == there
    os.kill(agent.zygote(), signal.SIGSTOP)
    agent.process.kill()
    agent.process.wait()
    wait_for(lambda: not running(there), "their end")
    assert not running(there)


HELPER = """import os, subprocess, sys
program = ['sleep', '1000']
helper = subprocess.Popen(program, start_new_session=True).pid
orphan = int(subprocess.run(['sh', '-c', 'setsid sleep 1000 >/dev/null & echo $!'], stdout=subprocess.PIPE).stdout)
print('helpers', helper, orphan, flush=True)
"""
"""Starts one with a session of its own, and one that has no parent any more either."""


def helpers(agent: Played, rank: int = 0) -> set[int]:
    """As soon as the worker said which they are."""
    lines = [line.split() for line in read(agent.run.rank_log(rank)).splitlines() if line.startswith("helpers")]
    return set(map(int, lines[-1][1:]))


def test_what_workers_start_in_sessions_of_its_own_ends_with_the_last_of_them(agents: Callable[..., Played]) -> None:
    agent = agents(HELPER + SLEEP)
    pids = agent.started(workers=2)
    there = helpers(agent, 0) | helpers(agent, 1)
    assert running(there) == there
    os.kill(pids[0], signal.SIGKILL)
    agent.wait(WorkerExited)
    assert running(there) == there, "they may serve the other one, too"
    os.kill(pids[1], signal.SIGKILL)
    agent.wait(WorkerExited)
    assert not running(there)
    assert agent.started(attempt=2), "the zygote goes on"


@pytest.mark.parametrize("victim", ["agent", "zygote", "both"])
def test_it_also_ends_if_its_agent_or_zygote_is_killed(victim: str, agents: Callable[..., Played]) -> None:
    agent = agents(HELPER + SLEEP)
    (worker,) = agent.started().values()
    there, zygote = {worker, *helpers(agent)}, agent.zygote()
    if victim != "zygote":
        agent.process.kill()
    if victim != "agent":
        os.kill(zygote, signal.SIGKILL)
    wait_for(lambda: not running(there), "their end", 20)


def test_nothing_is_signalled_that_has_the_number_of_a_process_that_was_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done = subprocess.Popen(["sleep", "60"], start_new_session=True)
    handle, signalled = ProcessHandle(done.pid), list[int]()
    monkeypatch.setattr(os, "kill", lambda pid, number: signalled.append(pid))
    monkeypatch.setattr(os, "killpg", lambda pid, number: signalled.append(pid))
    handle.send_to_group()
    assert signalled == [done.pid, done.pid]
    monkeypatch.undo()
    handle.send(signal.SIGKILL)
    done.wait(PATIENCE_SECONDS)
    monkeypatch.setattr(os, "killpg", lambda pid, number: signalled.append(-pid))
    handle.send_to_group()
    handle.close()
    handle.send(signal.SIGTERM)
    assert -done.pid not in signalled


def test_a_command_that_cannot_be_read_ends_no_agent(agents: Callable[..., Played]) -> None:
    agent = agents(SLEEP)
    assert agent.process.stdin
    for line in (
        b"nonsense",
        b"{}",
        b"[" * 5000,
        b'{"type":"start_workers","attempt":"x"}',
        b"\xff\xfe",
        b'{"type":"no_such"}',
    ):
        agent.process.stdin.write(line + b"\n")
    agent.process.stdin.flush()
    assert agent.started()


def test_a_module_that_does_not_import_is_a_failure_of_set_up_with_its_traceback(
    agents: Callable[..., Played], tmp_path: Path
) -> None:
    (tmp_path / "broken.py").write_text("raise ValueError('no such luck')\n")
    agent = agents(SLEEP, "broken", env={"PYTHONPATH": str(tmp_path)})
    agent.start()
    report = agent.wait(WorkerReport).report
    assert report["failure"] == "set-up"
    assert report["message"] == "importing broken before the workers were forked: ValueError: no such luck"
    assert report["traceback"] == (
        "Traceback (most recent call last):\n"
        f'  File "{tmp_path}/broken.py", line 1, in <module>\n'
        "    raise ValueError('no such luck')\n"
        "ValueError: no such luck\n"
    )
    assert agent.wait(WorkerExited).code == 1


def test_a_module_that_starts_using_the_gpu_is_named(agents: Callable[..., Played], tmp_path: Path) -> None:
    """The device is a file here, as CUDA would have it open."""
    (tmp_path / "device").touch()
    lines = (
        f"import dtrain.agent.zygote as z\nz.GPU_DEVICES = ('{tmp_path}/device',)\nkept = open('{tmp_path}/device')\n"
    )
    (tmp_path / "early.py").write_text(lines)
    agent = agents(SLEEP, "early", env={"PYTHONPATH": str(tmp_path)})
    agent.start()
    report = agent.wait(WorkerReport).report
    assert report["failure"] == "set-up"
    assert report["message"] == (
        f"importing early before the workers were forked: it starts using the GPU ({tmp_path}/device), and processes that are "
        "forked afterwards cannot: leave it out of preload, or have it wait until it is called"
    )


@pytest.mark.parametrize(
    ("line", "how"),
    [("import os; os._exit(5)", "ended with exit code 5"), ("import os; os.abort()", "was killed by SIGABRT")],
)
def test_a_module_that_ends_the_zygote_is_named(
    agents: Callable[..., Played], tmp_path: Path, line: str, how: str
) -> None:
    (tmp_path / "fatal.py").write_text(line + "\n")
    agent = agents(SLEEP, "fatal", env={"PYTHONPATH": str(tmp_path)})
    agent.start()
    report = agent.wait(WorkerReport).report
    assert report["failure"] == "crash"
    assert f"{how} while it imported fatal" in report["message"]


ENDLESS = "import pathlib, time\n(pathlib.Path(__file__).parent / 'begun').touch()\ntime.sleep(1000)\n"


def test_a_module_whose_import_never_ends_can_be_looked_at_and_stopped(
    agents: Callable[..., Played], tmp_path: Path
) -> None:
    (tmp_path / "endless.py").write_text(ENDLESS)
    agent = agents(SLEEP, "endless", env={"PYTHONPATH": str(tmp_path)})
    agent.start()
    zygote = agent.template()
    wait_for(lambda: (tmp_path / "begun").exists(), "the endless import")
    agent.send(DumpStacks(1))
    wait_for(lambda: "endless.py" in agent.log(), "the stacks")
    agent.send(StopWorkers(1, 0.0))
    assert agent.wait(WorkerExited).code == -signal.SIGKILL
    (tmp_path / "endless.py").write_text("")
    agent.start(attempt=2)
    assert agent.wait(WorkersStarted).pids
    assert not running({zygote})


def test_a_zygote_that_is_still_importing_ends_with_its_agent(agents: Callable[..., Played], tmp_path: Path) -> None:
    (tmp_path / "endless.py").write_text(ENDLESS)
    agent = agents(SLEEP, "endless", env={"PYTHONPATH": str(tmp_path)})
    zygote = agent.template()
    assert running({zygote})
    agent.process.kill()
    wait_for(lambda: not running({zygote}), "the end of the zygote")
    assert not running({zygote})


def test_what_fails_in_a_worker_before_the_users_code_is_a_crash_with_a_reason(agents: Callable[..., Played]) -> None:
    agent = agents(SLEEP)
    agent.run.rank_log(0).mkdir()  # it cannot be written to
    agent.start()
    report = agent.wait(WorkerReport).report
    assert report["failure"] == "crash"
    assert "IsADirectoryError" in report["message"]
    assert agent.wait(WorkerExited).code == 1


RECORDED = (
    "import sys\nfrom torch.distributed.elastic.multiprocessing.errors import record\n"
    "@record\ndef main():\n    raise ValueError('said by record')\nmain()\n"
)


def test_what_record_left_of_an_error_is_reported_for_a_program_that_is_no_python_file(
    agents: Callable[..., Played], tmp_path: Path
) -> None:
    (tmp_path / "inner.py").write_text(RECORDED)
    agent = agents("import os, sys\nos.execv(sys.executable, [sys.executable, 'inner.py'])\n")
    agent.start()
    report = agent.wait(WorkerReport).report
    assert report["failure"] == "", "the strategy classifies it, in the supervisor"
    assert "said by record" in report["message"]
    assert "inner.py" in report["traceback"]
    assert agent.wait(WorkerExited).code == 1


THREADS = (
    "import threading, time\ndef waits_for_food():\n    time.sleep(1000)\n"
    "threading.Thread(target=waits_for_food, daemon=True).start()\nprint('up', flush=True)\nwaits_for_food()\n"
)


def test_stacks_of_all_threads_are_read_and_are_no_sign_of_life(agents: Callable[..., Played]) -> None:
    agent = agents(THREADS)
    agent.started(workers=2)
    idle = agent.wait(
        Heartbeat, lambda beat: all(sign.idle_seconds > 0.5 for sign in beat.signs.values()) and bool(beat.signs)
    )
    deadline = time.monotonic() + 3
    while time.monotonic() < deadline:
        agent.send(Inspect(1, "now"))
        answer = agent.wait(Inspected)
        assert [group.ranks for group in answer.stacks] == [(0, 1)]
        assert answer.stacks[0].text.count("in waits_for_food") == 2
        assert set(answer.usage) == {"0", "1"}
    agent.heard.clear()
    later = agent.wait(Heartbeat).signs
    assert all(later[rank].idle_seconds >= idle.signs[rank].idle_seconds + 2.5 for rank in ("0", "1"))


def test_only_the_ranks_that_were_asked_for_are_looked_at(agents: Callable[..., Played]) -> None:
    agent = agents(THREADS)
    agent.started(workers=2)
    agent.send(Inspect(1, "one", ranks=(1, 5)))
    found = agent.wait(Inspected)
    assert {group.ranks for group in found.stacks} == {(1,), (5,)}
    assert "Thread 0x" not in agent.run.rank_log(0).read_text()
    agent.send(Inspect(1, "usage", stacks=False))
    found = agent.wait(Inspected)
    assert not found.stacks
    assert found.usage["0"].memory_megabytes > 1


def test_a_program_that_is_not_python_survives_and_the_kernel_tells_what_it_waits_for(
    agents: Callable[..., Played],
) -> None:
    agent = agents("import os\nprint('up', flush=True)\nos.execvp('sleep', ['sleep', '1000'])\n")
    pids = agent.started()
    wait_for(lambda: "(sleep) S" in Path(f"/proc/{pids[0]}/stat").read_text(), "the other program")
    agent.send(Inspect(1, "now"))
    (group,) = agent.wait(Inspected).stacks
    assert "sleep: sleeping" in group.text
    agent.send(DumpStacks(1))
    agent.heard.clear()
    agent.wait(Heartbeat)
    assert running(set(pids.values())) == set(pids.values())


def test_a_stopped_worker_is_not_woken(agents: Callable[..., Played]) -> None:
    agent = agents(THREADS)
    pids = agent.started()
    os.kill(pids[0], signal.SIGSTOP)
    wait_for(lambda: ") T " in Path(f"/proc/{pids[0]}/stat").read_text(), "its stop")
    agent.send(Inspect(1, "now"))
    found = agent.wait(Inspected)
    assert found.stacks[0].text.startswith("is stopped by a signal")
    assert found.usage["0"].stopped
    assert ") T " in Path(f"/proc/{pids[0]}/stat").read_text()


def test_frames_of_c_are_shown_by_py_spy_and_python_frames_where_it_cannot(agents: Callable[..., Played]) -> None:
    agent = agents(THREADS)
    agent.started()
    agent.send(Inspect(1, "now", native=True))
    (group,) = agent.wait(Inspected).stacks
    assert "waits_for_food" in group.text
    if "note: no frames of C" in group.text:
        assert 'File "' in group.text
    else:
        assert "sleep (lib" in group.text
        assert "0x" not in group.text
