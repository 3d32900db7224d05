"""The singular values of trained updates: a table of trials, a table of modules, and heat maps over the layers."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

from howlow.analysis.columns import RANK
from howlow.analysis.comparison import Comparison
from howlow.analysis.spectra import UpdateSpectra, effective_rank, place_of, spectra_of
from howlow.records.spectra import energy_kept
from howlow.reporting import formatting
from howlow.reporting.figure import FIGURE_NAMES, Datasets, Datum, Figure, context_lines, finished, panel_title
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
    data = Datasets()
    names = evenly(list(dict.fromkeys(place_of(module.module).name for module in one.modules)), _MOST_MAPS)
    maps = [_kept_map(data, one, name) for name in names] if one.smaller_ranks else []
    chart: Any = _effective_map(data, one)
    if maps:
        rows = alt.concat(*maps, columns=4, spacing={"row": 60, "column": 50})
        chart = alt.vconcat(chart, rows, spacing=60).resolve_scale(color="independent")
    title = "Why a rank is enough"
    subtitle = [*context_lines(comparison)[:1], f"singular values of the update of {one.trial}, rank {one.rank}"]
    about = f"Heat maps of effective rank and energy kept by layer and module. {' '.join(subtitle)}"
    return Figure(FIGURE_NAMES[3], title, about, finished(chart, data, title, subtitle, 20))


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


def _effective_map(data: Datasets, one: UpdateSpectra) -> Any:
    import altair as alt

    places = ((place_of(module.module), effective_rank(module.singular_values)) for module in one.modules)
    values = _means(((place.layer, place.name, value) for place, value in places), ("layer", "module", "value"))
    legend = alt.Legend(title=None, gradientLength=120)
    color = alt.Color("value:Q", scale=alt.Scale(scheme="viridis", zero=False), legend=legend)
    encoded = {
        "x": alt.X("layer:O", title="layer", axis=_layer_axis(values)),
        "y": alt.Y("module:N", title=None, sort=None, axis=alt.Axis(labelLimit=220)),
        "color": color,
        "tooltip": [
            alt.Tooltip("layer:O"),
            alt.Tooltip("module:N"),
            alt.Tooltip("value:Q", title="effective rank", format=".3~g"),
        ],
    }
    rows = len({value["module"] for value in values})
    panel = data.add(values).mark_rect().encode(**encoded).properties(width=840, height=max(60, 26 * rows))
    return panel.properties(title=panel_title("Effective rank", "exp of the entropy of the singular values", 6))


def _kept_map(data: Datasets, one: UpdateSpectra, name: str) -> Any:
    import altair as alt

    ranks = evenly(one.smaller_ranks, _MOST_RANKS)
    own = [module for module in one.modules if place_of(module.module).name == name]
    found = (
        (place_of(module.module).layer, rank, energy_kept([module.singular_values], rank))
        for module in own
        for rank in ranks
    )
    values = _means(found, ("layer", RANK.name, "value"))
    legend = alt.Legend(title="kept", format=".0%", gradientLength=120)
    encoded = {
        "x": alt.X("rank:O", title="rank kept", axis=alt.Axis(labelAngle=0)),
        "y": alt.Y("layer:O", title="layer", axis=_layer_axis(values)),
        "color": alt.Color("value:Q", scale=alt.Scale(scheme="viridis", domain=[0, 1]), legend=legend),
        "tooltip": [
            alt.Tooltip("layer:O"),
            alt.Tooltip("rank:O"),
            alt.Tooltip("value:Q", title="energy kept", format=".1%"),
        ],
    }
    layers = len({value["layer"] for value in values})
    panel = data.add(values).mark_rect().encode(**encoded).properties(width=150, height=max(60, min(300, 9 * layers)))
    return panel.properties(title=panel_title(name, "energy kept by a smaller rank", 6))


def _layer_axis(values: Sequence[Datum]) -> Any:
    import altair as alt

    layers = sorted({value["layer"] for value in values})
    return alt.Axis(values=layers[:: math.ceil(len(layers) / _MOST_TICKS)], labelAngle=0)
