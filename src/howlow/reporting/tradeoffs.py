"""Quality against what it costs: a panel each for time, energy and memory, with the Pareto front.

A point is a candidate of the decision. Its vertical bar is the interval of its quality, its horizontal one reaches to
the worse end of its cost's interval, which a limit is held against.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from howlow.analysis.pareto import pareto_front
from howlow.reporting import formatting
from howlow.reporting.answer import LIMITED, Answer
from howlow.reporting.figure import (
    INK,
    PAGE_SIZE,
    PALETTE,
    RULE,
    Canvas,
    Datum,
    PageFigure,
    PagePanel,
    on_page,
    page_canvas,
)
from howlow.reporting.label_places import Box, label_places
from howlow.reporting.panels import padded_domain, quality_axis

_FARTHEST = 1.5
"""A bar is cut where it reaches beyond this many times the largest cost: it would press all points together."""


@dataclass(frozen=True)
class _Spot:
    """A candidate in a panel: its cost in the axis' unit up to the worse end, and its quality with its interval."""

    name: str
    cost: float
    end: float
    quality: float
    low: float
    high: float
    label: str

    def datum(self) -> Datum:
        """The candidate as Vega reads it."""
        ends = {"end": self.end, "low": self.low, "high": self.high}
        return {"x": self.cost, "y": self.quality, "name": self.name, "label": self.label, **ends}


def tradeoffs(answer: Answer, number: int) -> PageFigure | None:
    """The panels of one decision; None where fewer than two candidates have any cost."""
    panels = [panel for name in LIMITED if (panel := _panel(answer, name)) is not None]
    label = answer.found.terms.metric.label
    if not panels:
        return None
    return PageFigure(f"tradeoff-{number}", f"{label} against cost", (), tuple(panels))


def _panel(answer: Answer, name: str) -> PagePanel | None:
    import altair as alt

    what, unit, metric = LIMITED[name].label, LIMITED[name].unit, answer.found.terms.metric
    costs = [one.costs[name].cost for one in answer.inputs.candidates if name in one.costs]
    largest = max((cost for cost in costs if cost is not None), default=0.0)
    shown, factor = formatting.unit_and_factor(largest, unit)
    spots = _spots(answer, name, factor)
    if len(spots) < 2:
        return None
    canvas = page_canvas()
    reach = _FARTHEST * max(spot.cost for spot in spots)
    wide = padded_domain([cost for spot in spots for cost in (spot.cost, min(spot.end, reach))])
    high = padded_domain([value for spot in spots for value in (spot.low, spot.high)])
    places = pareto_front([s.cost for s in spots], [s.quality for s in spots], metric.better == "higher")
    front = [spots[place] for place in places]
    axis = alt.Axis(tickCount=5, grid=False)
    x = alt.X("x:Q", title=f"{what} ({shown})", scale=alt.Scale(domain=wide, nice=False), axis=axis)
    layers = _layers(canvas, spots, front, x, quality_axis(metric, *high))
    names = _names(canvas, [*front, *(spot for spot in spots if spot not in front)], _Frame(wide, high))
    chart = alt.layer(*layers, names, width=canvas.width, height=canvas.height)
    return PagePanel(f"{metric.label} against {what}", "", on_page(chart, canvas.data))


def _spots(answer: Answer, name: str, factor: float) -> list[_Spot]:
    metric, found = answer.found.terms.metric, []
    for candidate in answer.inputs.candidates:
        cost, quality = candidate.costs.get(name), candidate.group.mean(metric)
        if cost is None or cost.cost is None or quality is None:
            continue
        ends = candidate.group.interval(metric)
        what, value = "base" if candidate.rank is None else f"rank {candidate.rank}", formatting.quantity
        label = f"{what}; {metric.label} {value(quality, metric.unit)}; {value(cost.cost, cost.limit.columns[0].unit)}"
        low, high = (quality if end is None else end for end in (ends.low, ends.high))
        worst = cost.cost if cost.end is None else cost.end
        found.append(_Spot(what.removeprefix("rank "), cost.cost * factor, worst * factor, quality, low, high, label))
    return found


def _layers(canvas: Canvas, spots: Sequence[_Spot], front: Sequence[_Spot], x: Any, y: Any) -> list[Any]:
    import altair as alt

    data = canvas.data.add([spot.datum() for spot in spots])
    on_front = canvas.data.add([spot.datum() for spot in front])
    place = {"x": x, "y": y}
    points = canvas.marked(data, size=52, filled=True, opacity=1, color=PALETTE[0], stroke="white", strokeWidth=1)
    return [
        on_front.mark_line(color=RULE, strokeWidth=1.6, strokeDash=[5, 3], interpolate="step-after").encode(**place),
        data.mark_rule(color=PALETTE[0], opacity=0.35, strokeWidth=2).encode(
            x=x, y=alt.Y("low:Q"), y2=alt.Y2("high:Q")
        ),
        data.mark_rule(color=PALETTE[0], opacity=0.35, strokeWidth=2, clip=True).encode(**place, x2=alt.X2("end:Q")),
        points.encode(**place),
    ]


# -- names ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Frame:
    """The ends of a panel's axes; between them and pixels, whose y grows downwards."""

    wide: tuple[float, float]
    high: tuple[float, float]

    def pixels(self, x: float, y: float) -> tuple[float, float]:
        """A place of the axes in pixels."""
        (left, right), (low, top), (width, height) = self.wide, self.high, PAGE_SIZE
        return (x - left) / (right - left) * width, (top - y) / (top - low) * height

    def axes(self, x: float, y: float) -> tuple[float, float]:
        """A place in pixels on the axes."""
        (left, right), (low, top), (width, height) = self.wide, self.high, PAGE_SIZE
        return left + x / width * (right - left), top - y / height * (top - low)

    def bars(self, spot: _Spot) -> list[Box]:
        """The intervals of a candidate, as the lines that are drawn."""
        x, y = self.pixels(spot.cost, spot.quality)
        end, top = self.pixels(spot.end, spot.high)
        _, bottom = self.pixels(spot.cost, spot.low)
        return [Box(x, y - 1, end, y + 1), Box(x - 1, top, x + 1, bottom)]


def _names(canvas: Canvas, spots: Sequence[_Spot], frame: _Frame) -> Any:
    """The name of each candidate beside its point, as far as there is room; those on the front come first."""
    import altair as alt

    points = [frame.pixels(spot.cost, spot.quality) for spot in spots]
    bars = [bar for spot in spots for bar in frame.bars(spot)]
    places = label_places(points, [spot.name for spot in spots], bars, PAGE_SIZE)
    data = []
    for spot, place in zip(spots, places, strict=True):
        if place is not None:
            x, y = frame.axes(*place)
            data.append({"x": x, "y": y, "name": spot.name})
    text = canvas.data.add(data).mark_text(color=INK, fontSize=11, fontWeight=600, baseline="middle")
    return text.encode(x=alt.X("x:Q"), y=alt.Y("y:Q"), text=alt.Text("name:N"))
