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
from howlow.reporting.figure import FIGURE_NAMES, INK, Datasets, Datum, Figure, context_lines, finished, panel_title
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
    data = Datasets()
    chart = _chart([_panel(data, name, curves, has_title=len(curves.panels) > 1) for name in curves.panels])
    subtitle = _subtitle(comparison, curves)
    ranks = formatting.listed([f"rank {rank}" for rank in curves.ranks], 12)
    title, offset = "Training loss", 30 if len(curves.panels) > 1 else 20
    about = f"Training loss over steps for {ranks}. {' '.join(subtitle)}"
    return Figure(FIGURE_NAMES[2], title, about, finished(chart, data, title, subtitle, offset))


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


def _subtitle(comparison: Comparison, curves: _Curves) -> list[str]:
    subtitle = context_lines(comparison)[:1]
    width = max(_bin_width(_mean_curve(group)) for group in [*curves.full, *curves.adapters])
    if width > 1:
        subtitle.append(f"each point is the mean of up to {width} neighbouring steps")
    if len(curves.adapters) < curves.there:
        subtitle.append(f"{len(curves.adapters)} of {formatting.counted(curves.there, 'curve')} drawn")
    over = averaged_over(comparison)
    return [*subtitle, f"means over {over}"] if over else subtitle


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


# -- panels ---------------------------------------------------------------------------------------------------------


def _chart(panels: Sequence[Any]) -> Any:
    import altair as alt

    if len(panels) == 1:
        return panels[0]
    return alt.concat(*panels, columns=2, spacing={"row": 90, "column": 90}, bounds="flush")


def _panel(data: Datasets, name: str, curves: _Curves, has_title: bool) -> Any:
    import altair as alt

    encoded = _encoding()
    layers: list[Any] = []
    if groups := curves.panels[name]:
        lines = data.add(_points(groups)).mark_line(strokeWidth=1.6, opacity=0.9)
        layers.append(lines.encode(**encoded, color=_color(curves.ranks), detail="rank:O"))
    for group in curves.full:
        layers += _full_layers(data, group, encoded)
    panel = alt.layer(*layers).properties(width=380 if has_title else 840, height=220 if has_title else 340)
    return panel.properties(title=panel_title(series_label(name), "", offset=10)) if has_title or name else panel


def _encoding() -> dict[str, Any]:
    import altair as alt

    axis = alt.Axis(grid=False, tickMinStep=1, tickCount=10, labelFlush=False)
    return {
        "x": alt.X("step:Q", title="optimizer step", axis=axis, scale=alt.Scale(nice=False)),
        "y": alt.Y("loss:Q", title="loss (nats per target token)", scale=alt.Scale(zero=False, nice=True)),
        "tooltip": [
            alt.Tooltip("rank:N", title=RANK.label),
            alt.Tooltip("step:Q", format=".6~g"),
            alt.Tooltip("loss:Q", format=".4~g"),
        ],
    }


def _color(ranks: list[int]) -> Any:
    import altair as alt

    scheme = alt.SchemeParams(name="viridis", extent=[0.0, 0.88])
    columns = 2 if len(ranks) > 14 else 1
    legend = alt.Legend(title=RANK.label, columns=columns, symbolType="stroke", symbolStrokeWidth=3, offset=40)
    return alt.Color("rank:O", sort=list(ranks), scale=alt.Scale(domain=list(ranks), scheme=scheme), legend=legend)


def _full_layers(data: Datasets, group: Group, encoded: Mapping[str, Any]) -> list[Any]:
    """Full fine-tuning, which has no rank: a dashed line with a label at its end."""
    import altair as alt

    values = _points([group], group.kind)
    line = data.add(values).mark_line(color=INK, strokeDash=[5, 3], strokeWidth=1.6)
    label = data.add(values[-1:]).mark_text(align="left", dx=5, color=INK, fontSize=12)
    place = {"x": encoded["x"], "y": encoded["y"]}
    return [line.encode(**encoded), label.encode(**place, text=alt.value(group.kind))]
