"""Timelines of trials on the page: power, memory, utilisation and clocks over the time, with the phases behind them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from howlow.analysis.column import Unit
from howlow.analysis.comparison import Comparison
from howlow.analysis.rows import Trial
from howlow.analysis.timeline import TimelineLine, TrialTimeline, timeline_of
from howlow.records import PhaseName
from howlow.reporting import formatting
from howlow.reporting.figure import (
    AXIS,
    SOFT,
    Canvas,
    LegendEntry,
    PageFigure,
    PagePanel,
    colors_of,
    on_page,
    page_canvas,
)
from howlow.reporting.points import evenly

_MOST_TIMELINES, _MOST_DEVICES = 8, 3
_PANELS: dict[str, tuple[str, Unit]] = {
    "power_w": ("Power", "watts"),
    "memory_bytes": ("Memory", "bytes"),
    "utilization": ("Utilisation", "fraction"),
    "sm_clock_hz": ("Clock", "hertz"),
    "cpu_clock_hz": ("CPU clock", "hertz"),
}
_NAMES: dict[PhaseName, str] = {"load": "load", "train": "train", "evaluate": "eval", "generate": "gen"}


@dataclass(frozen=True)
class _Axis:
    """Seconds of a trial in the unit of the axis."""

    unit: str
    factor: float

    def at(self, time_s: float) -> float:
        return float(f"{time_s * self.factor:.5g}")


def timelines(comparison: Comparison) -> list[PageFigure]:
    """The timelines of some trials, at most eight: one of each rank, from the largest; none where nothing was read."""
    found = []
    for trial in evenly(_one_a_group(comparison), _MOST_TIMELINES):
        timeline = timeline_of(trial)
        if timeline.lines:
            found.append(_figure(trial, timeline))
    return found


def _one_a_group(comparison: Comparison) -> list[Trial]:
    ordered = sorted(comparison.groups, key=lambda group: -(group.rank or 0))
    return [next((t for t in group.trials if t.record.status == "done"), group.trials[0]) for group in ordered]


def _figure(trial: Trial, timeline: TrialTimeline) -> PageFigure:
    own = trial.record.environment.device if trial.record.environment else None
    there = dict.fromkeys(line.device for line in timeline.lines)
    devices = sorted(there, key=lambda device: device != own)[:_MOST_DEVICES]
    drawn = [line for line in timeline.lines if line.device in devices]
    by_quantity = ([line for line in drawn if line.quantity == name] for name in _PANELS)
    panels = tuple(_panel(timeline, lines, devices) for lines in by_quantity if lines)
    legend = tuple(map(LegendEntry, devices, colors_of(devices))) if len(devices) > 1 else ()
    return PageFigure(f"timeline-{trial.record.trial}", trial.record.trial, (), panels, legend)


def _panel(timeline: TrialTimeline, lines: Sequence[TimelineLine], devices: Sequence[str]) -> PagePanel:
    import altair as alt

    title, unit = _PANELS[lines[0].quantity]
    canvas, axis = (
        page_canvas(),
        _Axis(*formatting.unit_and_factor(max(span.end_s for span in timeline.phases), "seconds")),
    )
    shown, factor = formatting.unit_and_factor(max(max(line.values) for line in lines), unit)
    values = [
        {"time": axis.at(time_s), "y": float(f"{value * factor:.5g}"), "device": line.device}
        for line in lines
        for time_s, value in zip(line.times_s, line.values, strict=True)
    ]
    drawn = canvas.data.add(values).mark_line(strokeWidth=1.4)
    encoded = drawn.encode(
        x=alt.X(
            "time:Q", title=f"time ({axis.unit})", axis=alt.Axis(grid=False, tickCount=5), scale=alt.Scale(nice=False)
        ),
        y=alt.Y("y:Q", title=None, axis=alt.Axis(tickCount=4), scale=alt.Scale(zero=True)),
        color=alt.Color("device:N", scale=alt.Scale(domain=list(devices), range=colors_of(devices)), legend=None),
    )
    layers = [*_phases(canvas, timeline, axis), encoded]
    chart = alt.layer(*layers, width=canvas.width, height=canvas.height)
    return PagePanel(title, shown, on_page(chart, canvas.data))


def _phases(canvas: Canvas, timeline: TrialTimeline, axis: _Axis) -> list[Any]:
    """A band for every other phase, and names above those that have room for theirs."""
    import altair as alt

    spans = [(axis.at(span.start_s), axis.at(span.end_s), _NAMES[span.phase]) for span in timeline.phases]
    per_width = (spans[-1][1] - spans[0][0]) / canvas.width
    bands = canvas.data.add([{"time": start, "end": end} for start, end, _ in spans[1::2]])
    wide = canvas.data.add(
        [
            {"middle": (start + end) / 2, "label": name}
            for start, end, name in spans
            if end - start > 7 * len(name) * per_width
        ]
    )
    return [
        bands.mark_rect(color=AXIS, opacity=0.22).encode(x=alt.X("time:Q"), x2=alt.X2("end:Q")),
        wide.mark_text(color=SOFT, fontSize=11, baseline="bottom", dy=-3).encode(
            x=alt.X("middle:Q"), y=alt.value(0), text=alt.Text("label:N")
        ),
    ]
