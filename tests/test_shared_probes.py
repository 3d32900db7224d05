"""Probes that share a process, as on CUDA: what they find, how many processes and whole probes it takes, what it costs.

The allocator is a stand-in: it counts the blocks that Python still refers to, and has torch's error at its limit. So
what the frames of a failed step hold is really held, and really gone once they are. `test_probe.py` runs the same code
up to the real limit of a CPU's heap.
"""

import gc
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import loaded
from hypothesis import given, settings
from hypothesis import strategies as st
from test_resuming import measure_job
from test_step_graphs import Repeating

from howlow.batch_search import driver, probe, stopwatch, workload
from howlow.batch_search.row_tokens import RowTokens
from howlow.batch_search.search import (
    BatchQuestion,
    LargestBatch,
    Plain,
    Try,
    expected_line,
    next_step,
    use_of_plain,
)
from howlow.batch_search.workload import InferenceWork, Scope, TrainingWork
from howlow.engine import decode_check
from howlow.engine.compiled_layers import Compiled
from howlow.engine.cuda.attention import BLOCK
from howlow.engine.execution import Execution, decide
from howlow.engine.layouts import Batch, computed_tokens
from howlow.engine.tokens import TokenizedExample
from howlow.jobs import (
    BudgetSet,
    JobEvent,
    LargestFound,
    MemoryBudget,
    MemoryLine,
    Probe,
    ProbeBegun,
    ProbeEnded,
    ProbeJob,
    RankMeasured,
    RankMemory,
    RankProbes,
    whole_takes_more,
)
from howlow.memory import limits
from howlow.outcomes import Finished, Returned, Unfinished
from howlow.records import LayoutChoice
from howlow.trial import acceleration, decoding
from howlow.trial.prepared import read_prepared
from howlow.trial.state import TrialState

CUDA = torch.device("cuda:0")
LIMIT, BUDGET = 1_000_000, 970_000
Peak = Callable[[int], float]


# -- the search as a plain function -----------------------------------------------------------------------------------


@dataclass
class Searched:
    """A simulated search: what it found, its steps, and how many of them each process ran."""

    found: int | None
    probes: list[Probe]
    steps: list[Try]
    processes: int


def searched(question: BatchQuestion, plain: Peak, whole: Peak) -> Searched:
    """The whole search by processes that share their memory with nothing; both peaks are of a batch."""
    probes, steps, processes, is_first = list[Probe](), list[Try](), 1, True
    while True:
        step = next_step(replace(question, probes=probes))
        if isinstance(step, LargestBatch):
            return Searched(step.batch, probes, steps, processes)
        if step.confirms and not is_first:
            processes, is_first = processes + 1, True
        took = round((whole if step.is_whole else plain)(step.batch))
        peak = took if took <= question.limit_bytes else None
        probes.append(Probe(step.batch, question.load(step.batch), peak, took <= BUDGET, is_first, step.is_whole))
        steps.append(step)
        is_first = False
        assert len(probes) < 300, "the search ends"


def question(largest: int, plain: Plain, **more: Any) -> BatchQuestion:
    return BatchQuestion(largest, BUDGET, LIMIT, load=lambda batch: batch, is_fresh=False, plain=plain, **more)


def largest_under(largest: int, peak: Peak) -> int | None:
    return max((batch for batch in range(1, largest + 1) if round(peak(batch)) <= BUDGET), default=None)


@st.composite
def growing(draw: st.DrawFn) -> tuple[list[int], list[int]]:
    """The plain and the whole peak of every batch from 0 on: both grow, and the whole is at least the plain one."""
    steps = draw(st.lists(st.integers(0, 200_000), min_size=2, max_size=100))
    more = draw(st.lists(st.integers(0, 20_000), min_size=len(steps), max_size=len(steps)))
    fixed = draw(st.integers(0, 1_000_000))
    plain = [fixed + sum(steps[:end]) for end in range(len(steps))]
    return plain, [one + sum(more[: end + 1]) for end, one in enumerate(plain)]


