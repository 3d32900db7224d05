"""The panels of a figure: one quantity over the rank."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from howlow.analysis.column import Column
from howlow.analysis.columns import BATCH_SIZES, RANK
from howlow.analysis.comparison import Comparison
from howlow.reporting import formatting
from howlow.reporting.figure import SOFT, Datasets, Datum, panel_title
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

WIDTH, HEIGHT = 400, 190
_BLUE, _ORANGE, _GREEN = "#2f5d8c", "#c2562f", "#3f7d4e"
_PALETTE = (_BLUE, _ORANGE, _GREEN, "#8a5aa3", "#b08a1e", "#4a9aa8", "#a3405f", "#6b6b6b")
_LEVEL_COLORS = {"base": _ORANGE, "full": _GREEN}


# -- costs ----------------------------------------------------------------------------------------------------------


def cost_panel(comparison: Comparison, data: Datasets, column: Column, points: Sequence[ChartPoint]) -> Any:
    """A cost relative to the reference rank; the axis spans at least 0.75 to 1.25, so that flat looks flat."""
    import altair as alt

    assert column.panel is not None, "only columns with a panel are drawn"
    assert column.stage is not None, "a cost is one of fine-tuning or inference"
    ranks = _ranks(points)
    axis = alt.Axis(title=None, tickCount=5, labelExpr="format(datum.value, '.3~f') + '×'")
    y = alt.Y("y:Q", scale=_relative_scale(points), axis=axis)
    one = data.add([{"y": 1}]).mark_rule(color="#b8c0cc", strokeWidth=1.2).encode(y=alt.Y("y:Q"))
    changes = batch_changes(comparison, BATCH_SIZES[column.stage], ranks, WIDTH)
    lines = _lines(comparison, data, points, y, alt.Tooltip("relative:N", title="relative"))
    layers = [one, *_batch_rules(data, changes), *lines]
    return _panel(data, layers, column.panel.title or column.label, _relative_words(comparison, column))


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


def _batch_rules(data: Datasets, changes: Sequence[BatchChange]) -> list[Any]:
    import altair as alt

    if not changes:
        return []
    x = alt.X("rank:Q")
    rules = data.add([change.datum() for change in changes])
    layers: list[Any] = [rules.mark_rule(color="#9aa5b1", strokeDash=[4, 4], strokeWidth=1.2).encode(x=x)]
    for row in (0, 1):
        own = [change.datum() for change in changes if change.row == row]
        if own:
            text = data.add(own).mark_text(color=SOFT, fontSize=11, baseline="bottom", dy=-3 - 12 * row)
            layers.append(text.encode(x=x, y=alt.value(0), text="label:N"))
    return layers


# -- quality --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Level:
    """The quality of a baseline, which has no rank."""

    kind: str
    y: float
    label: str


def quality_panel(comparison: Comparison, data: Datasets, column: Column, points: Sequence[ChartPoint]) -> Any:
    """Quality as it is, with the bare model and full fine-tuning as dashed levels."""
    import altair as alt

    levels = _levels(comparison, column)
    low, high = _quality_domain(points, levels)
    is_share = column.unit == "fraction"
    axis = alt.Axis(title=None, tickCount=5, labelExpr="format(datum.value, '.3~%')" if is_share else "datum.label")
    y = alt.Y("y:Q", scale=alt.Scale(domain=[low, high], nice=False, zero=False), axis=axis)
    tooltip = alt.Tooltip("y:Q", title=column.label, format=".4~%" if is_share else ".4~g")
    layers = _lines(comparison, data, points, y, tooltip)
    tops = spread([(high - level.y) / (high - low) * HEIGHT for level in levels])
    for level, top in zip(levels, tops, strict=True):
        layers += _level_layers(data, level, y, top)
    better = f"{column.better} is better" if column.better else ""
    return _panel(data, layers, column.label[0].upper() + column.label[1:], f"absolute; {better}")


def _levels(comparison: Comparison, column: Column) -> list[_Level]:
    return [
        _Level(group.kind, mean, f"{group.kind} {formatting.quantity(mean, column.unit)}")
        for group in comparison.groups
        if group.rank is None and (mean := group.mean(column)) is not None
    ]


def _quality_domain(points: Sequence[ChartPoint], levels: Sequence[_Level]) -> tuple[float, float]:
    heights = [*_within_reach(points), *(level.y for level in levels)]
    margin = 0.08 * (max(heights) - min(heights)) or 0.1 * abs(max(heights)) or 0.1
    floor = 0.0 if min(heights) >= 0 else -math.inf
    return max(floor, min(heights) - margin), max(heights) + margin


def _level_layers(data: Datasets, level: _Level, y: "alt.Y", top: float) -> list[Any]:
    import altair as alt

    own, color = data.add([{"y": level.y, "label": level.label, "kind": level.kind}]), _LEVEL_COLORS[level.kind]
    rule = own.mark_rule(color=color, strokeDash=[6, 4], strokeWidth=1.5).encode(y=y)
    text = own.mark_text(color=color, align="left", baseline="middle", fontSize=12)
    return [rule, text.encode(y=alt.value(top), x=alt.value(WIDTH + 6), text="label:N")]


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


def _lines(
    comparison: Comparison, data: Datasets, points: Sequence[ChartPoint], y: "alt.Y", y_tooltip: "alt.Tooltip"
) -> list[Any]:
    """The lines that join means, their intervals, and the points; hollow where a ratio may not stand as a number."""
    import altair as alt

    ranks = _ranks(points)
    means = data.add([point.datum() for point in points if not point.is_dot])
    x = alt.X("rank:Q", scale=_rank_scale(ranks), axis=rank_axis(ranks))
    encoded: dict[str, Any] = {"x": x, "y": y, "color": _color(comparison)}
    tooltip = _tooltip(comparison, y_tooltip)
    layers: list[Any] = [means.mark_line(strokeWidth=2.2).encode(**encoded)]
    if bars := _bars(points):
        layers.append(data.add(bars).mark_rule(strokeWidth=5, opacity=0.3, clip=True).encode(**encoded, y2="high:Q"))
    if dots := [point.datum() for point in points if point.is_dot]:
        layers.append(data.add(dots).mark_circle(size=40, opacity=0.35).encode(**encoded, tooltip=tooltip))
    size, edge = (14, 0) if len(ranks) > 2 * MOST_TICKS else (42, 1)
    marks = means.mark_point(size=size, filled=True, opacity=1, stroke="white", strokeWidth=edge)
    layers.append(marks.encode(**encoded, tooltip=tooltip))
    if hollow := [point.datum() for point in points if not point.is_significant]:
        marks = data.add(hollow).mark_point(size=size, filled=False, fill="white", opacity=1, strokeWidth=1.6)
        layers.append(marks.encode(**encoded, tooltip=tooltip))
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


def _color(comparison: Comparison) -> Any:
    import altair as alt

    names, _ = drawn_series(comparison)
    if len(names) <= 1:
        return alt.value(_BLUE)
    legend = alt.Legend(title=None, orient="bottom", columns=2, labelLimit=420)
    if "" in names:
        legend.labelExpr = f"datum.label || '{series_label('')}'"
    return alt.Color("series:N", scale=_series_scale(names), legend=legend)


def _tooltip(comparison: Comparison, y: "alt.Tooltip") -> list[Any]:
    import altair as alt

    tooltip: list[Any] = [
        alt.Tooltip("rank:Q", title=RANK.label, format="d"),
        alt.Tooltip("value:N", title="value"),
        y,
        alt.Tooltip("what:N", title="of"),
    ]
    if len(drawn_series(comparison)[0]) > 1:
        tooltip.append(alt.Tooltip("series:N", title="setting"))
    return tooltip


def _series_scale(names: Sequence[str]) -> "alt.Scale":
    import altair as alt

    if len(names) <= len(_PALETTE):
        return alt.Scale(domain=list(names), range=list(_PALETTE[: len(names)]))
    return alt.Scale(domain=list(names), scheme=alt.SchemeParams(name="viridis", extent=[0.0, 0.88]))


def _panel(data: Datasets, layers: Iterable[Any], title: str, subtitle: str) -> Any:
    import altair as alt

    # A label that sticks out at the top would move the title up; this invisible point keeps all titles level.
    room = data.add([{}]).mark_point(opacity=0, size=1).encode(x=alt.value(0), y=alt.value(-15))
    return alt.layer(room, *layers).properties(width=WIDTH, height=HEIGHT, title=panel_title(title, subtitle, offset=6))


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
