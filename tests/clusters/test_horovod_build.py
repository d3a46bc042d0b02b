"""Horovod's build: its key, its edits, and its cache, tried in a fresh environment against a made-up package index."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import sys
import tarfile
import time
import venv
import zipfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import pytest
from processes import is_alive

import dtrain
from dtrain.strategies.horovod import build

pytestmark = pytest.mark.horovod
FRAMEWORKS = {"torch": "9.1.0+cpu", "tensorflow-cpu": "9.2.0"}
SOURCE = {
    "CMakeLists.txt": "before\nset(CMAKE_CXX_STANDARD 14)\nafter\n",
    "horovod/torch/CMakeLists.txt": "    set(CMAKE_CXX_STANDARD 14)\n",
    "horovod/tensorflow/CMakeLists.txt": f"one\n{build.XLA_SOURCE}two\n",
    # Stands for the compilation: notes its pid, takes a while, and leaves what it saw in the built module.
    "setup.py": """\
import os, sys, time
from pathlib import Path
from setuptools import setup
config = 'RelWithDebInfo'
if "bdist_wheel" in sys.argv:
    with open(os.environ["STARTED"], "a") as started:
        started.write(f"{os.getpid()}\\n")
    time.sleep(float(os.environ["COMPILE_SECONDS"]))
    switches = sorted(name for name in os.environ if name.startswith("HOROVOD_WITH"))
    standard = Path("CMakeLists.txt").read_text().split()[2]
    Path("horovod_seen.py").write_text(f"seen = {config!r}, {standard!r}, {switches!r}")
setup(name="horovod", version="0.28.1", py_modules=["horovod_seen"])
""",
}


def wheel(folder: Path, name: str, version: str, files: dict[str, bytes] | None = None) -> Path:
    """Make a small wheel that pip installs."""
    path = folder / f"{name.replace('-', '_')}-{version}-py3-none-any.whl"
    info = f"{name.replace('-', '_')}-{version}.dist-info"
    content = {
        **(files or {}),
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{each},,\n" for each in [*content, f"{info}/RECORD"])
    with zipfile.ZipFile(path, "w") as archive:
        for each, data in {**content, f"{info}/RECORD": record.encode()}.items():
            archive.writestr(each, data)
    return path


def installed_setuptools(folder: Path) -> Path:
    """The tests' own setuptools as a wheel, so that the made-up index can serve it."""
    found = metadata.distribution("setuptools")
    names = [each for each in found.files or [] if each.suffix != ".pyc" and each.parts[0] != ".."]
    files = {str(each): Path(str(each.locate())).read_bytes() for each in names if ".dist-info" not in each.parts[0]}
    entry_points = f"setuptools-{found.version}.dist-info/entry_points.txt"
    files[entry_points] = (found.read_text("entry_points.txt") or "").encode()
    return wheel(folder, "setuptools", found.version, files)


def source_archive(folder: Path) -> None:
    with tarfile.open(folder / f"horovod-{build.VERSION}.tar.gz", "w:gz") as archive:
        for name, text in SOURCE.items():
            member = tarfile.TarInfo(f"horovod-{build.VERSION}/{name}")
            member.size = len(text.encode())
            archive.addfile(member, io.BytesIO(text.encode()))