@given(peaks=growing(), expected=st.none() | st.tuples(st.floats(-1e6, 2e6), st.floats(1, 1e6)))
@settings(max_examples=200)
def test_the_largest_batch_that_fits_whole_is_found_whatever_plain_ones_take(
    peaks: tuple[list[int], list[int]], expected: tuple[float, float] | None
) -> None:
    plain, whole = peaks
    asked = question(len(plain) - 1, "guides", expected=MemoryLine(*expected) if expected else None)
    ended = searched(asked, plain.__getitem__, whole.__getitem__)
    assert ended.found == largest_under(asked.largest, whole.__getitem__)
    if ended.found is not None:
        sure = [one for one in ended.probes if one.fits and one.is_whole and one.is_first]
        assert any(one.batch >= ended.found for one in sure), "in a fresh process, with all that the trial runs"


@given(peaks=growing())
def test_where_the_whole_fits_as_well_one_whole_probe_in_a_second_process_is_enough(
    peaks: tuple[list[int], list[int]],
) -> None:
    plain, _ = peaks
    ended = searched(question(len(plain) - 1, "guides"), plain.__getitem__, plain.__getitem__)
    assert ended.processes <= 2
    assert sum(step.is_whole for step in ended.steps) == (ended.found is not None)


def affine(fixed: float, slope: float, rank: int) -> Peak:
    return lambda batch: fixed + 40 * rank + (slope + rank) * batch


def known(rank: int) -> RankMemory:
    return RankMemory(rank, MemoryLine(40 * rank, rank))


@given(
    fixed=st.integers(0, 800_000),
    slope=st.integers(3_000, 90_000),
    rank=st.sampled_from([1, 8, 64, 512]),
    more=st.integers(-20_000, 25_000),
)
def test_the_next_rank_takes_one_process_that_compiles_nothing(fixed: int, slope: int, rank: int, more: int) -> None:
    """Peaks are affine, and what is certain of a rank is all that it adds: the first probe is the largest that fits."""
    first = searched(
        question(400, "guides"), affine(fixed, slope, 16), lambda one: affine(fixed, slope, 16)(one) + more
    )
    other = RankProbes(known(16), tuple(first.probes))
    plain = use_of_plain([other], LIMIT - BUDGET)
    line = expected_line(known(rank), [other])
    if first.found is None or any(one.is_whole and not one.fits for one in first.probes):
        assert plain == "guides"
        return
    assert plain == "stands"
    assert whole_takes_more(first.probes) == more
    if line is not None and first.found < 400:
        ended = searched(question(400, plain, expected=line), affine(fixed, slope, rank), lambda _: 10**9)
        assert ended.found == largest_under(400, affine(fixed, slope, rank))
        assert not any(step.is_whole for step in ended.steps)
        assert ended.processes <= 2
        assert len(ended.steps) <= 4


def test_what_plain_probes_are_good_for_is_what_another_rank_has_shown() -> None:
    plain, whole = Probe(9, 9, 900, True, is_whole=False), Probe(9, 9, 930, True, is_first=True)

    def after(*probes: Probe, margin: int = 30) -> Plain:
        return use_of_plain([RankProbes(known(1), probes)], margin)

    assert use_of_plain([], 30) == after(plain) == after(whole) == "guides"
    assert after(plain, whole) == "stands"
    assert after(plain, whole, margin=29) == "guides"
    assert after(plain, whole, Probe(10, 10, None, False)) == "guides"
    assert whole_takes_more([plain, whole, Probe(8, 8, 1, True, is_whole=False), Probe(8, 8, 99, True)]) == 30
    assert whole_takes_more([plain, Probe(9, 9, None, False)]) is None


