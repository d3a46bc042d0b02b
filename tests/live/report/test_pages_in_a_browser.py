"""The pages of report and compare in a real browser: on a phone, on half a screen and on a whole one, light, dark and printed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import browser
import pytest
import synthetic_runs

from dtrain.report import comparison, comparison_views, run_record
from dtrain.report.page import report_page

pytestmark = pytest.mark.extras
LEAST_PIXELS = 11
TEXTS = """[...document.querySelectorAll(".x,.y,td,th,.tile span")].map((one) => parseFloat(getComputedStyle(one).fontSize))"""
TOUCHING = """[...document.querySelectorAll(".chart")].flatMap((chart) => {
  const boxes = [...chart.querySelectorAll(".x")].map((one) => one.getBoundingClientRect()).filter((box) => box.width);
  return boxes.filter((box, index) => index && box.left < boxes[index - 1].right);
}).length"""
"""Texts below a chart that lie on each other."""


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """One browser for all tests here."""
    with browser.opened() as found:
        yield found


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The page of a run that failed, and of three beside each other."""
    folder = tmp_path_factory.mktemp("runs")
    records = []
    for seed, steps in enumerate((300, 2000, 20_000)):
        job = synthetic_runs.tiny(folder, (("train", "seed"), seed, "test"))
        failed = seed == 2
        run = synthetic_runs.made(
            folder, job, steps, exit_code=int(failed), failure="boom: " + "a long text " * 20 if failed else ""
        )
        records.append(run_record.read(run))
    texts = {"report": report_page(records[-1]), "compare": comparison_views.html(comparison.compare(records))}
    for name, text in texts.items():
        (folder / f"{name}.html").write_text(text)
    return {name: folder / f"{name}.html" for name in texts}


@pytest.mark.parametrize("name", ["report", "compare"])
@pytest.mark.parametrize("width", browser.WIDTHS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_page_reads_at_every_width(chromium: Any, pages: dict[str, Path], name: str, width: int, scheme: str) -> None:
    page = chromium.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page.goto(pages[name].as_uri())
    browser.picture(page, f"{name}-{width}-{scheme}")
    assert browser.overflow(page) == 0
    assert min(page.evaluate(TEXTS)) >= LEAST_PIXELS
    assert page.evaluate(TOUCHING) == 0
    assert page.locator(".panel").first.bounding_box()["width"] > 0.9 * width
    page.close()


@pytest.mark.parametrize("name", ["report", "compare"])
def test_a_page_is_printed_in_dark_on_light(chromium: Any, pages: dict[str, Path], name: str) -> None:
    page = chromium.new_page(viewport={"width": 1047, "height": 718}, color_scheme="dark")
    page.goto(pages[name].as_uri())
    page.emulate_media(media="print")
    browser.picture(page, f"{name}-printed")
    assert page.evaluate("getComputedStyle(document.body).color") == "rgb(28, 30, 33)"
    assert browser.overflow(page) == 0
    assert page.pdf().startswith(b"%PDF")
    page.close()


def test_the_best_run_is_marked_and_a_click_sorts(chromium: Any, pages: dict[str, Path]) -> None:
    page = chromium.new_page(viewport={"width": 1600, "height": 900})
    page.goto(pages["compare"].as_uri())
    heads = page.locator("table.sorts th").all_inner_texts()
    assert heads[:2] == ["run", "train.seed"]
    assert heads[2].startswith("held-out ")
    assert heads[-2:] == ["time that trained (goodput)", "weights"]
    rows = page.locator("table.sorts tbody tr")
    assert [rows.nth(index).get_attribute("class") for index in range(3)] == [None, None, "best"]
    page.click("table.sorts th:text-is('train.seed')")
    page.click("table.sorts th:text-is('train.seed')")
    assert [rows.nth(index).locator("td").nth(1).inner_text() for index in range(3)] == ["2", "1", "0"]
    page.close()


def test_a_report_names_the_best_value_its_step_and_what_is_not_as_by_default(
    chromium: Any, pages: dict[str, Path]
) -> None:
    page = chromium.new_page(viewport={"width": 1600, "height": 900})
    page.goto(pages["report"].as_uri())
    text = page.locator("main").inner_text()
    assert "best held-out accuracy, at step 20000" in text
    settings = page.locator("h2:text-is('Recipe') + .panel").inner_text()
    assert "train.global_batch\t32" in settings
    assert "bucket_mb" not in settings
    assert text.index("goodput") > text.index("share of the time that trained")
    box = page.locator(".chart svg").nth(1).bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 20)
    assert "samples/s" in page.locator(".read").first.inner_text()
    page.close()
