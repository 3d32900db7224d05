"""The training loss over the steps, a curve a rank (the mean over its seeds), thinned so that a page stays small."""

import math
from collections.abc import Sequence
from typing import Any

from howlow.analysis.comparison import Comparison, Group
from howlow.reporting import formatting
from howlow.reporting.charts import Figure, context_lines, finished
from howlow.reporting.panels import INK, Datasets, evenly, evenly_in_log, panel_title, series_of

MOST_POINTS = 200
MOST_CURVES = 24
MOST_PANELS = 6


def loss_figure(comparison: Comparison) -> Figure | None:
    """A panel a setting of the further axes; colour is the rank."""
    import altair as alt

    series: dict[str, list[Group]] = {}
    for group in comparison.groups:
        if any(len(trial.losses) > 1 for trial in group.trials):
            series.setdefault(series_of(group) if group.rank else "", []).append(group)
    full = [group for group in series.get("", []) if group.rank is None]
    lora = {name: [group for group in groups if group.rank] for name, groups in series.items()}
    lora = {name: groups for name, groups in lora.items() if groups}
    if not lora and not full:
        return None

    names = evenly(list(lora), MOST_PANELS) or [""]
    most = max(2, MOST_CURVES // len(names))
    chosen = {name: _some(lora.get(name, []), most) for name in names}
    ranks = sorted({group.rank for groups in chosen.values() for group in groups if group.rank})
    data = Datasets()
    panels = [_panel(data, name, chosen[name], full, ranks, is_wide=len(names) == 1) for name in names]
    spacing = {"row": 90, "column": 90}
    chart = panels[0] if len(panels) == 1 else alt.concat(*panels, columns=2, spacing=spacing, bounds="flush")

    subtitle = context_lines(comparison)[:1]
    width = max(_bin_width(_mean_curve(group)) for group in [*full, *(g for groups in chosen.values() for g in groups)])
    if width > 1:
        subtitle.append(f"each point is the mean of up to {width} neighbouring steps")
    drawn, there = sum(map(len, chosen.values())), sum(map(len, lora.values()))
    if drawn < there:
        subtitle.append(f"{drawn} of {formatting.counted(there, 'curve')} drawn")
    if any(len(group.trials) > 1 for group in comparison.groups):
        subtitle.append("means over seeds")
    what = f"Training loss over steps for {formatting.listed([f'rank {rank}' for rank in ranks], 12)}."
    spec = finished(chart, data, "Training loss", subtitle, 30 if len(panels) > 1 else 20)
    return Figure("loss", "Training loss", f"{what} {' '.join(subtitle)}", spec)


def _some(groups: Sequence[Group], most: int) -> list[Group]:
    ranks = evenly_in_log(sorted(group.rank for group in groups if group.rank), most)
    return [group for group in groups if group.rank in ranks]


def _mean_curve(group: Group) -> list[tuple[int, float]]:
    sums: dict[int, list[float]] = {}
    for trial in group.trials:
        for step, loss in trial.losses:
            sums.setdefault(step, []).append(loss)
    return [(step, math.fsum(losses) / len(losses)) for step, losses in sorted(sums.items())]


def _bin_width(curve: Sequence[object]) -> int:
    return math.ceil(len(curve) / MOST_POINTS)


def thinned(curve: Sequence[tuple[int, float]]) -> list[tuple[float, float]]:
    """Means of neighbouring steps, at most `MOST_POINTS` of them."""
    width = _bin_width(curve)
    bins = [curve[start : start + width] for start in range(0, len(curve), width or 1)]
    return [(sum(s for s, _ in part) / len(part), math.fsum(loss for _, loss in part) / len(part)) for part in bins]


def _panel(
    data: Datasets, name: str, groups: Sequence[Group], full: Sequence[Group], ranks: Sequence[int], is_wide: bool
) -> Any:
    import altair as alt

    axis = alt.Axis(grid=False, tickMinStep=1, tickCount=10, labelFlush=False)
    x = alt.X("step:Q", title="optimizer step", axis=axis, scale=alt.Scale(nice=False))
    y = alt.Y("loss:Q", title="loss (nats per target token)", scale=alt.Scale(zero=False, nice=True))
    tooltip = [
        alt.Tooltip("rank:N", title="rank"),
        alt.Tooltip("step:Q", format=".6~g"),
        alt.Tooltip("loss:Q", format=".4~g"),
    ]
    scheme = alt.SchemeParams(name="viridis", extent=[0.0, 0.88])
    columns = 2 if len(ranks) > 14 else 1
    legend = alt.Legend(title="rank", columns=columns, symbolType="stroke", symbolStrokeWidth=3, offset=40)
    color = alt.Color("rank:O", sort=list(ranks), scale=alt.Scale(domain=list(ranks), scheme=scheme), legend=legend)
    layers: list[Any] = []
    if groups:
        lines = data.add(_points(groups)).mark_line(strokeWidth=1.6, opacity=0.9)
        layers.append(lines.encode(x=x, y=y, color=color, detail="rank:O", tooltip=tooltip))
    for group in full:
        values = [{**value, "rank": "full"} for value in _points([group])]
        line = data.add(values).mark_line(color=INK, strokeDash=[5, 3], strokeWidth=1.6)
        label = data.add(values[-1:]).mark_text(align="left", dx=5, color=INK, fontSize=12)
        layers += [line.encode(x=x, y=y, tooltip=tooltip), label.encode(x=x, y=y, text=alt.value("full"))]
    panel = alt.layer(*layers).properties(width=840 if is_wide else 380, height=340 if is_wide else 220)
    return panel.properties(title=panel_title(name, "", offset=10)) if name else panel


def _points(groups: Sequence[Group]) -> list[dict[str, Any]]:
    return [
        {"rank": group.rank, "step": step, "loss": float(f"{loss:.6g}")}
        for group in groups
        for step, loss in thinned(_mean_curve(group))
    ]
