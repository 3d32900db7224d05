"""Write the reference pages from the code: `make docs`. A test holds that the files are up to date.

Settings have a writer of their own (`write_settings.py`); the others are columns, record, warnings, command line and
Python API (`reference_python.py`).
"""

import inspect
import re
import types
import typing
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import typer
import typer.main
import write_settings
from pydantic import BaseModel
from reference_python import python_page

from howlow import cli
from howlow.analysis.column import Column
from howlow.analysis.columns import COLUMNS
from howlow.records import REMEDIES, Reading, Record, Step
from howlow.settings import Settings, setting_keys

DOCS = Path(__file__).parent
UNITS = {
    "text": "",
    "count": "count",
    "number": "number",
    "bytes": "B",
    "seconds": "s",
    "per_second": "1/s",
    "joules": "J",
    "watts": "W",
    "fraction": "0..1",
    "nats": "nats",
    "hertz": "Hz",
    "celsius": "°C",
}


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    """A Markdown table."""
    names = list(head)
    lines = [f"| {' | '.join(cell(text) for text in row)} |" for row in rows]
    return [f"| {' | '.join(names)} |", f"| {' | '.join('---' for _ in names)} |", *lines]


def cell(text: str) -> str:
    """A text that does not end its table's cell."""
    return " ".join(text.split()).replace("|", "\\|")


def written_by(source: str) -> str:
    """Where a page comes from."""
    return f"Written by `make docs` from `{source}`."


# -- columns --------------------------------------------------------------------------------------------------------

_PARTS = {
    "The trial": lambda column: column.stage is None and not column.is_quality,
    "Fine-tuning": lambda column: column.stage == "train",
    "Inference": lambda column: column.stage == "inference",
    "Quality": lambda column: column.stage is None and column.is_quality,
}


def columns_page() -> str:
    """Every column of results.csv: name, unit, which direction is good, and meaning."""
    lines = [
        "# Columns",
        "",
        f"{written_by('src/howlow/analysis/columns.py')} One row of `results.csv` is one trial.",
        "`howlow report DIR --json` and `howlow.load(DIR).rows` have the same keys.",
        "",
        "* An absent value is an empty cell (`null` in JSON), never 0.",
        "* Each further axis of the grid has a column under its dotted name, such as `training.batch_size`.",
        "* Where a table has several sweeps, the column `sweep` names the run directory of each trial.",
        "* Units are SI. *Better* says which direction is good; where it is empty, neither is.",
    ]
    for title, belongs in _PARTS.items():
        rows = [column_row(column) for column in COLUMNS if belongs(column)]
        lines += ["", f"## {title}", "", *table(("column", "unit", "better", "meaning"), rows)]
    return "\n".join([*lines, ""])


def column_row(column: Column) -> list[str]:
    """One column's row."""
    return [f"`{column.name}`", UNITS[column.unit], column.better or "", column.meaning]


# -- record ---------------------------------------------------------------------------------------------------------


def record_page() -> str:
    """The files of a trial, field by field."""
    lines = [
        "# The record",
        "",
        f"{written_by('src/howlow/records/')} A trial's folder `DIR/trials/NAME/` holds all that was measured.",
        "An absent value is `null`. A field that is marked *absent* may be `null`.",
        "",
        *table(
            ("file", "what it holds"),
            [
                ("`record.json`", "one [Record](#record), written last: a trial with a record has ended"),
                ("`steps.jsonl`", "one [Step](#step) a line"),
                ("`timeline.jsonl`", "one [Reading](#reading) a line"),
                ("`predictions.jsonl`", "one line a test example: id, cluster, prompt, generated text, scores"),
                ("`spectra.json`", "the singular values of each module's update"),
                ("`adapter/`", "the adapter in PEFT's format, with a model card"),
                ("`log.txt`", "what libraries said, and the traceback of an error"),
            ],
        ),
    ]
    for model in models_under((Record, Step, Reading)):
        lines += ["", f"## {model.__name__}", "", one_paragraph(model.__doc__), "", *fields_table(model)]
    return "\n".join([*lines, ""])


def models_under(roots: Iterable[type[BaseModel]]) -> list[type[BaseModel]]:
    """These models and all that their fields hold, each once; settings have a page of their own."""
    found: list[type[BaseModel]] = []
    waiting = list(roots)
    while waiting:
        model = waiting.pop(0)
        if model in found or issubclass(model, Settings):
            continue
        found.append(model)
        inner = [kind for field in model.model_fields.values() for kind in parts_of(field.annotation)]
        waiting += [kind for kind in inner if isinstance(kind, type) and issubclass(kind, BaseModel)]
    return found


def parts_of(annotation: Any) -> Iterator[Any]:
    """An annotation and all annotations inside it."""
    yield annotation
    for inner in typing.get_args(annotation):
        yield from parts_of(inner)


def fields_table(model: type[BaseModel]) -> list[str]:
    """The fields of a model: name, type and description."""
    rows = [
        (f"`{name}`", type_words(field.annotation), field.description or what_it_holds(field.annotation))
        for name, field in model.model_fields.items()
    ]
    return table(("field", "type", "meaning"), rows)


