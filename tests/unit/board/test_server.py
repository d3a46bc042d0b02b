"""The board gives nothing to those who have no token, no file but its own, and does nothing unless it was told that it may."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import synthetic_runs

from dtrain.board.runs import Board
from dtrain.board.server import MOST_BODY, Server
from dtrain.common.errors import UsageError
from dtrain.record import folder
from dtrain.storage.object_store import of_run
from dtrain.storage.run_copy import RunCopy


class Asked:
    """A browser's requests to a board, without the browser."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.headers = {"Authorization": f"Bearer {server.token}"}

    def __call__(
        self, path: str, method: str = "GET", body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, Any]:
        """(status, answer) of one request; `headers` instead of the token."""
        connection = http.client.HTTPConnection("127.0.0.1", self.server.server_address[1], timeout=60)
        data = body if body is None or isinstance(body, str) else json.dumps(body)
        connection.request(method, path, data, self.headers if headers is None else headers)
        answer = connection.getresponse()
        text = answer.read().decode()
        connection.close()
        return answer.status, json.loads(text) if "json" in answer.headers["Content-Type"] else text


@contextmanager
def serving(root: Path, *, control: bool = False) -> Iterator[Asked]:
    """A board of this folder."""
    board = Board(root)
    with Server(board, 0, control=control) as server:
        board.start()
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield Asked(server)
        finally:
            server.shutdown()
            thread.join()
            board.close()


@pytest.fixture
def asked(tmp_path: Path) -> Iterator[Asked]:
    """A board of one run, to look at only."""
    synthetic_runs.made(tmp_path, synthetic_runs.tiny(tmp_path), 100, name="one")
    with serving(tmp_path) as found:
        yield found


QUESTIONS = ("/api/runs", "/api/run?id=one", "/api/curves?id=one", "/api/compare?id=one", "/api/logs?id=one")


@pytest.mark.parametrize("path", QUESTIONS)
def test_a_question_without_the_token_is_refused(asked: Asked, path: str) -> None:
    assert asked(path)[0] == 200
    for headers in ({}, {"Authorization": "Bearer "}, {"Authorization": "Bearer x"}, {"Authorization": "Bearer \xe9"}):
        status, answer = asked(path, headers=headers)
        assert status == 401
        assert "token" in answer["error"]
    assert asked(f"{path}&token={asked.server.token}", headers={})[0] == 401


def test_a_page_elsewhere_whose_name_points_here_is_refused(asked: Asked) -> None:
    for host in ("evil.example", "evil.example:80", "127.0.0.1.evil.example", "", "localhost.evil.example:1"):
        assert asked("/api/runs", headers=asked.headers | {"Host": host})[0] == 403
        assert asked("/", headers={"Host": host})[0] == 403
    for host in ("localhost", "localhost:8000", "127.0.0.1:1", "[::1]:8000"):
        assert asked("/api/runs", headers=asked.headers | {"Host": host})[0] == 200


def test_the_page_is_one_of_a_few_files_and_holds_no_data(asked: Asked) -> None:
    for path in ("/", "/board.js", "/board.css", "/page.css", "/uPlot.js", "/uPlot.css"):
        status, text = asked(path, headers={})
        assert status == 200
        assert asked.server.token not in text
        assert "one" not in text.split() or path == "/board.js"
    for path in (
        "/../server.py",
        "/server.py",
        "/vendor/uPlot.LICENSE",
        "/..%2f..%2fetc/passwd",
        "//etc/passwd",
        "/runs/one",
    ):
        assert asked(path, headers={})[0] == 401
        assert asked(path)[0] == 409


def test_a_run_is_found_by_its_id_alone(asked: Asked) -> None:
    for name in ("..", "../one", "one/../one", "/etc", "", "two", "%2e%2e"):
        status, answer = asked(f"/api/run?id={name}")
        assert status == 409
        assert "there is no run" in answer["error"]


def test_who_may_look_only_can_neither_stop_nor_resume(asked: Asked) -> None:
    for action in ("stop", "resume"):
        assert asked(f"/api/{action}", "POST", {"id": "one"}, {})[0] == 401
        status, answer = asked(f"/api/{action}", "POST", {"id": "one"})
        assert status == 403
        assert "--control" in answer["error"]


def test_with_control_a_request_has_the_token_and_names_a_run(tmp_path: Path) -> None:
    synthetic_runs.made(tmp_path, synthetic_runs.tiny(tmp_path), 100, name="one")
    with serving(tmp_path, control=True) as asked:
        assert asked("/api/stop", "POST", {"id": "one"}, {})[0] == 401
        assert asked("/api/stop", "POST", {"id": "one"}, asked.headers | {"Host": "evil.example"})[0] == 403
        assert asked("/api/stop", "GET")[0] == 409
        for path, body in (
            ("stop", {"id": "../one"}),
            ("stop", {}),
            ("stop", "x"),
            ("stop", {"id": ["one"]}),
            ("rm", {"id": "one"}),
        ):
            assert asked(f"/api/{path}", "POST", body)[0] == 409
        assert asked("/api/stop", "POST", "x" * (MOST_BODY + 1))[0] == 400
        assert "is not running" in asked("/api/stop", "POST", {"id": "one"})[1]["text"]
        status, answer = asked("/api/resume", "POST", {"id": "one"})
        assert status == 409
        assert "is finished" in answer["error"]


