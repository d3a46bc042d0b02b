"""A real SLURM cluster of several nodes on this machine, in a folder of the test."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType

import debian
from processes import (
    command_line,
    free_ports,
    kill_until_gone,
    send_signal,
    started_with,
    status,
    wait_until,
)
from warm import COLD

from dtrain.common.processes import start_detached

PROGRAMS = ("munged", "sbatch", "scancel", "scontrol", "sinfo", "slurmctld", "slurmd", "squeue", "srun")
PACKAGES = ("slurmctld", "slurmd", "slurm-client", "slurm-wlm-basic-plugins", "munge")
# Debian keeps the daemons where an ordinary user's PATH does not look.
SEARCH_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
START_ATTEMPTS = 5
GRACE_SECONDS = 6
ACCOUNTING_PROGRAMS = ("slurmdbd", "sacct", "mariadbd", "mariadb-install-db")
ACCOUNTING_PACKAGES = ("slurmdbd", "mariadb-server-core", "mariadb-client-core")

SLURM_CONF = """\
ClusterName=lab
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/run/munge.sock,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/run/slurmctld.pid
SlurmdPidFile={folder}/run/%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
SlurmctldParameters=preempt_send_user_signal
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
ReturnToService=1
MpiDefault=none
MailProg=/bin/true
MessageTimeout=2
SlurmdTimeout=10
KillWait=2
GresTypes=gpu
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
MinJobAge=86400
JobCompType=jobcomp/filetxt
JobCompLoc={folder}/log/jobcomp.txt
{node_lines}
PartitionName=main Nodes={nodes} Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime={grace}
PartitionName=urgent Nodes={nodes} MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""
SLURMDBD_CONF = """\
AuthType=auth/munge
AuthInfo=socket={folder}/run/munge.sock
DbdHost=localhost
DbdPort={port}
SlurmUser={user}
PidFile={folder}/run/slurmdbd.pid
LogFile={folder}/log/slurmdbd.log
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={database_port}
StorageUser={user}
StorageLoc=accounting
"""
ACCOUNTING_CONF = """\
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=localhost
AccountingStoragePort={port}
AccountingStoragePass={folder}/run/munge.sock
JobAcctGatherFrequency=task=1
"""
NODE = "NodeName={name} NodeHostname=localhost NodeAddr=127.0.2.{number} Port={port} CPUs=4 RealMemory=2000 Gres=gpu:2"


def program(name: str) -> str | None:
    """The path of one of SLURM's programs, or None where it is not installed."""
    return shutil.which(name, path=SEARCH_PATH)


def slurm_missing() -> str | None:
    """Why no SLURM cluster can be started here, or None where one can."""
    missing = [name for name in PROGRAMS if program(name) is None]
    return f"not installed: {', '.join(missing)} (Debian: apt-get install {' '.join(PACKAGES)})" if missing else None


def accounting_missing() -> str | None:
    """Why no accounting can be kept here, or None where it can."""
    missing = [name for name in ACCOUNTING_PROGRAMS if program(name) is None]
    return (
        f"not installed: {', '.join(missing)} (Debian: apt-get install {' '.join(ACCOUNTING_PACKAGES)})"
        if missing
        else None
    )


def install_accounting() -> str | None:
    """Install slurmdbd and its database where they are missing; gives why they still are."""
    return install_slurm() or debian.install(accounting_missing, ACCOUNTING_PACKAGES)


def install_slurm() -> str | None:
    """Install Debian's packages where they are missing and this process may; gives why SLURM is still missing."""
    return debian.install(slurm_missing, PACKAGES)


class SlurmError(RuntimeError):
    """A command of SLURM's failed, or the cluster did not come up."""


