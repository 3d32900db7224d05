"""The summary in words: the paper's two distances, what the smallest rank saves, and how far it can be trusted.

No sentence here claims that a difference is more than chance; that is the recommendation's business.
"""

from collections.abc import Sequence

from howlow.analysis.columns import Column, column_named
from howlow.analysis.comparison import Comparison, Distances, Group, Reference, distances
from howlow.analysis.rows import inference_phase
from howlow.reporting import formatting
from howlow.reporting.summary import axes_words

_MOST_SETTINGS = 6
_FEW = 5  # measured steps under which a throughput is a rough figure


def sentences(comparison: Comparison) -> list[str]:
    """What the sweep found, a paragraph for each set of further axes."""
    by_axes = [(found.axes, found) for found in distances(comparison)]
    told: list[str] = []
    for reference in comparison.references[:_MOST_SETTINGS]:
        where = axes_words(reference.axes)
        own = next((found for axes, found in by_axes if axes == reference.axes), None)
        parts = quality_words(own) if own else ["Quality was not measured."]
        parts += cost_words(comparison, reference)
        told.append((f"With {where}: " if where else "") + " ".join(parts))
    if not told:
        told.append("No adapter was trained to the end, so nothing can be said about ranks.")
    if len(comparison.references) > _MOST_SETTINGS:
        told.append(f"{len(comparison.references) - _MOST_SETTINGS} further settings are in the table below.")
    return [*told, *_caveats(comparison)]


def quality_words(found: Distances) -> list[str]:
    """The two distances, and what they rest on."""
    column = column_named(found.metric)
    smallest, best = formatting.quantity(found.smallest, column.unit), formatting.quantity(found.best, column.unit)
    parts = []
    rank = f"A rank-{found.smallest_rank} adapter"
    if found.base is None or found.base_to_smallest is None:
        parts.append(f"{rank} reaches {column.label} {smallest}; there is no bare model to compare it with.")
    else:
        base, by = formatting.quantity(found.base, column.unit), _difference(column, found.base_to_smallest)
        direction = "better" if found.base_to_smallest > 0 else "worse"
        change = f"{by} {direction}" if found.base_to_smallest else "no change"
        parts.append(f"{rank} moves {column.label} from {base} to {smallest} ({change}).")
    if found.best_rank == found.smallest_rank:
        parts.append("No larger rank scored better.")
    else:
        steps = f"Going from rank {found.smallest_rank} to the best rank, {found.best_rank}, improves it by"
        ratio = found.ratio if found.ratio is not None and found.ratio > 1 else None
        beside = "" if ratio is None else f": the first step is {formatting.significant(ratio)} times the second"
        parts.append(f"{steps} {_difference(column, found.smallest_to_best)}, to {best}{beside}.")
    seeds = "one seed" if found.seeds == 1 else f"{found.seeds} seeds"
    size = "" if found.test_examples is None else f"n = {found.test_examples:,} test examples, "
    parts.append(f"({size}{seeds}: no significance is claimed; the best of several ranks is partly luck.)")
    return parts


def _difference(column: Column, gain: float) -> str:
    """The size of a gain or a loss, in points or in the metric's own unit."""
    if column.unit == "fraction":
        return f"{formatting.significant(abs(gain) * 100)} points"
    return formatting.significant(abs(gain))


def cost_words(comparison: Comparison, reference: Reference) -> list[str]:
    """What the smallest rank costs beside the reference."""
    groups = [g for g in comparison.groups if g.rank is not None and g.axes == reference.axes and g.is_done]
    smallest = min(groups, key=lambda group: group.rank or 0)
    if smallest.rank == reference.rank:
        return []
    told = {
        "train_samples_per_s": "the training throughput",
        "train_peak_memory_bytes": "the peak memory",
        "train_energy_per_sample_j": "the energy per sample",
        "inference_samples_per_s": "the inference throughput",
    }
    ratios = [
        f"{formatting.ratio(value)} {name}"
        for column, name in told.items()
        if (value := comparison.relative_mean(smallest, column)) is not None
    ]
    parts = []
    if ratios:
        few = _few_steps([smallest, reference.group])
        caveat = f" ({few}: rough figures)" if few else ""
        parts.append(f"Beside rank {reference.rank}, rank {smallest.rank} has {_joined(ratios)}{caveat}.")
    sizes = [formatting.quantity(group.mean("adapter_bytes"), "bytes") for group in (smallest, reference.group)]
    if formatting.ABSENT not in sizes:
        parts.append(f"Its adapter takes {sizes[0]} instead of {sizes[1]}.")
    if _batch(smallest) != _batch(reference.group):
        parts.append(
            f"Their batch sizes differ ({_batch(smallest)} and {_batch(reference.group)}), so rank and batch size are "
            "mixed in these ratios."
        )
    return parts


def _few_steps(groups: Sequence[Group]) -> str:
    """Where throughput rests on too few measured steps to be relied on: how few; else nothing."""
    trials = [trial for group in groups for trial in group.trials if trial.record.status == "done"]
    fewest = {
        "training": min(trial.measured_steps["train"] for trial in trials),
        "inference": min(trial.measured_steps[inference_phase(trial.record) or "evaluate"] for trial in trials),
    }
    few = [f"{number} measured step{'s' * (number != 1)} of {name}" for name, number in fewest.items() if number < _FEW]
    return f"only {_joined(few)}" if few else ""


def _batch(group: Group) -> str:
    return formatting.quantity(group.mean("train_batch_size"), "count")


def _joined(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _caveats(comparison: Comparison) -> list[str]:
    notes = []
    for reference in comparison.references[:_MOST_SETTINGS]:
        missing = [f"{rank} ({status})" for rank, status in reference.requested_rank_missing]
        if missing:
            where = axes_words(reference.axes)
            known = f"Figures are relative to rank {reference.rank}{f' at {where}' if where else ''}"
            notes.append(f"{known}; larger was asked for, but is not done: {formatting.listed(missing)}.")
    if any(row["energy_source"] == "assumed" for row in comparison.results.rows):
        notes.append("Energy and power follow from watts that the user gave (assumed); they were not measured.")
    return notes
