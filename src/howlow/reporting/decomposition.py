"""Batch or rank: the decomposition of `howlow.analysis.decomposition` for the terminal, the page, JSON and CSV.

A step that lowers a figure is told by how many times it is lower, and so are its parts: 21.3 to 3.39 samples/s are
6.3x lower = 4.1x by the batch x 1.5x by the rank. JSON and CSV have the ratios of the larger rank to the smaller one.
"""

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from howlow.analysis.columns import RANK
from howlow.analysis.comparison import Comparison
from howlow.analysis.decomposition import Decomposition, NoBatch, RankEffect, RankStep, Split, decompositions
from howlow.analysis.ratios import Ratio
from howlow.reporting import formatting
from howlow.reporting.summary import axes_words

_MOST_STEPS = 4
_METHOD = (
    "Each rank is taken at the largest batch that it ran with. The rank's part is its effect at one batch that both "
    "ranks ran with, and the batch's part is the rest of the step."
)


@dataclass(frozen=True)
class PartRow:
    """One figure of one step, in words; `split` has its numbers."""

    ranks: str
    batches: str
    figure: str
    values: str
    total: str
    batch: str
    rank: str
    others: str
    is_whole: bool
    split: Split


@dataclass(frozen=True)
class DecompositionPanel:
    """What a panel shows: a title, sentences about the whole way, a table of all steps, and what could not be told."""

    title: str
    sentences: tuple[str, ...]
    rows: tuple[PartRow, ...]
    notes: tuple[str, ...]
    data: Decomposition


HEADINGS = ("ranks", "batches", "figure", "values", "in all", "batch", RANK.label, "rank at other batches")
"""Of the columns of a panel's table: the fields of `PartRow` up to `others`."""


def decomposition_panels(comparison: Comparison) -> tuple[DecompositionPanel, ...]:
    """One panel for each stage and each value of the other axes; none where every rank ran with the same batch."""
    return tuple(_panel(found) for found in decompositions(comparison))


def decomposition_lines(comparison: Comparison) -> list[str]:
    """The same for a terminal: the whole way, the steps that change the batch, and the notes."""
    return [line for panel in decomposition_panels(comparison) for line in _lines(panel)]


# -- words ----------------------------------------------------------------------------------------------------------


def _panel(found: Decomposition) -> DecompositionPanel:
    where = axes_words(found.axes)
    stage = "fine-tuning" if found.stage == "train" else "inference"
    told = found.told
    return DecompositionPanel(
        f"Batch or rank? {stage}{f' with {where}' if where else ''}",
        tuple(_sentence(told[0], split) for split in told[0].splits),
        tuple(_row(step, split, step is found.whole) for step in told for split in step.splits),
        tuple(_notes(found)),
        found,
    )


def _sentence(step: RankStep, split: Split) -> str:
    """`Throughput is 6.28x lower from rank 1 (batch 8) to rank 2048 (batch 1): 4.14x by the batch, ...`."""
    ends = (
        f"from rank {step.smaller_rank} (batch {step.smaller_batch}) to rank {step.larger_rank} "
        f"(batch {step.larger_batch})"
    )
    figure = split.column.label[0].upper() + split.column.label[1:]
    told = f"{figure} is {_change(split)} {ends}"
    if not split.total.is_shown:
        told = f"{figure}, the change {ends}: {_change(split)}"
    if split.rank is None or split.batch is None:
        return f"{told}; no batch ran at both ranks, so the two causes cannot be told apart."
    if not step.changes_batch:
        return f"{told}, all of it by the rank, because the batch is the same."
    return f"{told}: {_by(split, split.batch)} by the batch and {_by(split, split.rank)} by the rank{_at(split)}."


