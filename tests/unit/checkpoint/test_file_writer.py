"""The process that writes snapshots: bytes, digests, values that are not finite, a full disk, and its own death."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from live import wait_for
from safetensors.numpy import load_file

from dtrain.checkpoint.file_writer import FileWriter, WeightsRange
from dtrain.checkpoint.kept_buffer import KeptBuffer
from dtrain.checkpoint.tensor_file import TensorEntry, TensorFile, entries_of, laid_out
from dtrain.common.files import digest
from dtrain.common.processes import alive, command_line, signal_process

MODULUS = 1 << 256


@pytest.fixture(scope="module")
def writer() -> FileWriter:
    return FileWriter()


def filled(data: bytes) -> KeptBuffer:
    buffer = KeptBuffer(TensorFile(b"", (TensorEntry("x", "U8", (len(data),)),)))
    buffer.memory[:] = data
    return buffer


def weights_of(*parts: tuple[str, bytes]) -> str:
    digests = (digest(name.encode() + data).digest() for name, data in parts)
    return f"{sum(int.from_bytes(one, 'big') for one in digests) % MODULUS:064x}"


def children() -> list[int]:
    return [
        int(pid)
        for task in Path("/proc/self/task").iterdir()
        for pid in (task / "children").read_text().split()
        if b"write_process" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]


def test_a_file_is_written_with_its_digests(writer: FileWriter, tmp_path: Path) -> None:
    data = os.urandom(9_000_001)
    ranges = [WeightsRange("a|U8", 0, 5_000_000, ""), WeightsRange("b|U8", 5_000_000, 4_000_001, "")]
    written = writer.write(filled(data), tmp_path / "file", ranges)
    assert (tmp_path / "file").read_bytes() == data
    assert (written.size, written.digest) == (len(data), digest(data).hexdigest())
    assert written.weights == weights_of(("a|U8", data[:5_000_000]), ("b|U8", data[5_000_000:]))
    assert written.not_finite == ""


@pytest.mark.parametrize(
    ("dtype", "name"),
    [(torch.float64, "F64"), (torch.float32, "F32"), (torch.float16, "F16"), (torch.bfloat16, "BF16"),
     (torch.float8_e5m2, "F8_E5M2"), (torch.float8_e4m3fn, "F8_E4M3")],
)  # fmt: skip
def test_values_that_are_not_finite_are_found_in_every_type(
    dtype: torch.dtype, name: str, writer: FileWriter, tmp_path: Path
) -> None:
    largest = torch.finfo(dtype).max
    good = torch.tensor([0.0, -1.5, largest, -largest, torch.finfo(dtype).tiny], dtype=torch.float64).to(dtype)
    for bad in (None, float("nan"), float("inf"), -float("inf")):
        values = good.clone()
        if bad is not None:
            values[3] = torch.tensor(bad).to(dtype)
        if torch.isfinite(values.float()).all() and bad is not None:
            continue  # a type without infinity
        data = values.view(torch.uint8).numpy().tobytes()
        range_ = WeightsRange(f"w|{name}", 0, len(data), name)
        found = writer.write(filled(data), tmp_path / "file", [range_]).not_finite
        assert found == ("" if bad is None else "w has 1 of 5 values that are nan or inf"), bad


def test_only_what_must_be_finite_is_looked_at(writer: FileWriter, tmp_path: Path) -> None:
    data = np.full(4, -np.inf, np.float32).tobytes()
    assert writer.write(filled(data), tmp_path / "file", [WeightsRange("mask", 0, 16, "")]).not_finite == ""


def test_a_disk_without_room_is_said_as_the_system_says_it(writer: FileWriter) -> None:
    data = b"x" * 100_000
    with pytest.raises(OSError, match="No space left on device"):
        writer.write(filled(data), Path("/dev/full"), [])


def test_a_folder_that_is_gone_is_said(writer: FileWriter, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        writer.write(filled(b"x"), tmp_path / "gone" / "file", [])


def test_a_killed_process_is_started_again_and_writes_the_file(tmp_path: Path) -> None:
    writer, data = FileWriter(), b"abc" * 1000
    before = set(children())
    writer.write(filled(data), tmp_path / "one", [])
    (process,) = set(children()) - before
    os.kill(process, signal.SIGKILL)
    writer.write(filled(data), tmp_path / "two", [])
    assert (tmp_path / "two").read_bytes() == data
    (again,) = set(children()) - before
    assert again != process
    del writer
    assert set(children()) == before, "no process is left"


def test_a_snapshot_does_not_wait_for_the_write_of_the_one_before(tmp_path: Path) -> None:
    writer, before = FileWriter(), set(children())
    writer.write(filled(b"x"), tmp_path / "one", [])
    (process,) = set(children()) - before
    os.kill(process, signal.SIGSTOP)
    writing = threading.Thread(target=writer.write, args=(filled(b"y"), tmp_path / "two", []))
    writing.start()
    starting = threading.Thread(target=writer.start)
    starting.start()
    starting.join(10)
    waited = starting.is_alive()
    os.kill(process, signal.SIGCONT)
    writing.join()
    assert not waited
    assert (tmp_path / "two").read_bytes() == b"y"


def test_a_process_that_dies_each_time_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(OSError, match=r"^the process that writes checkpoints was killed 3 times$"):
        FileWriter().write(filled(b"x"), tmp_path / "file", [])


def test_memory_that_is_not_there_is_an_error_and_no_signal() -> None:
    with pytest.raises(OSError, match=r"Cannot allocate memory for a copy of 1,152,921,504,607 MB"):
        KeptBuffer(TensorFile(b"", (TensorEntry("x", "U8", (1 << 60,)),)))


def test_the_layout_is_what_the_library_of_safetensors_reads(tmp_path: Path) -> None:
    arrays: dict[str, Any] = {"b": np.arange(3, dtype=np.int64), "a": np.arange(6, dtype=np.float32).reshape(2, 3),
              "c": np.array(1, np.bool_), "empty": np.zeros((0, 4), np.float16)}  # fmt: skip
    kinds = {"b": "I64", "a": "F32", "c": "BOOL", "empty": "F16"}
    file = laid_out(TensorEntry(name, kinds[name], array.shape) for name, array in arrays.items())
    data = bytearray(file.size)
    data[: len(file.header)] = file.header
    for entry in file.entries:
        data[entry.begin : entry.begin + entry.length] = arrays[entry.name].tobytes()
    (tmp_path / "file").write_bytes(data)
    found = load_file(tmp_path / "file")
    assert {name: array.tolist() for name, array in found.items()} == {
        name: array.tolist() for name, array in arrays.items()
    }
    assert sorted(entries_of(tmp_path / "file"), key=lambda entry: entry.name) == sorted(
        file.entries, key=lambda entry: entry.name
    )
    assert len(file.header) % 64 == 0
    assert json.loads(file.header[8:]).keys() == arrays.keys()
    assert struct.unpack("<Q", file.header[:8])[0] == len(file.header) - 8


FORKS = """
import os, sys, time
from pathlib import Path
from dtrain.checkpoint.file_writer import FileWriter
writer = FileWriter()
writer.start()
if os.fork() == 0:  # has the socket, too, and a group of its own
    os.setsid()
    time.sleep(600)
print(*[pid for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()], flush=True)
time.sleep(600)
"""


def test_it_ends_with_the_worker_whoever_else_has_its_socket() -> None:
    with subprocess.Popen([sys.executable, "-c", FORKS], stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdout
        pids = set(map(int, worker.stdout.readline().split()))
        try:
            (process,) = (pid for pid in pids if any("write_process" in word for word in command_line(pid)))
            worker.kill()
            wait_for(lambda: not alive(process), "its end", 30)
        finally:
            for pid in (worker.pid, *pids):
                signal_process(pid, signal.SIGKILL)
