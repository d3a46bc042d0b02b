"""Build Horovod for the frameworks installed here, keep the wheel in the user's cache, install it.

Run it with `python -P -m dtrain.strategies.horovod.build`, in the environment that trains.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import platform
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path

from dtrain.common import installation
from dtrain.common.errors import DtrainError, Exit, FrameworkMissing

VERSION = "0.28.1"
DISTRIBUTIONS = {"torch": "torch", "tensorflow": "tensorflow", "tensorflow-cpu": "tensorflow"}
RUN_TIME = ("cffi", "cloudpickle", "packaging", "psutil", "pyyaml")
# CMake 4 refuses the minimum versions that the bundled libraries ask for.
BUILD_TOOLS = ("cmake<4", "setuptools<81", "wheel", *RUN_TIME)
# Variables of the user's that change what is compiled, and so the key of the wheel.
BUILD_VARIABLES = ("HOROVOD_BUILD_", "HOROVOD_CPU_OPERATIONS", "HOROVOD_CUDA_", "HOROVOD_GPU_", "HOROVOD_NCCL_")
ADVICE = "it needs a C++ compiler, make and Python's headers; on Debian: apt-get install g++ cmake make python3-dev"

XLA_SOURCE = 'list(APPEND TF_SOURCES "${PROJECT_SOURCE_DIR}/horovod/tensorflow/xla_mpi_ops.cc")\n'
# (file, old, new): torch wants C++17, and gloo and Horovod must agree on it; TensorFlow no longer ships the headers
# of the XLA operations; without debug symbols the wheel has 1 MB instead of 19.
EDITS = (
    ("CMakeLists.txt", "set(CMAKE_CXX_STANDARD 14)", "set(CMAKE_CXX_STANDARD 17)"),
    ("horovod/torch/CMakeLists.txt", "set(CMAKE_CXX_STANDARD 14)", "set(CMAKE_CXX_STANDARD 17)"),
    ("horovod/tensorflow/CMakeLists.txt", XLA_SOURCE, ""),
    ("setup.py", "'RelWithDebInfo'", "'Release'"),
)


class BuildFailed(DtrainError):
    """Horovod could not be built or installed."""


def installed_frameworks() -> dict[str, str]:
    """The distributions to build for, with their versions, from the metadata of the running environment."""
    return {name: item.version for name in DISTRIBUTIONS for item in metadata.distributions(name=name)}


def processor_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The first processor's instruction sets, sorted, since the wheel is compiled with those of this machine."""
    with contextlib.suppress(OSError):
        for line in cpuinfo.read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() in ("flags", "Features"):
                return " ".join(sorted(value.split()))
    return platform.processor()


def cache_key(frameworks: Mapping[str, str], python: str, flags: str, variables: Mapping[str, str]) -> str:
    """The folder name of one build (pure): everything that a compiled wheel depends on."""
    chosen = sorted((name, value) for name, value in variables.items() if name.startswith(BUILD_VARIABLES))
    digest = hashlib.sha256(repr((flags, chosen, EDITS)).encode()).hexdigest()[:12]
    versions = [f"{name}-{version}" for name, version in sorted(frameworks.items())]
    return "-".join([f"horovod-{VERSION}", *versions, python, digest])


def cache_folder() -> Path:
    """Where the user's wheels are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dtrain" / "wheels"


def edit_sources(root: Path) -> None:
    """Make the last release compile against current frameworks; refuses a source that is not what it expects."""
    for name, old, new in EDITS:
        path = root / name
        text = path.read_text()
        if old not in text:
            raise BuildFailed(f"Horovod's source is not that of {VERSION}: {name} does not hold {old.strip()!r}")
        path.write_text(text.replace(old, new))


def build_environment(tools: Path, frameworks: Mapping[str, str], inherited: Mapping[str, str]) -> dict[str, str]:
    """The environment of the build (pure): private tools first, gloo without MPI, only the frameworks that are here."""
    wanted = {DISTRIBUTIONS[name] for name in frameworks}
    switches = {"PYTORCH": "torch", "TENSORFLOW": "tensorflow", "MXNET": "mxnet"}
    search = [str(tools / "bin"), str(Path(sys.executable).parent), inherited.get("PATH", os.defpath)]
    return {
        "MAKEFLAGS": f"-j{len(os.sched_getaffinity(0))}",
        **inherited,
        **{f"HOROVOD_WITH{'' if name in wanted else 'OUT'}_{switch}": "1" for switch, name in switches.items()},
        "HOROVOD_WITH_GLOO": "1",
        "HOROVOD_WITHOUT_MPI": "1",
        "PATH": os.pathsep.join(search),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(tools), inherited.get("PYTHONPATH", "")])),
    }


def run_pip(arguments: Sequence[str], folder: Path, log: Path, environment: Mapping[str, str]) -> None:
    """Run pip in a folder with its output in the log; whatever ends this process ends the compilers too."""
    command, off = [sys.executable, "-m", "pip", *arguments], subprocess.DEVNULL
    with log.open("ab") as out:
        child = subprocess.Popen(
            command, cwd=folder, env=dict(environment), stdin=off, stdout=out, stderr=out, start_new_session=True
        )
        try:
            code = child.wait()
        except BaseException:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
            raise
    if code != 0:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
        raise BuildFailed(f"pip {arguments[0]} failed (exit code {code}); the end of {log}:\n{tail}", ADVICE)


def require_compilers() -> None:
    """Fail before ten minutes are spent if the compiler, make or Python's headers are missing."""
    missing = [name for name in ("g++", "make") if shutil.which(name) is None]
    if not (Path(sysconfig.get_path("include")) / "Python.h").is_file():
        missing.append("Python.h")
    if missing:
        raise BuildFailed(f"Horovod cannot be compiled here: {', '.join(missing)} not found", ADVICE)