@pytest.fixture(autouse=True, scope="module")
def _quick_collections() -> Iterator[None]:
    """Giving memory back collects garbage, which takes long where much was imported."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


# -- processes --------------------------------------------------------------------------------------------------------


class Block:
    """Memory that is held for as long as Python refers to it."""

    def __init__(self, device: "Device", size: int) -> None:
        device.take(size)
        self._end = weakref.finalize(self, device.drop, size)


class Device:
    """CUDA's allocator as far as sizes go; the blocks of a process count until nothing refers to them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, limit: int = LIMIT) -> None:
        self.limit, self.allocated, self.reserved, self.peak, self.shortages = limit, 0, 0, 0, 0
        monkeypatch.setattr(torch.cuda, "init", lambda: None)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda _: None)
        monkeypatch.setattr(torch.cuda, "empty_cache", self._empty)
        monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda _: setattr(self, "peak", self.reserved))
        monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda _: self.peak)
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: self.reserved)
        monkeypatch.setattr(torch._C, "_cuda_clearCublasWorkspaces", lambda: None, raising=False)

    def take(self, size: int) -> None:
        if self.allocated + size > self.limit:
            self.shortages += 1
            raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {size} bytes.")
        self.allocated += size
        self.reserved = max(self.reserved, self.allocated)
        self.peak = max(self.peak, self.reserved)

    def drop(self, size: int) -> None:
        self.allocated -= size

    def _empty(self) -> None:
        self.reserved = self.allocated


@dataclass
class Steps:
    """Work whose steps take blocks, in a frame that fails where the last of them does not fit."""

    device: Device
    whole_more: int = 0
    leaks: bool = False
    merges: bool = False
    largest: int = 64
    scopes: list[tuple[int, Scope]] = field(default_factory=list)
    kept: list[Block] = field(default_factory=list)

    def load(self, batch: int) -> int:
        return batch

    def run(self, bench: Any, batch: int, scope: Scope) -> None:
        self.scopes.append((batch, scope))
        blocks = self.kept if self.leaks else []
        for _ in range(batch):
            blocks.append(Block(self.device, 60_000))
        if scope.is_whole:
            blocks.append(Block(self.device, self.whole_more))


@dataclass
class Told:
    """The link of a process."""

    stop_requested: bool = False
    events: list[JobEvent] = field(default_factory=list)

    def report(self, event: JobEvent) -> None:
        self.events.append(event)


@dataclass(frozen=True)
class LoadedModel:
    """As far as a probe looks at it."""

    state: Any
    device: torch.device
    held_bytes: int | None


def run_processes(device: Device, work: Steps, plain: Plain) -> tuple[int | None, list[Probe], int]:
    """The search with the probe's own loop; each process begins with nothing but the model."""
    probes, processes = list[Probe](), 0
    while True:
        processes += 1
        work.kept.clear()
        model = Block(device, 300_000)
        link = Told()
        bench: Any = LoadedModel(type("State", (), {"link": link})(), CUDA, limits.give_back(CUDA))
        asked = BatchQuestion(work.largest, BUDGET, LIMIT, work.load, is_fresh=False, plain=plain, probes=probes)
        found = probe._probe_on(asked, work, bench)  # type: ignore[arg-type]
        ended = [event.probe for event in link.events if isinstance(event, ProbeEnded)]
        assert probes[-len(ended) :] == ended
        del model
        if found is not None:
            return found.batch, probes, processes


