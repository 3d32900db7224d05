"""The largest batch that fits: which batch to try next, as a plain function of the probes so far.

A *probe* runs a batch's heaviest micro-batch for real and reads the memory's peak. Peaks are nearly affine in the
tokens that the model runs on (`load`), so a line through the probes predicts where the budget ends:

* If no other rank was probed, batches are doubled until one does not fit.
* Else the first probe is where the other ranks' lines, moved to this rank, meet the budget. The next one is the largest
  batch that the line lets fit. If the line lets none fit, it is the lightest one above, because if that does not fit,
  none does. Where the data are too large to lay out every batch, it is the next batch.
* Between a batch that fits and one that does not, probes follow the line through the peak nearest to the budget and the
  next peak that differs clearly. If that does not end the search soon, they halve the interval.
* A larger batch may be lighter, because its schedule is cut elsewhere. So loads are compared, not batches: a batch no
  heavier than one that fits needs no probe, nor does one at least as heavy as one that does not fit; and batches above
  the first that did not fit are looked at too.
* The batch found is confirmed: it, or one that is no lighter, has to fit once more. Peaks of two processes differ
  a little, so a batch that fits may fail when it is confirmed. Where each probe has a process of its own, its first
  success then confirms lighter batches. Where probes share processes, the first one of a process confirms, whether it
  was meant to or not: before it the process held only what a trial's process holds.
* A *plain* probe leaves out what a trial does only once and what may take a minute (compiling, recording, merging). It
  takes no more memory, so what does not fit plainly does not fit. Plain probes find the edge, and a whole one confirms
  it (`guides`). If that one does not fit, only whole probes count from then on. Where another rank's search has run one
  batch in both ways, and the peaks differ by no more than the margin, every probe is plain (`stands`).

The search finds the largest batch that fits for any peaks that grow with the load; the line only saves probes. Where
the data are too large to lay out every batch (`BatchQuestion.beyond`), this holds for loads that grow with the batch,
and a lighter schedule further off may be missed.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from howlow.jobs import MemoryLine, Probe, RankMemory, RankProbes, whole_takes_more

Plain = Literal["never", "guides", "stands"]
"""What plain probes are good for: there are none, they find the edge, or they stand for whole ones."""
GUIDED = 4
"""The number of probes that follow the line before doubling, or halving, takes over."""
CLEAR = 0.005
"""Peaks that differ by this share of the budget give a slope; two processes with one batch differ by up to half."""


@dataclass(frozen=True)
class BatchQuestion:
    """What is searched for: the largest batch up to `largest` whose peak is at most `budget_bytes`.

    load: the load of a batch's heaviest micro-batch. limit_bytes: what a probe without a peak has exceeded.
    expected: the line that the probes of other ranks predict. beyond: how many batches may be laid out, without being
    run, to find one that is lighter than a smaller one. is_fresh: every probe has a process of its own; else only the
    first of a process confirms, unless its batch later failed. plain: what plain probes are good for.
    """

    largest: int
    budget_bytes: int
    limit_bytes: int
    load: Callable[[int], int]
    expected: MemoryLine | None = None
    beyond: int = 0
    is_fresh: bool = True
    plain: Plain = "never"
    probes: list[Probe] = field(default_factory=list)


@dataclass(frozen=True)
class Try:
    """Probe this batch next; a batch that is confirmed needs a fresh process."""

    batch: int
    confirms: bool = False
    is_whole: bool = True


@dataclass(frozen=True)
class LargestBatch:
    """The largest batch that fits; None where not even one example does."""

    batch: int | None


def next_step(question: BatchQuestion) -> Try | LargestBatch:
    """What to do after the probes so far."""
    differs = question.plain == "guides" and any(probe.is_whole and not probe.fits for probe in question.probes)
    step = _next_step(_by_whole_probes(question) if differs else question)
    if isinstance(step, LargestBatch) or question.plain == "never":
        return step
    return replace(step, is_whole=question.plain == "guides" and (differs or step.confirms))


def _by_whole_probes(question: BatchQuestion) -> BatchQuestion:
    """The question without what plain probes let hope for: that batches fit as they do, and how heavy they are.

    Whatever is as heavy as a whole probe that failed is out anyway, so that of plain failures the lighter ones count.
    """
    plain = [probe for probe in question.probes if not probe.is_whole]
    failed = min(probe.load for probe in question.probes if probe.is_whole and not probe.fits)
    counted = [probe for probe in question.probes if probe.is_whole or (not probe.fits and probe.load < failed)]
    return replace(question, probes=counted, expected=_fit(plain) or question.expected)


def _next_step(question: BatchQuestion) -> Try | LargestBatch:
    low, high = _bracket(question)
    if low < question.largest < high and _is_doubled(question):
        return Try(min(question.largest, max(1, 2 * low)))
    if high - low > 1 + question.beyond:
        return Try(_between(question, low, high))
    low, unsure = _looked_at(question, low, high)
    if unsure:
        return Try(_among(question, unsure))
    if low == 0:
        return LargestBatch(None)
    return LargestBatch(low) if _is_confirmed(question, low) else Try(low, confirms=True)


def _is_confirmed(question: BatchQuestion, low: int) -> bool:
    """Whether the batch was probed (a load alone does not decide), and it or a heavier one fits for sure."""
    if all(probe.batch != low for probe in question.probes):
        return False
    as_heavy = [probe for probe in question.probes if probe.fits and probe.load >= question.load(low)]
    if question.is_fresh:
        return len(as_heavy) > 1
    failed, counts_plain = _failed(question), question.plain == "stands"
    return any(probe.is_first and (probe.is_whole or counts_plain) and probe.batch not in failed for probe in as_heavy)


def _is_doubled(question: BatchQuestion) -> bool:
    """Whether every probe fits so far, and no line predicts more."""
    probes = question.probes
    return all(probe.fits for probe in probes) and (question.expected is None or len(probes) >= GUIDED)


def _failed(question: BatchQuestion) -> set[int]:
    return {probe.batch for probe in question.probes if not probe.fits}


def _known_loads(question: BatchQuestion) -> tuple[float, float]:
    """The heaviest load that fits for sure, and the lightest that does not."""
    failed = _failed(question)
    too_much = min((probe.load for probe in question.probes if probe.batch in failed), default=math.inf)
    fitting = [probe.load for probe in question.probes if probe.batch not in failed and probe.load < too_much]
    return max(fitting, default=-math.inf), too_much


def _bracket(question: BatchQuestion) -> tuple[int, int]:
    """The largest batch known to fit (0: none so far), and the smallest above it that does not, or is as heavy."""
    failed, (fitting, _) = _failed(question), _known_loads(question)
    low = max((probe.batch for probe in question.probes if probe.batch not in failed), default=0)
    last = min(question.largest, low + question.beyond)
    while 0 < low < last and low + 1 not in failed and question.load(low + 1) <= fitting:
        low += 1
    high = min((batch for batch in failed if batch > low), default=question.largest + 1)
    return low, high if high - low <= 1 + question.beyond else _first_as_heavy(question, low, high)


def _first_as_heavy(question: BatchQuestion, low: int, high: int) -> int:
    """The first above `low` that is as heavy as one that does not fit, as far as loads grow with the batch."""
    _, too_much = _known_loads(question)
    return high if math.isinf(too_much) else _first(low, high, lambda batch: question.load(batch) >= too_much)


def _first(low: int, high: int, is_beyond: Callable[[int], bool]) -> int:
    """The first above `low` for which `is_beyond` is true, else `high`; by halving, so for growing loads."""
    while low + 1 < high:
        middle = (low + high) // 2
        low, high = (low, middle) if is_beyond(middle) else (middle, high)
    return high


def _looked_at(question: BatchQuestion, low: int, high: int) -> tuple[int, list[int]]:
    """The largest batch whose load fits for sure, and the larger ones that the probes leave open."""
    failed, (fitting, too_much) = _failed(question), _known_loads(question)
    window = [
        batch for batch in range(low + 1, min(question.largest, high + question.beyond) + 1) if batch not in failed
    ]
    low = max((batch for batch in window if question.load(batch) <= fitting), default=low)
    return low, [batch for batch in window if batch > low and question.load(batch) < too_much]


def _among(question: BatchQuestion, unsure: Sequence[int]) -> int:
    """The largest that the line lets fit; else the lightest: if it does not fit, none of the others does."""
    line = _line(question)
    if _has_followed_enough(question):
        return sorted(unsure, key=question.load)[len(unsure) // 2]
    fits = [batch for batch in unsure if line is not None and line.at(question.load(batch)) <= question.budget_bytes]
    return max(fits) if fits else min(unsure, key=question.load)


def _between(question: BatchQuestion, low: int, high: int) -> int:
    """A batch above `low` and under `high`."""
    line = _line(question)
    if line is None or _has_followed_enough(question):
        return (low + high) // 2
    return max(low + 1, min(_largest_under(question, line, low, high), high - 1))


def _has_followed_enough(question: BatchQuestion) -> bool:
    """Whether the line has been followed often enough since the first batch that did not fit."""
    first = next((index for index, probe in enumerate(question.probes) if not probe.fits), None)
    return first is not None and len(question.probes) - first > GUIDED


def _largest_under(question: BatchQuestion, line: MemoryLine, low: int, high: int) -> int:
    """The largest batch from `low` to below `high` that the line lets fit, if loads grow with the batch."""
    return _first(low, high, lambda batch: line.at(question.load(batch)) > question.budget_bytes) - 1


# -- lines ----------------------------------------------------------------------------------------------------------


def _line(question: BatchQuestion) -> MemoryLine | None:
    """The line through this rank's probes; with the slope of other ranks as long as they are too few."""
    budget, peaks = question.budget_bytes, _peaks(question.probes)
    nearest = sorted(peaks, key=lambda load: abs(peaks[load] - budget))
    line, own = question.expected, None
    if nearest:
        one, further = nearest[0], nearest[1:]
        clear = [load for load in further if abs(peaks[load] - peaks[one]) > CLEAR * budget]
        if other := clear[:1] or further[: line is None]:
            own = _through((one, peaks[one]), (other[0], peaks[other[0]]))
        line = own or (line and MemoryLine(peaks[one] - line.bytes_per_load * one, line.bytes_per_load))
    for load in sorted((probe.load for probe in question.probes if probe.peak_bytes is None), reverse=True):
        if line is not None and line.at(load) < question.limit_bytes:  # memory ran out: the line is steeper
            below = [(lighter, peaks[lighter]) for lighter in nearest if lighter < load]
            steeper = _through(max(below), (load, question.limit_bytes)) if below else None
            line = steeper or MemoryLine(question.limit_bytes - line.bytes_per_load * load, line.bytes_per_load)
    return line