@dataclass(frozen=True)
class SlurmLab:
    """A running cluster: slurmctld, munged and one slurmd a node, every file of theirs in one folder."""

    folder: Path
    nodes: tuple[str, ...]
    accounting: bool = False
    """Whether slurmdbd keeps what became of jobs, in a database of its own."""

    @classmethod
    def start(cls, folder: Path, nodes: int = 4, *, accounting: bool = False) -> SlurmLab:
        """Start a cluster with two pretended GPUs a node and wait until every node is idle; takes about a second."""
        folder = folder.resolve()
        if any(letter in str(folder) for letter in ",%= \t\n") or len(str(folder)) > 70:
            raise ValueError(f"SLURM takes no comma, blank, % or = in a path, and sockets only short ones: {folder}")
        lab = cls(folder, tuple(f"node{number}" for number in range(1, nodes + 1)), accounting)
        for attempt in range(1, START_ATTEMPTS + 1):
            try:
                lab._start_daemons()
                return lab
            except (TimeoutError, SlurmError) as error:
                # Most likely another process took one of the ports meanwhile.
                lab.stop()
                if attempt == START_ATTEMPTS:
                    raise SlurmError(f"no cluster, {START_ATTEMPTS} times; logs in {folder}/log: {error}") from error
            except BaseException:
                lab.stop()
                raise
        raise AssertionError("unreachable")

    def __enter__(self) -> SlurmLab:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.stop()

    @property
    def environment(self) -> dict[str, str]:
        """What a child's environment needs besides its own to talk to this cluster; what is warm elsewhere serves no job."""
        return {"SLURM_CONF": str(self.folder / "slurm.conf")} | COLD

    def run(self, *command: str, check: bool = True, seconds: float = 60) -> subprocess.CompletedProcess[str]:
        """Run a command against this cluster; SlurmError with its output if it fails and `check` is set."""
        done = subprocess.run(
            [program(command[0]) or command[0], *command[1:]],
            env={**os.environ, **self.environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
        if check and done.returncode:
            raise SlurmError(f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def states(self) -> dict[str, str]:
        """Each node's state as sinfo spells it: idle, mixed, allocated, down; with a star when it does not answer."""
        lines = self.run("sinfo", "-h", "-N", "-p", "main", "-o", "%N %T").stdout.splitlines()
        return dict(line.split(maxsplit=1) for line in lines)

    def wait_for_state(self, name: str, state: str, seconds: float = 60) -> None:
        """Wait until a node is in this state, whether it answers or not."""
        wait_until(lambda: self.states()[name].rstrip("*") == state, seconds, f"{name} is not {state}")

    def wait_for_job(self, job: str, state: str, seconds: float = 60) -> None:
        """Wait until squeue shows a job in this state: RUNNING, PENDING, COMPLETED, CANCELLED, FAILED and so on."""
        query = ("squeue", "-h", "-t", "all", "-o", "%T", "-j", job)
        wait_until(lambda: self.run(*query).stdout.strip() == state, seconds, f"job {job} is not {state}")

    def pids(self) -> set[int]:
        """Every process of this cluster: daemons, steps, tasks, and whatever was started with its environment."""
        return set(self._processes())

    def daemon_pid(self, name: str) -> int | None:
        """The pid of `slurmctld`, `munged` or a node's slurmd, or None where it does not run."""
        with contextlib.suppress(OSError, ValueError):
            pid = int((self.folder / "run" / f"{name}.pid").read_text())
            return pid if pid in self._processes() else None
        return None

    def task_pids(self, name: str) -> set[int]:
        """What runs on a node in SLURM's steps and batch scripts, children included."""
        return {pid for pid, variables in self._processes().items() if f"SLURMD_NODENAME={name}" in variables}

    def step_pids(self, name: str) -> set[int]:
        """The slurmstepds of a node: they inherit the mark that its slurmd was started with."""
        marked = started_with(f"SLURM_LAB_NODE={self.folder}:{name}")
        return {pid for pid in marked if "slurmstepd" in command_line(pid)}

    def kill_node(self, name: str) -> None:
        """Kill a node's slurmd with SIGKILL; its steps run on, as on a node whose cable was cut."""
        pid = self.daemon_pid(name)
        if pid is not None:
            send_signal({pid}, signal.SIGKILL)
            wait_until(partial(self._gone, {pid}), 5, f"the slurmd of {name} is still there")

    def crash_node(self, name: str) -> None:
        """Kill a node's slurmd, its step daemons and every task on it, as a power cut does: none sees another one's end.

        The other nodes see its connections close, though, which a power cut does not show them."""

        def everything() -> set[int]:
            return self.step_pids(name) | self.task_pids(name) | set(filter(None, [self.daemon_pid(name)]))

        def halted() -> bool:
            awake = {pid for pid in everything() if status(pid)[:1] not in ([], ["T"])}
            send_signal(awake, signal.SIGSTOP)
            return not awake

        # A slurmstepd that sees its task die first tells slurmctld of it, which then takes the job for failed.
        wait_until(halted, 10, f"processes of {name} do not stop")
        kill_until_gone(everything)

    def start_node(self, name: str) -> None:
        """Start the slurmd of a node; one that was down for not answering becomes idle again."""
        self.run("env", f"SLURM_LAB_NODE={self.folder}:{name}", program("slurmd") or "slurmd", "-N", name)

    def stop(self) -> None:
        """Cancel every job, end every daemon and whatever else of the cluster's still runs; may be called again."""
        if self.daemon_pid("slurmctld"):
            with contextlib.suppress(subprocess.TimeoutExpired, TimeoutError):
                self.run("scancel", *self._jobs(), check=False, seconds=5)
                wait_until(lambda: not self._jobs(), 5, "jobs are still there")
        for names in (self.nodes, ("slurmctld",), ("slurmdbd",), ("mariadbd",), ("munged",)):
            ending = {pid for pid in map(self.daemon_pid, names) if pid is not None}
            send_signal(ending, signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                wait_until(partial(self._gone, ending), 5, "daemons are still there")
        kill_until_gone(self.pids)

    def _gone(self, pids: set[int]) -> bool:
        """Whether none of these processes is left."""
        return not pids & self.pids()

    def _jobs(self) -> list[str]:
        """The jobs that are waiting, running or being ended."""
        return self.run("squeue", "-h", "-o", "%A", check=False, seconds=5).stdout.split()

    def _processes(self) -> dict[int, frozenset[str]]:
        """Every other process that was started with this cluster's SLURM_CONF, and its environment."""
        return started_with(f"SLURM_CONF={self.environment['SLURM_CONF']}")

    def _start_daemons(self) -> None:
        """Start everything and wait until all nodes are idle."""
        self._write_files()
        run, log = self.folder / "run", self.folder / "log"
        files = [f"--log-file={log}/munged.log", f"--pid-file={run}/munged.pid", f"--seed-file={run}/munged.seed"]
        # --force: the folders of a test are closed to other users, which munged takes for a mistake.
        self.run("munged", "--force", "-S", f"{run}/munge.sock", f"--key-file={self.folder}/munge.key", *files)
        if self.accounting:
            self._start_accounting()
        # -c: without the jobs of an earlier attempt. It says 0 even where it then finds its port taken: hence the wait.
        self.run("slurmctld", "-i", "-c")
        for name in self.nodes:
            self.start_node(name)
        idle = ("sinfo", "-h", "-t", "idle", "-p", "main", "-o", "%D")
        expected = str(len(self.nodes))
        wait_until(lambda: self.run(*idle, check=False).stdout.strip() == expected, 15, "some nodes are not idle")

    def _start_accounting(self) -> None:
        """Start a database for this cluster alone and slurmdbd on it, which makes its tables; the controller registers the cluster."""
        port, database_port = free_ports(2)
        user, data = pwd.getpwuid(os.geteuid()).pw_name, self.folder / "database"
        shutil.rmtree(data, ignore_errors=True)
        own = ["--no-defaults", f"--user={user}", f"--datadir={data}"]
        self.run("mariadb-install-db", *own, "--skip-test-db", "--auth-root-authentication-method=normal")
        server = [
            *own, "--skip-grant-tables", "--bind-address=127.0.0.1", f"--port={database_port}", f"--socket={self.folder}/run/db.sock",
            f"--pid-file={self.folder}/run/mariadbd.pid", f"--log-error={self.folder}/log/mariadbd.log", "--innodb-buffer-pool-size=32M",
        ]  # fmt: skip
        start_detached(
            [program("mariadbd") or "mariadbd", *server],
            self.folder / "log" / "mariadbd.out",
            {**os.environ, **self.environment},
        )
        wait_until((self.folder / "run" / "mariadbd.pid").exists, 30, "no database")
        settings = self.folder / "slurmdbd.conf"
        settings.touch(mode=0o600)
        settings.write_text(SLURMDBD_CONF.format(folder=self.folder, port=port, database_port=database_port, user=user))
        self.run("slurmdbd")
        main = self.folder / "slurm.conf"
        text = main.read_text().replace("jobacct_gather/none", "jobacct_gather/linux")
        main.write_text(text + ACCOUNTING_CONF.format(folder=self.folder, port=port))
        wait_until(
            lambda: not self.run("sacctmgr", "-i", "add", "cluster", "lab", check=False).returncode, 30, "no slurmdbd"
        )

    def _write_files(self) -> None:
        """Make the folders, the key, the pretended GPUs and the configuration, with ports that are free now."""
        for name in ("dev", "log", "run", "spool", "state"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        key = self.folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(1024))
        for number in range(2):
            with contextlib.suppress(FileExistsError):
                (self.folder / "dev" / f"nvidia{number}").symlink_to("/dev/null")
        ports = free_ports(len(self.nodes) + 1)
        numbered = enumerate(zip(self.nodes, ports[1:], strict=True), start=1)
        names = ",".join(self.nodes)
        text = SLURM_CONF.format(
            controller_port=ports[0],
            folder=self.folder,
            grace=GRACE_SECONDS,
            node_lines="\n".join(NODE.format(name=name, number=number, port=port) for number, (name, port) in numbered),
            nodes=names,
            user=pwd.getpwuid(os.geteuid()).pw_name,
        )
        (self.folder / "slurm.conf").write_text(text)
        (self.folder / "gres.conf").write_text(f"NodeName={names} Name=gpu File={self.folder}/dev/nvidia[0-1]\n")