def _row(step: RankStep, split: Split, is_whole: bool) -> PartRow:
    unit = split.column.unit
    return PartRow(
        ranks=f"{step.smaller_rank} to {step.larger_rank}",
        batches=f"{step.smaller_batch} to {step.larger_batch}" if step.changes_batch else str(step.larger_batch),
        figure=split.column.heading or split.column.label,
        values=f"{formatting.quantity(split.smaller, unit)} to {formatting.quantity(split.larger, unit)}",
        total=_change(split),
        batch=_batch_words(step, split),
        rank=formatting.ABSENT if split.rank is None else f"{_by(split, split.rank)}{_at(split)}",
        others="; ".join(_other_words(split, other) for other in split.others),
        is_whole=is_whole,
        split=split,
    )


def _batch_words(step: RankStep, split: Split) -> str:
    if not step.changes_batch:
        return "same batch"
    return formatting.ABSENT if split.batch is None else _by(split, split.batch)


def _other_words(split: Split, other: RankEffect) -> str:
    """The rank's part in another order, and whether the order matters."""
    told = f"{_by(split, other.ratio)} at batch {other.batch}"
    return f"{told}, so batch and rank interact" if other.interaction.is_significant else told


def _at(split: Split) -> str:
    return f" at batch {split.at_batch}"


def _change(split: Split) -> str:
    """`6.28x (6.20 to 6.36) lower`."""
    words = _by(split, split.total)
    return words if not split.total.is_shown else f"{words} {'lower' if split.total.value < 1 else 'higher'}"


def _by(split: Split, part: Ratio) -> str:
    """A part in the direction of the whole step."""
    return formatting.relative(_inverse(part) if split.total.value < 1 else part, with_ends=True)


def _inverse(ratio: Ratio) -> Ratio:
    low, high = (1 / end if end else None for end in (ratio.high, ratio.low))
    return Ratio(1 / ratio.value, low, high, ratio.basis, ratio.lack)


def _lines(panel: DecompositionPanel) -> Iterator[str]:
    """The terminal shows the steps that change the batch, a few of them, and what else there is to know."""
    steps = [step for step in panel.data.told if step.changes_batch or step is panel.data.whole][:_MOST_STEPS]
    yield f"{panel.title} ({panel.data.axis})"
    for step in steps:
        yield f"  rank {step.smaller_rank} (batch {step.smaller_batch}) to {step.larger_rank} ({step.larger_batch}):"
        for split in step.splits:
            yield f"    {_line(step, split)}"
    yield from (f"  {note}" for note in panel.notes)
    if left := len(panel.data.told) - len(steps):
        yield f"  {formatting.counted(left, 'more step')}: decomposition.csv and the page"


def _line(step: RankStep, split: Split) -> str:
    row = _row(step, split, False)
    told = f"{row.figure} {row.values}, {row.total}"
    parts = [part for part in (split.total, split.batch, split.rank) if part is not None]
    if split.rank is not None and step.changes_batch and any(part.is_shown for part in parts):
        told += f": {row.batch} by the batch, {_by(split, split.rank)} by the rank{_at(split)}"
    elif not step.changes_batch:
        told += ", all by the rank"
    return f"{told}; rank {row.others}" if row.others else told


# -- notes ----------------------------------------------------------------------------------------------------------


def _notes(found: Decomposition) -> Iterator[str]:
    if any(split.rank is not None for step in found.told for split in step.splits):
        yield _METHOD
    if any(_interacts(split) for step in found.told for split in step.splits):
        yield (
            "Where batch and rank interact, the rank's effect depends on the batch at which it is taken: another order "
            "gives another split, and the parts of the steps do not multiply to those of the whole way."
        )
    for one in found.missing:
        yield _missing_words(found, one)
    unsplit = [step for step in found.steps if all(split.rank is None for split in step.splits)]
    for step in unsplit[:_MOST_STEPS]:
        yield _unsplit_words(found, step)
    if unsplit:
        yield f'--set \'grid."{found.axis}"=["max",1]\' runs every rank with both batches, which tells them apart.'


def _interacts(split: Split) -> bool:
    return any(other.interaction.is_significant for other in split.others)


