"""Results as Parquet, and as tables in LaTeX and Markdown."""

import io
import re
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from test_report import check_golden, trial_of
from test_rows import write_trial

from howlow.analysis import load_results
from howlow.errors import UserError
from howlow.records import RecordWarning
from howlow.reporting import read_report, write_report
from howlow.reporting.exports import EXPORT_FILES, checked_exports
from howlow.reporting.latex import escaped_latex, latex_text
from howlow.reporting.markdown import escaped_markdown, markdown_text
from howlow.reporting.paper_tables import paper_tables, with_error
from howlow.reporting.parquet import parquet_bytes


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Base, ranks 1 and 16 with two seeds each and a warning, and a rank 64 that did not fit."""
    lost = RecordWarning(kind="energy_gap", detail="1 s of 9 s have no energy", phase="train")
    trial_of(tmp_path / "sweep", None, 0.5, 0.201, kind="base")
    for seed in (0, 1):
        trial_of(tmp_path / "sweep", 1, 1.0 + 0.1 * seed, 0.55 + 0.01 * seed, seed=seed, warnings=(lost,))
        trial_of(tmp_path / "sweep", 16, 1.2 + 0.1 * seed, 0.57 + 0.01 * seed, seed=seed)
    write_trial(tmp_path / "sweep", 64, status="out_of_memory", error="out of memory")
    return tmp_path / "sweep"


def test_the_tables_of_a_sweep(sweep: Path) -> None:
    tables = paper_tables(read_report([sweep]).comparison)
    check_golden("tables.tex", latex_text(tables))
    check_golden("tables.md", markdown_text(tables))


def test_parquet_holds_the_rows_with_types_units_and_meanings(tmp_path: Path) -> None:
    write_trial(tmp_path, 4, axes={"training.batch_size": 4, "lora.alpha": "2r"})
    write_trial(tmp_path, 8, axes={"training.batch_size": 2, "lora.alpha": 16})
    results = load_results(tmp_path)
    table = pyarrow.parquet.read_table(io.BytesIO(parquet_bytes(results)))
    assert table.column_names == [column.name for column in results.columns]
    expected = [dict(row) | {"lora.alpha": str(row["lora.alpha"])} for row in results.rows]
    assert table.to_pylist() == expected
    kinds = {name: str(table.schema.field(name).type) for name in ("rank", "train_power_w", "training.batch_size")}
    assert kinds == {"rank": "int64", "train_power_w": "double", "training.batch_size": "int64"}
    assert table.schema.field("train_power_w").metadata[b"unit"] == b"W"
    assert all(b"meaning" in field.metadata for field in table.schema)


@given(
    st.lists(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5), min_size=1)
)
@example([2**53 + 1, 0.0])
def test_whatever_an_axis_holds_parquet_keeps_it(values: list[Any]) -> None:
    from howlow.analysis.columns import column_named
    from howlow.reporting.parquet import _array, _type

    kind = _type(column_named("lora.alpha"), [value for value in values if value is not None])
    found = _array(values, kind).to_pylist()
    assert [value is None for value in found] == [value is None for value in values]
    if str(kind) != "string":
        assert found == values


def test_every_form_is_written_and_what_is_there_stays_up_to_date(sweep: Path) -> None:
    report = write_report([sweep], export=["parquet,latex", "markdown"])
    assert set(EXPORT_FILES.values()) <= {path.name for path in report.files}
    before = (sweep / "results.md").read_text(encoding="utf-8")
    trial_of(sweep, 32, 1.0, 0.7)
    assert {path.name for path in write_report([sweep]).files} >= set(EXPORT_FILES.values())
    assert (sweep / "results.md").read_text(encoding="utf-8") != before


def test_a_form_that_there_is_not_is_refused() -> None:
    assert checked_exports(["latex,csv", "latex"]) == ("csv", "latex")
    with pytest.raises(UserError, match="--export excel: one or more of csv, parquet, latex, markdown"):
        checked_exports(["csv,excel"])


@pytest.mark.parametrize(
    ("value", "error", "shown"),
    [
        (21.3456, 0.4211, ("21.35", "0.42")),
        (21.3456, 0.0, ("21.35", None)),
        (12345.6, 234.0, ("12,346", "234")),
        (0.00123456, 0.0000123, ("0.001235", "0.000012")),
        (9.99, 0.0996, ("9.990", "0.100")),
        (0.0, 0.0, ("0", None)),
    ],
)
def test_a_value_is_rounded_as_its_error_is(value: float, error: float, shown: tuple[str, str | None]) -> None:
    cell = with_error(value, error)
    assert (cell.value, cell.error) == shown


PLAIN = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Z", "Cf", "Co", "Cn")))


@given(PLAIN)
def test_no_text_is_a_command_of_latex(text: str) -> None:
    shown = escaped_latex(text)
    named = {
        r"\textbackslash{}": "\\",
        r"\textasciitilde{}": "~",
        r"\textasciicircum{}": "^",
        r"\textless{}": "<",
        r"\textgreater{}": ">",
        r"\textbar{}": "|",
        r"\textdegree{}": "°",
        r"$\pm$": "±",
        r"$\times$": "×",
        "{[}": "[",
        "{]}": "]",
    }
    command = re.compile("|".join(map(re.escape, named)) + r"|\\([{}$&#_%])")
    assert not re.search(r"[\\{}$&#_%~^<>|]", command.sub("", shown))
    assert command.sub(lambda found: named.get(found[0], found[0][1:]), shown) == text


@given(st.text())
def test_no_text_ends_a_cell_of_markdown_or_begins_a_tag(text: str) -> None:
    shown = escaped_markdown(text)
    assert shown == " ".join(shown.split())
    assert not re.search(r"[|<>`*_\[\]~&$]", re.sub(r"\\.|&(lt|gt|amp);", "", shown))


def test_foreign_text_stays_text(tmp_path: Path) -> None:
    evil = r"\input{/etc/passwd} | <script>alert(1)</script> 50% of $x_1$"
    trial_of(tmp_path, 4, 1.0, 0.5, settings={"model": evil}, warnings=(RecordWarning(kind="text_cut", detail=evil),))
    tables = paper_tables(read_report([tmp_path]).comparison)
    assert r"\input" not in latex_text(tables)
    assert "50% of" not in latex_text(tables)
    assert "<script" not in markdown_text(tables)