def test_a_process_goes_on_after_each_shortage_and_only_the_confirmation_is_fresh(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    device = Device(monkeypatch)
    work = Steps(device, whole_more=5_000)
    found, probes, processes = run_processes(device, work, "guides")
    assert (found, processes) == (11, 2)
    assert device.shortages == sum(one.peak_bytes is None for one in probes) == 2, "16 and 12"
    assert [one.peak_bytes for one in probes if one.batch == 11] == [960_000, 965_000]
    assert [one.is_whole for one in probes] == [False] * (len(probes) - 1) + [True]
    assert [one.is_first for one in probes] == [True] + [False] * (len(probes) - 2) + [True]
    assert [scope.again for _, scope in work.scopes] == [one.is_first for one in probes]


def test_where_the_whole_takes_more_the_fresh_process_goes_on_with_whole_probes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    device = Device(monkeypatch)
    found, probes, processes = run_processes(device, Steps(device, whole_more=90_000), "guides")
    assert found == 9
    assert processes == 3, "plain, whole, and the confirmation"
    assert [(one.batch, one.fits) for one in probes if one.is_whole] == [(11, False), (10, False), (9, True), (9, True)]


def test_a_process_that_does_not_get_its_memory_back_is_not_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(monkeypatch)
    found, probes, processes = run_processes(device, Steps(device, leaks=True), "stands")
    assert found == 11
    assert processes == len(probes)
    assert all(one.is_first for one in probes)


def test_a_merged_model_is_not_probed_again_and_one_merges_at_the_end_only(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(monkeypatch)
    work = Steps(device, whole_more=100, merges=True)
    assert run_processes(device, work, "guides")[2] == 2
    assert sum(scope.is_whole for _, scope in work.scopes) == 1
    found, probes, processes = run_processes(device, Steps(device, whole_more=100, merges=True), "never")
    assert found == 11
    assert processes == len(probes)


def test_on_a_cpu_each_process_has_one_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe.peaks, "LimitedMemory", lambda _: nullcontext(type("Taken", (), {"highest_bytes": 7})()))
    link, ran = Told(), list[Scope]()
    work: Any = type("Work", (), {"merges": False, "run": lambda self, bench, batch, scope: ran.append(scope)})()
    bench: Any = LoadedModel(type("State", (), {"link": link})(), torch.device("cpu"), None)
    asked = BatchQuestion(64, BUDGET, LIMIT, lambda batch: batch)
    assert probe._probe_on(asked, work, bench) is None
    assert ran == [Scope(is_whole=True, again=False)]
    assert asked.probes == [Probe(1, 1, 7, True, is_first=True)]


def test_a_device_that_failed_for_good_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(device: torch.device) -> int:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(probe, "give_back", fail)
    bench: Any = LoadedModel(None, CUDA, 5)
    assert not probe._goes_on(question(9, "stands"), Steps(device=None), bench, Try(4), [Probe(2, 2, 7, True)])  # type: ignore[arg-type]


# -- what a probe runs ------------------------------------------------------------------------------------------------


@dataclass
class Ran:
    """What a probe would have run, in place of running it."""

    execution: Execution | None = None
    light: Sequence[Batch] = ()
    steps: Sequence[Sequence[Batch]] = ()
    checks: int = 0

    def train(self, bench: Any, execution: Execution, light: Any, recorded: Any, steps: Any) -> None:
        self.execution, self.light, self.steps = execution, light, steps


@pytest.fixture
def accelerated(
    tiny_table: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str | None, Scope], Ran]:
    """Probes batches of three in `shared`, whose steps are to be compiled; the check says what is given."""
    job = measure_job(tiny_table, tmp_path).trial
    layout = LayoutChoice(layout="shared", kernel="sdpa")
    state = TrialState("probe", "lora", {}, job.settings, tmp_path, tmp_path / "data", Told(), layout)
    execution = replace(decide(device=torch.device("cpu"), precision="fp32"), compiled=True)
    bench: Any = type("Bench", (), {})()
    bench.state, bench.execution, bench.pad_id, bench.model = state, execution, 0, torch.nn.Linear(1, 1)
    bench.prepared, bench.device = read_prepared(tmp_path / "data"), torch.device("cpu")
    monkeypatch.setattr(Execution, "fills_shapes", property(lambda self: self.compiled))

    def run(problem: str | None, scope: Scope) -> Ran:
        ran = Ran()

        def check(model: Any, asked: Execution, *_: Any, has_to_pay: bool) -> tuple[Execution, tuple[str, ...]]:
            assert not has_to_pay, "a probe asks for memory, and nothing is timed"
            ran.checks += 1
            return (asked, ()) if problem is None else (replace(asked, compiled=False), (problem,))

        monkeypatch.setattr(acceleration, "trusted", check)
        monkeypatch.setattr(workload, "_train", ran.train)
        TrainingWork(state, bench.prepared, CUDA).run(bench, 3, scope)
        return ran

    return run


def shapes(ran: Ran) -> list[Any]:
    return [[batch.input_ids.shape for batch in step] for step in ran.steps]


def test_a_plain_probe_compiles_nothing_and_fills_batches_up_as_a_whole_one_does(
    accelerated: Callable[[str | None, Scope], Ran],
) -> None:
    plain, whole = accelerated(None, Scope(is_whole=False)), accelerated(None, Scope())
    assert plain.execution is not None
    assert whole.execution is not None
    assert (plain.execution.compiled, whole.execution.compiled) == (False, True)
    assert (plain.checks, whole.checks) == (0, 1)
    assert shapes(plain) == shapes(whole)
    assert all(tokens % 128 == 0 for step in shapes(whole) for _, tokens in step)
    assert plain.light, "a light step makes the optimizer's moments"
    assert whole.light