def _peaks(probes: Iterable[Probe]) -> dict[int, int]:
    """Load -> its highest peak, of whole probes or of plain ones, whichever are more."""
    kinds: tuple[dict[int, int], dict[int, int]] = ({}, {})
    for probe in probes:
        if probe.peak_bytes is not None:
            found = kinds[0 if probe.is_whole else 1]
            found[probe.load] = max(found.get(probe.load, 0), probe.peak_bytes)
    return max(kinds, key=len)


def use_of_plain(others: Sequence[RankProbes], margin_bytes: int) -> Plain:
    """What plain probes are good for after other ranks' searches, in which a batch may have been run in both ways."""
    more = [found for other in others if (found := whole_takes_more(other.probes)) is not None]
    refuted = any(probe.is_whole and not probe.fits for other in others for probe in other.probes)
    return "stands" if more and max(more) <= margin_bytes and not refuted else "guides"


def _through(one: tuple[int, int], other: tuple[int, int]) -> MemoryLine | None:
    """The line through two points (load, bytes); None where it does not rise."""
    slope = (other[1] - one[1]) / (other[0] - one[0])
    return MemoryLine(one[1] - slope * one[0], slope) if slope > 0 else None


def expected_line(known: RankMemory, others: Sequence[RankProbes]) -> MemoryLine | None:
    """The line of a rank from those of others: what each takes beyond the certain part is linear between ranks."""
    fits = [(other.known, line) for other in others if (line := _fit(other.probes)) is not None]
    if not fits:
        return None
    ranks, own = [other.rank for other, _ in fits], known.line
    fixed = [line.fixed_bytes - other.line.fixed_bytes for other, line in fits]
    slopes = [line.bytes_per_load - other.line.bytes_per_load for other, line in fits]
    slope = own.bytes_per_load + _between_ranks(known.rank, ranks, slopes)
    return MemoryLine(own.fixed_bytes + _between_ranks(known.rank, ranks, fixed), slope) if slope > 0 else None


def _fit(probes: Iterable[Probe]) -> MemoryLine | None:
    """The least-squares line through the peaks."""
    peaks = _peaks(probes)
    if len(peaks) < 2:
        return None
    slope, fixed = np.polyfit(list(peaks), list(peaks.values()), 1)
    return MemoryLine(float(fixed), float(slope)) if slope > 0 else None


def _between_ranks(rank: int, ranks: Sequence[int], values: Sequence[float]) -> float:
    """Linear between two ranks, the nearest one's value outside them; the mean where a rank has several."""
    known = sorted(set(ranks))
    means = [np.mean([value for own, value in zip(ranks, values, strict=True) if own == one]) for one in known]
    return float(np.interp(rank, known, means))
