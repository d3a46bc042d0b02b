"""Types a command line on another machine: `dtrain submit recipe.yaml --host login.cluster`."""

from __future__ import annotations

import os
import shlex
import sys
import uuid
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from dtrain.common import environment
from dtrain.common.errors import ClusterError, Exit, UsageError
from dtrain.common.files import cache
from dtrain.common.lazy_dataclass import dataclass
from dtrain.job import entrypoint
from dtrain.launch import profiles
from dtrain.login import install
from dtrain.login.connection import LOST, Host
from dtrain.login.project import Project
from dtrain.record.folder import RunDir

HERE = ("completion", "explain", "init", "plugins", "schema", "pull")
"""Commands that never leave this machine."""
SENDS = ("bench", "drill", "plan", "run", "submit", "tune")
"""Commands that read files of the project, which go over before."""
MAY_SEND = ("doctor", "resume")
"""Commands that do so if they name one."""
HOW_MUCH = ("-q", "--quiet", "-v", "--verbose")
"""Options that say how much is printed."""
WRITES = ("--html", "--output", "--png")
"""Options that name a file to write, which comes back."""
NOT_FOUND = 127
"""Exit code of a shell for a program that it does not find."""


@dataclass(frozen=True)
class Typed:
    """A command line without what says where it is to run."""

    host: str
    words: list[str]
    bootstrap: bool

    @classmethod
    def of(cls, argv: Sequence[str]) -> Typed:
        """Take a command line apart. The machine is that of `--host`, of DTRAIN_HOST or of the profile; '': this one."""
        end = argv.index("--") if "--" in argv else len(argv)
        words, host, named, bootstrap = list[str](), "", False, False
        given = iter(argv[:end])
        for word in given:
            option, sign, value = word.partition("=")
            if option == "--host":
                host, named = value if sign else next(given, ""), True
                if not host:
                    raise UsageError("--host names no machine", "Name it as ssh knows it: --host login.cluster")
            elif word == "--bootstrap":
                bootstrap = True
            else:
                words.append(word)
        if not named:
            host = os.environ[environment.HOST] if environment.HOST in os.environ else _of_profile(words)
        return cls(host, [*words, *argv[end:]], bootstrap)

    @property
    def command(self) -> str:
        """The command itself; '' if there is none."""
        return next((word for word in self.words if not word.startswith("-")), "")


def _of_profile(words: Sequence[str]) -> str:
    """Return the machine that the profile on a command line, or in the environment, names."""
    given = [
        word.partition("=")[2] or (after if word == "--profile" else "")
        for word, after in zip(words, [*words[1:], ""], strict=True)
        if word.partition("=")[0] == "--profile"
    ]
    name = given[-1] if given else os.environ.get(environment.PROFILE, "")
    return profiles.host_of(name, _path_in(words) or Path.cwd()) if name else ""


def _path_in(words: Sequence[str]) -> Path | None:
    """Find the first word that names a file of this machine, also as `file.py:Class`."""
    for word in words:
        path = Path(entrypoint.split(word)[0] or word)
        if not word.startswith("-") and (path.is_file() or (path.suffix in (".yaml", ".yml") and path.exists())):
            return path.absolute()
    return None


def run(argv: Sequence[str]) -> int | None:
    """Type a command line on the machine that it names, and return its exit code; None if it is for this machine."""
    typed = Typed.of(argv)
    if not typed.host:
        if typed.bootstrap:
            raise UsageError("--bootstrap puts dtrain on another machine", "Name it: --host login.cluster")
        return None
    if typed.command in HERE or not typed.command:
        os.environ[environment.HOST] = typed.host
        sys.argv[1:] = typed.words
        return None
    if typed.command == "tensorboard":
        raise UsageError(
            "TensorBoard runs on this machine, on runs that are here",
            f"Bring the run: dtrain pull RUN --host {typed.host}; then: dtrain tensorboard RUN",
        )
    if typed.command == "board":
        raise UsageError(
            "the board is served on the loopback of the machine whose runs it shows",
            f"Forward its port: ssh -L 6080:127.0.0.1:6080 {typed.host} dtrain board --port 6080",
        )
    host = Host(typed.host)
    if typed.bootstrap:
        install.install(host)
        host = Host(typed.host)
    folder, words = _sent(host, typed.words, typed.command)
    if typed.command == "run" and not {"--dry-run", "-d", "--detach", "-h", "--help"} & set(words):
        return _run(host, folder, words)
    return _with_files_back(host, folder, words, typed.command)


def _sent(host: Host, words: list[str], command: str) -> tuple[str, list[str]]:
    """Bring the files that a command reads over; returns the folder to type it in there, and its words as they are to be typed there."""
    path = _path_in(words)
    new_code = {"--code=new", "--code"} & set(words)
    if not (command in SENDS or (command in MAY_SEND and (path or new_code))):
        return host.base, words
    _check_version(host)
    project, here = Project.of(path or Path.cwd()), Path.cwd()
    large = project.send(host, cache() / "sent" / f"{host.name}-{project.name}")
    if large:
        print(f"dtrain: too large to be sent, and not on {host.name}: {', '.join(large)}", file=sys.stderr)
    if profiles.user_file().is_file():
        host.send(profiles.user_file().parent, [profiles.user_file().name], f"{host.base}/config")
    target = f"{host.base}/projects/{project.name}"
    if here.is_relative_to(project.root):
        return str(Path(target, here.relative_to(project.root))), words
    return target, [_from(project.root, word) for word in words]


