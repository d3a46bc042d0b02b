"""Whatever is in a file or comes over a wire, it is read, ignored, or refused in words: nothing else happens to who reads it."""

from __future__ import annotations

import json
import os
import socket
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from dtrain.agent.memory import handshake, transfer
from dtrain.agent.memory.copies import MemoryCopies, MemoryCopy
from dtrain.agent.memory.transfer import MemoryServer
from dtrain.api.memory_protocol import MemoryPeer
from dtrain.api.protocol import decode, encode
from dtrain.checkpoint import memory_record
from dtrain.checkpoint.memory_record import MemoryRecord, RecordFile
from dtrain.checkpoint.store import CheckpointOrigin, CheckpointShard, manifest_of, parsed
from dtrain.common.errors import CheckpointError, NewerFormat, RunNotFound, StorageError, UsageError
from dtrain.common.message import KINDS
from dtrain.control.state import row
from dtrain.job.job import Job, PluginChoice
from dtrain.record import event_log
from dtrain.record.event_log import EventLog
from dtrain.record.events import AttemptStarted, Progress, RunEnded, RunStarted
from dtrain.record.folder import RunDir, create
from dtrain.record.lock import Lease, locked
from dtrain.record.status import fold
from dtrain.storage import run_lease
from dtrain.storage.object_store import ObjectStore
from dtrain.storage.run_copy import RunCopy

