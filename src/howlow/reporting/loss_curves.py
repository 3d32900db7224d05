"""The training loss over the steps, a curve a rank (the mean over its seeds), thinned so that a page stays small."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from howlow.analysis.columns import RANK
from howlow.analysis.comparison import Comparison, Group
from howlow.analysis.statistics import mean
from howlow.reporting import formatting
from howlow.reporting.evidence import averaged_over
from howlow.reporting.figure import (
    FIGURE_NAMES,
    INK,
    Canvas,
    Datasets,
    Datum,
    Figure,
    LegendEntry,
    PageFigure,
    PagePanel,
    context_lines,
    finished,
    on_page,
    page_canvas,
    panel_title,
    ramp,
)
from howlow.reporting.points import MOST_POINTS, evenly, evenly_in_log, series_label, series_of

_MOST_CURVES = 24
_MOST_PANELS = 6


@dataclass(frozen=True)
class _Curves:
    """The curves that are drawn: those of adapters by panel, those of full fine-tuning in every panel."""

    panels: Mapping[str, Sequence[Group]]
    full: Sequence[Group]
    there: int
    """how many adapters have a curve, drawn or not"""

    @property
    def adapters(self) -> list[Group]:
        return [group for groups in self.panels.values() for group in groups]

    @property
    def ranks(self) -> list[int]:
        return sorted({group.rank for group in self.adapters if group.rank})


def loss_figure(comparison: Comparison) -> Figure | None:
    """A panel for each setting of the further axes; the colour is the rank."""
    curves = _curves(comparison)
    if not curves.adapters and not curves.full:
        return None
    has_titles, data = len(curves.panels) > 1, Datasets()
    canvas = Canvas(data, 380, 220) if has_titles else Canvas(data, 840, 340)
    panels = {series_label(name): _panel(canvas, name, curves) for name in curves.panels}
    titled = [panel.properties(title=panel_title(name, "", offset=10)) for name, panel in panels.items()]
    chart = _chart(titled if has_titles or "" not in curves.panels else list(panels.values()))
    subtitle = [*context_lines(comparison)[:1], *_notes(comparison, curves)]
    ranks = formatting.listed([f"rank {rank}" for rank in curves.ranks], 12)
    title, offset = "Training loss", 30 if len(curves.panels) > 1 else 20
    about = f"Training loss over steps for {ranks}. {' '.join(subtitle)}"
    return Figure(FIGURE_NAMES[2], title, about, finished(chart, data, title, subtitle, offset))


def loss_on_page(comparison: Comparison) -> PageFigure | None:
    """The same for the page, panel by panel."""
    curves = _curves(comparison)
    if not curves.adapters and not curves.full:
        return None
    panels = []
    for name in curves.panels:
        canvas = page_canvas()
        title = series_label(name) if len(curves.panels) > 1 else name
        panels.append(PagePanel(title, "nats per target token", on_page(_panel(canvas, name, curves), canvas.data)))
    legend = map(LegendEntry, (f"rank {rank}" for rank in curves.ranks), ramp(len(curves.ranks)))
    return PageFigure(FIGURE_NAMES[2], "Training loss", tuple(_notes(comparison, curves)), tuple(panels), tuple(legend))


def _curves(comparison: Comparison) -> _Curves:
    lora: dict[str, list[Group]] = defaultdict(list)
    full: list[Group] = []
    for group in comparison.groups:
        if any(len(trial.losses) > 1 for trial in group.trials):
            (lora[series_of(group)] if group.rank else full).append(group)
    names = evenly(list(lora), _MOST_PANELS) or [""]
    most = max(2, _MOST_CURVES // len(names))
    return _Curves({name: _some(lora.get(name, []), most) for name in names}, full, sum(map(len, lora.values())))


def _some(groups: Sequence[Group], most: int) -> list[Group]:
    ranks = evenly_in_log(sorted(group.rank for group in groups if group.rank), most)
    return [group for group in groups if group.rank in ranks]


def _notes(comparison: Comparison, curves: _Curves) -> list[str]:
    notes = []
    width = max(_bin_width(_mean_curve(group)) for group in [*curves.full, *curves.adapters])
    if width > 1:
        notes.append(f"each point is the mean of up to {width} neighbouring steps")
    if len(curves.adapters) < curves.there:
        notes.append(f"{len(curves.adapters)} of {formatting.counted(curves.there, 'curve')} drawn")
    over = averaged_over(comparison)
    return [*notes, f"means over {over}"] if over else notes


# -- curves ---------------------------------------------------------------------------------------------------------


def _mean_curve(group: Group) -> list[tuple[int, float]]:
    by_step: dict[int, list[float]] = defaultdict(list)
    for trial in group.trials:
        for step, loss in trial.losses:
            by_step[step].append(loss)
    return [(step, mean(losses)) for step, losses in sorted(by_step.items())]


def _bin_width(curve: Sequence[object]) -> int:
    return math.ceil(len(curve) / MOST_POINTS)


def thinned(curve: Sequence[tuple[int, float]]) -> list[tuple[float, float]]:
    """Means of neighbouring steps, at most `MOST_POINTS` of them."""
    width = _bin_width(curve)
    bins = [curve[start : start + width] for start in range(0, len(curve), width or 1)]
    return [(mean([step for step, _ in part]), mean([loss for _, loss in part])) for part in bins]


def _points(groups: Iterable[Group], name: str | None = None) -> list[Datum]:
    return [
        {"rank": name or group.rank, "step": step, "loss": float(f"{loss:.6g}")}
        for group in groups
        for step, loss in thinned(_mean_curve(group))
    ]


def _ends(groups: Iterable[Group]) -> list[Datum]:
    """The last point of each curve, with a label."""
    return [end | {"label": _label(*end.values())} for end in (_points([group])[-1] for group in groups)]


def _label(rank: Any, step: Any, loss: Any) -> str:
    return f"rank {rank}; step {step:.6g}; loss {formatting.significant(loss, 4)}"


# -- panels ---------------------------------------------------------------------------------------------------------


def _chart(panels: Sequence[Any]) -> Any:
    import altair as alt

    if len(panels) == 1:
        return panels[0]
    return alt.concat(*panels, columns=2, spacing={"row": 90, "column": 90}, bounds="flush")


def _panel(canvas: Canvas, name: str, curves: _Curves) -> Any:
    import altair as alt

    encoded = _encoding(canvas)
    layers: list[Any] = []
    if groups := curves.panels[name]:
        lines = canvas.data.add(_points(groups)).mark_line(strokeWidth=1.6, opacity=0.9)
        color = _color(canvas, curves.ranks)
        layers.append(lines.encode(**encoded, color=color, detail=alt.Detail("rank:O")))
        if canvas.is_on_page:
            ends = canvas.marked(canvas.data.add(_ends(groups)), size=30, filled=True, opacity=1)
            layers.append(ends.encode(**encoded, color=color))
    for group in curves.full:
        layers += _full_layers(canvas.data, group, encoded)
    return alt.layer(*layers, width=canvas.width, height=canvas.height)


def _encoding(canvas: Canvas) -> dict[str, Any]:
    import altair as alt

    axis = alt.Axis(grid=False, tickMinStep=1, tickCount=5 if canvas.is_on_page else 10, labelFlush=False)
    title = None if canvas.is_on_page else "loss (nats per target token)"
    return {
        "x": alt.X("step:Q", title="optimizer step", axis=axis, scale=alt.Scale(nice=False)),
        "y": alt.Y("loss:Q", title=title, scale=alt.Scale(zero=False, nice=True)),
    }


def _color(canvas: Canvas, ranks: list[int]) -> Any:
    import altair as alt

    columns = 2 if len(ranks) > 14 else 1
    legend = alt.Legend(title=RANK.label, columns=columns, symbolType="stroke", symbolStrokeWidth=3, offset=40)
    scale = alt.Scale(domain=list(ranks), range=ramp(len(ranks)))
    return alt.Color("rank:O", sort=list(ranks), scale=scale, legend=None if canvas.is_on_page else legend)


def _full_layers(data: Datasets, group: Group, encoded: Mapping[str, Any]) -> list[Any]:
    """Full fine-tuning, which has no rank: a dashed line with a label at its end."""
    import altair as alt

    values = _points([group], group.kind)
    line = data.add(values).mark_line(color=INK, strokeDash=[5, 3], strokeWidth=1.6)
    label = data.add(values[-1:]).mark_text(align="left", dx=5, color=INK, fontSize=12)
    place = {"x": encoded["x"], "y": encoded["y"]}
    return [line.encode(**encoded), label.encode(**place, text=alt.value(group.kind))]