def _from(root: Path, word: str) -> str:
    """Return the word for a file of a project as the file is named in the project's folder."""
    file, name = entrypoint.split(word)
    path = Path(file or word).absolute()
    if word.startswith("-") or not path.exists() or not path.is_relative_to(root):
        return word
    return str(path.relative_to(root)) + (f":{name}" if name else "")


def _check_version(host: Host) -> None:
    """Refuse a machine without dtrain, and name another version of it."""
    if not host.version:
        raise _missing(host)
    if host.version != version("dtrain"):
        print(
            f"dtrain: {host.name} has dtrain {host.version}, and this is {version('dtrain')}; --bootstrap puts this one there",
            file=sys.stderr,
        )


def _missing(host: Host) -> UsageError:
    return UsageError(f"there is no dtrain on {host.name}", "Put it there: the same command with --bootstrap")


def _dtrain(host: Host) -> str:
    own = f"{host.base}/venv/bin/dtrain"
    return f'"$([ -x {shlex.quote(own)} ] && echo {shlex.quote(own)} || echo dtrain)"'


def script(host: Host, folder: str, words: Sequence[str]) -> str:
    """Return the script of shell that types a command there."""
    settings = {
        environment.HOST: "", environment.RUNS: f"{host.base}/runs", environment.PROFILE: os.environ.get(environment.PROFILE, ""),
        environment.CONFIG: f"{host.base}/config/{profiles.user_file().name}",
    }  # fmt: skip
    given = " ".join(f"{name}={shlex.quote(value)}" for name, value in settings.items())
    return f"mkdir -p {shlex.quote(folder)} && cd {shlex.quote(folder)} && export {given} && exec {_dtrain(host)} {shlex.join(words)}"


def _run(host: Host, folder: str, words: list[str]) -> int:
    """Start a run there that needs no connection, and watch it."""
    at = words.index("--") if "--" in words else len(words)
    verbose = ["--verbose"] if {"-v", "--verbose"} & set(words[:at]) else []
    begun = [*(word for word in words[:at] if word not in HOW_MUCH), "--detach", "--quiet", *words[at:]]
    code, printed = host.interactive(script(host, folder, begun), capture=True)
    if code:
        if code == LOST:
            raise host.failed(code)
        return code
    name = printed.split()[-1]
    print(
        f"{name} runs on {host.name}, with or without this connection: dtrain attach {name} --host {host.name}",
        flush=True,
    )
    code, _ = host.interactive(script(host, host.base, ["attach", name, *verbose]))
    if code == LOST:
        raise ClusterError(
            f"the connection to {host.name} is lost; {name} goes on",
            f"Watch it again: dtrain attach {name} --host {host.name}",
        )
    return code


def _with_files_back(host: Host, folder: str, words: list[str], command: str) -> int:
    """Type a command there, and bring back what it was to write to files."""
    place, files, changed = f"{host.base}/written/{uuid.uuid4().hex[:12]}", list[Path](), list[str]()
    options = (*WRITES, "--to") if command == "weights" else WRITES
    for before, word in zip(["", *words[:-1]], words, strict=True):
        option, sign, value = word.partition("=")
        written = value if sign and option in options else word if before in options else ""
        if written:
            files.append(Path(written).absolute())
            word = word.removesuffix(written) + f"{place}/{files[-1].name}"
        changed.append(word)
    prepared = f"mkdir -p {shlex.quote(place)} && " if files else ""
    code, _ = host.interactive(prepared + script(host, folder, changed))
    if code == NOT_FOUND:
        raise _missing(host)
    if code == LOST:
        raise host.failed(code)
    if code == Exit.DONE:
        for file in files:
            file.parent.mkdir(parents=True, exist_ok=True)
            host.fetch(f"{place}/", file.parent)
            print(f"brought here: {file}", file=sys.stderr)
        if files:
            host.output(f"rm -rf {shlex.quote(place)}")
    return code


def pull(name: str, runs: Path, *, checkpoints: bool) -> Path:
    """Bring a run from the machine in DTRAIN_HOST, without its checkpoints unless they are wanted; returns its folder here."""
    import json

    if not os.environ.get(environment.HOST):
        raise UsageError("pull brings a run from another machine", f"Name it: dtrain pull {name} --host login.cluster")
    host = Host(os.environ[environment.HOST])
    code, printed = host.interactive(script(host, host.base, ["status", name, "--json"]), capture=True)
    if code:
        raise _missing(host) if code == NOT_FOUND else host.failed(code)
    there = json.loads(printed)["folder"]
    target = runs.absolute() / Path(there).name
    target.mkdir(parents=True, exist_ok=True)
    left = [
        "memory",
        "requests",
        "supervisor.lock",
        "claims",
        "submission.json",
        *([] if checkpoints else ["checkpoints/*"]),
    ]
    host.fetch(f"{there}/", target, *(f"--exclude=/{one}" for one in left))
    RunDir(target).brought.write_text(host.name)
    return target
