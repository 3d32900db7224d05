"""The singular values of trained updates: a table of trials, a table of modules, and heat maps over the layers."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, median
from typing import Any

from howlow.analysis.columns import RANK
from howlow.analysis.comparison import Comparison
from howlow.analysis.spectra import UpdateSpectra, effective_rank, place_of, spectra_of
from howlow.records.spectra import energy_kept
from howlow.reporting import formatting
from howlow.reporting.figure import (
    FIGURE_NAMES,
    PAGE_SIZE,
    Canvas,
    Datasets,
    Datum,
    DrawnPanel,
    Figure,
    PageFigure,
    PagePanel,
    context_lines,
    finished,
    map_on_page,
)
from howlow.reporting.points import evenly

_MOST_TRIALS, _MOST_MODULES, _MOST_MAPS, _MOST_RANKS, _MOST_TICKS = 40, 300, 8, 8, 16
_SHARES = (0.9, 0.99)


@dataclass(frozen=True)
class SpectraTable:
    """A table as texts: its header and its rows."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class SpectraSummary:
    """The two tables, the trial that the second and the figure are about, and what they do not show."""

    trials: SpectraTable
    modules: SpectraTable
    charted: str
    notes: tuple[str, ...]


def spectra_summary(comparison: Comparison) -> SpectraSummary | None:
    """The tables of the page; None where no trial has spectra."""
    found = spectra_of(comparison, _MOST_TRIALS)
    charted = _charted(found)
    if charted is None:
        return None
    notes = [
        f"{one.trial}: {formatting.counted(len(one.spectra.left_out), 'adapted module')} without a spectrum: "
        f"{formatting.listed(list(one.spectra.left_out), 3)}"
        for one in found
        if one.spectra.left_out
    ]
    if any(len(group.trials) > 1 for group in comparison.groups) or len(found) == _MOST_TRIALS:
        notes.append(
            f"one trial of each row above, at most {_MOST_TRIALS}; the others have spectra.json in their folders"
        )
    if len(charted.modules) > _MOST_MODULES:
        notes.append(f"{len(charted.modules) - _MOST_MODULES} more modules are in the trial's spectra.json")
    return SpectraSummary(_trials(found), _modules(charted), f"{charted.trial}, rank {charted.rank}", tuple(notes))


def _charted(found: Sequence[UpdateSpectra]) -> UpdateSpectra | None:
    """The largest update that is not zero."""
    return next((one for one in found if one.effective_ranks), None)


def _trials(found: Sequence[UpdateSpectra]) -> SpectraTable:
    """A row a trained adapter: how its modules' effective ranks lie, and what smaller ranks keep of it."""
    ranks = evenly(sorted({rank for one in found for rank in one.smaller_ranks}), _MOST_RANKS)
    shares = [f"rank for {share:.0%}" for share in _SHARES]
    header = ("adapter", RANK.label, "effective rank", "least", "most", *shares, *(f"kept by {rank}" for rank in ranks))
    return SpectraTable(header, tuple(_trial(one, ranks) for one in found))


def _trial(one: UpdateSpectra, ranks: Sequence[int]) -> tuple[str, ...]:
    own = one.effective_ranks
    spread = (median(own), own[0], own[-1]) if own else (None, None, None)
    keeping = [one.rank_keeping(share) for share in _SHARES]
    kept = [one.kept_by(rank) if rank < one.rank else None for rank in ranks]
    return (
        one.trial,
        str(one.rank),
        *map(_number, spread),
        *(formatting.ABSENT if rank is None else str(rank) for rank in keeping),
        *map(_share, kept),
    )


def _modules(one: UpdateSpectra) -> SpectraTable:
    """A row a module of one adapter."""
    ranks = evenly(one.smaller_ranks, _MOST_RANKS)
    rows = [
        (
            module.module,
            _number(effective_rank(module.singular_values)),
            formatting.significant(module.singular_values[0]) if module.singular_values else formatting.ABSENT,
            *(_share(energy_kept([module.singular_values], rank)) for rank in ranks),
        )
        for module in one.modules[:_MOST_MODULES]
    ]
    header = ("module", "effective rank", "largest value", *(f"kept by {rank}" for rank in ranks))
    return SpectraTable(header, tuple(rows))


def _number(value: float | None) -> str:
    return formatting.ABSENT if value is None else formatting.significant(value)


def _share(value: float | None) -> str:
    return formatting.ABSENT if value is None else formatting.quantity(value, "fraction")


# -- the figure -----------------------------------------------------------------------------------------------------


def spectra_figure(comparison: Comparison) -> Figure | None:
    """Effective rank over layers and modules, and for each module the energy that smaller ranks keep, of one trial."""
    import altair as alt

    one = _charted(spectra_of(comparison, 1))
    if one is None:
        return None
    canvas = Canvas(Datasets(), 150, 300)
    maps = [panel.titled(6) for panel in _kept_maps(one, lambda: canvas)]
    chart: Any = _effective_map(replace(canvas, width=840), one).titled(6)
    if maps:
        rows = alt.concat(*maps, columns=4, spacing={"row": 60, "column": 50})
        chart = alt.vconcat(chart, rows, spacing=60).resolve_scale(color="independent")
    title = "Why a rank is enough"
    subtitle = [*context_lines(comparison)[:1], _about(one)]
    about = f"Heat maps of effective rank and energy kept by layer and module. {' '.join(subtitle)}"
    return Figure(FIGURE_NAMES[3], title, about, finished(chart, canvas.data, title, subtitle, 20))