def test_the_light_step_of_a_plain_probe_fills_more_than_a_block(tiny_table: dict[str, Any], tmp_path: Path) -> None:
    """FlexAttention would be compiled for a row of a single block, too, which no other step of the search has."""
    job = measure_job(tiny_table, tmp_path).trial
    bench: Any = type("Bench", (), {})()
    bench.prepared, bench.device, bench.pad_id = read_prepared(tmp_path / "data"), CUDA, 0
    layout = LayoutChoice(layout="shared", kernel="flex")
    bench.state = TrialState("probe", "lora", {}, job.settings, tmp_path, tmp_path / "data", Told(), layout)
    (light,) = workload._light_batches(bench)
    assert light.input_ids.shape[0] == 1
    assert BLOCK < light.computed_tokens < sum(example.length for example in bench.prepared.train)


@pytest.mark.parametrize("scope", [Scope(), Scope(is_whole=False)])
def test_no_gradient_is_left_where_memory_runs_out(
    accelerated: Callable[[str | None, Scope], Ran], monkeypatch: pytest.MonkeyPatch, scope: Scope
) -> None:
    """It would be counted as what later probes of the process take."""

    def short(self: TrainingWork, state: Any, bench: Any, *_: Any) -> None:
        bench.model.weight.grad = torch.ones(1, 1)
        models.append(bench.model)
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    models = list[Any]()
    monkeypatch.setattr(TrainingWork, "_ready", short)
    with pytest.raises(torch.OutOfMemoryError):
        accelerated(None, scope)
    assert models[0].weight.grad is None


def test_the_first_probe_of_a_process_runs_the_heaviest_part_again_after_a_lighter_one(
    accelerated: Callable[[str | None, Scope], Ran],
) -> None:
    once, again = accelerated(None, Scope(is_whole=False)), accelerated(None, Scope(is_whole=False, again=True))
    heavy = shapes(once)
    assert shapes(again)[: len(heavy)] == shapes(again)[-len(heavy) :] == heavy
    assert len(again.steps) == 2 * len(heavy) + 1


def test_without_room_for_compiled_steps_a_batch_does_not_fit_although_a_trial_would_do_without(
    accelerated: Callable[[str | None, Scope], Ran],
) -> None:
    with pytest.raises(torch.OutOfMemoryError, match="Tried to allocate"):
        accelerated("compiling failed (OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB)", Scope())
    other = accelerated("compiling failed (InternalTorchDynamoError: no)", Scope())
    assert other.execution is not None
    assert not other.execution.compiled


