"""report.html: one file that needs no network, and no script to be read: charts are drawn here, texts stand in HTML.

Scripts add what moves: the sliders of the answer, the sortable table of records, what a point says, the theme.
The template escapes every text; JSON inside a script has `<`, `>` and `&` written as escapes.
"""

import json
import shlex
from collections.abc import Iterable, Mapping
from importlib import resources
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from howlow.analysis.comparison import Comparison
from howlow.reporting import formatting
from howlow.reporting.answer import Answers, answers, decision_document
from howlow.reporting.asked import asked_facts
from howlow.reporting.charts import page_figures
from howlow.reporting.conditions import condition_lines
from howlow.reporting.decomposition import HEADINGS, decomposition_panels
from howlow.reporting.figure import FIGURE_NAMES, PageFigure, PagePanel, render_svg
from howlow.reporting.inline_svg import inlined, themed
from howlow.reporting.measured import energy_lines, environment_facts, measured_rows, meter_lines
from howlow.reporting.record_table import records_document
from howlow.reporting.spectra import spectra_on_page, spectra_summary
from howlow.reporting.summary import Summary, summarize
from howlow.reporting.timelines import timelines
from howlow.reporting.tradeoffs import tradeoffs
from howlow.reporting.where import places_of
from howlow.reporting.words import sentences
from howlow.settings import to_toml

if TYPE_CHECKING:
    from markupsafe import Markup

_MOST_ROWS = 200
_MOST_TRIALS = 8
_SCRIPTS = ("format", "dom", "theme", "decision", "answer", "charts", "records", "start")


def page(comparison: Comparison) -> str:
    """The page as text."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("howlow", "reporting"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    summary, found = summarize(comparison, for_page=True), answers(comparison)
    return environment.get_template("page.html.jinja").render(
        title=_title(comparison),
        style=_files(["style.css"]),
        script=_files([f"{name}.js" for name in _SCRIPTS]),
        data=_json(_data_of(comparison, found, summary)),
        answers=found,
        asked=asked_facts(comparison),
        tradeoffs=_drawn("tradeoff", _tradeoffs(found)),
        sentences=sentences(comparison),
        summary=summary,
        rows=summary.rows[:_MOST_ROWS],
        left_out=max(0, len(summary.rows) - _MOST_ROWS),
        trials_of={
            note.number: "all adapters" if note.is_general else formatting.listed(list(note.trials), _MOST_TRIALS)
            for note in summary.warnings
        },
        warnings=[(kind, list(told)) for kind, told in groupby(summary.warnings, lambda note: note.kind)],
        figures=_drawn("figure", page_figures(comparison)),
        files=FIGURE_NAMES,
        decompositions=decomposition_panels(comparison),
        decomposition_headings=HEADINGS,
        spectra=spectra_summary(comparison),
        spectra_figures=_drawn("spectra", spectra_on_page(comparison)),
        timelines=_drawn("timeline", timelines(comparison)),
        measured=measured_rows(comparison)[:_MOST_ROWS],
        energy=energy_lines(comparison),
        meters=meter_lines(comparison),
        conditions=condition_lines(comparison.results.records),
        environment=environment_facts(comparison),
        places=places_of(comparison.results.records),
        commands=_commands(comparison),
        settings=_settings(comparison),
        columns=comparison.results.columns,
    )


def _files(names: Iterable[str]) -> "Markup":
    """Scripts or styles of our own, in which nothing has to be escaped."""
    from markupsafe import Markup

    folder = resources.files("howlow.reporting").joinpath("browser")
    return Markup("".join(folder.joinpath(name).read_text(encoding="utf-8") for name in names))


def _data_of(comparison: Comparison, found: Answers, summary: Summary) -> dict[str, Any]:
    return {
        "decisions": [decision_document(answer) for answer in found.found],
        "records": records_document(comparison.results, summary.warnings),
    }


def _json(data: Mapping[str, Any]) -> "Markup":
    """Data as a script holds it: no text in it can end the script or begin a tag."""
    from markupsafe import Markup

    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


# -- charts ---------------------------------------------------------------------------------------------------------


def _tradeoffs(found: Answers) -> Iterable[PageFigure]:
    drawn = (tradeoffs(answer, number) for number, answer in enumerate(found.found))
    return (figure for figure in drawn if figure is not None)


def _drawn(kind: str, figures: Iterable[PageFigure]) -> list[dict[str, Any]]:
    """Figures as the template shows them; `kind` begins the names within their SVGs."""
    return [
        {
            "name": figure.name,
            "title": figure.title,
            "notes": figure.notes,
            "legend": [{"label": entry.label, "color": themed(entry.color)} for entry in figure.legend],
            "panels": [_panel(figure, panel, f"{kind}-{place}-{number}") for number, panel in enumerate(figure.panels)],
        }
        for place, figure in enumerate(figures)
    ]


def _panel(figure: PageFigure, panel: PagePanel, name: str) -> dict[str, Any]:
    from markupsafe import Markup

    label = ", ".join(part for part in (figure.title, panel.title, panel.subtitle) if part)
    return {
        "title": panel.title,
        "subtitle": panel.subtitle,
        "svg": Markup(inlined(render_svg(panel.spec), name, label)),
    }


# -- what was run ---------------------------------------------------------------------------------------------------


def _title(comparison: Comparison) -> str:
    settings = comparison.results.trials[0].record.settings
    model = settings.model.rstrip("/").rpartition("/")[2]
    return f"How low can the rank go for {model} on {settings.task.name.replace('_', ' ')}?"


def _commands(comparison: Comparison) -> list[tuple[str, str]]:
    """What to type to have it again."""
    folders = [str(folder) for folder in comparison.results.folders]
    sweeps = [
        (
            f"the trials of {folder} again, in a folder of their own",
            ["howlow", "sweep", str(path), "--out", f"{folder}-again"],
        )
        for folder in folders
        if (path := Path(folder) / "sweep.toml").exists()
    ]
    commands = [
        *((what, shlex.join(words)) for what, words in sweeps),
        ("this page, results.csv and the figures, from the records alone", shlex.join(["howlow", "report", *folders])),
    ]
    if len(folders) == 1:
        commands.append(("the answer for other terms", shlex.join(["howlow", "recommend", *folders])))
    return commands


def _settings(comparison: Comparison) -> list[tuple[str, str]]:
    """The sweep.toml of each folder; where it is missing, the settings of a trial."""
    found = []
    for folder in comparison.results.folders:
        try:
            found.append((str(Path(folder) / "sweep.toml"), (Path(folder) / "sweep.toml").read_text(encoding="utf-8")))
        except (OSError, UnicodeDecodeError):
            record = next(t.record for t in comparison.results.trials if t.folder.is_relative_to(folder.resolve()))
            found.append((f"{folder}, trial {record.trial}", to_toml(record.settings)))
    return found