@dataclass(frozen=True)
class Lab:
    """A fresh environment with pretended frameworks, an index, a cache, and a PATH of its own."""

    folder: Path

    @property
    def cache(self) -> Path:
        return self.folder / "cache" / "dtrain" / "wheels"

    def start(self, compile_seconds: float = 0.0) -> subprocess.Popen[str]:
        variables = {
            "COMPILE_SECONDS": str(compile_seconds),
            "PATH": str(self.folder / "bin"),
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_FIND_LINKS": str(self.folder / "index"),
            "PIP_NO_INDEX": "1",
            "PYTHONPATH": str(self.folder / "code"),
            "STARTED": str(self.folder / "started"),
            "TMPDIR": str(self.folder / "tmp"),
            "XDG_CACHE_HOME": str(self.folder / "cache"),
        }
        command = [str(self.folder / "venv" / "bin" / "python"), "-m", "dtrain.strategies.horovod.build"]
        pipe, joined = subprocess.PIPE, subprocess.STDOUT
        return subprocess.Popen(command, cwd=self.folder, env=variables, stdout=pipe, stderr=joined, text=True)

    def run(self) -> tuple[int, str]:
        child = self.start()
        output, _ = child.communicate(timeout=120)
        return child.returncode, output

    def builds(self) -> list[int]:
        """The pid of every compilation that was started."""
        with contextlib.suppress(OSError):
            return [int(line) for line in (self.folder / "started").read_text().splitlines()]
        return []

    def wheels(self) -> list[Path]:
        return sorted(self.cache.glob("*/*.whl"))

    def seen(self) -> str:
        """What the build of the installed module saw."""
        code = "import horovod_seen; print(*horovod_seen.seen)"
        python = str(self.folder / "venv" / "bin" / "python")
        return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    for name in ("bin", "code", "index", "tmp"):
        (tmp_path / name).mkdir()
    venv.create(tmp_path / "venv", with_pip=True)
    site = next((tmp_path / "venv").glob("lib/*/site-packages"))
    for name, version in {**FRAMEWORKS, **dict.fromkeys(build.RUN_TIME, "9.0")}.items():
        with zipfile.ZipFile(wheel(tmp_path / "index", name, version)) as archive:
            archive.extractall(site)
    for name in ("cmake", "wheel"):
        wheel(tmp_path / "index", name, "3.5")
    installed_setuptools(tmp_path / "index")
    source_archive(tmp_path / "index")
    for name in ("g++", "make"):
        (tmp_path / "bin" / name).touch(mode=0o755)
    code = tmp_path / "code" / "dtrain"
    code.mkdir()
    for name in ("__init__.py", "common"):
        (code / name).symlink_to(Path(dtrain.__file__).parent / name)
    (code / "strategies").symlink_to(Path(build.__file__).parent.parent)
    return Lab(tmp_path)


def write_source(root: Path) -> None:
    for name, text in SOURCE.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def test_the_edits_change_what_does_not_compile_and_nothing_else(tmp_path: Path) -> None:
    write_source(tmp_path)
    build.edit_sources(tmp_path)
    assert (tmp_path / "CMakeLists.txt").read_text() == "before\nset(CMAKE_CXX_STANDARD 17)\nafter\n"
    assert (tmp_path / "horovod/torch/CMakeLists.txt").read_text() == "    set(CMAKE_CXX_STANDARD 17)\n"
    assert (tmp_path / "horovod/tensorflow/CMakeLists.txt").read_text() == "one\ntwo\n"
    assert "config = 'Release'\n" in (tmp_path / "setup.py").read_text()


def test_a_source_that_is_not_the_expected_one_is_refused(tmp_path: Path) -> None:
    write_source(tmp_path)
    (tmp_path / "setup.py").write_text("something else")
    with pytest.raises(build.BuildFailed, match=r"setup\.py does not hold"):
        build.edit_sources(tmp_path)


def test_the_key_holds_everything_a_wheel_depends_on() -> None:
    base = build.cache_key(FRAMEWORKS, "cpython-311-x86_64", "avx avx2", {})
    assert base.startswith("horovod-0.28.1-tensorflow-cpu-9.2.0-torch-9.1.0+cpu-cpython-311-x86_64-")
    assert base == build.cache_key(dict(reversed(FRAMEWORKS.items())), "cpython-311-x86_64", "avx avx2", {"HOME": "x"})
    others = [
        build.cache_key({**FRAMEWORKS, "torch": "9.1.0+cu130"}, "cpython-311-x86_64", "avx avx2", {}),
        build.cache_key({"torch": FRAMEWORKS["torch"]}, "cpython-311-x86_64", "avx avx2", {}),
        build.cache_key(FRAMEWORKS, "cpython-312-x86_64", "avx avx2", {}),
        build.cache_key(FRAMEWORKS, "cpython-311-x86_64", "avx", {}),
        build.cache_key(FRAMEWORKS, "cpython-311-x86_64", "avx avx2", {"HOROVOD_GPU_OPERATIONS": "NCCL"}),
    ]
    assert len({base, *others}) == 6


