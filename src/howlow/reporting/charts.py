"""The paper's figures as Vega-Lite: one specification each -> SVG, PNG and the interactive page.

A figure of a phase has one panel a quantity over the rank (log2), relative to the reference rank as in the paper's
figures 1 to 4; grey dashed lines stand where the batch size changes. Quality stands in absolute figures, with the bare
model (and full fine-tuning) as a dashed level. A panel without data is left out, and the subtitle says which and why.
"""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from howlow.analysis.columns import column_named
from howlow.analysis.comparison import Comparison
from howlow.analysis.rows import layout_of
from howlow.reporting.panels import (
    INK,
    MOST_POINTS,
    SOFT,
    Datasets,
    batch_changes,
    cost_panel,
    drawn_ranks,
    drawn_series,
    quality_columns,
    quality_panel,
    ranks_of,
    values_of,
)
from howlow.reporting.summary import absence_reason

if TYPE_CHECKING:
    pass

_COSTS = (
    ("samples_per_s", "Throughput", "samples/s"),
    ("energy_per_sample_j", "Energy per sample", ""),
    ("time_per_sample_s", "Time per sample", ""),
    ("power_w", "Average power", ""),
    ("peak_memory_bytes", "Peak memory", ""),
    ("utilization", "Utilisation", ""),
)


@dataclass(frozen=True)
class Figure:
    """A figure: the stem of its files, a title, a text for those who cannot see it, and its specification."""

    name: str
    title: str
    description: str
    spec: dict[str, Any]


def figures(comparison: Comparison) -> list[Figure]:
    """The figures that there is data for."""
    from howlow.reporting.loss_curves import loss_figure

    found = [
        _phase_figure(comparison, "train", "fine_tuning", "Fine-tuning"),
        _phase_figure(comparison, "inference", "inference", "Inference"),
        loss_figure(comparison),
    ]
    return [figure for figure in found if figure is not None]


def render_svg(figure: Figure) -> str:
    """The figure as SVG, without any request to the network."""
    import altair as alt
    import vl_convert

    version = vega_lite_version(alt.SCHEMA_VERSION, vl_convert.get_vegalite_versions())
    svg: str = vl_convert.vegalite_to_svg(figure.spec, vl_version=version, allowed_base_urls=[])
    return svg


def render_png(svg: str) -> bytes:
    """An SVG as PNG, two pixels for each of its points."""
    import vl_convert

    png: bytes = vl_convert.svg_to_png(svg, scale=2)
    return png


def vega_lite_version(schema: str, known: Sequence[str]) -> str | None:
    """altair's Vega-Lite version in vl_convert's words; None, its newest, where it has no such one."""
    version = ".".join(schema.lstrip("v").split(".")[:2])
    return version if version in known else None


# -- a phase --------------------------------------------------------------------------------------------------------


def _phase_figure(comparison: Comparison, prefix: str, name: str, title: str) -> Figure | None:
    import altair as alt

    panels: list[Any] = []
    data = Datasets()
    shown: list[str] = []
    missing: dict[str, list[str]] = {}
    for suffix, panel_title, unit in _COSTS:
        column = column_named(f"{prefix}_{suffix}")
        values = values_of(comparison, column, relative=True)
        if values:
            panels.append(cost_panel(comparison, data, column, values, panel_title, unit, f"{prefix}_batch_size"))
            shown.append(panel_title)
        else:
            missing.setdefault(absence_reason(comparison.results, column.name), []).append(panel_title.lower())
    if prefix == "inference":
        for column in quality_columns(comparison):
            panels.append(quality_panel(comparison, data, column, values_of(comparison, column, relative=False)))
            shown.append(column.label)
    if not panels:
        return None
    subtitle = [*context_lines(comparison), *(f"{', '.join(names)}: absent, {why}" for why, names in missing.items())]
    if any(batch_changes(comparison, f"{prefix}_batch_size", ranks_of(comparison))):
        subtitle.append("grey dashed lines: the batch size changes")
    chart = alt.concat(*panels, columns=2, spacing={"row": 130, "column": 124}, bounds="flush")
    ranks = ranks_of(comparison)
    description = f"{title}: {', '.join(shown)} over ranks {min(ranks)} to {max(ranks)}. {' '.join(subtitle)}"
    return Figure(name, title, description, finished(chart, data, title, subtitle))


def context_lines(comparison: Comparison) -> list[str]:
    """What was run on what, and what the figures are relative to."""
    first = comparison.results.trials[0].record
    where = next((t.record.environment.device_name for t in comparison.results.trials if t.record.environment), None)
    task = first.settings.task.name.replace("_", " ")
    model = first.settings.model.rstrip("/").rpartition("/")[2]
    layouts = dict.fromkeys(layout_of(trial.record) for trial in comparison.results.trials)
    layout = f"layout {' and '.join(name for name in layouts if name != 'auto') or 'not chosen'}"
    lines = [" · ".join(part for part in (model, task, layout, where) if part)]
    seeds = max((len(group.trials) for group in comparison.groups), default=1)
    if seeds > 1:
        trials = sum(group.rank is not None for group in comparison.groups) * seeds
        spread = "a dot is a trial" if trials <= MOST_POINTS else "bars are one standard deviation"
        lines.append(f"lines join the means over seeds, {spread}")
    ranks, all_ranks = drawn_ranks(comparison), ranks_of(comparison)
    if len(ranks) < len(all_ranks):
        lines.append(f"{len(ranks)} of {len(all_ranks):,} ranks drawn, all are in results.csv")
    drawn, there = drawn_series(comparison)
    if len(drawn) < there:
        lines.append(f"{len(drawn)} of {there} settings drawn, all are in results.csv")
    return lines


def finished(chart: Any, data: Datasets, title: str, subtitle: Sequence[str], offset: int = 40) -> dict[str, Any]:
    """The specification with title and house style."""
    import altair as alt

    lines = [line for text in subtitle for line in textwrap.wrap(text, 130, max_lines=2, placeholder=" ...")]
    styled = (
        chart.properties(
            title=alt.TitleParams(
                title,
                subtitle=lines,
                anchor="start",
                fontSize=20,
                subtitleFontSize=13,
                offset=offset,
                subtitlePadding=6,
            ),
            padding=16,
            background="white",
        )
        .configure_view(stroke=None)
        .configure_mark(aria=False)  # the figure has a description; a label a point would double the file
        .configure_title(color=INK, subtitleColor=SOFT, fontWeight=600)
        .configure_axis(
            labelColor=SOFT,
            titleColor=SOFT,
            titleFontWeight="normal",
            labelFontSize=12,
            titleFontSize=12,
            gridColor="#e6e9ee",
            domainColor="#b8c0cc",
            tickColor="#b8c0cc",
        )
        .configure_legend(labelColor=INK, titleColor=SOFT, labelFontSize=12, titleFontSize=12, titleFontWeight=600)
    )
    spec: dict[str, Any] = styled.to_dict(validate=False)
    return {**spec, "datasets": data.values}
