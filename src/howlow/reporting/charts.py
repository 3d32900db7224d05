"""The paper's figures: one Vega-Lite specification each, for SVG, PNG and the interactive page.

The figure of a stage has one panel a quantity over the rank (log2), relative to the reference rank as in the paper's
figures 1 to 4; grey dashed lines mark where the batch size changes. Quality is drawn as it is, with the bare model
(and full fine-tuning) as a dashed level. A panel without data is left out, and the subtitle says which and why.
"""

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from howlow.analysis.column import Column, Stage
from howlow.analysis.columns import BATCH_SIZES, drawn, drawn_quality
from howlow.analysis.comparison import Comparison
from howlow.reporting import formatting
from howlow.reporting.absences import absence_reason
from howlow.reporting.evidence import level, no_error_notes, ratios_of
from howlow.reporting.figure import FIGURE_NAMES, Datasets, Figure, context_lines, finished
from howlow.reporting.loss_curves import loss_figure
from howlow.reporting.panels import WIDTH, cost_panel, quality_panel
from howlow.reporting.points import batch_changes, points_of, ranks_of
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


@dataclass
class _Panels:
    """The panels of a figure, their titles, and by reason the titles of those that have no data."""

    data: Datasets = field(default_factory=Datasets)
    panels: list[Any] = field(default_factory=list)
    titles: list[str] = field(default_factory=list)
    missing: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))


def _stage_figure(comparison: Comparison, stage: Stage, name: str, title: str) -> Figure | None:
    import altair as alt

    shown = _Panels()
    _add_costs(comparison, stage, shown)
    if stage == "inference":
        _add_quality(comparison, shown)
    if not shown.panels:
        return None
    subtitle = _subtitle(comparison, stage, shown)
    chart = alt.concat(*shown.panels, columns=2, spacing={"row": 130, "column": 124}, bounds="flush")
    ranks = ranks_of(comparison)
    about = f"{title}: {', '.join(shown.titles)} over ranks {min(ranks)} to {max(ranks)}. {' '.join(subtitle)}"
    return Figure(name, title, about, finished(chart, shown.data, title, subtitle))


def _add_costs(comparison: Comparison, stage: Stage, shown: _Panels) -> None:
    for column in drawn(stage):
        title = column.panel.title if column.panel and column.panel.title else column.label
        points = points_of(comparison, column, relative=True)
        if points:
            shown.panels.append(cost_panel(comparison, shown.data, column, points))
            shown.titles.append(title)
        else:
            shown.missing[absence_reason(comparison.results, column)].append(title.lower())


def _add_quality(comparison: Comparison, shown: _Panels) -> None:
    for column in _present_quality(comparison):
        points = points_of(comparison, column, relative=False)
        shown.panels.append(quality_panel(comparison, shown.data, column, points))
        shown.titles.append(column.label)


def _present_quality(comparison: Comparison) -> list[Column]:
    """The quality columns that adapters have, less those whose panel another one replaces."""
    rows = [trial.row for trial in comparison.results.trials if adapts(trial.record.kind)]
    present = [column for column in drawn_quality() if any(row[column.name] is not None for row in rows)]
    names = {column.name for column in present}
    return [column for column in present if column.panel is not None and column.panel.unless not in names]


def _subtitle(comparison: Comparison, stage: Stage, shown: _Panels) -> list[str]:
    absent = [f"{', '.join(titles)}: absent, {why}" for why, titles in shown.missing.items()]
    subtitle = [*context_lines(comparison), *_bars(comparison, stage), *absent]
    if batch_changes(comparison, BATCH_SIZES[stage], ranks_of(comparison), WIDTH):
        subtitle.append("grey dashed lines: the batch size changes")
    return subtitle


def _bars(comparison: Comparison, stage: Stage) -> list[str]:
    """What bars and hollow points mean."""
    ratios = list(ratios_of(comparison, drawn(stage)))
    has_bars = any(ratio.low is not None and ratio.low != ratio.high for ratio in ratios)
    bars = [f"bars: {level()} intervals"] if has_bars else []
    is_even = any(not ratio.is_shown and ratio.lack is None for ratio in ratios)
    even = [f"{formatting.NOT_SIGNIFICANT}, the interval holds 1"] if is_even else []
    hollow = [f"hollow points: {'; or '.join(found)}"] if (found := [*even, *no_error_notes(ratios)]) else []
    return [", ".join([*bars, *hollow])] if bars or hollow else []