def _missing_words(found: Decomposition, one: NoBatch) -> str:
    asked = f" with {found.axis} = {formatting.plain(one.asked)}" if one.asked is not None else ""
    return f"Rank {one.rank} has no figures{asked}: {'/'.join(one.statuses)}."


def _unsplit_words(found: Decomposition, step: RankStep) -> str:
    ranks = step.smaller_rank, step.larger_rank
    ran = [f"rank {rank} ran with batch {', '.join(map(str, found.batches[rank]))}" for rank in ranks]
    return f"From rank {ranks[0]} to {ranks[1]} only the whole change is known: {' and '.join(ran)}."


# -- documents ------------------------------------------------------------------------------------------------------


def decomposition_document(comparison: Comparison) -> list[dict[str, Any]]:
    """For `howlow report --json`: ratios are the larger rank's value over the smaller one's; absent is null."""
    return [
        {
            "stage": found.stage,
            "axis": found.axis,
            "axes": dict(found.axes),
            "batches": {str(rank): list(batches) for rank, batches in found.batches.items()},
            "steps": [_step_document(step, step is found.whole) for step in found.told],
            "missing": [{"rank": one.rank, "asked": one.asked, "status": list(one.statuses)} for one in found.missing],
        }
        for found in decompositions(comparison)
    ]


def _step_document(step: RankStep, is_whole: bool) -> dict[str, Any]:
    return {
        "ranks": [step.smaller_rank, step.larger_rank],
        "batches": [step.smaller_batch, step.larger_batch],
        "whole": is_whole,
        "figures": {split.column.name: _split_document(split) for split in step.splits},
    }


def _split_document(split: Split) -> dict[str, Any]:
    return {
        "values": [split.smaller, split.larger],
        "total": _ratio_document(split.total),
        "batch": _ratio_document(split.batch),
        "rank": _ratio_document(split.rank),
        "at_batch": split.at_batch,
        "batch_share": split.batch_share,
        "others": [
            {
                "at_batch": other.batch,
                "rank": _ratio_document(other.ratio),
                "interaction": _ratio_document(other.interaction),
            }
            for other in split.others
        ],
    }


def _ratio_document(ratio: Ratio | None) -> dict[str, Any] | None:
    if ratio is None:
        return None
    ends = {"low": ratio.low, "high": ratio.high}
    return {"value": ratio.value, **ends, "significant": ratio.is_significant, "basis": ratio.basis}


_RATIOS = ("total", "batch", RANK.name)


def decomposition_csv(comparison: Comparison) -> str | None:
    """One line a step and figure; None where there is nothing to tell apart."""
    found = decompositions(comparison)
    if not found:
        return None
    text = io.StringIO()
    axes = [axis for axis in comparison.results.axes if any(axis in one.axes for one in found)]
    ends = [f"{name}{end}" for name in _RATIOS for end in ("", "_low", "_high")]
    heads = ["stage", *axes, "smaller_rank", "larger_rank", "smaller_batch", "larger_batch", "whole", "figure"]
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*heads, "smaller", "larger", *ends, "at_batch", "batch_share"])
    for one in found:
        for step in one.told:
            writer.writerows(_csv_row(one, axes, step, split) for split in step.splits)
    return text.getvalue()


def _csv_row(found: Decomposition, axes: Sequence[str], step: RankStep, split: Split) -> list[Any]:
    place = [step.smaller_rank, step.larger_rank, step.smaller_batch, step.larger_batch, int(step is found.whole)]
    ratios = (split.total, split.batch, split.rank)
    cells = [cell for ratio in ratios for cell in ((ratio.value, ratio.low, ratio.high) if ratio else (None,) * 3)]
    values = [split.column.name, split.smaller, split.larger, *cells, split.at_batch, split.batch_share]
    return [found.stage, *(found.axes.get(axis) for axis in axes), *place, *values]