def build_wheel(frameworks: Mapping[str, str], work: Path, log: Path) -> Path:
    """Download, edit and compile Horovod in a scratch folder; gives the wheel there."""
    tools = work / "tools"
    # pip's own scratch folders go with this one when it is killed.
    inherited = {**os.environ, "TMPDIR": str(work)}
    environment = build_environment(tools, frameworks, inherited)
    run_pip(["install", "--target", str(tools), *BUILD_TOOLS], work, log, inherited)
    # The index serves the source alone, and its build needs torch and TensorFlow: no isolated environment.
    source = ["--no-deps", "--no-binary", "horovod", "--no-build-isolation", f"horovod=={VERSION}"]
    run_pip(["download", *source], work, log, environment)
    shutil.unpack_archive(work / f"horovod-{VERSION}.tar.gz", work, filter="data")
    root = work / f"horovod-{VERSION}"
    edit_sources(root)
    options = ["--no-cache-dir", "--no-deps", "--no-build-isolation", "--use-pep517", "-w", str(work)]
    run_pip(["wheel", *options, "."], root, log, environment)
    return next(work.glob("*.whl"))


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a file lock; it ends with the process, however that ends."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"another process builds or installs this wheel; waiting for it ({path})", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def cached_wheel(folder: Path, frameworks: Mapping[str, str]) -> Path:
    """The wheel in its folder of the cache, built if it is not there yet; to be called under the folder's lock."""
    wheel = next(folder.glob("*.whl"), None)
    if wheel is not None:
        print(f"using the wheel built earlier: {wheel}", flush=True)
        return wheel
    require_compilers()
    log = folder / "build.log"
    log.unlink(missing_ok=True)
    names = " and ".join(f"{name} {version}" for name, version in frameworks.items())
    print(f"building Horovod {VERSION} (gloo) for {names}; this takes about ten minutes, once\nlog: {log}", flush=True)
    with tempfile.TemporaryDirectory(prefix="dtrain-horovod-", ignore_cleanup_errors=True) as work:
        built = build_wheel(frameworks, Path(work), log)
        # Copied under another name first: the scratch folder may lie on another disk, and a rename is all or nothing.
        partial = Path(shutil.copyfile(built, folder / "wheel.partial"))
        return partial.replace(folder / built.name)


def install_horovod() -> None:
    """Put a Horovod that fits the running environment into it."""
    frameworks = installed_frameworks()
    if not frameworks:
        raise FrameworkMissing(
            "Horovod needs PyTorch or TensorFlow, and neither is installed in this environment",
            f"install one first: {installation.command('torch')} or {installation.command('tensorflow')}",
        )
    python = f"{sys.implementation.cache_tag}-{platform.machine()}"
    folder = cache_folder() / cache_key(frameworks, python, processor_flags(), os.environ)
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / "lock"):
        wheel = cached_wheel(folder, frameworks)
        log = folder / "install.log"
        run_pip(["install", *RUN_TIME], folder, log, os.environ)
        # Forced: a Horovod built for the torch of yesterday has the same version number.
        run_pip(["install", "--no-deps", "--force-reinstall", str(wheel)], folder, log, os.environ)
    print(f"Horovod {VERSION} is installed in {sys.prefix}")


def main() -> int:
    """Build or fetch, install, and say what to do when it cannot be done."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        # By an exception, so that the compilers are ended and the scratch folder is removed.
        signal.signal(number, signal.default_int_handler)
    try:
        install_horovod()
    except DtrainError as error:
        print(f"error: {error}", file=sys.stderr)
        return int(error.exit_code)
    except KeyboardInterrupt:
        return int(Exit.INTERRUPTED)
    return int(Exit.DONE)


if __name__ == "__main__":
    sys.exit(main())
