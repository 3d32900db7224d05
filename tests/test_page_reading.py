"""report.html in a real Chromium: warnings that fold, what settings do to the answer, commands, labels of charts."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chromium import browser, missing, opened
from test_page_browser import readings, written
from test_recommend import scored_trial, sweep
from test_rows import COUNTER

from howlow.records import RecordWarning

pytestmark = pytest.mark.skipif(missing() is not None, reason=missing() or "")


@pytest.fixture(scope="module")
def chrome() -> Iterator[Any]:
    with browser() as started:
        yield started


def test_many_warnings_of_a_kind_fold_and_a_link_and_paper_unfold_them(tmp_path: Path, chrome: Any) -> None:
    for rank in (1, 2, 4, 8, 16):
        warning = RecordWarning(kind="not_steady", phase="train", part="measured", detail=f"{rank} % slower at its end")
        scored_trial(tmp_path, rank, 0, 0.5, 0.02, warnings=(warning,))
    written(tmp_path)
    page, heard = opened(chrome, tmp_path / "report.html")
    told = page.locator("li.warning details", has_text="not_steady")
    assert "5 notes" in told.locator("summary").inner_text()
    assert not told.locator("ol").is_visible()
    page.click("#table ~ .scroll sup a >> nth=0")
    assert told.locator("ol").is_visible()
    page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = false; })")
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    assert "16 % slower at its end" in told.inner_text()
    assert heard.complaints == []
    page.context.close()


def test_whether_settings_change_the_answer_stands_below_it_until_a_slider_moves(tmp_path: Path, chrome: Any) -> None:
    for batch in (1, 8):
        sweep(tmp_path, {1: 0.6, 8: 0.6 + 0.2 * (batch == 8)}, seeds=2, axes={"training.batch_size": batch})
    written(tmp_path)
    page, _ = opened(chrome, tmp_path / "report.html")
    assert page.inner_text("#across") == (
        "The verdict changes with training.batch_size. "
        "training.batch_size = 1: rank 1; training.batch_size = 8: rank 8."
    )
    page.focus("#slider-margin")
    page.keyboard.press("ArrowLeft")
    assert page.locator("#across").is_hidden()
    page.context.close()


def test_a_command_in_a_sentence_is_code(tmp_path: Path, chrome: Any) -> None:
    written(sweep(tmp_path, {1: 0.5, 8: 0.51}, seeds=2, noise=0.3))
    page, _ = opened(chrome, tmp_path / "report.html")
    assert page.locator("#reasons code", has_text="howlow sweep").count() > 0
    assert "`" not in page.inner_text("#reasons")
    page.context.close()


OVERLAPS = """() => {
  const length = (low, high, other, last) => Math.min(high, last) - Math.max(low, other);
  const both = (a, b) => length(a.left, a.right, b.left, b.right) > 1 && length(a.top, a.bottom, b.top, b.bottom) > 2;
  return [...document.querySelectorAll('.chart:not([hidden] *) svg')].flatMap(svg => {
    const isShown = one => one.textContent.trim() && getComputedStyle(one).opacity > 0;
    const texts = [...svg.querySelectorAll('text')].filter(isShown);
    const boxes = texts.map(one => one.getBoundingClientRect());
    const covered = (a, i) => boxes.slice(i + 1).map((b, j) => both(a, b) && texts[i + 1 + j].textContent);
    return boxes.flatMap((a, i) => covered(a, i).filter(Boolean).map(text => [texts[i].textContent, text]));
  });
}"""


@pytest.mark.parametrize("width", [420, 1280])
def test_no_text_of_a_chart_covers_another_one(tmp_path: Path, chrome: Any, width: int) -> None:
    for rank in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048):
        scored_trial(tmp_path, rank, 0, 0.6 - 0.001 / rank, 0.02, readings=readings(), energy=COUNTER)
    sweep(tmp_path, {None: 0.1})
    written(tmp_path)
    page, _ = opened(chrome, tmp_path / "report.html", width=width)
    assert page.evaluate(OVERLAPS) == []
    page.context.close()
