"""The summary in words: the paper's two distances, what the smallest rank saves, and how far to trust it.

No sentence here claims that a difference in quality is more than chance. A cost's ratio stands with its interval, and
only where the interval does not hold 1.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from howlow.analysis.column import Column
from howlow.analysis.columns import ADAPTER_BYTES, ENERGY_SOURCE, TRAIN_BATCH_SIZE, tabulated
from howlow.analysis.comparison import Comparison, Distances, Group, Reference, compare, distances
from howlow.analysis.margins import QualityScale
from howlow.analysis.ratios import Ratio
from howlow.analysis.rows import inference_phase, rows
from howlow.analysis.statistics import FEWEST_BLOCKS
from howlow.analysis.worth_training import WorthTraining, worth_training
from howlow.reporting import formatting
from howlow.reporting.evidence import repeats_sentence
from howlow.reporting.summary import axes_words

_MOST_SETTINGS = 6


def sentences(comparison: Comparison) -> list[str]:
    """What the sweep found: a paragraph for each set of further axes, then what qualifies them."""
    found = distances(comparison)
    shown = comparison.references[:_MOST_SETTINGS]
    paragraphs = [_paragraph(comparison, reference, found) for reference in shown]
    if not paragraphs:
        paragraphs.append("No adapter was trained to the end, so nothing can be said about ranks.")
    if len(comparison.references) > len(shown):
        paragraphs.append(f"{len(comparison.references) - len(shown)} further settings are in the table below.")
    repeats = (repeats_sentence(reference.group) for reference in shown)
    return [
        *paragraphs,
        *(sentence for sentence in repeats if sentence is not None),
        *map(_missing_ranks, filter(_lacks_ranks, shown)),
        *_assumed(comparison),
    ]


def _paragraph(comparison: Comparison, reference: Reference, found: Sequence[Distances]) -> str:
    where = axes_words(reference.axes)
    own = next((one for one in found if one.axes == reference.axes), None)
    quality = quality_words(own) if own else ["Quality was not measured."]
    text = " ".join([*_cut_words(reference), *quality, *cost_words(comparison, reference)])
    guess = worth_training(comparison, reference)
    text += f" {worth_training_words(guess)}" if guess else ""
    return f"With {where}: {text}" if where else text


def _cut_words(reference: Reference) -> list[str]:
    """That none of the adapters was trained at its rank, where all were cut from a larger one."""
    if reference.group.kind != "shrunk":
        return []
    starts = sorted({trial.record.shrunk.start_rank for trial in reference.group.trials if trial.record.shrunk})
    return [f"Every adapter here was cut from a trained one of rank {formatting.listed(list(map(str, starts)))}."]


def worth_training_lines(folder: Path) -> list[str]:
    """The ranks to train next by the cuts that a run directory holds, a line for each set of further axes."""
    comparison = compare(rows([folder]))
    lines = []
    for reference in comparison.references[:_MOST_SETTINGS]:
        where, guess = axes_words(reference.axes), worth_training(comparison, reference)
        if guess is not None:
            lines.append(f"With {where}: {worth_training_words(guess)}" if where else worth_training_words(guess))
    return lines


def worth_training_words(found: WorthTraining) -> str:
    """The ranks to train next, and what suggests them."""
    ranks = formatting.enumerated([str(rank) for rank in found.ranks])
    scale, metric = QualityScale(found.metric), found.metric
    sizes = abs(scale.of_gain(found.behind)), found.margin
    behind, margin = (formatting.gap(size, metric.unit, is_relative=scale.is_relative) for size in sizes)
    noun = "rank" if len(found.ranks) == 1 else "ranks"
    cut = f"cut to rank {found.rank}, the adapter is {behind} behind its best cut (rank {found.best_rank})"
    if found.rank == found.best_rank:
        cut = f"no cut of the adapter is better than that to rank {found.rank}"
    return (
        f"Worth training: {noun} {ranks}. By {metric.label}, {cut}; {margin} would do. This is a guess from "
        "one adapter: a rank that is trained may do better or worse than a cut to it, and is to be measured."
    )


# -- quality --------------------------------------------------------------------------------------------------------


def quality_words(found: Distances) -> list[str]:
    """The two distances, and what they rest on."""
    return [_first_step(found), _second_step(found), _basis(found)]


def _first_step(found: Distances) -> str:
    """From the bare model to the smallest adapter."""
    metric, smallest = found.metric, formatting.quantity(found.smallest, found.metric.unit)
    adapter = f"A rank-{found.smallest_rank} adapter"
    if found.base is None or found.base_to_smallest is None:
        return f"{adapter} reaches {metric.label} {smallest}; there is no bare model to compare it with."
    direction = "better" if found.base_to_smallest > 0 else "worse"
    change = f"{_difference(metric, found.base_to_smallest)} {direction}" if found.base_to_smallest else "no change"
    base = formatting.quantity(found.base, metric.unit)
    return f"{adapter} moves {metric.label} from {base} to {smallest} ({change})."


def _second_step(found: Distances) -> str:
    """From the smallest adapter to the best one."""
    if found.best_rank == found.smallest_rank:
        return "No larger rank scored better."
    gain = _difference(found.metric, found.smallest_to_best)
    best = formatting.quantity(found.best, found.metric.unit)
    text = (
        f"Going from rank {found.smallest_rank} to the best rank, {found.best_rank}, improves it by {gain}, to {best}"
    )
    if found.ratio is None or found.ratio <= 1:
        return f"{text}."
    return f"{text}: the first step is {formatting.significant(found.ratio)} times the second."


def _basis(found: Distances) -> str:
    seeds = formatting.counted(found.seeds, "seed") if found.seeds > 1 else "one seed"
    examples = "" if found.test_examples is None else f"n = {found.test_examples:,} test examples, "
    return f"({examples}{seeds}: no significance is claimed; the best of several ranks is partly luck.)"


def _difference(metric: Column, gain: float) -> str:
    """The size of a gain or a loss, in points or in the metric's own unit."""
    if metric.unit == "fraction":
        return f"{formatting.significant(abs(gain) * 100)} points"
    return formatting.significant(abs(gain))