SMALL = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(["step-old", "../x", "\x1b[2J"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip
"""Any JSON, `NaN` and `Infinity` too."""
DEEP = b'{"a":' * 100_000
JOB = Job("a-run", script="x.py", folder="/", strategy=PluginChoice("script"))


@st.composite
def spoiled(draw: st.DrawFn, good: bytes) -> bytes:
    """A good text with some of its values replaced, or some of its bytes, or cut short; or any bytes."""
    kind = draw(st.sampled_from(["value", "bytes", "cut", "any", "deep"]))
    if kind == "value":
        body = json.loads(good)
        for _ in range(draw(st.integers(1, 2))):
            key = draw(st.sampled_from(sorted(body)))
            body[key] = draw(VALUES)
        return json.dumps(body).encode()
    if kind == "bytes":
        place = draw(st.integers(0, len(good) - 1))
        return good[:place] + draw(st.binary(min_size=1, max_size=4)) + good[place + 1 :]
    if kind == "cut":
        return good[: draw(st.integers(0, len(good)))]
    return DEEP if kind == "deep" else draw(st.binary(max_size=64))


MANIFEST = manifest_of(1, 5, [CheckpointShard({"a.safetensors": (3, "00")}, "1")], CheckpointOrigin("ddp", 1, "a-run"))


@SMALL
@given(spoiled(MANIFEST.text.encode()))
def test_a_manifest(text: bytes) -> None:
    with suppress(CheckpointError):  # of a newer version
        found = parsed(text)
        assert isinstance(found, str) or found.files == MANIFEST.files


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return create(tmp_path / "runs", JOB)


@SMALL
@given(data=st.data())
def test_a_job(run: RunDir, data: st.DataObject) -> None:
    good = getattr(test_a_job, "good", b"") or run.job_file.read_bytes()
    test_a_job.__dict__["good"] = good
    run.job_file.write_bytes(data.draw(spoiled(good)))
    with suppress(RunNotFound, NewerFormat):
        assert isinstance(run.job(), Job)
    assert row(run).run == run.id


def line(event: Any) -> bytes:
    return json.dumps(event.to_dict()).encode()


EVENTS = (
    RunStarted(run="r", target="t", strategy="ddp", cluster="local", workers=1, nodes=1, kind="task"),
    AttemptStarted(attempt=1, step=0, checkpoint=None, memory=False, nodes=("a",), workers=1, processes=1),
    Progress(attempt=1, step=3, steps={"0": 3}),
    RunEnded(exit_code=0, reason="finished"),
)


@SMALL
@given(st.lists(st.sampled_from(EVENTS).flatmap(lambda event: spoiled(line(event))), max_size=4))
@example([line(RunEnded(exit_code=-1, reason="finished"))])
def test_lines_of_an_event_log(tmp_path: Path, lines: list[bytes]) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b"\n".join(lines))
    with suppress(NewerFormat):
        fold(event_log.read(path)).public()
    log = EventLog(path)
    log.add(RunEnded(exit_code=0, reason="the next supervisor's"))
    log.close()
    with suppress(NewerFormat):
        last = event_log.read(path)[-1]
        assert isinstance(last, RunEnded)
        assert last.reason == "the next supervisor's", "a torn line swallows nothing"


@SMALL
@given(text=st.binary(max_size=40) | st.sampled_from([b"left\n", b"a\nb\n2\n", b"a\nb\n99\n", b"\n\n\n"]))
def test_a_claim_in_a_folder(tmp_path: Path, text: bytes) -> None:
    lock = tmp_path / "lock"
    (tmp_path / "supervisors").mkdir(exist_ok=True)
    for claim in (tmp_path / "supervisors").iterdir():
        claim.unlink()
    (tmp_path / "supervisors" / "00000001").write_bytes(text)
    with suppress(UsageError), locked(lock, "a-run") as lease:
        assert lease.number == 2
        assert lease.successor() is None


@SMALL
@given(text=spoiled(b'{"mark": "m", "place": "p", "format": 2}'))
def test_a_claim_on_remote_storage(tmp_path: Path, text: bytes) -> None:
    store = ObjectStore(f"file://{tmp_path}/there", {})
    store.delete(store.sizes())
    store.write("supervisors/00000001", text)
    with suppress(UsageError):
        claim = run_lease.take(store, Lease(Path("claims"), 1, "own"))
        assert claim is None or claim.number == 2


@SMALL
@given(
    names=st.lists(
        st.sampled_from(
            ["events.jsonl/0-1", "events.jsonl/x", "logs/../../a/0", "../a/0-1", "attempts/x", "job.json/0"]
        ),
        max_size=4,
    )
)
def test_names_in_a_bucket(tmp_path: Path, names: list[str]) -> None:
    store, run = ObjectStore(f"file://{tmp_path}/above/there/run", {}), RunDir(tmp_path / "here" / "run")
    for name in names:
        with suppress(Exception):
            store.write(name, b"{}\n")
    with suppress(StorageError):
        RunCopy(run, store).pull()
    assert {path.name for path in tmp_path.iterdir()} <= {"above", "here"}
    assert {path.name for path in (tmp_path / "here").iterdir()} == {"run"}


@SMALL
@given(st.data())
def test_lines_between_supervisor_and_agents(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(sorted(set(KINDS.values()), key=lambda one: one.kind_name)))
    fields = {name: data.draw(VALUES) for name in getattr(kind, "__dataclass_fields__", {})}
    text = data.draw(spoiled(json.dumps({"type": kind.kind_name} | fields).encode()))
    with suppress(ValueError, RecursionError):
        _, message = decode(text)
        assert decode(encode(message))[1] == message or "NaN" in encode(message).decode()


@SMALL
@given(share=st.floats(0, 1), spoil=st.binary(min_size=1, max_size=8))
def test_a_record_in_memory(share: float, spoil: bytes) -> None:
    record = RecordFile()
    record.complete(MemoryRecord(3, 0, "x", small={"a": 1}), {"a": b"y"})
    os.pwrite(record.fd, spoil, int(share * (os.fstat(record.fd).st_size - 1)))
    found = memory_record.read(record.fd)
    assert found is None or isinstance(found[0], MemoryRecord)
    record.close()


@SMALL
@given(sent=st.binary(max_size=200))
def test_bytes_of_another_agent_before_it_has_shown_the_key(sent: bytes) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(sent)
        theirs.shutdown(socket.SHUT_WR)
        with suppress(OSError):
            handshake.greet(ours, "key")
            raise AssertionError("it was believed")


@settings(max_examples=30, deadline=None)
@given(
    head=spoiled(
        json.dumps(
            {
                "rank": 0,
                "record": {"step": 3, "rank": 0, "file": "x", "size": 4, "weights": [], "small": {}, "format": 2},
            }
        ).encode()
    )
)
def test_what_an_agent_with_the_key_sends(head: bytes) -> None:
    """A part that is not one is refused, whatever its record says of sizes and names."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with listener, listener.accept()[0] as connection, suppress(OSError):
            seals = handshake.greet(connection, "key")
            connection.recv(1 << 12)
            text = head.replace(b"\n", b" ") + b"\n"
            connection.sendall(text + seals.next(text) + b"data" * 20)

    thread = threading.Thread(target=serve)
    thread.start()
    with suppress(OSError):
        transfer.fetch(MemoryPeer("127.0.0.1", listener.getsockname()[1], (0,)), "key", 1, {0: -1}, exact=False)
    thread.join(20)


@settings(max_examples=30, deadline=None)
@given(request_=spoiled(b'{"attempt": 1, "ranks": {"0": -1}, "exact": false}'))
def test_what_an_agent_with_the_key_asks(request_: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    copies = MemoryCopies(tmp_path_factory.mktemp("views"))
    file = RecordFile()
    file.complete(MemoryRecord(3, 0, "x", size=4), {})
    buffer = os.memfd_create("x")
    os.write(buffer, b"data")
    copies.add(1, 0, MemoryCopy(buffer, os.dup(file.fd)), 2)
    server = MemoryServer("127.0.0.1", "key", copies)
    try:
        with socket.create_connection(("127.0.0.1", server.port), 20) as connection, suppress(OSError):
            handshake.introduce(connection, "key")
            connection.sendall(request_.replace(b"\n", b" ") + b"\n")
            connection.settimeout(20)
            connection.recv(1 << 16)
        found = transfer.fetch(MemoryPeer("127.0.0.1", server.port, (0,)), "key", 1, {0: -1}, exact=False)
        assert [part.step for part in found] == [3], "it still serves"
    finally:
        server.close()
        copies.close()
        file.close()
