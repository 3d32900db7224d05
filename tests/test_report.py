"""The report of synthetic run directories: formatting, table, documents, figures and page.

Whole documents are golden files; HOWLOW_REWRITE_GOLDEN=1 writes them anew.
"""

import csv
import io
import json
import os
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_rows import ASSUMED, COUNTER, DATA, NO_ENERGY, costly_trial, phase_of, steps_of, write_trial

from howlow.analysis import compare, rows
from howlow.errors import UserError
from howlow.records import Reading, RecordWarning, Scores
from howlow.reporting import Report, formatting, read_report, write_report
from howlow.reporting.charts import figures
from howlow.reporting.inline_svg import inlined
from howlow.reporting.loss_curves import thinned
from howlow.reporting.panels import spread
from howlow.reporting.points import MOST_POINTS, drawn_series, evenly, evenly_in_log
from howlow.reporting.summary import summarize
from howlow.reporting.words import sentences

GOLDEN = Path(__file__).parent / "golden"
PNG = b"\x89PNG\r\n\x1a\n"


def check_golden(name: str, text: str) -> None:
    path = GOLDEN / name
    if os.environ.get("HOWLOW_REWRITE_GOLDEN"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8"), f"{name} differs; HOWLOW_REWRITE_GOLDEN=1 writes it anew"


def trial_of(folder: Path, rank: int | None, seconds: float, f1: float, energy: bool = True, **fields: Any) -> None:
    """A whole trial: training and generation with energy, readings and scores."""
    is_base = fields.get("kind") == "base"
    train = [] if is_base else steps_of("train", [9.0, seconds, seconds])
    steps = [*train, *steps_of("generate", [3.0, 2 * seconds, seconds], 100.0)]
    watts = 250.0 if energy else None
    phases = [
        phase_of(
            name,
            energy_j=watts * time_s if watts else None,
            time_s=time_s,
            peak_memory_bytes=int((2 + seconds) * 2**30),
        )
        for name, time_s in (("train", 2 * seconds), ("evaluate", seconds), ("generate", 3 * seconds))
        if not (is_base and name == "train")
    ]
    readings = [
        Reading(time_s=float(time), device="cuda:0", utilization=0.9, phase="train" if time < 100 else "generate")
        for time in (9, 10, 103, 104)
    ]
    defaults = {
        "scores": Scores(loss=2 - f1, f1=f1, exact_match=f1 / 2),
        "energy": COUNTER if energy else NO_ENERGY,
        "total_s": 123.4,
    }
    write_trial(folder, rank, steps=steps, readings=readings, phases=tuple(phases), **(defaults | fields))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Base, ranks 1 and 16 with two seeds each, and a rank 64 that did not fit."""
    folder = tmp_path_factory.mktemp("run")
    trial_of(folder, None, 0.5, 0.201, kind="base")
    for seed in (0, 1):
        trial_of(folder, 1, 1.0 + 0.1 * seed, 0.55 + 0.01 * seed, seed=seed)
        trial_of(folder, 16, 1.2 + 0.1 * seed, 0.57 + 0.01 * seed, seed=seed, settings={"training.batch_size": 4})
        write_trial(
            folder,
            64,
            seed=seed,
            status="out_of_memory",
            error="OutOfMemoryError: tried to allocate 2.00 GiB",
            energy=COUNTER,
            warnings=(RecordWarning(kind="rank_above_matrix", detail="rank 64 is above the smaller side (48)"),),
        )
    return folder


@pytest.fixture(scope="module")
def report(run: Path) -> Report:
    return write_report([run])


@pytest.fixture(scope="module")
def html(report: Report, run: Path) -> str:
    assert report.files
    return (run / "report.html").read_text(encoding="utf-8")


# -- formatting -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (None, "watts", "n/a"),
        (0.0123, "seconds", "12.3 ms"),
        (3.4567, "seconds", "3.46 s"),
        (999.6, "seconds", "16.7 min"),
        (3_408_000, "bytes", "3.41 MB"),
        (2 * 2**30, "bytes", "2.00 GiB"),
        (0.5534, "fraction", "55.3 %"),
        (43.06, "joules", "43.1 J"),
        (12_345.0, "joules", "12.3 kJ"),
        (300.04, "watts", "300 W"),
        (8.0412, "nats", "8.041"),
        (134_515_008, "count", "134,515,008"),
        (9.999, "per_second", "10.0"),
        (12_345.6, "per_second", "12,346"),
        (["q_proj", "k_proj"], "text", "q_proj, k_proj"),
    ],
)
def test_quantities_read_as_people_write_them(value: Any, unit: Any, text: str) -> None:
    assert formatting.quantity(value, unit) == text


def test_a_deviation_has_the_unit_of_its_mean() -> None:
    assert formatting.deviation(0.00042, "seconds", 0.134) == "0.42"
    assert formatting.deviation(0.0058, "fraction", 0.559) == "0.58"
    assert formatting.deviation(2.4, "watts", 323.0) == "2.4"


@given(st.floats(1e-12, 1e12), st.integers(2, 5))
def test_significant_digits_are_kept(value: float, digits: int) -> None:
    shown = float(formatting.significant(value, digits).replace(",", ""))
    assert shown == pytest.approx(value, rel=0.51 * 10 ** (1 - digits))


# -- table ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [100, 80])
def test_the_terminal_table(report: Report, width: int) -> None:
    text = report.table_text(width)
    assert max(map(len, text.splitlines())) <= width
    check_golden(f"table_{width}.txt", text)


@pytest.mark.parametrize("count", [0, 3])
def test_answers_that_no_generation_can_match_stand_beside_exact_match(tmp_path: Path, count: int) -> None:
    for rank in (1, 16):
        data = DATA.model_copy(update={"references": 50, "unmatchable_references": count})
        trial_of(tmp_path, rank, 1.0, 0.5, data=data)
    comparison = compare(rows([tmp_path]))
    for for_page in (False, True):
        shown = [heading.column.name for heading in summarize(comparison, for_page=for_page).headings]
        assert (shown[shown.index("exact_match") + 1] == "unmatchable_references") == bool(count)
        assert shown.count("unmatchable_references") == (1 if count else 0)
    found = json.loads(Report(comparison).json_text())["rows"]
    assert [row["unmatchable_references"] for row in found] == [count, count]


def test_the_table_names_the_reference_and_the_larger_rank_that_was_asked_for(report: Report) -> None:
    text = " ".join(report.table_text().split())
    assert "relative to rank 16 (1.00x), mean of 2 seeds" in text
    assert "a larger rank 64 was asked for but is out_of_memory" in text
    assert "warning: rank_above_matrix, 2 trials" in text
    assert "leave this rank out" in text


def test_a_warning_stands_beside_the_numbers_that_it_touches(tmp_path: Path) -> None:
    lost = RecordWarning(kind="energy_gap", detail="train, nvml counter: 1 s of 9 s have no energy", phase="train")
    trial_of(tmp_path, 4, 1.0, 0.5, warnings=(lost,))
    trial_of(tmp_path, 8, 1.0, 0.5)
    report = write_report([tmp_path])
    (line,) = [line for line in report.table_text(160).splitlines() if line.startswith("   4")]
    assert line.count("ᵃ") == 1
    assert "Jᵃ" in line
    assert "ᵃ warning: energy_gap, 1 trial (r0004-s0): train, nvml counter" in report.table_text(120)
    marked = re.findall(r"<td>([^<]*)<sup>", (tmp_path / "report.html").read_text(encoding="utf-8"))
    assert marked
    assert all(cell.endswith(("J", "W")) for cell in marked)


def test_what_is_said_of_all_adapters_marks_no_row_and_stands_last(tmp_path: Path) -> None:
    everywhere = RecordWarning(kind="attention_alone_adapted", detail="the adapter is in attention alone")
    short = [RecordWarning(kind="short_burn_in", detail=f"{phase}: 0", phase=phase) for phase in ("train", "evaluate")]
    for rank in (4, 8):
        trial_of(tmp_path, rank, 1.0, 0.5, warnings=(everywhere, *short))
    text = read_report([tmp_path]).table_text(160)
    assert "\nwarning: attention_alone_adapted, all adapters: " in text
    assert len([line for line in text.splitlines() if line.startswith("   4")]) == text.count("rank  status")
    assert "ᵃ warning: short_burn_in, 2 trials (r0004-s0, r0008-s0)" in text  # some of it touches columns
    assert text.index("short_burn_in") < text.index("attention_alone_adapted")


def test_absent_columns_are_dropped_and_named_once_with_the_reason(tmp_path: Path) -> None:
    warning = RecordWarning(kind="energy_absent", detail=NO_ENERGY.detail)
    trial_of(tmp_path, 4, 1.0, 0.5, energy=False, warnings=(warning,))
    text = " ".join(read_report([tmp_path]).table_text().split())
    assert "absent: energy (no sensor: this CPU has no readable energy counter)" in text
    assert "energy/" not in text


def test_assumed_energy_says_so_in_its_heading(tmp_path: Path) -> None:
    trial_of(tmp_path, 4, 1.0, 0.5, energy=True)
    trial_of(tmp_path, 8, 1.0, 0.5, energy=True)
    assert "assumed" not in read_report([tmp_path]).table_text()
    other = tmp_path / "assumed"
    costly_trial(other, 4, 1.0)
    write_trial(other, 8, phases=(phase_of("train", energy_j=5.0),), energy=ASSUMED)
    summary = summarize(read_report([other]).comparison)
    assert any("assumed" in heading.label for heading in summary.headings)


def test_brackets_in_foreign_text_stay_brackets(tmp_path: Path) -> None:
    write_trial(tmp_path, 4, status="failed", error="ValueError: [bold]x[/bold] [/] lost")
    assert "[bold]x[/bold] [/] lost" in read_report([tmp_path]).table_text()


# -- documents ------------------------------------------------------------------------------------------------------


def test_the_json_document(report: Report) -> None:
    document = json.loads(report.json_text())
    assert list(document) == ["rows", "reference_rank", "warnings", "level", "groups", "decomposition"]
    assert document["reference_rank"] == 16
    check_golden("report.json", report.json_text() + "\n")


def test_the_csv_holds_the_rows_of_the_json_document(report: Report, run: Path) -> None:
    text = (run / "results.csv").read_text(encoding="utf-8")
    document = json.loads(report.json_text())
    found = list(csv.DictReader(io.StringIO(text)))
    expected = [{k: "" if v is None else str(v) for k, v in row.items()} for row in document["rows"]]
    assert found == expected
    check_golden("results.csv", text)


def test_rows_do_not_depend_on_the_order_of_directories(tmp_path: Path) -> None:
    costly_trial(tmp_path / "one", 8, 1.0)
    costly_trial(tmp_path / "two", 4, 1.0)
    texts = {read_report([tmp_path / a, tmp_path / b]).json_text() for a, b in (("one", "two"), ("two", "one"))}
    assert len(texts) == 1


# -- figures --------------------------------------------------------------------------------------------------------


def test_figures_are_written_as_svg_and_png(report: Report, run: Path) -> None:
    names = {path.relative_to(run).as_posix() for path in report.files}
    stems = ("fine_tuning", "inference", "loss")
    pictures = {f"figures/{stem}.{end}" for stem in stems for end in ("svg", "png")}
    assert names == {"results.csv", "decomposition.csv", "report.html", *pictures}
    for stem in stems:
        assert (run / f"figures/{stem}.svg").read_text(encoding="utf-8").startswith("<svg")
        data = (run / f"figures/{stem}.png").read_bytes()
        assert data.startswith(PNG)
        assert len(data) > 10_000
    assert not list(run.rglob("*.tmp"))


def test_a_figure_shows_the_batch_change_the_base_and_the_reference(run: Path) -> None:
    training, inference, _ = figures(read_report([run]).comparison)
    assert "8 → 4" in json.dumps(training.spec, ensure_ascii=False)
    assert "8 → 4" not in json.dumps(inference.spec, ensure_ascii=False)
    assert "base 20.1 %" in json.dumps(inference.spec)
    assert "relative to rank 16" in json.dumps(training.spec)


def test_a_panel_without_data_is_left_out_and_the_figure_says_which(tmp_path: Path) -> None:
    trial_of(tmp_path, 4, 1.0, 0.5, energy=False)
    training = figures(read_report([tmp_path]).comparison)[0]
    text = json.dumps(training.spec)
    assert "Energy per sample" not in text
    assert "energy per sample, average power: absent, no sensor" in text
    assert "Throughput" in training.description


def test_a_stale_figure_is_removed(tmp_path: Path) -> None:
    write_trial(tmp_path, 4, status="failed", error="boom")
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "inference.png").write_bytes(b"old")
    report = write_report([tmp_path])
    assert [path.name for path in report.files] == ["results.csv", "report.html"]
    assert not list((tmp_path / "figures").iterdir())


def test_many_settings_draw_some_of_the_lines(tmp_path: Path) -> None:
    for number in range(30):
        costly_trial(tmp_path, 4, 1.0, axes={"lora.dropout": number / 100})
    comparison = compare(rows([tmp_path]))
    names, there = drawn_series(comparison)
    assert (len(names), there) == (12, 30)
    assert "12 of 30 settings drawn" in figures(comparison)[0].description


@given(st.lists(st.integers(1, 5000), min_size=1, unique=True), st.integers(2, 40))
def test_some_of_many_keep_both_ends(numbers: list[int], most: int) -> None:
    numbers = sorted(numbers)
    for some in (evenly(numbers, most), evenly_in_log(numbers, most)):
        assert len(some) <= max(most, 1)
        assert set(some) <= set(numbers)
        assert (some[0], some[-1]) == (numbers[0], numbers[-1])


@given(st.lists(st.floats(0, 20), min_size=1, max_size=2000))
def test_a_thinned_curve_is_short_and_stays_within_its_losses(losses: list[float]) -> None:
    points = thinned(list(enumerate(losses)))
    assert len(points) <= MOST_POINTS
    assert all(min(losses) - 1e-9 <= loss <= max(losses) + 1e-9 for _, loss in points)
    assert all(0 <= step < len(losses) for step, _ in points)


@given(st.lists(st.floats(0, 200), max_size=8))
def test_labels_never_cover_each_other(tops: list[float]) -> None:
    placed = sorted(spread(tops))
    assert all(after - before >= 14 - 1e-6 for before, after in pairwise(placed))


# -- page -----------------------------------------------------------------------------------------------------------


def test_the_page_stands_alone(html: str) -> None:
    assert len(html) < 3_000_000
    assert not re.search(r"""<(?:script|link|img|iframe)[^>]*(?:src|href)=["'](?:https?:)?//""", html)
    assert html.count("<svg ") == html.count('<figure class="panel">') > 10
    assert len(re.findall(r'<svg [^>]*aria-label="[^"]{20,}"', html)) == html.count("<svg ")
    assert html.count("<script>") == html.count("</script>") == 2


def test_a_page_can_be_read_without_scripts(html: str) -> None:
    still = re.sub(r"<script>.*?</script>", "", html, flags=re.DOTALL)
    for words in ("Throughput", "Energy per sample", "Training loss", "rank 16; ", "0.92"):
        assert words in still, words


def test_the_page_does_not_depend_on_hashing(run: Path) -> None:
    code = "import sys\nfrom howlow.reporting import read_report\nfrom howlow.reporting.page import page\n"
    code += "sys.stdout.write(page(read_report(sys.argv[1:]).comparison))"
    pages = {
        subprocess.run(
            [sys.executable, "-c", code, str(run)],
            check=True,
            capture_output=True,
            timeout=60,
            env=os.environ | {"PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    }
    assert len(pages) == 1


def test_a_chart_holds_nothing_that_runs() -> None:
    shapes = '<g id="a" fill="#0072b2"><text>&lt;b></text></g>'
    good = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1 1">{shapes}</svg>'
    shown = inlined(good, "x", "about")
    assert 'id="x-a"' in shown
    assert 'fill="var(--series-1)"' in shown
    assert "&lt;b&gt;" in shown
    for bad in ("<script/>", '<g onclick="x()"/>', "<foreignObject/>", "<image/>"):
        with pytest.raises(AssertionError):
            inlined(good.replace("<g ", f"{bad}<g "), "x", "about")


def test_the_page_tells_what_a_reader_asks(html: str) -> None:
    for text in (
        "moves F1 from 20.1 % to 55.5 %",
        "n = 40 test examples, 2 seeds: no significance is claimed",
        "Going from rank 1 to the best rank, 16, improves it by 2.00 points",
        "larger was asked for, but is not done: 64 (out_of_memory)",
        "800 examples in 160 groups",
        "2 measured, 1 burn-in",
        "nvml counter: total energy consumption of GPU-1234",
        "OutOfMemoryError: tried to allocate 2.00 GiB",
        "NVIDIA A100-SXM4-80GB",
        "leave this rank out",
        'href="#warning-1"',
    ):
        assert text in html, text


def test_foreign_text_is_escaped(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script><img src=x onerror=alert(2)>"
    asked = {"model": evil, "task.template": f"{{context}}{{question}}{evil}"}
    trial_of(tmp_path, 4, 1.0, 0.5, settings=asked)
    write_trial(
        tmp_path,
        8,
        status="failed",
        error=f"ValueError: {evil}",
        warnings=(RecordWarning(kind="text_cut", detail=evil),),
        settings=asked,
    )
    write_report([tmp_path])
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "alert(1)" in html
    assert "<script>alert" not in html
    assert "<img src=x" not in html
    assert html.count("</script>") == 2
    for path in (tmp_path / "figures").glob("*.svg"):
        assert "<script" not in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("kind", ["base", "full"])
def test_a_baseline_alone_makes_a_report(tmp_path: Path, kind: str) -> None:
    trial_of(tmp_path, None, 1.0, 0.5, kind=kind)
    report = write_report([tmp_path])
    assert "no rank is done" in report.table_text()
    assert "No adapter was trained" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_a_report_of_several_directories_goes_where_it_is_told(tmp_path: Path) -> None:
    for name, rank in (("one", 4), ("two", 8)):
        costly_trial(tmp_path / name, rank, 1.0)
    report = write_report([tmp_path / "one", tmp_path / "two"], tmp_path / "out")
    assert {path.parent.name for path in report.files} == {"out", "figures"}
    assert len(report.comparison.results.rows) == 2


def test_a_place_that_cannot_be_written_is_one_clear_line(tmp_path: Path) -> None:
    costly_trial(tmp_path / "run", 4, 1.0)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="the report cannot be written"):
        write_report([tmp_path / "run"], tmp_path / "file")


def test_a_loss_of_quality_is_called_one(tmp_path: Path) -> None:
    trial_of(tmp_path, None, 1.0, 0.6, kind="base")
    trial_of(tmp_path, 1, 1.0, 0.5)
    (text,) = sentences(compare(rows([tmp_path])))
    assert "from 60.0 % to 50.0 % (10.0 points worse)" in text
    assert "No larger rank scored better." in text


# -- imports --------------------------------------------------------------------------------------------------------


def test_a_report_needs_neither_torch_nor_pandas_and_its_import_is_cheap(tmp_path: Path) -> None:
    costly_trial(tmp_path, 4, 1.0)
    code = (
        "import sys\nfrom howlow.reporting import write_report\n"
        "heavy = {'torch', 'transformers', 'pandas', 'numpy', 'altair', 'vl_convert', 'jinja2', 'rich'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "write_report(sys.argv[1:])\n"
        "assert not {'torch', 'transformers', 'pandas'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code, str(tmp_path)], check=True, timeout=60)


@pytest.mark.parametrize(
    ("steps", "words"), [(1, "only 1 measured step of training"), (4, "only 4 measured steps of"), (5, "")]
)
def test_a_throughput_of_few_steps_says_so(tmp_path: Path, steps: int, words: str) -> None:
    for rank in (1, 8):
        both = [*steps_of("train", [9.0, *[1.0] * steps]), *steps_of("generate", [3.0, *[1.0] * 5], 100.0)]
        phases = tuple(phase_of(name) for name in ("train", "evaluate", "generate"))
        write_trial(tmp_path, rank, steps=both, phases=phases, scores=Scores(loss=1.0, f1=0.5))
    told = " ".join(sentences(read_report([tmp_path]).comparison))
    assert "the training throughput" in told
    assert (words in told) if words else ("rough figures" not in told)