def test_the_processors_flags_are_read_in_a_fixed_order(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nflags\t\t: sse avx2 avx\n\nprocessor\t: 1\nflags\t\t: other\n")
    assert build.processor_flags(cpuinfo) == "avx avx2 sse"
    cpuinfo.write_text("Features\t: fp asimd\n")
    assert build.processor_flags(cpuinfo) == "asimd fp"
    assert isinstance(build.processor_flags(tmp_path / "none"), str)


def test_the_build_is_for_the_frameworks_that_are_here_alone(tmp_path: Path) -> None:
    inherited = {"PATH": "/somewhere", "MAKEFLAGS": "-j7"}
    seen = build.build_environment(tmp_path, {"torch": "9.1"}, inherited)
    switches = {name for name in seen if name.startswith("HOROVOD_WITH")}
    assert switches == {
        "HOROVOD_WITH_GLOO",
        "HOROVOD_WITH_PYTORCH",
        "HOROVOD_WITHOUT_MPI",
        "HOROVOD_WITHOUT_MXNET",
        "HOROVOD_WITHOUT_TENSORFLOW",
    }
    assert seen["MAKEFLAGS"] == "-j7"
    assert seen["PATH"].split(os.pathsep) == [str(tmp_path / "bin"), str(Path(sys.executable).parent), "/somewhere"]


def test_a_cached_wheel_is_installed_without_a_build(lab: Lab) -> None:
    code, output = lab.run()
    assert code == 0, output
    assert "about ten minutes" in output
    assert lab.seen().startswith("Release 17) ['HOROVOD_WITH")
    for path in (*lab.folder.glob("index/*"), *lab.folder.glob("bin/*")):
        path.unlink()
    code, output = lab.run()
    assert code == 0, output
    assert "using the wheel built earlier" in output
    assert len(lab.builds()) == 1
    assert list((lab.folder / "tmp").iterdir()) == []


def test_two_builds_at_once_build_once(lab: Lab) -> None:
    children = [lab.start(compile_seconds=1.0) for _ in range(2)]
    outputs = [child.communicate(timeout=120)[0] for child in children]
    assert [child.returncode for child in children] == [0, 0], outputs
    assert "waiting for it" in "".join(outputs)
    assert len(lab.builds()) == len(lab.wheels()) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_build_leaves_no_wheel_and_no_process(lab: Lab, number: signal.Signals) -> None:
    child = lab.start(compile_seconds=100.0)
    while not lab.builds() and child.poll() is None:
        time.sleep(0.05)
    child.send_signal(number)
    output, _ = child.communicate(timeout=30)
    assert child.returncode == 130, output
    assert lab.wheels() == []
    assert not is_alive(lab.builds()[0])
    assert list((lab.folder / "tmp").iterdir()) == []


def test_a_failed_build_shows_the_end_of_its_log_and_what_to_install(lab: Lab) -> None:
    (lab.folder / "started").mkdir()
    code, output = lab.run()
    assert code == 3
    assert "IsADirectoryError" in output
    assert "apt-get install g++ cmake make" in output
    assert lab.wheels() == []


def test_missing_compilers_are_said_before_anything_is_built(lab: Lab) -> None:
    (lab.folder / "bin" / "g++").unlink()
    code, output = lab.run()
    assert code == 3
    assert "g++ not found" in output
    assert "apt-get install g++ cmake make" in output
    assert lab.builds() == []


def test_no_framework_is_a_mistake_of_usage(lab: Lab) -> None:
    for name in FRAMEWORKS:
        for info in lab.folder.glob(f"venv/lib/*/site-packages/{name.replace('-', '_')}-*.dist-info"):
            for path in info.iterdir():
                path.unlink()
            info.rmdir()
    code, output = lab.run()
    assert code == 2
    assert "neither is installed" in output
