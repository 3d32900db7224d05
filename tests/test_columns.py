"""Every fact about a column stands in `analysis/columns.py`, and no other code spells a column's name.

A name such as `rank`, `layout` or `peak_memory_bytes` also belongs to a setting or to a field of the records. Code that
handles those may spell it. The rooms that read rows may not use even such a name as a key.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel

import howlow
from howlow.analysis.columns import BATCH_SIZES, COLUMNS, column_named, drawn, drawn_quality, tabulated
from howlow.records import schema
from howlow.records.warnings import WarningKind
from howlow.settings import setting_keys
from howlow.tasks import tasks

SOURCE = Path(howlow.__file__).parent
_OWNERS = ("columns", "cost_columns", "quality_columns", "rows", "phase_figures", "energy")
OWNERS = tuple(f"analysis/{name}.py" for name in _OWNERS)
READ_ROWS = ("analysis", "reporting", "progress.py")
NAMES = {column.name for column in COLUMNS}


def other_names() -> set[str]:
    """Names that columns share with settings, with fields of the records (scores aside) and with kinds of warnings."""
    settings = {part for key in setting_keys() for part in key.split(".")}
    types = [found for found in vars(schema).values() if isinstance(found, type) and issubclass(found, BaseModel)]
    fields = {name for found in types if found is not schema.Scores for name in found.model_fields}
    return settings | fields | set(WarningKind)


def modules() -> Iterator[tuple[str, ast.AST]]:
    for path in sorted(SOURCE.rglob("*.py")):
        name = path.relative_to(SOURCE).as_posix()
        if name not in OWNERS:
            yield name, ast.parse(path.read_text(encoding="utf-8"))


def texts(tree: ast.AST) -> Iterator[ast.Constant]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str))


def keys(tree: ast.AST) -> Iterator[ast.expr]:
    """What is used as a key: `row["rank"]`, `row.get("rank")`, `("rank", "seed")` in a loop, `name == "rank"`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Subscript):
            yield node.slice
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "get":
            yield from node.args[:1]
        elif isinstance(node, ast.Compare):
            yield from (node.left, *node.comparators)
        elif isinstance(node, ast.Tuple | ast.List | ast.Set):
            yield from node.elts


def test_no_other_code_spells_the_name_of_a_column() -> None:
    spelled_by_tasks = {name for task in tasks().values() for name in task.metrics}
    unmistakable = NAMES - other_names()
    assert {"f1", "train_samples_per_s", "inference_power_w", "energy_source", "word_perplexity"} <= unmistakable
    for name, tree in modules():
        allowed = spelled_by_tasks if name.startswith("tasks/") else set()
        found = {node.value for node in texts(tree)} & (unmistakable - allowed)
        assert not found, f"{name} spells {found}; use the column's constant or its fields"


def test_rooms_that_read_rows_use_no_column_name_as_a_key() -> None:
    for name, tree in modules():
        if not name.startswith(READ_ROWS):
            continue
        found = {key.value for key in keys(tree) if isinstance(key, ast.Constant) and key.value in NAMES}
        assert not found - SHARED.get(name, set()), f"{name} uses {found}; use the column's constant or its fields"


SHARED = {"progress.py": {"loss"}, "reporting/figure.py": {"loss"}, "reporting/machine.py": {"kind"}}
"""`loss` is also a field of an event and the name of a figure's file; `kind` is also the kind of a warning."""


def test_names_are_not_guessed_from_their_parts() -> None:
    """No `"power" in name`, no `name.startswith("train_")`, no `name.endswith("_j")`."""
    for name, tree in modules():
        if not name.startswith(("analysis", "reporting")):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Compare) and any(isinstance(op, ast.In) for op in node.ops):
                left = node.left.value if isinstance(node.left, ast.Constant) else None
                right = ast.unparse(node.comparators[0])
                assert not (isinstance(left, str) and right in ("name", "column.name")), f"{name}: {ast.unparse(node)}"
            if isinstance(node, ast.Attribute) and node.attr in ("startswith", "endswith", "removeprefix"):
                assert ast.unparse(node.value) not in ("name", "column.name"), f"{name}: {ast.unparse(node)}"


def test_columns_name_only_columns() -> None:
    assert len(NAMES) == len(COLUMNS)
    for column in COLUMNS:
        related = {column.error, column.panel.unless if column.panel else None} - {None}
        assert related <= NAMES, column
        assert column_named(column.name) is column


def test_an_error_is_not_divided_and_no_warning_touches_it() -> None:
    for name in {column.error for column in COLUMNS} - {None}:
        error = column_named(name or "")
        assert not error.is_relative
        assert not error.subjects


def test_places_do_not_collide() -> None:
    places = [(column.table.section, column.table.order) for column in COLUMNS if column.table]
    assert len(places) == len(set(places)) == len(tabulated())
    for panels in (drawn("train"), drawn("inference"), drawn_quality()):
        orders = [column.panel.order for column in panels if column.panel]
        assert orders == sorted(set(orders))


def test_prefixes_units_and_stages_agree() -> None:
    for column in COLUMNS:
        prefix = column.name.partition("_")[0]
        assert (prefix if prefix in BATCH_SIZES else None) == column.stage, column
        assert column.name.endswith(("_j", "_w")) == column.is_energy, column
        assert column.better is not None or not column.is_quality, column


@pytest.mark.parametrize("name", sorted(tasks()))
def test_the_metrics_of_a_task_are_columns_of_quality_and_scores_of_a_record(name: str) -> None:
    metrics = tasks()[name].metrics
    assert metrics
    assert set(metrics) <= NAMES & set(schema.Scores.model_fields)
    assert all(column_named(metric).is_quality for metric in metrics)
