"""The panels of a figure: one quantity over the rank, and the data that they draw."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from howlow.analysis.columns import Column, column_named
from howlow.analysis.comparison import Comparison, Group
from howlow.reporting import formatting
from howlow.reporting.summary import assumed_words, axes_words

if TYPE_CHECKING:
    import altair as alt

Values = list[dict[str, Any]]

WIDTH, HEIGHT = 400, 190
INK, SOFT = "#1f2933", "#5f6b7a"
_BLUE, _ORANGE, _GREEN = "#2f5d8c", "#c2562f", "#3f7d4e"
_PALETTE = (_BLUE, _ORANGE, _GREEN, "#8a5aa3", "#b08a1e", "#4a9aa8", "#a3405f", "#6b6b6b")
_LEVELS = {"base": _ORANGE, "full": _GREEN}
_QUALITY = ("f1", "exact_match", "rouge1", "rouge2", "rougeL", "perplexity")
_MOST_TICKS = 14
MOST_SERIES = 12
MOST_POINTS = 200


# -- data -----------------------------------------------------------------------------------------------------------


@dataclass
class Datasets:
    """The data of a figure under names: altair copies what stands in a chart many times over, a name costs nothing."""

    values: dict[str, Values] = field(default_factory=dict)

    def add(self, values: Values) -> Any:
        """A chart that draws these values."""
        import altair as alt

        name = f"data-{len(self.values)}"
        self.values[name] = values
        return alt.Chart(alt.NamedData(name))


def ranks_of(comparison: Comparison) -> list[int]:
    """The ranks of all adapters, ascending."""
    return sorted({group.rank for group in comparison.groups if group.rank is not None})


def series_of(group: Group) -> str:
    """The line that a group belongs to: its further axes."""
    return axes_words(group.axes)


def drawn_series(comparison: Comparison) -> tuple[list[str], int]:
    """The lines that are drawn, at most `MOST_SERIES` of them, and how many there are."""
    names = list(dict.fromkeys(series_of(group) for group in comparison.groups if group.rank is not None))
    return evenly(names, MOST_SERIES), len(names)


def drawn_ranks(comparison: Comparison) -> list[int]:
    """The ranks that are drawn: where lines and ranks are many, those next to even steps on the log scale."""
    ranks, lines = ranks_of(comparison), len(drawn_series(comparison)[0])
    return evenly_in_log(ranks, max(_MOST_TICKS, MOST_POINTS // max(1, lines) // 2))


def evenly_in_log(ranks: Sequence[int], most: int) -> list[int]:
    """At most so many of the ranks, even on the log scale, the first and the last among them."""
    if len(ranks) <= most:
        return list(ranks)
    ratio = (ranks[-1] / ranks[0]) ** (1 / (most - 1))
    targets = [ranks[0] * ratio**index for index in range(most)]
    return sorted({min(ranks, key=lambda rank: abs(math.log(rank / target))) for target in targets})


def evenly(items: Sequence[Any], most: int) -> list[Any]:
    """At most so many of the items, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    return [items[round(index * (len(items) - 1) / (most - 1))] for index in range(most)]


def values_of(comparison: Comparison, column: Column, relative: bool) -> Values:
    """A point for a group's mean, and one for each of its trials, for the ranks that have the figure.

    Where the trials are too many to be told apart, each group has a standard deviation (`low`, `high`) instead.
    """
    series, ranks = set(drawn_series(comparison)[0]), set(drawn_ranks(comparison))
    groups = [
        (group, mean)
        for group in comparison.groups
        if group.rank in ranks and series_of(group) in series and (mean := group.statistic(column.name)) is not None
    ]
    has_dots = sum(mean.n for _, mean in groups) <= MOST_POINTS
    values: Values = []
    for group, mean in groups:
        y = comparison.relative_mean(group, column.name) if relative else mean.mean
        if y is None:
            continue
        common = {"rank": group.rank, "series": series_of(group)}
        what = f"mean of {mean.n} seeds" if mean.n > 1 else group.trials[0].record.trial
        point = {**common, "y": _short(y), "value": formatting.quantity(mean.mean, column.unit), "what": what}
        values.append(point)
        if mean.deviation is not None and not has_dots:
            spread = mean.deviation * (y / mean.mean if mean.mean else 0.0)
            point.update(low=_short(y - spread), high=_short(y + spread))
        for trial in group.trials if mean.n > 1 and has_dots else ():
            y = comparison.relative(trial.row, column.name) if relative else trial.row[column.name]
            if y is not None:
                text = formatting.quantity(trial.row[column.name], column.unit)
                values.append({**common, "y": _short(y), "value": text, "what": trial.record.trial, "is_dot": True})
    return values


def _short(value: float) -> float:
    return float(f"{value:.7g}")


def quality_columns(comparison: Comparison) -> list[Column]:
    """The quality columns that adapters have; the loss is left out beside the perplexity, its exponential."""
    rows = [row for row in comparison.results.rows if row["kind"] == "lora"]
    names = [name for name in _QUALITY if any(row[name] is not None for row in rows)]
    if "perplexity" not in names and any(row["loss"] is not None for row in rows):
        names.append("loss")
    return [column_named(name) for name in names]


