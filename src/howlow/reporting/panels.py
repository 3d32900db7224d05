"""The panels of a figure: one quantity over the rank."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from howlow.analysis.column import Column
from howlow.analysis.columns import BATCH_SIZES, RANK
from howlow.analysis.comparison import Comparison
from howlow.reporting import formatting
from howlow.reporting.figure import AXIS, PALETTE, RULE, SOFT, Canvas, Datum, DrawnPanel, colors_of
from howlow.reporting.points import (
    MOST_TICKS,
    BatchChange,
    ChartPoint,
    batch_changes,
    drawn_series,
    evenly_in_log,
    series_label,
)
from howlow.reporting.summary import assumed_words

if TYPE_CHECKING:
    import altair as alt

_LEVEL_COLORS = {"base": PALETTE[1], "full": PALETTE[2]}


# -- costs ----------------------------------------------------------------------------------------------------------


def cost_panel(comparison: Comparison, canvas: Canvas, column: Column, points: Sequence[ChartPoint]) -> DrawnPanel:
    """A cost relative to the reference rank; the axis spans at least 0.75 to 1.25, so that flat looks flat."""
    import altair as alt

    assert column.panel is not None, "only columns with a panel are drawn"
    assert column.stage is not None, "a cost is one of fine-tuning or inference"
    axis = alt.Axis(title=None, tickCount=5, labelExpr="format(datum.value, '.3~f') + '×'")
    y = alt.Y("y:Q", scale=_relative_scale(points), axis=axis)
    one = canvas.data.add([{"y": 1}]).mark_rule(color=AXIS, strokeWidth=1.2).encode(y=alt.Y("y:Q"))
    changes = batch_changes(comparison, BATCH_SIZES[column.stage], _ranks(points), canvas.width)
    layers = [one, *_batch_rules(canvas, changes), *_lines(comparison, canvas, points, y)]
    return DrawnPanel(panel_name(column), _relative_words(comparison, column), _chart(canvas, layers))


def panel_name(column: Column) -> str:
    """What stands above the panel of a column."""
    name = column.panel.title if column.panel and column.panel.title else column.label
    return name[0].upper() + name[1:]


def _relative_scale(points: Sequence[ChartPoint]) -> "alt.Scale":
    import altair as alt

    heights = _within_reach(points)
    low, high = min(*heights, 0.75), max(*heights, 1.25)
    margin = 0.04 * (high - low)
    return alt.Scale(domain=[max(0.0, low - margin), high + margin], nice=True, zero=False)


def _relative_words(comparison: Comparison, column: Column) -> str:
    words = assumed_words(comparison.results) if column.is_energy else None
    note = f", {words}" if words else ""
    if len(comparison.references) > 1:
        return f"relative to the largest rank of each line{note}"
    (reference,) = comparison.references
    mean = formatting.quantity(reference.group.mean(column), column.unit)
    shown = f"{mean} {column.panel.unit}" if column.panel and column.unit == "per_second" else mean
    return f"relative to rank {reference.rank} ({shown}{note})"


def _batch_rules(canvas: Canvas, changes: Sequence[BatchChange]) -> list[Any]:
    import altair as alt

    if not changes:
        return []
    x = alt.X("rank:Q")
    rules = canvas.data.add([change.datum() for change in changes])
    layers: list[Any] = [rules.mark_rule(color=RULE, strokeDash=[4, 4], strokeWidth=1.2).encode(x=x)]
    for row in (0, 1):
        own = [change.datum() for change in changes if change.row == row]
        if own:
            text = canvas.data.add(own).mark_text(color=SOFT, fontSize=11, baseline="bottom", dy=-3 - 12 * row)
            layers.append(text.encode(x=x, y=alt.value(0), text=alt.Text("label:N")))
    return layers


# -- quality --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Level:
    """The quality of a baseline, which has no rank."""

    kind: str
    y: float
    label: str


def quality_panel(comparison: Comparison, canvas: Canvas, column: Column, points: Sequence[ChartPoint]) -> DrawnPanel:
    """Quality as it is, with the bare model and full fine-tuning as dashed levels."""
    levels = _levels(comparison, column)
    low, high = _quality_domain(points, levels)
    layers = _lines(comparison, canvas, points, quality_axis(column, low, high))
    tops = spread([(high - level.y) / (high - low) * canvas.height for level in levels])
    for level, top in zip(levels, tops, strict=True):
        layers += _level_layers(canvas, level, top)
    better = f"{column.better} is better" if column.better else ""
    return DrawnPanel(panel_name(column), f"absolute; {better}", _chart(canvas, layers))


def quality_axis(column: Column, low: float, high: float) -> "alt.Y":
    """The axis of a quality, in per cent where it is a share."""
    import altair as alt

    form = "format(datum.value, '.3~%')" if column.unit == "fraction" else "datum.label"
    axis = alt.Axis(title=None, tickCount=5, labelExpr=form)
    return alt.Y("y:Q", scale=alt.Scale(domain=[low, high], nice=False, zero=False), axis=axis)


def _levels(comparison: Comparison, column: Column) -> list[_Level]:
    return [
        _Level(group.kind, mean, f"{group.kind} {formatting.quantity(mean, column.unit)}")
        for group in comparison.groups
        if group.rank is None and (mean := group.mean(column)) is not None
    ]


def _quality_domain(points: Sequence[ChartPoint], levels: Sequence[_Level]) -> tuple[float, float]:
    return padded_domain([*_within_reach(points), *(level.y for level in levels)])


def padded_domain(heights: Sequence[float]) -> tuple[float, float]:
    """The ends of an axis that holds these heights, with some room; it does not go below 0 for their sake."""
    margin = 0.08 * (max(heights) - min(heights)) or 0.1 * abs(max(heights)) or 0.1
    floor = 0.0 if min(heights) >= 0 else -math.inf
    return max(floor, min(heights) - margin), max(heights) + margin


def _level_layers(canvas: Canvas, level: _Level, top: float) -> list[Any]:
    """A dashed line with its label: beside it in a file; on the page, where there is no room beside it, above it."""
    import altair as alt

    own, color = canvas.data.add([{"y": level.y, "label": level.label}]), _LEVEL_COLORS[level.kind]
    rule = own.mark_rule(color=color, strokeDash=[6, 4], strokeWidth=1.5).encode(y=alt.Y("y:Q"))
    place = {"align": "right", "baseline": "bottom"} if canvas.is_on_page else {"align": "left", "baseline": "middle"}
    x, y = (canvas.width - 2, top - 4) if canvas.is_on_page else (canvas.width + 6, top)
    text = own.mark_text(color=color, fontSize=12, **place)
    return [rule, text.encode(y=alt.value(y), x=alt.value(x), text=alt.Text("label:N"))]


def spread(tops: Sequence[float], apart: float = 14.0) -> list[float]:
    """Places of labels, moved down until none covers another."""
    placed: dict[int, float] = {}
    last = -math.inf
    for index in sorted(range(len(tops)), key=lambda index: tops[index]):
        last = placed[index] = max(tops[index], last + apart)
    return [placed[index] for index in range(len(tops))]


# -- lines ----------------------------------------------------------------------------------------------------------


def _ranks(points: Sequence[ChartPoint]) -> list[int]:
    return sorted({point.rank for point in points})


def _within_reach(points: Sequence[ChartPoint]) -> list[float]:
    """The heights that the axis holds; of the bars only half as far and twice as far as the points reach."""
    middles = [point.y for point in points]
    low, high = min(middles) / 2, max(middles) * 2
    return [min(max(height, low), high) for point in points for height in point.extent]


def _lines(comparison: Comparison, canvas: Canvas, points: Sequence[ChartPoint], y: "alt.Y") -> list[Any]:
    """The lines that join means, their intervals, and the points; hollow where a ratio may not stand as a number."""
    import altair as alt

    ranks, data = _ranks(points), canvas.data
    means = data.add([point.datum() for point in points if not point.is_dot])
    x = alt.X("rank:Q", scale=_rank_scale(ranks), axis=rank_axis(ranks))
    encoded: dict[str, Any] = {"x": x, "y": y, "color": _color(comparison, canvas)}
    layers: list[Any] = [means.mark_line(strokeWidth=2.2).encode(**encoded)]
    if bars := _bars(points):
        rules = data.add(bars).mark_rule(strokeWidth=5, opacity=0.3, clip=True)
        layers.append(rules.encode(**encoded, y2=alt.Y2("high:Q")))
    if dots := [point.datum() for point in points if point.is_dot]:
        layers.append(canvas.marked(data.add(dots), size=40, opacity=0.35, filled=True).encode(**encoded))
    size, edge = (14, 0) if len(ranks) > 2 * MOST_TICKS else (42, 1)
    marks = canvas.marked(means, size=size, filled=True, opacity=1, stroke="white", strokeWidth=edge)
    layers.append(marks.encode(**encoded))
    if hollow := [point.datum() for point in points if not point.is_significant]:
        marks = canvas.marked(data.add(hollow), size=size, filled=False, fill="white", opacity=1, strokeWidth=1.6)
        layers.append(marks.encode(**encoded))
    return layers


def _bars(points: Sequence[ChartPoint]) -> list[Datum]:
    """The intervals, cut far outside of the axis: a bar of millions of pixels stops the renderer of PNG."""
    heights = _within_reach(points)
    far = 10 * (max(heights) - min(heights) + max(map(abs, heights)))
    return [
        {**point.datum(), "y": max(point.low, min(heights) - far), "high": min(point.high, max(heights) + far)}
        for point in points
        if point.low is not None and point.high is not None
    ]


def _color(comparison: Comparison, canvas: Canvas) -> Any:
    import altair as alt

    names, _ = drawn_series(comparison)
    if len(names) <= 1:
        return alt.value(PALETTE[0])
    legend = alt.Legend(title=None, orient="bottom", columns=2, labelLimit=420)
    if "" in names:
        legend.labelExpr = f"datum.label || '{series_label('')}'"
    scale = alt.Scale(domain=list(names), range=colors_of(names))
    return alt.Color("series:N", scale=scale, legend=None if canvas.is_on_page else legend)


def _chart(canvas: Canvas, layers: Sequence[Any]) -> Any:
    import altair as alt

    sized = {"width": canvas.width, "height": canvas.height}
    if canvas.is_on_page:
        return alt.layer(*layers, **sized)
    # A label that sticks out at the top would move the title up; this invisible point keeps all titles level.
    room = canvas.data.add([{}]).mark_point(opacity=0, size=1).encode(x=alt.value(0), y=alt.value(-15))
    return alt.layer(room, *layers, **sized)


def _rank_scale(ranks: Sequence[int]) -> "alt.Scale":
    import altair as alt

    return alt.Scale(type="log", base=2, domain=[min(ranks) / 1.23, max(ranks) * 1.23], nice=False)


def rank_axis(ranks: Sequence[int]) -> "alt.Axis":
    """Ticks at the ranks; where they are too many, at the powers of two among them, else at some of them."""
    import altair as alt

    ticks = list(ranks)
    if len(ticks) > MOST_TICKS:
        powers = [rank for rank in ticks if rank & (rank - 1) == 0]
        reach = len(powers) > 3 and 2 * powers[-1] >= ticks[-1]
        ticks = powers if reach else evenly_in_log(ticks, MOST_TICKS)
    return alt.Axis(title=RANK.label, values=ticks, format="d", grid=False, labelOverlap="greedy", labelSeparation=3)