def what_it_holds(annotation: Any) -> str:
    """What the model within an annotation is for; empty where there is none."""
    inner = [kind for kind in parts_of(annotation) if isinstance(kind, type) and issubclass(kind, BaseModel)]
    return one_paragraph(inner[0].__doc__).split("\n")[0] if inner else ""


def type_words(annotation: Any) -> str:
    """A type as a reader of JSON sees it."""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        told = [type_words(one) for one in inner if one is not type(None)]
        return " or ".join(told) + (", or absent" if type(None) in inner else "")
    if origin is typing.Literal:
        return ", ".join(f"`{value}`" for value in inner)
    if origin is tuple:
        same = len(inner) == 2 and inner[1] is Ellipsis
        return f"list of {type_words(inner[0])}" if same else f"[{', '.join(map(type_words, inner))}]"
    if origin in (dict, list):
        return f"{'table' if origin is dict else 'list'} of {type_words(inner[-1])}"
    if origin is typing.Annotated:
        return type_words(inner[0])
    return plain_type_words(annotation)


def plain_type_words(kind: Any) -> str:
    """A type without parts."""
    if isinstance(kind, type) and issubclass(kind, Settings):
        return "[settings](../settings.md)"
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return f"[{kind.__name__}](#{kind.__name__.lower()})"
    names = {int: "whole number", float: "number", str: "text", bool: "true or false", Any: "any value"}
    return names.get(kind) or ("[warning](warnings.md)" if kind.__name__ == "WarningKind" else kind.__name__)


def one_paragraph(text: str | None) -> str:
    """A docstring's text as Markdown, its lines joined within paragraphs."""
    paragraphs = inspect.cleandoc(text or "").split("\n\n")
    return "\n\n".join(" ".join(part.split()) for part in paragraphs)


# -- warnings -------------------------------------------------------------------------------------------------------


def warnings_page() -> str:
    """The closed list of warnings, each with its remedy."""
    rows = [(f"`{kind.value}`", capital(remedy)) for kind, remedy in REMEDIES.items()]
    lines = [
        "# Warnings",
        "",
        f"{written_by('src/howlow/records/warnings.py')} A warning qualifies the figures of a trial.",
        "It stands in the record, below the table, on the page, and at each figure that it concerns.",
        "The list is closed: `howlow` gives no other warning.",
        "",
        *table(("warning", "what to do"), rows),
        "",
    ]
    return "\n".join(lines)


def capital(text: str) -> str:
    """A sentence's beginning."""
    return text[:1].upper() + text[1:]


# -- command line ---------------------------------------------------------------------------------------------------


def command_line_page() -> str:
    """Every command with its arguments and options."""
    group = typer.main.get_command(cli.app)
    lines = [
        "# Command line",
        "",
        f"{written_by('src/howlow/cli.py')} `howlow COMMAND --help` shows the same.",
        "",
        "stdout has the result and stderr everything else. With `--json` stdout has exactly one JSON document.",
        "",
        *table(("exit code", "meaning"), exit_codes()),
    ]
    for name, command in sorted(group.commands.items()):  # type: ignore[attr-defined]
        lines += ["", f"## howlow {name}", "", one_paragraph(command.help), "", *parameters_table(name, command)]
    return "\n".join([*lines, ""])


def exit_codes() -> list[tuple[str, str]]:
    """The exit codes as the command line's own docstring lists them."""
    listed = inspect.cleandoc(cli.__doc__ or "").split("Exit codes:")[1].split("\n\n")[1]
    entries = re.findall(r"^ {4}(\d[\d, ]*?) {2,}(.*(?:\n {10,}.*)*)", listed, flags=re.MULTILINE)
    return [(codes, capital(meaning)) for codes, meaning in entries]


def parameters_table(name: str, command: Any) -> list[str]:
    """Arguments first, then options, with the setting that an option stands for."""
    context = typer.Context(command, info_name=name)
    ordered = sorted(command.params, key=lambda one: one.param_type_name != "argument")
    told = [(spelled(one, context), meaning_of(one, context)) for one in ordered]
    return table(("argument or option", "meaning"), told)


_VALUES = {"<str>": "TEXT", "<int>": "N", "<float>": "X", "<path>": ""}


def spelled(parameter: Any, context: typer.Context) -> str:
    """A parameter as it is typed."""
    if parameter.param_type_name == "argument":
        return f"`{parameter.metavar}`"
    typed = str(parameter.get_help_record(context)[0])
    return f"`{re.sub('<[a-z]+>', lambda kind: _VALUES[kind[0]], typed)}`"


def meaning_of(parameter: Any, context: typer.Context) -> str:
    """Its help; where that names a setting, the setting's own description."""
    key = parameter.help
    if key in setting_keys():
        return f"{setting_keys()[key]} ([`{key}`](../settings.md))"
    return str(parameter.get_help_record(context)[1])


# -- all ------------------------------------------------------------------------------------------------------------


def documents() -> dict[Path, str]:
    """Every generated page by its path."""
    reference = DOCS / "reference"
    return {
        DOCS / "settings.md": write_settings.document(),
        reference / "columns.md": columns_page(),
        reference / "record.md": record_page(),
        reference / "warnings.md": warnings_page(),
        reference / "command-line.md": command_line_page(),
        reference / "python.md": python_page(),
    }


if __name__ == "__main__":
    for path, text in documents().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