def batch_changes(comparison: Comparison, column: str, ranks: Sequence[int]) -> Values:
    """Where neighbouring ranks of a line have different batch sizes: between them, in the middle of the log scale."""
    found: dict[tuple[float, str], float] = {}
    lines: dict[str, list[Group]] = {}
    for group in comparison.groups:
        if group.rank in ranks:
            lines.setdefault(series_of(group), []).append(group)
    for groups in lines.values():
        for left, right in pairwise(sorted(groups, key=lambda group: group.rank or 0)):
            before, after = left.mean(column), right.mean(column)
            if left.rank and right.rank and before is not None and after is not None and before != after:
                place = math.sqrt(left.rank * right.rank)
                found[place, f"{before:g} → {after:g}"] = place
    pixels_per_octave = WIDTH / max(1.0, math.log2(max(ranks) / min(ranks)) + 0.6)
    changes: Values = []
    for (place, label), _ in sorted(found.items()):
        last = changes[-1] if changes else None
        is_close = last is not None and math.log2(place / last["rank"]) * pixels_per_octave < 6.5 * len(label)
        row = 1 - last["row"] if last is not None and is_close else 0
        changes.append({"rank": place, "label": label, "row": row})
    return changes


# -- panels ---------------------------------------------------------------------------------------------------------


def cost_panel(
    comparison: Comparison, data: Datasets, column: Column, values: Values, title: str, unit: str, batch_column: str
) -> Any:
    """A cost relative to the reference rank; flat stays flat: the axis spans at least 0.75 to 1.25."""
    import altair as alt

    ranks = sorted({value["rank"] for value in values})
    ys = _extent(values)
    low, high = min(*ys, 0.75), max(*ys, 1.25)
    margin = 0.04 * (high - low)
    scale = alt.Scale(domain=[max(0.0, low - margin), high + margin], nice=True, zero=False)
    axis = alt.Axis(title=None, tickCount=5, labelExpr="format(datum.value, '.3~f') + '×'")
    one = data.add([{"y": 1}]).mark_rule(color="#b8c0cc", strokeWidth=1.2).encode(y=alt.Y("y:Q"))
    layers = [one, *_batch_rules(data, batch_changes(comparison, batch_column, ranks))]
    layers += _lines(comparison, data, values, ranks, alt.Y("y:Q", scale=scale, axis=axis), "relative", ".3~f")
    return _panel(data, layers, title, _relative_words(comparison, column, unit))


def _relative_words(comparison: Comparison, column: Column, unit: str) -> str:
    words = assumed_words(comparison.results) if column.unit in ("joules", "watts") else None
    note = f", {words}" if words else ""
    if len(comparison.references) > 1:
        return f"relative to the largest rank of each line{note}"
    (reference,) = comparison.references
    mean = formatting.quantity(reference.group.mean(column.name), column.unit)
    shown = f"{mean} {unit}" if column.unit == "per_second" else mean
    return f"relative to rank {reference.rank} ({shown}{note})"


def quality_panel(comparison: Comparison, data: Datasets, column: Column, values: Values) -> Any:
    """Quality as it is, with the bare model and full fine-tuning as dashed levels."""
    import altair as alt

    ranks = sorted({value["rank"] for value in values})
    levels: Values = [
        {"y": mean, "label": f"{group.kind} {formatting.quantity(mean, column.unit)}", "kind": group.kind}
        for group in comparison.groups
        if group.kind != "lora" and (mean := group.mean(column.name)) is not None
    ]
    ys = _extent([*values, *levels])
    margin = 0.08 * (max(ys) - min(ys)) or 0.1 * abs(max(ys)) or 0.1
    floor = 0.0 if min(ys) >= 0 else -math.inf
    low, high = max(floor, min(ys) - margin), max(ys) + margin
    percent = column.unit == "fraction"
    axis = alt.Axis(title=None, tickCount=5, labelExpr="format(datum.value, '.3~%')" if percent else "datum.label")
    y = alt.Y("y:Q", scale=alt.Scale(domain=[low, high], nice=False, zero=False), axis=axis)
    layers = _lines(comparison, data, values, ranks, y, column.label, ".4~%" if percent else ".4~g")
    tops = _spread([(high - level["y"]) / (high - low) * HEIGHT for level in levels])
    for level, top in zip(levels, tops, strict=True):
        own, color = data.add([level]), _LEVELS[level["kind"]]
        layers.append(own.mark_rule(color=color, strokeDash=[6, 4], strokeWidth=1.5).encode(y=y))
        text = own.mark_text(color=color, align="left", baseline="middle", fontSize=12)
        layers.append(text.encode(y=alt.value(top), x=alt.value(WIDTH + 6), text="label:N"))
    better = f"{column.better} is better" if column.better else ""
    return _panel(data, layers, column.label[0].upper() + column.label[1:], f"absolute; {better}")


def _extent(values: Values) -> list[float]:
    return [value[key] for value in values for key in ("y", "low", "high") if key in value]


