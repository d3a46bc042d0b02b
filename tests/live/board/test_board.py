"""The board in a real browser: somebody looks for a run, reads its output, compares it with another one and stops it."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import browser
import pytest
import synthetic_runs
from browser import picture, until
from live import DTRAIN, PROGRAMS, dtrain, wait_for

from dtrain.control.state import state_of
from dtrain.record.folder import RunDir

pytestmark = pytest.mark.extras


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """One browser for all tests here."""
    with browser.opened() as found:
        yield found


@contextmanager
def board(runs: Path, *options: str) -> Iterator[str]:
    """`dtrain board`; the address that it prints."""
    process = subprocess.Popen(
        [*DTRAIN, "board", "--runs", str(runs), *options], stdout=subprocess.PIPE, text=True, cwd="/"
    )
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip()
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
        process.stdout.close()


@contextmanager
def page_of(chromium: Any, url: str, **options: Any) -> Iterator[Any]:
    """A page whose scripts make no mistake."""
    page = chromium.new_page(**options)
    mistakes: list[str] = []
    page.on("pageerror", lambda error: mistakes.append(str(error)))
    page.on("console", lambda message: mistakes.append(message.text) if message.type == "error" else None)
    page.goto(url)
    yield page
    page.close()
    assert not mistakes


def test_a_run_is_found_read_compared_and_stopped(chromium: Any, tmp_path: Path) -> None:
    synthetic_runs.made(
        tmp_path,
        synthetic_runs.tiny(tmp_path, (("train", "seed"), 9, "test")),
        500,
        name="before",
        exit_code=1,
        failure="boom",
    )
    dtrain(
        "submit",
        str(PROGRAMS / "tiny.yaml"),
        "--name",
        "lively",
        "--set",
        "params.pause=0.05",
        "--set",
        "train.steps=100000",
        "--runs",
        str(tmp_path),
    )
    (run,) = [RunDir(path) for path in tmp_path.glob("lively-*")]
    try:
        wait_for(lambda: state_of(run).step > 2, "its first steps")
        with open(run.rank_log(0), "a") as log:
            log.write("a line to be FOUND <b>here</b>\n")
        with board(tmp_path, "--control") as url, page_of(chromium, url) as page:
            _look(page, run)
            _compare(page, run)
            _stop(page, run)
    finally:
        dtrain("stop", run.id, "--now", "--runs", str(tmp_path))


def _look(page: Any, run: RunDir) -> None:
    """From the list to the run; its curve grows, and a line is found in its output."""
    until(lambda: page.locator("#rows tr").count() == 2, "both runs")
    assert "token" not in page.url
    until(lambda: "running" in page.locator("#rows").inner_text(), "its state")
    picture(page, "board-list")
    page.fill("#filter", "lively")
    until(lambda: page.locator("#rows tr").count() == 1, "the filter")
    page.click(f"text={run.id}")
    until(lambda: page.locator("#charts canvas").count() >= 3, "its charts")
    before = page.locator("#tiles b").first.inner_text()
    until(lambda: page.locator("#tiles b").first.inner_text() != before, "its next steps")
    page.fill("#find", "to be found")
    page.click("text=search")
    until(lambda: page.locator("#lines mark").count() == 1, "the line")
    assert page.locator("#lines").inner_text().strip() == "a line to be FOUND <b>here</b>"
    picture(page, "board-run")


def _compare(page: Any, run: RunDir) -> None:
    page.click("text=all runs >> visible=true")
    page.fill("#filter", "")
    until(lambda: page.locator("#rows tr").count() == 2, "both runs")
    for name in (run.id, "before"):
        page.check(f"[aria-label='compare {name}']")
    page.click("text=compare 2")
    until(lambda: page.locator("#charts-beside canvas").count() >= 2, "the charts")
    assert "train.seed" in page.locator("#differences").inner_text()
    assert page.locator("#numbers td.best").count() >= 2
    picture(page, "board-compare")
    page.go_back()


def _stop(page: Any, run: RunDir) -> None:
    page.click(f"text={run.id}")
    page.click("text=stop: save and end")
    until(lambda: state_of(run).outcome == "stopped", "the end")
    until(lambda: page.locator("#state").inner_text() == "stopped", "the page to say so")
    page.click("button:text('resume')")
    until(lambda: state_of(run).outcome == "running", "the run to go on")
    until(lambda: page.locator("text=stop: save and end").count() == 1, "the page to say so")


def test_without_control_there_is_no_button_and_a_failure_is_read(chromium: Any, tmp_path: Path) -> None:
    synthetic_runs.made(
        tmp_path, synthetic_runs.tiny(tmp_path), 500, name="broken", exit_code=1, failure="<script>boom</script>"
    )
    with board(tmp_path) as url, page_of(chromium, url) as page:
        page.click("text=broken")
        until(lambda: "boom" in page.locator("#failures").inner_text(), "the failure")
        page.click("#failures summary")
        assert "Traceback: mend me" in page.locator("#failures pre").inner_text()
        assert page.locator("#actions button").count() == 0


def test_a_study_is_shown_with_its_trials_and_stopped(chromium: Any, tmp_path: Path) -> None:
    tune = (
        "tune",
        str(PROGRAMS / "tiny.yaml"),
        "--over",
        "train.seed=1,2",
        "--metric",
        "last(loss)",
        "--sampler",
        "grid",
        "--early-stop",
        "none",
    )
    slow = ("--set", "params.pause=0.05", "--set", "train.steps=100000", "--runs", str(tmp_path))
    study = dtrain(*tune, *slow, "--detach", "--quiet").stdout.strip()
    try:
        synthetic_runs.made(tmp_path, synthetic_runs.tiny(tmp_path), 100, name="another")
        with board(tmp_path, "--control") as url, page_of(chromium, url) as page:
            until(lambda: study in page.locator("#studies").inner_text(), "the study")
            until(lambda: page.locator("#rows tr").count() >= 2, "its first trial")
            page.click("#studies a")
            until(lambda: "another" not in page.locator("#rows").inner_text(), "its trials alone")
            page.click("#studies button")
            until(lambda: "stopped" in page.locator("#studies").inner_text(), "its end")
    finally:
        dtrain("stop", study, "--now", "--runs", str(tmp_path))


@pytest.mark.parametrize("width", browser.WIDTHS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_reads_on_a_phone_and_on_a_wide_screen(chromium: Any, tmp_path: Path, width: int, scheme: str) -> None:
    job = synthetic_runs.tiny(tmp_path)
    for number in range(3):
        synthetic_runs.made(tmp_path, job, 300 + number * 100, name=f"tiny-{number}-20260101-000000-abcd")
    with (
        board(tmp_path) as url,
        page_of(chromium, url, viewport={"width": width, "height": 900}, color_scheme=scheme) as page,
    ):
        until(lambda: page.locator("#rows tr").count() == 3, "the list")
        assert browser.overflow(page) == 0
        picture(page, f"board-list-{width}-{scheme}")
        page.click("#rows a >> nth=0")
        until(lambda: page.locator("#charts canvas").count() >= 3, "its charts")
        assert browser.overflow(page) == 0
        assert page.locator("#charts").bounding_box()["width"] > 0.9 * width
        chart = page.locator("#charts .panel").first.bounding_box()
        assert (chart["x"], chart["y"]) == tuple(page.locator("#charts").bounding_box()[key] for key in "xy"), (
            "no gap around it"
        )
        picture(page, f"board-run-{width}-{scheme}")


def test_an_address_without_its_token_says_what_to_do(chromium: Any, tmp_path: Path) -> None:
    with board(tmp_path) as url:
        page = chromium.new_page()
        page.goto(url.partition("#")[0])
        until(lambda: "dtrain board has printed" in page.locator("#problem").inner_text(), "the hint")
        page.close()


PAINT_SECONDS = 1.0


@pytest.mark.quiet
def test_a_thousand_runs_and_one_of_a_million_steps_are_painted_within_a_second(chromium: Any, tmp_path: Path) -> None:
    job = synthetic_runs.tiny(tmp_path)
    synthetic_runs.made(tmp_path, job, 1_000_000, name="long")
    for _ in range(999):
        synthetic_runs.made(tmp_path, job, 200)
    with board(tmp_path) as url, page_of(chromium, "about:blank") as page:
        browser.note_first(page, list="#rows tr", curves="#charts canvas")
        page.goto(url)
        assert browser.first_seen(page, "list") < PAINT_SECONDS
        assert "1,000 of 1,000 runs" in page.locator("#count").inner_text()
        page.goto(url.partition("#")[0] + "#/run/long")
        page.reload()
        assert browser.first_seen(page, "curves") < PAINT_SECONDS
        until(lambda: page.locator("#state").inner_text() == "done", "its whole history", 120)
        assert "1,000,000" in page.locator("#best").inner_text()