# -- costs ----------------------------------------------------------------------------------------------------------


def cost_words(comparison: Comparison, reference: Reference) -> list[str]:
    """What the smallest rank costs, compared with the reference rank."""
    groups = [g for g in comparison.groups if reference.is_beside(g) and g.is_done]
    smallest = min(groups, key=lambda group: group.rank or 0)
    if smallest.rank == reference.rank:
        return []
    texts = (
        _ratios(comparison, smallest, reference),
        _adapter_sizes(smallest, reference.group),
        _batch_sizes(smallest, reference.group),
    )
    return [text for text in texts if text is not None]


def _ratios(comparison: Comparison, smallest: Group, reference: Reference) -> str | None:
    ratios = [
        (ratio, column.phrase)
        for column in tabulated()
        if column.phrase and column.table and column.table.in_terminal
        if (ratio := comparison.ratio(smallest, column)) is not None
    ]
    if not ratios:
        return None
    few = _few_steps([smallest, reference.group])
    caveat = f" ({few}: rough figures)" if few else ""
    said = _said(ratios)
    return f"Compared with rank {reference.rank}, rank {smallest.rank} has {said}{caveat}."


def _said(ratios: Sequence[tuple[Ratio, str]]) -> str:
    """The ratios, then what differs by no more than chance, and what has no error."""
    told = [f"{formatting.relative(ratio, with_ends=True)} {phrase}" for ratio, phrase in ratios if ratio.is_shown]
    known = [(ratio, phrase) for ratio, phrase in ratios if not ratio.is_shown]
    equal = [phrase for ratio, phrase in known if ratio.lack is None]
    differences = [f"no significant difference in {formatting.enumerated(equal)}"] if equal else []
    return "; ".join([*([formatting.enumerated(told)] if told else []), *differences, *_without_error(known)])


def _without_error(ratios: Sequence[tuple[Ratio, str]]) -> Iterator[str]:
    """The figures whose ratio has no error, by the reason."""
    phrases: dict[str, list[str]] = defaultdict(list)
    for ratio, phrase in ratios:
        if ratio.lack is not None:
            phrases[formatting.NO_ERROR_BECAUSE[ratio.lack]].append(phrase)
    for reason, alike in phrases.items():
        yield f"ratios without a known error in {formatting.enumerated(alike)} ({reason})"


def _few_steps(groups: Sequence[Group]) -> str:
    """How few measured steps a throughput rests on, where they are too few to rely on; else nothing."""
    trials = [trial for group in groups for trial in group.trials if trial.record.status == "done"]
    fewest = {
        "training": min(trial.measured_steps["train"] for trial in trials),
        "inference": min(trial.measured_steps[inference_phase(trial.record) or "evaluate"] for trial in trials),
    }
    few = [
        f"{formatting.counted(number, 'measured step')} of {name}"
        for name, number in fewest.items()
        if number < FEWEST_BLOCKS
    ]
    return f"only {formatting.enumerated(few)}" if few else ""


def _adapter_sizes(smallest: Group, reference: Group) -> str | None:
    sizes = [formatting.quantity(group.mean(ADAPTER_BYTES), ADAPTER_BYTES.unit) for group in (smallest, reference)]
    return None if formatting.ABSENT in sizes else f"Its adapter takes {sizes[0]} instead of {sizes[1]}."


def _batch_sizes(smallest: Group, reference: Group) -> str | None:
    sizes = [formatting.quantity(g.mean(TRAIN_BATCH_SIZE), TRAIN_BATCH_SIZE.unit) for g in (smallest, reference)]
    if sizes[0] == sizes[1]:
        return None
    return (
        f"Their batch sizes differ ({sizes[0]} and {sizes[1]}), so these ratios mix the effect of the rank with "
        "that of the batch size."
    )


# -- what qualifies them --------------------------------------------------------------------------------------------


def _lacks_ranks(reference: Reference) -> bool:
    return bool(reference.requested_rank_missing)


def _missing_ranks(reference: Reference) -> str:
    missing = [f"{rank} ({status})" for rank, status in reference.requested_rank_missing]
    where = axes_words(reference.axes)
    known = f"Figures are relative to rank {reference.rank}{f' at {where}' if where else ''}"
    return f"{known}; larger was asked for, but is not done: {formatting.listed(missing)}."


def _assumed(comparison: Comparison) -> list[str]:
    if all(row[ENERGY_SOURCE.name] != "assumed" for row in comparison.results.rows):
        return []
    return ["Energy and power follow from watts that the user gave (assumed); they were not measured."]