def _spread(tops: Sequence[float], apart: float = 14.0) -> list[float]:
    """Places of labels, moved down until none covers another."""
    placed: dict[int, float] = {}
    last = -math.inf
    for index in sorted(range(len(tops)), key=lambda index: tops[index]):
        last = placed[index] = max(tops[index], last + apart)
    return [placed[index] for index in range(len(tops))]


def _lines(
    comparison: Comparison,
    data: Datasets,
    values: Values,
    ranks: Sequence[int],
    y: "alt.Y",
    y_title: str,
    y_format: str,
) -> list[Any]:
    import altair as alt

    x = alt.X("rank:Q", scale=_rank_scale(ranks), axis=rank_axis(ranks))
    tooltip: list[Any] = [
        alt.Tooltip("rank:Q", title="rank", format="d"),
        alt.Tooltip("value:N", title="value"),
        alt.Tooltip("y:Q", title=y_title, format=y_format),
        alt.Tooltip("what:N", title="of"),
    ]
    names, _ = drawn_series(comparison)
    color: Any = alt.value(_BLUE)
    if len(names) > 1:
        legend = alt.Legend(title=None, orient="bottom", columns=2, labelLimit=420)
        color = alt.Color("series:N", scale=_series_scale(names), legend=legend)
        tooltip.append(alt.Tooltip("series:N", title="setting"))
    means = data.add([value for value in values if "is_dot" not in value])
    layers: list[Any] = [means.mark_line(strokeWidth=2.2).encode(x=x, y=y, color=color)]
    if bars := [value for value in values if "low" in value]:
        ends = [{**bar, "y": bar["low"]} for bar in bars]
        rules = data.add(ends).mark_rule(strokeWidth=5, opacity=0.3)
        layers.append(rules.encode(x=x, y=y, y2="high:Q", color=color))
    if dots := [value for value in values if "is_dot" in value]:
        circles = data.add(dots).mark_circle(size=40, opacity=0.35)
        layers.append(circles.encode(x=x, y=y, color=color, tooltip=tooltip))
    size, edge = (14, 0) if len(ranks) > 2 * _MOST_TICKS else (42, 1)
    marks = means.mark_point(size=size, filled=True, opacity=1, stroke="white", strokeWidth=edge)
    layers.append(marks.encode(x=x, y=y, color=color, tooltip=tooltip))
    return layers


def _series_scale(names: Sequence[str]) -> "alt.Scale":
    import altair as alt

    if len(names) <= len(_PALETTE):
        return alt.Scale(domain=list(names), range=list(_PALETTE[: len(names)]))
    return alt.Scale(domain=list(names), scheme=alt.SchemeParams(name="viridis", extent=[0.0, 0.88]))


def _batch_rules(data: Datasets, changes: Values) -> list[Any]:
    import altair as alt

    if not changes:
        return []
    x = alt.X("rank:Q")
    rules = data.add(changes).mark_rule(color="#9aa5b1", strokeDash=[4, 4], strokeWidth=1.2)
    layers: list[Any] = [rules.encode(x=x)]
    for row in (0, 1):
        own = [change for change in changes if change["row"] == row]
        if own:
            text = data.add(own).mark_text(color=SOFT, fontSize=11, baseline="bottom", dy=-3 - 12 * row)
            layers.append(text.encode(x=x, y=alt.value(0), text="label:N"))
    return layers


def _panel(data: Datasets, layers: Iterable[Any], title: str, subtitle: str) -> Any:
    import altair as alt

    # Whether a label pokes out at the top would else decide how high the title stands.
    room = data.add([{}]).mark_point(opacity=0, size=1).encode(x=alt.value(0), y=alt.value(-15))
    return alt.layer(room, *layers).properties(width=WIDTH, height=HEIGHT, title=panel_title(title, subtitle, offset=6))


def panel_title(title: str, subtitle: str, offset: int) -> Any:
    """A title that begins at the same place whatever the axis' labels."""
    import altair as alt

    text = alt.TitleParams(title, subtitle=subtitle) if subtitle else alt.TitleParams(title)
    text.anchor, text.frame, text.dx, text.offset = "start", "group", -36, offset
    text.fontSize, text.subtitleFontSize = 14, 12
    return text


def _rank_scale(ranks: Sequence[int]) -> "alt.Scale":
    import altair as alt

    return alt.Scale(type="log", base=2, domain=[min(ranks) / 1.23, max(ranks) * 1.23], nice=False)


def rank_axis(ranks: Sequence[int]) -> "alt.Axis":
    """Ticks at the ranks; where they are too many, at the powers of two among them, else at some of them."""
    import altair as alt

    ticks = list(ranks)
    if len(ticks) > _MOST_TICKS:
        powers = [rank for rank in ticks if rank & (rank - 1) == 0]
        reach = len(powers) > 3 and 2 * powers[-1] >= ticks[-1]
        ticks = powers if reach else evenly_in_log(ticks, _MOST_TICKS)
    return alt.Axis(title="rank", values=ticks, format="d", grid=False, labelOverlap="greedy", labelSeparation=3)
