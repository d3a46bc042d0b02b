"""People are told of real runs: by a command, a web hook and a mail; nobody who is slow or gone holds a run up."""

from __future__ import annotations

import json
import os
import signal
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
from live import PROGRAMS, dtrain, finished, killed, start, stopped, wait_for

TINY = (PROGRAMS / "tiny.yaml").read_text()


def recipe(folder: Path, notify: str) -> str:
    path = folder / "told.yaml"
    path.write_text(TINY.replace("task: ", f"task: {PROGRAMS}/") + f"\nnotify: {{{notify}}}\n")
    return str(path)


class Hook(BaseHTTPRequestHandler):
    """A chat service."""

    heard: ClassVar[list[dict[str, Any]]] = []

    def do_POST(self) -> None:
        self.heard.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


class Mailbox(socketserver.StreamRequestHandler):
    """An SMTP server (RFC 5321) that takes every mail."""

    heard: ClassVar[list[str]] = []

    def handle(self) -> None:
        self.wfile.write(b"220 here\r\n")
        while line := self.rfile.readline():
            word = line[:4].upper()
            self.wfile.write(
                b"354 go on\r\n" if word == b"DATA" else b"221 bye\r\n" if word == b"QUIT" else b"250 ok\r\n"
            )
            if word == b"DATA":
                text = b""
                while not text.endswith(b"\r\n.\r\n"):
                    text += self.rfile.readline()
                self.heard.append(text.decode())
                self.wfile.write(b"250 taken\r\n")


@contextmanager
def serving(server: socketserver.TCPServer) -> Iterator[int]:
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield int(server.server_address[1])
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_killed_run_is_told_by_a_command_a_hook_and_a_mail(tmp_path: Path) -> None:
    Hook.heard.clear()
    Mailbox.heard.clear()
    with (
        serving(HTTPServer(("127.0.0.1", 0), Hook)) as hook,
        serving(socketserver.TCPServer(("127.0.0.1", 0), Mailbox)) as smtp,
    ):
        command = f"(echo $DTRAIN_NOTICE_EVENT at $DTRAIN_NOTICE_STEP; cat) >> {tmp_path}/told"
        ways = f"command: '{command}', webhook: 'http://127.0.0.1:{hook}/', mail: a@b.c, smtp: '127.0.0.1:{smtp}'"
        options = (recipe(tmp_path, ways), "--workers", "2", "--set", "params.pause=0.05")
        live = killed(*options, runs=tmp_path, step=12, rank=1)
    assert sorted(one["event"] for one in Hook.heard) == ["finished", "recovered", "started"]
    finish = next(one for one in Hook.heard if one["event"] == "finished")
    assert finish["exit_code"] == 0
    assert finish["text"].startswith(f"{live.run.id} finished: ")
    assert "1 failures, the last one: killed by SIGKILL" in finish["text"]
    assert any(f"Subject: {live.run.id} recovered: attempt 2 trains" in mail for mail in Mailbox.heard)
    assert len(Mailbox.heard) == 3
    lines = (tmp_path / "told").read_text()
    assert f"finished at {finish['step']}\n{live.run.id} finished: " in lines


def test_a_resumed_run_is_told_nothing_twice_and_only_what_was_asked_for(tmp_path: Path) -> None:
    notify = f"command: 'echo $DTRAIN_NOTICE_EVENT >> {tmp_path}/told', when: [started, stopped, finished]"
    file = recipe(tmp_path, notify)
    stopped(file, "--workers", "2", "--set", "params.pause=0.05", runs=tmp_path / "runs", step=5)
    dtrain("resume", "last", "--set", "params.pause=0", "--runs", str(tmp_path / "runs"))
    assert (tmp_path / "told").read_text().split() == ["started", "stopped", "finished"]


@pytest.mark.parametrize(
    "way", ["command: 'exit 7'", "webhook: 'http://127.0.0.1:9/'", "mail: a@b.c, smtp: '127.0.0.1:9'"]
)
def test_who_cannot_be_told_is_said_in_the_log(way: str, tmp_path: Path) -> None:
    live = finished(recipe(tmp_path, f"{way}, when: [started]"), "--workers", "1", runs=tmp_path)
    log = live.run.logs / "notify.log"
    wait_for(lambda: "(given up)" in log.read_text(), "the last try", 30)
    assert f"notify.{way.partition(':')[0]}, started: " in log.read_text()
    assert "Traceback" not in log.read_text()


def test_a_command_that_never_ends_holds_no_run(tmp_path: Path) -> None:
    file = recipe(tmp_path, f"command: 'echo $$ >> {tmp_path}/pids; exec sleep 600'")
    with start(file, "--workers", "1", runs=tmp_path) as live:
        live.process.communicate(timeout=60)
    assert live.process.returncode == 0
    for pid in (tmp_path / "pids").read_text().split():
        os.kill(int(pid), signal.SIGKILL)


def test_a_moment_that_does_not_exist_is_named(tmp_path: Path) -> None:
    refused = dtrain("plan", recipe(tmp_path, "command: x, when: [finish]"), check=2).stderr
    assert "notify.when" in refused
    assert "'finished'" in refused