class NoRoom(Repeating):
    """A recorder for whose recording there is no memory."""

    def record(self, work: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")


@pytest.mark.parametrize("recorder", [Repeating, NoRoom])
def test_token_steps_are_recorded_in_whole_probes_only_and_have_to_fit(
    tiny_table: dict[str, Any],
    tiny_model: Path,
    tiny_tokenizer: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    recorder: Any,
) -> None:
    job, plain, made = measure_job(tiny_table, tmp_path).trial, Execution.for_generation, list[int]()
    layout = LayoutChoice(layout="shared", kernel="sdpa")
    state = TrialState("probe", "lora", {}, job.settings, tmp_path, tmp_path / "data", Told(), layout)
    monkeypatch.setattr(Execution, "for_generation", lambda self: replace(plain(self), graphed=True))
    monkeypatch.setattr(decoding, "CudaGraphs", lambda _: (made.append(1), recorder())[1])
    monkeypatch.setattr(decode_check, "PAYS", 1e9)  # a stand-in saves no time
    bench: Any = type("Bench", (), {})()
    bench.state, bench.device, bench.prepared = state, CUDA, read_prepared(tmp_path / "data")
    bench.session = type("Session", (), {"phase": lambda *_: nullcontext()})()
    bench.model, bench.tokenizer, bench.pad_id = loaded(tiny_model).requires_grad_(False), tiny_tokenizer, 0
    bench.execution = decide(device=torch.device("cpu"), precision="fp32")
    work = InferenceWork(state, bench.prepared, CUDA)
    assert work.has_plain(bench.execution)
    work.run(bench, 2, Scope(is_whole=False, again=True))
    assert not made
    with pytest.raises(torch.OutOfMemoryError) if recorder is NoRoom else nullcontext():
        work.run(bench, 2, Scope())
    assert made


def test_what_the_compiler_did_is_read_from_its_own_counters() -> None:
    before = Compiled.so_far()
    for _ in range(2):
        torch.compile(lambda number: number + 1, backend="eager")(torch.ones(3))
    after = Compiled.so_far()
    assert after.regions >= before.regions + 1
    assert after.seconds > before.seconds


# -- counting the tokens of rows --------------------------------------------------------------------------------------


@given(
    texts=st.lists(st.tuples(st.integers(0, 5), st.lists(st.integers(0, 2), max_size=14)), min_size=1, max_size=24),
    stems=st.lists(st.lists(st.integers(0, 2), max_size=20), min_size=6, max_size=6),
    chance=st.randoms(use_true_random=False),
    layout=st.sampled_from(["padded", "packed", "shared"]),
)
def test_rows_are_counted_by_families_as_they_are_laid_out(
    texts: list[tuple[int, list[int]]], stems: list[list[int]], chance: Any, layout: Any
) -> None:
    """Sequences may be equal, or the beginnings of others, and shorter than what is worth sharing."""
    examples = [TokenizedExample("", "", (*stems[stem], *own), (7,)) for stem, own in texts]
    counted = RowTokens(examples, layout, 64, remembers=True)
    for _ in range(4):
        row = [chance.randrange(len(examples)) for _ in range(chance.randint(1, 12))]
        expected = computed_tokens([examples[index] for index in row], layout, 64)
        assert counted.of(row) == expected
        assert RowTokens(examples, layout, 64, remembers=False).of(row) == expected


# -- the allocator's segments -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variables", "configured"),
    [
        ({}, ["expandable_segments:True"]),
        ({"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:128"}, ["max_split_size_mb:128,expandable_segments:True"]),
        ({"PYTORCH_ALLOC_CONF": "expandable_segments:False"}, []),
        ({"PYTORCH_CUDA_ALLOC_CONF": "backend: cudaMallocAsync"}, []),
    ],
)
def test_segments_expand_unless_the_user_says_otherwise(
    variables: dict[str, str], configured: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in limits._ALLOCATOR_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    told = list[str]()
    monkeypatch.setattr(limits, "_configure_allocator", told.append)
    limits.map_pages(torch.device("cpu"))
    assert told == []
    limits.map_pages(CUDA)
    assert told == configured


def test_torch_takes_the_option_for_segments() -> None:
    """Only CUDA's allocator follows it, but torch reads it without a GPU as well, and refuses what it does not know."""
    limits._configure_allocator("expandable_segments:True")
    try:
        told = getattr(torch._C, "_accelerator_getAllocatorSettings", lambda: "expandable_segments:True")()
        assert told == "expandable_segments:True"
    finally:
        limits._configure_allocator("expandable_segments:False")


# -- where the time goes ----------------------------------------------------------------------------------------------


class Clock:
    """Time as a test makes it pass."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 100.0
        monkeypatch.setattr(stopwatch, "now_s", lambda: self.now_s)


ONE = Probe(1, 1, 5, True)
GIVEN = MemoryBudget(limit_bytes=LIMIT, budget_bytes=BUDGET, enforced_bytes=None, limit="", memory="")
PROCESS: list[tuple[float, JobEvent]] = [
    (2.0, BudgetSet(budget=GIVEN)),
    (0.5, ProbeBegun(batch=1, load=1)),
    (8.0, RankMeasured(known=known(1))),
    (0.25, ProbeBegun(batch=1, load=1)),
    (3.0, ProbeEnded(probe=ONE, compilations=2, compiling_s=1.0)),
    (0.25, ProbeBegun(batch=2, load=2, confirms=True)),
    (4.0, ProbeEnded(probe=ONE)),
]


def test_each_part_has_the_time_between_its_events(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    watch = stopwatch.Stopwatch()
    for _ in range(2):
        watch.start_process()
        for seconds, event in PROCESS:
            clock.now_s += seconds
            watch.hear(event)
        clock.now_s += 1.0  # until the process has ended
    effort = watch.effort()
    assert (effort.processes, effort.loads, effort.compilations) == (2, 2, 4)
    parts = {"start": 4.0, "choose": 4.0, "load": 16.0, "compile": 2.0, "probe": 4.0, "confirm": 8.0}
    assert effort.durations.model_dump() == parts
    assert stopwatch.Stopwatch(effort).effort().seconds == effort.seconds, "an interrupted search goes on with them"


@given(
    times=st.lists(st.floats(0, 1e3), min_size=1, max_size=40),
    order=st.randoms(use_true_random=False),
)
def test_the_parts_are_the_whole_whatever_events_come(times: list[float], order: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        clock = Clock(patch)
        watch = stopwatch.Stopwatch()
        for seconds in times:
            clock.now_s += seconds
            chosen = order.choice([*(event for _, event in PROCESS), None])
            watch.start_process() if chosen is None else watch.hear(chosen)
        effort = watch.effort()
    assert sum(effort.seconds.values()) == pytest.approx(clock.now_s - 100.0)
    assert all(seconds >= 0 for seconds in effort.seconds.values())


class Script:
    """Plays the processes of a search: each tells its events, a second apart, and ends as it is told to."""

    is_stopping = False

    def __init__(self, clock: Clock, *ends: tuple[list[JobEvent], Finished[LargestFound | None]]) -> None:
        self.clock, self.ends, self.jobs = clock, list(ends), list[ProbeJob]()

    def rest(self, seconds: float) -> None:
        raise AssertionError("nothing waits")

    def run(self, job: Any, log: Path, hear: Any = None) -> Finished[Any]:
        self.jobs.append(job)
        log.write_text("CUDA out of memory")
        events, end = self.ends.pop(0)
        for event in events:
            self.clock.now_s += 1.0
            hear(event)
        return end


def test_the_record_has_the_time_and_both_peaks_of_a_batch(
    tiny_table: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = measure_job(tiny_table, tmp_path).trial
    (tmp_path / ".howlow").mkdir()
    begins: list[JobEvent] = [BudgetSet(budget=GIVEN), ProbeBegun(batch=1, load=1), RankMeasured(known=known(1))]
    plain = [Probe(1, 1, 500_000, True, True, False), Probe(2, 2, None, False, False, False)]
    told = [event for one in plain for event in (ProbeBegun(batch=one.batch, load=one.load), ProbeEnded(probe=one))]
    whole = ProbeEnded(probe=Probe(1, 1, 510_000, True, True), compilations=1, compiling_s=0.75)
    script = Script(
        Clock(monkeypatch),
        ([*begins, *told], Returned(None)),
        ([*begins, ProbeBegun(batch=1, load=1, confirms=True)], Unfinished("crashed", "CUDA out of memory")),
        ([*begins, ProbeBegun(batch=1, load=1, confirms=True), whole], Returned(LargestFound(batch=1, largest=9))),
    )
    place = driver.SearchPlace(tmp_path, None, lambda setting, one: None)
    found = driver.largest_batch(script, trial, "training.batch_size", place)
    assert (found.batch, found.processes, found.loads, found.compilations) == (1, 3, 3, 1)
    assert found.whole_takes_more_bytes == 10_000
    assert [(one.whole, one.first_of_process, one.fits) for one in found.probes] == [
        (False, True, True),
        (False, False, False),
        (True, True, False),
        (True, True, True),
    ]
    assert found.duration_s is not None
    assert found.duration_s.model_dump() == {
        "start": 3.0,
        "choose": 7.0,
        "load": 3.0,
        "compile": 0.75,
        "probe": 2.0,
        "confirm": 0.25,
    }
    assert found.duration_s.total == 16.0
    assert script.jobs[1].probes == tuple(plain)
    assert driver.largest_batch(script, trial, "training.batch_size", place) == found, "kept with its time"
