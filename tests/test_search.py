"""The search for the largest batch: exact for every growing memory, few probes for an affine one."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from howlow.batch_search.search import BatchQuestion, LargestBatch, Try, expected_line, next_step
from howlow.jobs import MemoryLine, Probe, RankMemory, RankProbes

LIMIT = 1_000_000


def searched(
    question: BatchQuestion, peak: Callable[[int], float], noisy: Callable[[int], int] = lambda _: 0
) -> tuple[int | None, list[Probe], list[Try]]:
    """The whole search over a peak for each load; what is beyond the limit has no peak."""
    probes: list[Probe] = []
    steps: list[Try] = []
    while True:
        step = next_step(replace(question, probes=probes))
        if isinstance(step, LargestBatch):
            return step.batch, probes, steps
        assert 1 <= step.batch <= question.largest
        load = question.load(step.batch)
        found = round(peak(load)) + noisy(len(probes))
        seen = found if found <= question.limit_bytes else None
        probes.append(Probe(step.batch, load, seen, found <= question.budget_bytes))
        steps.append(step)
        assert len(probes) < 200, "the search ends"


def question(largest: int, load: Callable[[int], int] = lambda batch: batch, **more: object) -> BatchQuestion:
    return BatchQuestion(largest, budget_bytes=970_000, limit_bytes=LIMIT, load=load, **more)  # type: ignore[arg-type]


def largest_that_fits(asked: BatchQuestion, peak: Callable[[int], float]) -> int | None:
    fits = [batch for batch in range(1, asked.largest + 1) if round(peak(asked.load(batch))) <= asked.budget_bytes]
    return max(fits, default=None)


@st.composite
def growing(draw: st.DrawFn) -> list[int]:
    """The peak of every batch from 0 on, each at least the one before."""
    steps = draw(st.lists(st.integers(0, 200_000), min_size=2, max_size=150))
    total, found = draw(st.integers(0, 1_100_000)), []
    for step in steps:
        found.append(total)
        total += step
    return found


@given(peaks=growing(), expected=st.none() | st.tuples(st.floats(-1e6, 2e6), st.floats(1, 1e6)))
def test_the_largest_is_found_for_any_memory_that_grows(peaks: list[int], expected: tuple[float, float] | None) -> None:
    asked = question(len(peaks) - 1, expected=MemoryLine(*expected) if expected else None)
    found, probes, steps = searched(asked, lambda load: peaks[load])
    assert found == largest_that_fits(asked, lambda load: peaks[load])
    assert len(probes) <= 3 * math.log2(asked.largest + 1) + 10
    if found is not None:
        assert steps[-1] == Try(found, confirms=True)
        assert sum(step.confirms for step in steps) == 1


@given(
    fixed=st.integers(0, 900_000),
    slope=st.integers(5_000, 90_000),
    largest=st.integers(1, 5000),
    rank=st.sampled_from([1, 8, 64, 512, 2048]),
    others=st.lists(st.sampled_from([1, 2, 16, 256, 1024]), min_size=1, max_size=3, unique=True),
    bend=st.floats(-0.02, 0.02),
)
def test_from_the_second_rank_on_five_probes_are_enough(
    fixed: int, slope: int, largest: int, rank: int, others: list[int], bend: float
) -> None:
    """Batches under 200; up to 2 %, peaks are affine in the load and what is certain of a rank is all that it adds."""

    def peak(rank: int) -> Callable[[int], float]:
        return lambda load: fixed + 40 * rank + (slope + rank) * load * (1 + bend * math.sin(rank))

    def known(rank: int) -> RankMemory:
        return RankMemory(rank, MemoryLine(40 * rank, rank))

    asked = question(largest)
    line = expected_line(
        known(rank), [RankProbes(known(other), tuple(searched(asked, peak(other))[1])) for other in others]
    )
    found, probes, _ = searched(replace(asked, expected=line), peak(rank))
    assert found == largest_that_fits(asked, peak(rank))
    if line is not None:
        assert len(probes) <= 5


@st.composite
def schedules(draw: st.DrawFn) -> Callable[[int], int]:
    """The load of the heaviest micro-batch where examples of a paragraph share its tokens."""
    groups = draw(st.lists(st.tuples(st.integers(50, 250), st.integers(1, 6)), min_size=2, max_size=14))
    examples = [(number, prefix) for number, (prefix, count) in enumerate(groups) for _ in range(count)]
    own = draw(st.lists(st.integers(8, 40), min_size=len(examples), max_size=len(examples)))

    @cache
    def load(batch: int) -> int:
        parts = [list(range(len(examples)))[start : start + batch] for start in range(0, len(examples), batch)]
        return max(sum(own[i] for i in part) + sum(p for _, p in {examples[i] for i in part}) for part in parts)

    load.largest = len(examples)  # type: ignore[attr-defined]
    return load


@given(
    load=schedules(),
    share=st.floats(0.05, 1.1),
    rank=st.sampled_from([1, 8, 64, 512]),
    bend=st.floats(-0.02, 0.02),
    chance=st.randoms(use_true_random=False),
)
@settings(max_examples=300)
def test_few_probes_are_enough_where_a_larger_batch_may_be_lighter(
    load: Any, share: float, rank: int, bend: float, chance: Any
) -> None:
    """The peaks of two processes differ by a thousandth; what lies within that of the budget may go either way."""
    heaviest, fixed = load(load.largest), 300_000
    slope = (970_000 - fixed) / (share * heaviest)

    def peak(rank: int) -> Callable[[int], float]:
        return lambda one: fixed + 40 * rank + slope * (1 + rank / 2000) * one * (1 + bend * math.sin(rank))

    def noisy(_: int) -> int:
        return round(chance.uniform(-500, 500))

    def known(rank: int) -> RankMemory:
        return RankMemory(rank, MemoryLine(40 * rank, slope * rank / 2000))

    asked = question(load.largest, load, beyond=load.largest)
    first = searched(asked, peak(16), noisy)[1]
    line = expected_line(known(rank), [RankProbes(known(16), tuple(first))])
    found, probes, _ = searched(replace(asked, expected=line), peak(rank), noisy)
    at = {batch: peak(rank)(load(batch)) for batch in range(1, load.largest + 1)}
    surely = max((batch for batch, one in at.items() if one <= asked.budget_bytes - 1000), default=0)
    perhaps = max((batch for batch, one in at.items() if one <= asked.budget_bytes + 1000), default=0)
    assert surely <= (found or 0) <= perhaps
    if line is not None and surely == perhaps:
        assert len(probes) <= 5


def test_a_lighter_schedule_behind_the_first_that_does_not_fit_is_found() -> None:
    loads = {1: 10, 2: 20, 3: 12, 4: 22, 5: 30, 6: 32}
    asked = question(6, loads.__getitem__, beyond=6)
    found, _, _ = searched(asked, lambda load: 50_000 * load)
    assert found == 3
    assert searched(replace(asked, beyond=0), lambda load: 50_000 * load)[0] in (1, 3)


def test_a_batch_that_does_not_fit_when_it_is_confirmed_is_not_the_largest() -> None:
    asked = question(64)
    unlucky = len(searched(asked, lambda load: 96_000 * load)[1]) - 1
    found, probes, steps = searched(asked, lambda load: 96_000 * load, lambda index: 20_000 * (index == unlucky))
    assert found == 9
    assert [step.batch for step in steps if step.confirms] == [10]
    assert [probe.fits for probe in probes if probe.batch == 10] == [True, False]
    assert [probe.fits for probe in probes if probe.batch == 9] == [True]  # once itself, and 10 did once: no third


def test_where_probes_share_processes_a_pass_that_was_refuted_confirms_nothing() -> None:
    """As on CUDA: 9 and 10 fit in one process, 10 fails in a fresh one; 9 has to fit in a fresh one too."""
    probes = [Probe(9, 9, 900_000, True), Probe(10, 10, 969_000, True), Probe(11, 11, None, False)]
    probes.append(Probe(10, 10, 971_000, False))
    asked = question(64, probes=probes)
    assert next_step(asked) == LargestBatch(9)
    assert next_step(replace(asked, is_fresh=False)) == Try(9, confirms=True)


def test_what_is_as_heavy_as_one_that_failed_is_not_tried_where_the_data_are_many() -> None:
    """Three batches behind the edge are lighter; from the second on, nothing above is known to fail but by its load."""
    lighter = {66: 600, 72: 610, 74: 620}
    asked = question(100_000, lambda batch: lighter.get(batch, 10 * batch), beyond=2)
    found, probes, _ = searched(replace(asked, expected=MemoryLine(0, 1_530)), lambda load: 1_530 * load)
    assert found in lighter or found == 63
    failed: list[int] = []
    for probe in probes:
        assert all(probe.load < load for load in failed), "known to fail before it was tried"
        failed += [] if probe.fits else [probe.load]


def test_nothing_fits() -> None:
    assert searched(question(64), lambda load: 2e6)[0] is None


def test_without_knowledge_batches_are_doubled() -> None:
    _, _, steps = searched(question(64), lambda load: 50_000 * load)
    assert [step.batch for step in steps][:6] == [1, 2, 4, 8, 16, 32]
    assert [step.batch for step in steps][6:] == [19, 20, 19]


def test_all_examples_at_once_are_the_most() -> None:
    found, _, steps = searched(question(5), lambda load: load)
    assert found == 5
    assert [step.batch for step in steps] == [1, 2, 4, 5, 5]
