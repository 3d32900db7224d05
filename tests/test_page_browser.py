"""report.html in a real Chromium: sliders, sorting, tooltips, themes, widths; and it asks no network for anything."""

import json
import math
from collections.abc import Iterator
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chromium import browser, missing, opened
from test_recommend import scored_trial, sweep
from test_rows import COUNTER, write_trial

from howlow.analysis import Results, compare, constraints, recommendation, rows
from howlow.analysis.constraints import CostLimits
from howlow.analysis.recommendation import recommend_from
from howlow.records import LooksRecord, Reading, RecordWarning, Scores, write_looks
from howlow.reporting import formatting
from howlow.reporting.page import page as report_page
from howlow.reporting.recommendation import headline

pytestmark = pytest.mark.skipif(missing() is not None, reason=missing() or "")

EVIL = "</script><script>window.ran = 1</script><img src=x onerror='window.ran = 2'>{{7*7}}\u2028"
DECIDE = """([number, margin, limits]) => {
  const decision = window.howlow.decisions[number], found = decide(decision, margin, limits);
  const rank = found.nearest == null ? null : decision.candidates[found.nearest].rank;
  return [found.verdict, found.rank, headline(decision, found), rank];
}"""
LIMITS = {"max_memory": "max_memory_bytes", "max_energy": "max_energy_j", "max_time": "max_time_s"}


@pytest.fixture(scope="module")
def chrome() -> Iterator[Any]:
    with browser() as started:
        yield started


