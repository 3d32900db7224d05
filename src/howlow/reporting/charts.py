"""The paper's figures as Vega-Lite: each whole for its SVG and PNG, and panel by panel for the page.

The figure of a stage has one panel a quantity over the rank (log2), relative to the reference rank as in the paper's
figures 1 to 4; grey dashed lines mark where the batch size changes. Quality is drawn as it is, with the bare model
(and full fine-tuning) as a dashed level. A panel without data is left out, and the subtitle says which and why.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from howlow.analysis.column import Column, Stage
from howlow.analysis.columns import BATCH_SIZES, drawn, drawn_quality
from howlow.analysis.comparison import Comparison
from howlow.reporting import formatting
from howlow.reporting.absences import absence_reason
from howlow.reporting.evidence import level, no_error_notes, ratios_of
from howlow.reporting.figure import (
    FIGURE_NAMES,
    FILE_SIZE,
    Canvas,
    Datasets,
    DrawnPanel,
    Figure,
    LegendEntry,
    PageFigure,
    PagePanel,
    colors_of,
    context_lines,
    finished,
    on_page,
    page_canvas,
)
from howlow.reporting.loss_curves import loss_figure, loss_on_page
from howlow.reporting.panels import cost_panel, panel_name, quality_panel
from howlow.reporting.points import batch_changes, drawn_series, points_of, ranks_of, series_label
from howlow.reporting.spectra import spectra_figure
from howlow.settings import adapts


def figures(comparison: Comparison) -> list[Figure]:
    """The figures that there is data for."""
    fine_tuning, inference, *_ = FIGURE_NAMES
    found = [
        _stage_figure(comparison, "train", fine_tuning, "Fine-tuning"),
        _stage_figure(comparison, "inference", inference, "Inference"),
        loss_figure(comparison),
        spectra_figure(comparison),
    ]
    return [figure for figure in found if figure is not None]


def page_figures(comparison: Comparison) -> list[PageFigure]:
    """The same figures as the page shows them: panel by panel, so that they flow into any width."""
    fine_tuning, inference, *_ = FIGURE_NAMES
    found = [
        _on_page(comparison, "train", fine_tuning, "Fine-tuning"),
        _on_page(comparison, "inference", inference, "Inference and quality"),
        loss_on_page(comparison),
    ]
    return [figure for figure in found if figure is not None]


@dataclass
class _Panels:
    """The panels of a figure, and by reason the titles of those that have no data."""

    panels: list[tuple[Canvas, DrawnPanel]] = field(default_factory=list)
    missing: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))


def _panels(comparison: Comparison, stage: Stage, canvas: Callable[[], Canvas]) -> _Panels:
    """The panels of a stage, each on a canvas; those of inference begin the quality of the test."""
    shown = _Panels()
    for column in drawn(stage):
        if points := points_of(comparison, column, relative=True):
            own = canvas()
            shown.panels.append((own, cost_panel(comparison, own, column, points)))
        else:
            shown.missing[absence_reason(comparison.results, column)].append(panel_name(column).lower())
    if stage == "inference":
        for column in _present_quality(comparison):
            own, points = canvas(), points_of(comparison, column, relative=False)
            shown.panels.append((own, quality_panel(comparison, own, column, points)))
    return shown


def _stage_figure(comparison: Comparison, stage: Stage, name: str, title: str) -> Figure | None:
    import altair as alt

    canvas = Canvas(Datasets(), *FILE_SIZE)
    shown = _panels(comparison, stage, lambda: canvas)
    if not shown.panels:
        return None
    subtitle = [*context_lines(comparison), *_notes(comparison, stage, shown)]
    titled = [panel.titled(offset=6) for _, panel in shown.panels]
    chart = alt.concat(*titled, columns=2, spacing={"row": 130, "column": 124}, bounds="flush")
    about = f"{title}: {_about(comparison, shown)} {' '.join(subtitle)}"
    return Figure(name, title, about, finished(chart, canvas.data, title, subtitle))


def _about(comparison: Comparison, shown: _Panels) -> str:
    ranks, titles = ranks_of(comparison), [panel.title for _, panel in shown.panels]
    return f"{', '.join(titles)} over ranks {min(ranks)} to {max(ranks)}."


def _on_page(comparison: Comparison, stage: Stage, name: str, title: str) -> PageFigure | None:
    shown = _panels(comparison, stage, page_canvas)
    if not shown.panels:
        return None
    return PageFigure(
        name,
        title,
        (*context_lines(comparison)[1:], *_notes(comparison, stage, shown)),
        tuple(PagePanel(panel.title, panel.subtitle, on_page(panel.chart, own.data)) for own, panel in shown.panels),
        tuple(_legend(comparison)),
    )


def _legend(comparison: Comparison) -> Iterator[LegendEntry]:
    """What the colours of lines mean, where there are several."""
    names, _ = drawn_series(comparison)
    if len(names) > 1:
        yield from map(LegendEntry, map(series_label, names), colors_of(names))


def _present_quality(comparison: Comparison) -> list[Column]:
    """The quality columns that adapters have, less those whose panel another one replaces."""
    rows = [trial.row for trial in comparison.results.trials if adapts(trial.record.kind)]
    present = [column for column in drawn_quality() if any(row[column.name] is not None for row in rows)]
    names = {column.name for column in present}
    return [column for column in present if column.panel is not None and column.panel.unless not in names]


def _notes(comparison: Comparison, stage: Stage, shown: _Panels) -> list[str]:
    """What bars, hollow points and dashed lines mean, and which panels are absent, and why."""
    absent = [f"{', '.join(titles)}: absent, {why}" for why, titles in shown.missing.items()]
    notes = [*_bars(comparison, stage), *absent]
    if batch_changes(comparison, BATCH_SIZES[stage], ranks_of(comparison), FILE_SIZE[0]):
        notes.append("grey dashed lines: the batch size changes")
    return notes


def _bars(comparison: Comparison, stage: Stage) -> list[str]:
    """What bars and hollow points mean."""
    ratios = list(ratios_of(comparison, drawn(stage)))
    has_bars = any(ratio.low is not None and ratio.low != ratio.high for ratio in ratios)
    bars = [f"bars: {level()} intervals"] if has_bars else []
    is_even = any(not ratio.is_shown and ratio.lack is None for ratio in ratios)
    even = [f"{formatting.NOT_SIGNIFICANT}, the interval holds 1"] if is_even else []
    hollow = [f"hollow points: {'; or '.join(found)}"] if (found := [*even, *no_error_notes(ratios)]) else []
    return [", ".join([*bars, *hollow])] if bars or hollow else []