def _about(one: UpdateSpectra) -> str:
    return f"singular values of the update of {one.trial}, rank {one.rank}"


def spectra_on_page(comparison: Comparison) -> list[PageFigure]:
    """The same for the page, panel by panel; none where no trial has spectra."""
    one = _charted(spectra_of(comparison, 1))
    if one is None:
        return []
    canvases: list[Canvas] = []

    def canvas() -> Canvas:
        canvases.append(Canvas(Datasets(), PAGE_SIZE[0] - 60, 220, is_on_page=True))
        return canvases[-1]

    panels = [_effective_map(canvas(), one), *_kept_maps(one, canvas)]
    shown = [
        PagePanel(panel.title, panel.subtitle, map_on_page(panel.chart, own.data))
        for panel, own in zip(panels, canvases, strict=True)
    ]
    return [PageFigure(FIGURE_NAMES[3], "Why a rank is enough", (_about(one),), tuple(shown))]


def _kept_maps(one: UpdateSpectra, canvas: Callable[[], Canvas]) -> list[DrawnPanel]:
    names = evenly(list(dict.fromkeys(place_of(module.module).name for module in one.modules)), _MOST_MAPS)
    return [_kept_map(canvas(), one, name) for name in names] if one.smaller_ranks else []


def _means(found: Iterable[tuple[int, Any, float | None]], fields: tuple[str, str, str]) -> list[Datum]:
    """The mean of values that share a place, as experts of one layer do."""
    places: Mapping[tuple[int, Any], list[float]] = defaultdict(list)
    for layer, other, value in found:
        if value is not None:
            places[layer, other].append(value)
    first, second, third = fields
    return [
        {first: layer, second: other, third: float(f"{fmean(values):.4g}")} for (layer, other), values in places.items()
    ]


def _effective_map(canvas: Canvas, one: UpdateSpectra) -> DrawnPanel:
    import altair as alt

    places = ((place_of(module.module), effective_rank(module.singular_values)) for module in one.modules)
    values = _means(((place.layer, place.name, value) for place, value in places), ("layer", "module", "value"))
    for cell in values:
        cell["label"] = f"{cell['module']}; layer {cell['layer']}; effective rank {_number(cell['value'])}"
    scale = alt.Scale(scheme="viridis", zero=False)
    cells = canvas.shaded(canvas.data.add(values)).encode(
        x=alt.X("layer:O", title="layer", axis=_layer_axis(values)),
        y=alt.Y("module:N", title=None, sort=None, axis=alt.Axis(labelLimit=120 if canvas.is_on_page else 220)),
        color=alt.Color("value:Q", scale=scale, legend=_legend(canvas)),
    )
    rows = len({value["module"] for value in values})
    sized = cells.properties(width=canvas.width, height=max(60, 26 * rows))
    return DrawnPanel("Effective rank", "exp of the entropy of the singular values", sized)


def _kept_map(canvas: Canvas, one: UpdateSpectra, name: str) -> DrawnPanel:
    import altair as alt

    ranks = evenly(one.smaller_ranks, _MOST_RANKS)
    own = [module for module in one.modules if place_of(module.module).name == name]
    found = (
        (place_of(module.module).layer, rank, energy_kept([module.singular_values], rank))
        for module in own
        for rank in ranks
    )
    values = _means(found, ("layer", RANK.name, "value"))
    for cell in values:
        cell["label"] = f"layer {cell['layer']}; rank {cell[RANK.name]} keeps {_share(cell['value'])}"
    legend = _legend(canvas, title=None if canvas.is_on_page else "kept", format=".0%")
    cells = canvas.shaded(canvas.data.add(values)).encode(
        x=alt.X("rank:O", title="rank kept", axis=alt.Axis(labelAngle=0)),
        y=alt.Y("layer:O", title="layer", axis=_layer_axis(values)),
        color=alt.Color("value:Q", scale=alt.Scale(scheme="viridis", domain=[0, 1]), legend=legend),
    )
    layers = len({value["layer"] for value in values})
    sized = cells.properties(width=canvas.width, height=max(60, min(canvas.height, 9 * layers)))
    return DrawnPanel(name, "energy kept by a smaller rank", sized)


def _legend(canvas: Canvas, title: str | None = None, **form: Any) -> Any:
    """A gradient: beside the map in a file, above it on the page."""
    import altair as alt

    if canvas.is_on_page:
        return alt.Legend(title=title, orient="top", gradientLength=canvas.width, gradientThickness=8, **form)
    return alt.Legend(title=title, gradientLength=120, **form)


def _layer_axis(values: Sequence[Datum]) -> Any:
    import altair as alt

    layers = sorted({value["layer"] for value in values})
    return alt.Axis(values=layers[:: math.ceil(len(layers) / _MOST_TICKS)], labelAngle=0)