def readings(number: int = 60) -> list[Reading]:
    phases = ["load", "train", "evaluate", "generate"]
    return [
        Reading(
            time_s=index * 0.5,
            device="cuda:0",
            power_w=100 + 150 * (index % 7 > 2),
            memory_bytes=10**9 + index * 10**7,
            utilization=0.9,
            sm_clock_hz=1.4e9,
            phase=phases[index * len(phases) // number],
        )
        for index in range(number)
    ]


def written(folder: Path) -> Results:
    """The folder's results, and its page without the report's other files."""
    results = rows([folder])
    (folder / "report.html").write_text(report_page(compare(results)), encoding="utf-8")
    return results


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep with an answer, readings, a warning, a failure, and a tag in every text that a user may give."""
    told = {"readings": readings(), "energy": COUNTER}
    folder = sweep(tmp_path_factory.mktemp("run"), seeds=2, **told)
    warning = RecordWarning(kind="text_cut", detail=EVIL)
    for seed in (0, 1):
        scored_trial(folder, 128, seed, 0.6, 0.02, warnings=(warning,), **told)
    write_trial(folder, 256, status="failed", error=f"ValueError: {EVIL}")
    written(folder)
    return folder


@pytest.fixture
def page(chrome: Any, run: Path) -> Iterator[Any]:
    """The page; whatever a test does, it complains about nothing and asks for nothing."""
    opened_page, heard = opened(chrome, run / "report.html")
    yield opened_page
    opened_page.context.close()
    assert heard.complaints == []
    assert heard.requests == [(run / "report.html").as_uri()]


def rows_of(page: Any, table: str) -> list[list[str]]:
    cells = "rows => rows.map(row => [...row.children].map(cell => cell.innerText.trim()))"
    found: list[list[str]] = page.eval_on_selector_all(f"{table} tbody tr", cells)
    return found


# -- the answer -----------------------------------------------------------------------------------------------------


def perplexity_sweep(folder: Path) -> Path:
    """Language modelling, with a metric whose margin is relative; the ranks differ by about one per cent."""
    tokens = np.random.default_rng(1).integers(10, 200, 120)
    for rank, loss in ((None, 4.0), (1, 3.02), (8, 3.0), (64, 2.995)):
        for seed in range(3 if rank else 1):
            nll = tokens * loss + np.random.default_rng([rank or 0, seed]).normal(0, 4.0, 120)
            mean = float(nll.sum() / tokens.sum())
            scores = Scores(loss=mean, perplexity=math.exp(mean))
            kind = "lora" if rank else "base"
            record = write_trial(folder, rank, kind=kind, seed=seed, task="language_modeling", scores=scores)
            lines = [
                json.dumps({"id": f"t:{i}", "cluster": f"{i // 4}", "log_likelihood": -value, "tokens": int(count)})
                for i, (value, count) in enumerate(zip(nll.tolist(), tokens, strict=True))
            ]
            (folder / "trials" / record.trial / "predictions.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def noisy_sweep(folder: Path) -> Path:
    """A lot of noise, one rank with fewer seeds, and no base model."""
    sweep(folder, {1: 0.52, 4: 0.6, 16: 0.58}, seeds=3, noise=0.25)
    return sweep(folder, {64: 0.61}, seeds=1, noise=0.25)


def looked_sweep(folder: Path) -> Path:
    """A sweep that was looked at while it grew, so that its bounds have the levels of the looks."""
    looks = LooksRecord(metric="f1", margin=0.06, confidence=0.9, seeds=(0, 1, 2, 3), information=(0.5, 0.8, 1.0))
    write_looks(folder, looks)
    sweep(folder, {None: 0.1, 1: 0.55, 4: 0.6}, seeds=3, noise=0.2)
    return sweep(folder, {16: 0.6, 64: 0.61}, seeds=2, noise=0.2)


def settings_sweep(folder: Path) -> Path:
    """Two settings, whose answers differ."""
    for batch in (1, 8):
        axes = {"training.batch_size": batch}
        sweep(folder, {1: 0.6, 8: 0.6 + 0.2 * (batch == 8), 64: 0.7}, seeds=2, axes=axes)
    return sweep(folder, {None: 0.1})


def positions(decision: dict[str, Any]) -> list[tuple[float, dict[str, float]]]:
    """Margins and limits; some limits are exactly a cost, where a little less would leave a rank out."""
    margins = [0.0, 0.001, decision["margin"], 0.03, 0.1]
    ends: list[list[tuple[str, float] | None]] = []
    for limit in decision["limits"]:
        if limit["problem"]:
            continue
        costs = [one["costs"][limit["name"]]["end"] for one in decision["candidates"] if limit["name"] in one["costs"]]
        known = sorted({cost for cost in costs if cost is not None})
        chosen = [known[0] * 0.5, known[0], known[len(known) // 2], known[-1] * 0.999]
        ends.append([None, *((limit["name"], value) for value in chosen)])
    places = list(product(margins, *ends))
    picked = np.random.default_rng(0).permutation(len(places))[:60]
    return [(places[place][0], dict(one for one in places[place][1:] if one is not None)) for place in picked]


def by_python(results: Results, decision: Any, margin: float, limits: dict[str, float]) -> list[Any]:
    metric, where = decision["by"]
    asked = CostLimits(**{LIMITS[name]: value for name, value in limits.items()})
    found = recommend_from(results, metric=metric, margin=margin, limits=asked, where=where)
    return [
        found.verdict,
        found.rank,
        headline(found),
        found.nearest if found.verdict == "constraints_not_met" else None,
    ]


@pytest.fixture
def read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python decides 60 times about the same files."""
    scores, steps = recommendation.cluster_scores, constraints.read_steps
    known: dict[Any, Any] = {}

    def cluster_scores(candidates: Any, metric: Any) -> Any:
        key = metric.name, tuple(str(trial.folder) for trials in candidates for trial in trials)
        return known.setdefault(key, None) or known.update({key: scores(candidates, metric)}) or known[key]

    monkeypatch.setattr(recommendation, "cluster_scores", cluster_scores)
    monkeypatch.setattr(constraints, "read_steps", cache(steps))


@pytest.mark.usefixtures("read_once")
@pytest.mark.parametrize("made", [sweep, perplexity_sweep, noisy_sweep, looked_sweep, settings_sweep])
def test_the_page_decides_as_the_command_does(tmp_path: Path, chrome: Any, made: Any) -> None:
    folder = made(tmp_path)
    results = written(folder)
    page, _ = opened(chrome, folder / "report.html")
    decisions = page.evaluate("window.howlow.decisions")
    verdicts = set()
    for number, decision in enumerate(decisions):
        words = decision["command"].split()
        where = dict(one.split("=") for one in words[words.index("--where") + 1 :]) if "--where" in words else {}
        decision["by"] = words[words.index("--metric") + 1], where
        places = positions(decision)[: 60 // len(decisions)]
        found = page.evaluate(f"places => places.map({DECIDE})", [[number, *place] for place in places])
        for place, own in zip(places, found, strict=True):
            assert own == by_python(results, decision, *place), (number, place)
            verdicts.add(own[0])
    assert len(verdicts) >= 2, "positions that all give one verdict show little"
    page.context.close()


def test_a_slider_moves_the_answer_by_the_same_rule(page: Any, run: Path) -> None:
    assert page.inner_text("#verdict strong") == "Recommended: rank 4."
    page.focus("#slider-margin")
    for _ in range(30):
        page.keyboard.press("ArrowLeft")
    assert page.inner_text("#shown-margin") == "0 points"
    told = headline(recommend_from(rows([run]), margin=0.0))
    assert " ".join(page.inner_text("#verdict").split()) == told
    assert not page.is_visible("#why")
    assert "--margin 0" in page.inner_text("#command-text")
    page.click("#reset")
    assert page.inner_text("#verdict strong") == "Recommended: rank 4."
    assert page.is_visible("#why")


def test_a_limit_leaves_ranks_out_and_its_end_means_none(page: Any) -> None:
    assert page.inner_text("#shown-max_time") == "no limit"
    page.focus("#slider-max_time")
    page.keyboard.press("Home")
    assert page.inner_text("#verdict strong") == "No rank is shown to keep the limits; rank 1 is the nearest."
    assert "misses the limit on time" in page.inner_text("#candidates")
    assert page.locator("[data-decision='0'] [data-state='excluded']").count() > 0
    assert "--max-time" in page.inner_text("#command-text")
    page.keyboard.press("End")
    assert page.inner_text("#shown-max_time") == "no limit"
    assert page.inner_text("#verdict strong") == "Recommended: rank 4."


def test_the_answer_has_its_bill_and_its_ring(page: Any) -> None:
    assert page.inner_text("#bill thead").split() == ["rank", "4", "rank", "128", "ratio"]
    assert any("training energy" in row[0] for row in rows_of(page, "#bill"))
    ringed = page.eval_on_selector_all(
        "[data-state='chosen']", "marks => marks.map(mark => mark.getAttribute('aria-label'))"
    )
    assert ringed
    assert all(label.startswith("rank 4; ") for label in ringed)


def test_another_metric_has_its_own_answer(page: Any) -> None:
    page.select_option("#choices select", "exact match")
    assert "exact match" in page.inner_text("#verdict")
    page.click("#reset")
    assert "exact match" in page.inner_text("#verdict")


# -- numbers --------------------------------------------------------------------------------------------------------

UNITS = ("count", "number", "bytes", "seconds", "per_second", "joules", "watts", "fraction", "nats", "hertz", "celsius")


def test_numbers_read_as_they_do_elsewhere(page: Any) -> None:
    generator = np.random.default_rng(0)
    values = [
        0.0,
        1.0,
        119.96,
        999.6,
        7199.0,
        9999.0,
        2.0**30,
        1e-7,
        3e15,
        *(10 ** generator.uniform(-6, 13, 200)).tolist(),
    ]
    for unit in UNITS:
        shown = page.evaluate("([values, unit]) => values.map(value => quantity(value, unit))", [values, unit])
        assert shown == [formatting.quantity(value, unit) for value in values], unit
    assert page.evaluate("quantity(null, 'watts')") == formatting.ABSENT


# -- records --------------------------------------------------------------------------------------------------------


def test_records_are_sorted_in_both_directions_and_absent_values_stay_last(page: Any) -> None:
    def column(name: str) -> list[str]:
        place = page.eval_on_selector_all("#records thead th", "cells => cells.map(cell => cell.innerText)")
        (at,) = [index for index, text in enumerate(place) if text.split("\n")[0].strip(" ▲▼") == name]
        return [row[at] for row in rows_of(page, "#records")]

    page.click("#records th button:text-is('rank')")
    ranks = column("rank")
    assert ranks[:2] == ["1", "1"]
    assert ranks[-1] == "n/a"
    assert page.get_attribute("#records th:has(button:text('rank'))", "aria-sort") == "ascending"
    page.keyboard.press("Enter")
    assert column("rank")[0] == "256"
    assert column("rank")[-1] == "n/a"
    page.click("#records th button:text-is('F1')")
    shares = [float(text.split()[0]) for text in column("F1") if text != "n/a"]
    assert shares == sorted(shares, reverse=True), "what is better comes first"


def test_records_have_units_sources_and_warnings_and_can_be_searched(page: Any) -> None:
    page.select_option("#records-controls select", "all")
    text = page.inner_text("#records")
    for words in ("nvml counter", "GiB", " s", " W", "per second"):
        assert words in text, words
    page.fill("#records-search", "r0128")
    assert [row[0] for row in rows_of(page, "#records")] == ["r0128-s0", "r0128-s1"]
    page.click("#records tbody sup a >> nth=0")
    assert page.evaluate("location.hash").startswith("#warning-")
    page.fill("#records-search", "nothing like it")
    assert page.inner_text("#records-pages [role=status]") == "no record"


# -- charts ---------------------------------------------------------------------------------------------------------


def test_a_point_says_what_it_is_on_hovering_and_by_keys(page: Any) -> None:
    chart = page.locator("#figure-fine_tuning ~ .panels .chart").first
    chart.scroll_into_view_if_needed()
    box = chart.locator("[aria-label^='rank 4;']").first.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2 + 3, box["y"] + box["height"] / 2 + 3)
    assert page.inner_text(".tooltip").startswith("rank 4")
    chart.focus()
    page.keyboard.press("Escape")
    assert page.locator(".tooltip").is_hidden()
    page.keyboard.press("ArrowLeft")
    last = page.inner_text(".tooltip")
    page.keyboard.press("ArrowLeft")
    assert page.inner_text(".tooltip") not in ("", last)
    assert "mean of 2 seeds" in last


def test_timelines_show_one_trial_with_its_phases(page: Any) -> None:
    shown = page.locator("[data-timeline]:visible")
    assert shown.count() == 1
    assert page.locator("[data-timeline]").count() <= 8
    assert {"Power", "Memory", "Clock", "Utilisation"} <= set(shown.locator("h4").all_inner_texts())
    assert "train" in shown.first.inner_text()
    page.select_option("#timeline-choice select", "r0001-s0")
    assert page.locator("[data-timeline]:visible h3").inner_text() == "r0001-s0"


# -- looks ----------------------------------------------------------------------------------------------------------

GROUND = "getComputedStyle(document.body).backgroundColor"
LIGHT, DARK = "rgb(255, 255, 255)", "rgb(20, 24, 29)"


@pytest.mark.parametrize(("scheme", "system", "other"), [("light", LIGHT, DARK), ("dark", DARK, LIGHT)])
def test_the_theme_is_the_systems_or_the_readers(chrome: Any, run: Path, scheme: Any, system: str, other: str) -> None:
    page, heard = opened(chrome, run / "report.html", color_scheme=scheme)
    assert page.evaluate(GROUND) == system
    grounds = {}
    for _ in range(3):
        page.click("#theme")
        grounds[page.inner_text("#theme")] = page.evaluate(GROUND)
    assert grounds == {"Theme: light": LIGHT, "Theme: dark": DARK, "Theme: auto": system}
    assert page.evaluate("getComputedStyle(document.querySelector('.chart svg path[aria-label]')).fill") != other
    page.context.close()
    assert heard.complaints == []


CONTRAST = """() => {
  const light = color => {
    const [r, g, b] = color.match(/[\\d.]+/g).slice(0, 3).map(part => {
      const share = part / 255;
      return share <= .04045 ? share / 12.92 : ((share + .055) / 1.055) ** 2.4;
    });
    return .2126 * r + .7152 * g + .0722 * b;
  };
  const style = name => { document.body.style.color = `var(--${name})`; return getComputedStyle(document.body).color; };
  const found = {};
  for (const ground of ["page", "card"]) for (const name of ["ink", "soft", "link", "good", "bad", "warn"]) {
    const [a, b] = [light(style(ground)), light(style(name))].sort((x, y) => y - x);
    found[`${name} on ${ground}`] = (a + .05) / (b + .05);
  }
  document.body.style.color = "";
  return found;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_both_themes(chrome: Any, run: Path, scheme: Any) -> None:
    page, _ = opened(chrome, run / "report.html", color_scheme=scheme)
    found = page.evaluate(CONTRAST)
    assert min(found.values()) >= 4.5, found
    page.context.close()


@pytest.mark.parametrize("width", [420, 800, 1400])
def test_nothing_runs_out_of_the_page(chrome: Any, run: Path, width: int) -> None:
    page, heard = opened(chrome, run / "report.html", width=width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    charts = page.eval_on_selector_all(
        ".chart:not([hidden] *)", "all => all.map(one => one.getBoundingClientRect().width)"
    )
    assert min(charts) >= 300, "a chart is no stamp"
    texts = page.eval_on_selector_all(
        ".chart:not([hidden] *) text", "all => all.map(one => one.getBoundingClientRect().height).filter(Boolean)"
    )
    assert min(texts) >= 9, "its texts can be read"
    page.context.close()
    assert heard.complaints == []


def test_it_prints_without_its_controls(page: Any) -> None:
    page.emulate_media(media="print")
    assert page.locator("nav").is_hidden()
    assert page.locator("#sliders").is_hidden()
    assert page.is_visible("#verdict")
    assert page.locator(".chart:visible").count() > 4


def test_without_scripts_it_can_be_read(chrome: Any, run: Path) -> None:
    context = chrome.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto((run / "report.html").as_uri())
    assert page.inner_text("#verdict").startswith("Recommended: rank 4.")
    assert page.locator(".chart svg").count() > 4
    assert not page.is_visible("#sliders")
    context.close()


# -- what others wrote ----------------------------------------------------------------------------------------------


def test_a_tag_in_a_text_stays_text(page: Any) -> None:
    assert page.evaluate("window.ran") is None
    assert EVIL.strip() in page.inner_text("#warnings ~ ol")
    assert page.locator("img").count() == 0
    page.select_option("#records-controls select", "all")
    page.fill("#records-search", "r0256")
    assert page.evaluate("window.ran") is None


def test_a_tag_in_an_axis_stays_text(tmp_path: Path, chrome: Any) -> None:
    for template in (EVIL, "{context}{question}"):
        sweep(
            tmp_path,
            {1: 0.5, 8: 0.6},
            seeds=1,
            axes={"task.template": f"{len(template)}{template[:40]}".replace("/", "|")},
        )
    written(tmp_path)
    page, heard = opened(chrome, tmp_path / "report.html")
    assert page.evaluate("window.ran") is None
    assert "<script>" in page.inner_text(".legend >> nth=0")
    assert heard.complaints == []
    page.context.close()


# -- many records ---------------------------------------------------------------------------------------------------


def test_many_records_are_turned_page_by_page(tmp_path: Path, chrome: Any) -> None:
    for seed in range(30):
        for rank in (1, 2):
            write_trial(tmp_path, rank, seed=seed, scores=Scores(loss=1.0 + seed / 100, f1=0.5))
    written(tmp_path)
    page, heard = opened(chrome, tmp_path / "report.html")
    assert len(rows_of(page, "#records")) == 50
    assert page.inner_text("#records-pages [role=status]") == "1 to 50 of 60 records"
    page.click("#records-pages button:text('Next')")
    assert page.inner_text("#records-pages [role=status]") == "51 to 60 of 60 records"
    assert page.is_disabled("#records-pages button:text('Next')")
    assert heard.complaints == []
    page.context.close()