def until(asked: Asked, path: str, what: Callable[[Any], Any]) -> Any:
    """The first answer that is wanted."""
    for _ in range(600):
        status, answer = asked(path)
        assert status == 200
        if what(answer):
            return answer
        threading.Event().wait(0.05)
    raise AssertionError(answer)


def test_secrets_of_a_recipe_are_not_on_the_page(tmp_path: Path) -> None:
    secret = "hunter2hunter2"
    runs = []
    for value in (secret, "other"):
        job = synthetic_runs.tiny(tmp_path, (("env",), {"MY_TOKEN": value, "PLAIN": value}, "test"))
        runs.append(synthetic_runs.made(tmp_path, job, 100))
        runs[-1].recipe_copy.write_text(
            f"name: tiny\ntask: tiny.py:Tiny\nenv:\n  MY_TOKEN: {value}\n  PLAIN: {value}\n"
        )
    with serving(tmp_path) as asked:
        for path in (*(one for run in runs for one in (f"/api/run?id={run.id}", f"/api/curves?id={run.id}")),
                     "/api/runs", f"/api/compare?id={runs[0].id}&id={runs[1].id}"):  # fmt: skip
            status, answer = asked(path)
            assert status == 200
            assert secret not in json.dumps(answer)
        assert "MY_TOKEN: ***" in asked(f"/api/run?id={runs[0].id}")[1]["recipe"]


def test_rows_come_once_and_again_when_they_change(tmp_path: Path) -> None:
    job = synthetic_runs.tiny(tmp_path)
    synthetic_runs.made(tmp_path, job, 100, name="one", exit_code=1, failure="boom")
    with serving(tmp_path) as asked:
        first = until(asked, "/api/runs", lambda answer: answer["rows"][0]["total_steps"])
        (row,) = first["rows"]
        assert (row["state"], row["step"], row["reason"]) == ("failed", 100, "boom")
        assert asked(f"/api/runs?since={first['version']}")[1]["rows"] == []
        synthetic_runs.made(tmp_path, job, 200, name="two")
        second = until(
            asked,
            f"/api/runs?since={first['version']}",
            lambda answer: answer["rows"] and answer["rows"][0]["total_steps"],
        )
        assert [row["run"] for row in second["rows"]] == ["two"]
        assert second["ids"] == ["two", "one"]
        found = asked("/api/run?id=one")[1]
        assert found["failures"][0]["evidence"] == "Traceback: mend me"
        assert asked("/api/curves?id=one")[1]["one"]["steps"]["loss"][0] == list(range(10, 101, 10))


def test_output_is_searched_and_a_progress_bar_is_its_last_state(tmp_path: Path) -> None:
    run = synthetic_runs.made(tmp_path, synthetic_runs.tiny(tmp_path), 100, name="one")
    run.rank_log(0).write_bytes(
        b"begin\n" + b"".join(b"line %d\n" % number for number in range(2000)) + b"1%\r50%\r100%\n\x1b[2Jend"
    )
    run.rank_log(1).write_text("Begin here\n")
    with serving(tmp_path) as asked:
        lines = asked("/api/logs?id=one&rank=0")[1]["lines"]
        assert len(lines) == 500
        assert lines[-2:] == [[0, "100%"], [0, "\\x1b[2Jend"]]
        assert asked("/api/logs?id=one&find=BEGIN")[1]["lines"] == [[0, "begin"], [1, "Begin here"]]
        assert asked("/api/logs?id=one&find=line%207&rank=0")[1]["lines"][-1] == [0, "line 799"]
        assert asked("/api/logs?id=one&rank=7")[1]["lines"] == []


def test_a_port_that_is_taken_is_named(asked: Asked, tmp_path: Path) -> None:
    port = asked.server.server_address[1]
    with pytest.raises(UsageError, match=f"port {port}"):
        Server(Board(tmp_path), port, control=False)


def test_a_run_on_remote_storage_is_as_it_is_there(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    job = synthetic_runs.tiny(tmp_path, (("storage", "url"), f"file://{tmp_path}/bucket", "test"))
    run = synthetic_runs.made(there, job, 100, name="one")
    RunCopy(run, of_run(job.storage, run.id), claim=1).push()
    folder.create(here, job, "one")
    with serving(here) as asked:
        answer = until(asked, "/api/runs", lambda answer: answer["rows"][0]["total_steps"])
        assert (answer["rows"][0]["state"], answer["rows"][0]["step"]) == ("done", 100)
