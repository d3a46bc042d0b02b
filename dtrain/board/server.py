"""The board's server: on the loopback alone, for those who have its token. The page itself holds no data, and is given to everyone."""

from __future__ import annotations

import hmac
import json
import secrets
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from dtrain.board import answers
from dtrain.board.runs import Board
from dtrain.common.errors import DtrainError, UsageError
from dtrain.common.serde import JsonObject

LOOPBACK = "127.0.0.1"
NAMES = {LOOPBACK, "localhost", "[::1]"}
"""Hosts that a browser on this machine, or behind a tunnel to it, may have asked: a page elsewhere whose name was made to point here has
another one."""
PAGES = {
    "/": ("dtrain.board", "board.html", "text/html"),
    "/board.js": ("dtrain.board", "board.js", "text/javascript"),
    "/board.css": ("dtrain.board", "board.css", "text/css"),
    "/page.css": ("dtrain.show", "page.css", "text/css"),
    "/uPlot.js": ("dtrain.board", "vendor/uPlot.iife.min.js", "text/javascript"),
    "/uPlot.css": ("dtrain.board", "vendor/uPlot.min.css", "text/css"),
}
"""What is served to everyone; there is no other file."""
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
COMMANDS = {"stop": ["stop", "--no-wait"], "resume": ["resume", "--detach", "--quiet"]}
"""What may be asked of a run or a study → the words of the command."""
MOST_BODY = 4096
COMMAND_SECONDS = 300.0


class Server(ThreadingHTTPServer):
    """A board on the loopback; `control` says whether runs may be stopped and resumed."""

    daemon_threads = True

    def __init__(self, board: Board, port: int, *, control: bool) -> None:
        self.board, self.control, self.token = board, control, secrets.token_urlsafe(24)
        try:
            super().__init__((LOOPBACK, port), _Handler)
        except OSError as error:
            raise UsageError(
                f"cannot serve on port {port}: {error.strerror}", "Choose another one with --port."
            ) from None

    @property
    def url(self) -> str:
        """The page, with the token where a browser sends it to nobody."""
        return f"http://{LOOPBACK}:{self.server_address[1]}/#token={self.token}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that went away is no error."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"
    timeout = 60

    def do_GET(self) -> None:
        """Give a file of the page, or an answer."""
        address = urlsplit(self.path)
        self.server.board.ask()
        if not self._is_for_us():
            return
        if address.path in PAGES:
            package, name, kind = PAGES[address.path]
            self._send(HTTPStatus.OK, resources.files(package).joinpath(name).read_bytes(), kind)
        elif self._has_token():
            self._answer(
                lambda: answered(self.server.board, address.path, parse_qs(address.query), control=self.server.control)
            )

    def do_POST(self) -> None:
        """Stop or resume a run or a study."""
        size = self.headers.get("Content-Length", "")
        if not size.isdigit() or int(size) > MOST_BODY:
            self.close_connection = True
            self._refuse(HTTPStatus.BAD_REQUEST, "a request has a body of a few bytes")
            return
        body = self.rfile.read(int(size))
        if self._is_for_us() and self._has_token():
            if not self.server.control:
                self._refuse(HTTPStatus.FORBIDDEN, "this board shows runs only: start it with dtrain board --control")
            else:
                self._answer(lambda: _commanded(self.server.board, self.path, body))

    def _is_for_us(self) -> bool:
        host = self.headers.get("Host", "")
        found = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
        if found not in NAMES:
            self._refuse(HTTPStatus.FORBIDDEN, "the board is asked by the name of this machine's loopback alone")
        return found in NAMES

    def _has_token(self) -> bool:
        given = self.headers.get("Authorization", "").removeprefix("Bearer ")
        has = hmac.compare_digest(given.encode(), self.server.token.encode())
        if not has:
            self._refuse(
                HTTPStatus.UNAUTHORIZED, "open the address that dtrain board has printed: it ends with a token"
            )
        return has

    def _answer(self, ask: Callable[[], JsonObject]) -> None:
        try:
            data = json.dumps(answers.plain(ask()), separators=(",", ":")).encode()
        except (DtrainError, OSError) as error:
            self._refuse(HTTPStatus.CONFLICT, str(error))
            return
        self._send(HTTPStatus.OK, data, "application/json")

    def _refuse(self, status: HTTPStatus, why: str) -> None:
        self._send(status, json.dumps({"error": why}).encode(), "application/json")

    def _send(self, status: HTTPStatus, data: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(data)))
        for name, value in HEADERS.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Requests are not printed: the terminal says where the page is."""


def answered(board: Board, path: str, query: dict[str, list[str]], *, control: bool) -> JsonObject:
    """The answer to a question of the page; raises `UsageError` for one that there is not."""

    def one(name: str, default: str = "") -> str:
        return query.get(name, [default])[0]

    def number(name: str) -> int | None:
        return int(one(name)) if one(name).isdigit() else None

    if path == "/api/runs":
        return answers.runs(board, number("since") or 0) | {"control": control, "folder": str(board.root)}
    if path == "/api/run":
        return answers.run(board, one("id")) | {"control": control}
    if path == "/api/curves":
        return answers.curves(board, query.get("id", []))
    if path == "/api/compare":
        return answers.compare(board, query.get("id", []))
    if path == "/api/logs":
        return answers.logs(board, one("id"), number("rank"), one("find"))
    raise UsageError(f"the board has no {path}")


def _commanded(board: Board, path: str, body: bytes) -> JsonObject:
    """Type a command about a run or a study of this folder, in a process of its own; raises `UsageError` if it fails."""
    words = COMMANDS.get(path.removeprefix("/api/"))
    try:
        name = json.loads(body)["id"]
    except (ValueError, KeyError, TypeError):
        name = None
    if words is None or not isinstance(name, str):
        raise UsageError(f"the board does not understand {path}")
    known = {*board.changes(0)[1], *(study["study"] for study in answers.runs(board, 0)["studies"])}
    if name not in known:
        raise UsageError(f"there is no run {name} in {board.root}")
    return {"text": typed([*words, str(board.root / name)], board.root)}


def typed(words: Sequence[str], root: Path) -> str:
    """What a command of dtrain prints; raises `UsageError` with it if it fails."""
    command = [sys.executable, "-P", "-m", "dtrain", *words, "--runs", str(root)]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=COMMAND_SECONDS, cwd="/", check=False
    )
    if done.returncode:
        raise UsageError(done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}")
    return done.stdout.strip()


def serve(root: Path, port: int, *, control: bool, on_start: Callable[[Server], None]) -> None:
    """Serve the board of a folder until Ctrl-C."""
    board = Board(root)
    with Server(board, port, control=control) as server:
        board.start()
        on_start(server)
        thread = threading.Thread(target=server.serve_forever, name="dtrain-board-server", daemon=True)
        thread.start()
        try:
            thread.join()
        except KeyboardInterrupt:
            server.shutdown()
        finally:
            board.close()
