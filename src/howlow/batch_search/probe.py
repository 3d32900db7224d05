"""Probing: a batch's heaviest part is run for real, and its peak of memory is read, to find the largest that fits.

A probing process takes memory as a trial's does: the same meters, model, adapter and optimizer with its moments. What
it runs is the heaviest part of what the trial will run (`howlow.batch_search.workload`).

On a CPU the process is held to the budget (`RLIMIT_DATA` at the limit less the margin), so whether a batch fits does
not depend on how often VmData is read; the peak, from those readings, serves the record and the prediction. There every
probe has a process of its own, because what an earlier one left in the heap would count as the next one's.

On CUDA one process runs all probes, also after it ran out of memory: the frames of the failed step are gone with its
error, graphs and gradients are dropped, and the caches are emptied. Only if it then holds more than after loading, by
more than a quarter of the margin, does a fresh process go on. A batch is confirmed by the first probe of a process.

What is judged there is the peak of the memory that torch's allocator has *reserved*, because that is what the limit
counts. The peak of allocations would be less: blocks lie idle because none of them fits the next tensor. The segments
expand (`howlow.memory.limits.map_pages`), as in the trial, so that few do. A step that stays within the budget never
makes the allocator empty its cache, which would slow it down. The device's memory in use is not judged: it counts other
processes, and CUDA's own context, for which the margin is there.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import cache, partial
from typing import TypeVar

import torch

from howlow.batch_search.search import BatchQuestion, LargestBatch, Plain, Try, expected_line, next_step, use_of_plain
from howlow.batch_search.workload import Bench, InferenceWork, Scope, TrainingWork, Work
from howlow.engine.compiled_layers import Compiled
from howlow.engine.execution import Execution, running
from howlow.errors import UserError
from howlow.jobs import (
    BudgetSet,
    LargestFound,
    Link,
    MemoryBudget,
    Probe,
    ProbeBegun,
    ProbeEnded,
    ProbeJob,
    ProbesJudged,
    RankMeasured,
)
from howlow.memory import heap, peaks
from howlow.memory.limits import give_back, is_out_of_memory, limit_memory, map_pages, unlimit_memory
from howlow.memory.phases import ProcessMemory
from howlow.meters.machine import choose_device
from howlow.meters.session import Session
from howlow.meters.sources import open_meters
from howlow.node import Visitor
from howlow.outcomes import StoppedError
from howlow.records import clear_temporaries
from howlow.settings import Settings
from howlow.trial.company import visiting
from howlow.trial.entries import settle
from howlow.trial.loading import execution_of, load_trial_model
from howlow.trial.metering import asked_of
from howlow.trial.prepared import Prepared, read_prepared
from howlow.trial.state import TrialState

T = TypeVar("T")
_LEFT_OVER = 0.25
"""The share of the margin that probes may leave behind in a process in which others follow."""
_LAID_OUT = 200_000
"""At most this many examples are laid out, without being run, to find lighter schedules among neighbouring batches."""


def probe_entry(job: ProbeJob, link: Link) -> LargestFound | None:
    """Probe until the largest batch is found, or until a fresh process is needed to go on (None).

    Events: the budget of the whole search; the probes of an interrupted one, judged by it; what this rank takes for
    certain; and each probe before and after it is run, so that one that ends the process is known too.
    """
    settle(job.cores_shared_by)
    if job.run_directory is None:
        return _probe(job, link)
    visitor = Visitor(job.trial, str(job.run_directory.resolve()), "search", job.settings.run.device)
    with visiting(link, visitor):
        return _probe(job, link)


def _probe(job: ProbeJob, link: Link) -> LargestFound | None:
    kept = heap.bound_heap().kernels_kept
    state = _state(job, link)
    device = choose_device(state.settings.run.device)
    map_pages(device)
    budget = job.budget or _budget(job.setting, state.settings, device)
    link.report(BudgetSet(budget=budget))
    prepared = read_prepared(state.data_folder)
    work = (TrainingWork if job.setting == "training.batch_size" else InferenceWork)(state, prepared, device)
    execution = execution_of(state, device, kept)
    question = replace(_question(job, budget, work, device, link), plain=_use_of_plain(job, budget, work, execution))
    step = next_step(question)
    if isinstance(step, LargestBatch):
        return LargestFound(batch=step.batch, largest=work.largest)
    # If memory runs out from here on, in loading or in the probe, this batch does not fit.
    begun = Probe(step.batch, question.load(step.batch), None, False, is_first=True, is_whole=step.is_whole)
    link.report(_beginning(step, begun.load))
    limit_memory(budget.enforced_bytes, device)
    try:
        bench = partial(_bench, state, execution, prepared)
        return _within_budget(question, begun, work, bench, job, link)
    finally:
        unlimit_memory()


def _question(job: ProbeJob, budget: MemoryBudget, work: Work, device: torch.device, link: Link) -> BatchQuestion:
    """What is searched for, with the probes so far."""
    probes = list(job.probes)
    if job.budget is None and probes:
        assert job.earlier_budget is not None, "probes are kept with the budget that they were made under"
        probes = judged(probes, job.earlier_budget, budget)
        link.report(ProbesJudged(probes=tuple(probes)))
    exceeded = budget.enforced_bytes or budget.limit_bytes
    question = BatchQuestion(work.largest, budget.budget_bytes, exceeded, cache(work.load), probes=probes)
    return replace(question, beyond=_LAID_OUT // work.examples, is_fresh=not shares_processes(device))


def shares_processes(device: torch.device) -> bool:
    """Whether probes share a process, because what one of them took can be given back whole."""
    return device.type != "cpu"


def _use_of_plain(job: ProbeJob, budget: MemoryBudget, work: Work, execution: Execution) -> Plain:
    """What plain probes are good for. On a CPU there are none: each process has time for one probe, which is whole."""
    if not shares_processes(execution.device) or not work.has_plain(execution):
        return "never"
    return use_of_plain(job.others, budget.limit_bytes - budget.budget_bytes)


def _beginning(step: Try, load: int) -> ProbeBegun:
    return ProbeBegun(batch=step.batch, load=load, is_whole=step.is_whole, confirms=step.confirms)


def _within_budget(
    question: BatchQuestion,
    begun: Probe,
    work: Work,
    opened: Callable[[], AbstractContextManager[Bench]],
    job: ProbeJob,
    link: Link,
) -> LargestFound | None:
    """Load, and probe; if loading takes too much memory, the probe that it was for has failed."""
    with ExitStack() as stack:
        bench = _unless_out_of_memory(lambda: stack.enter_context(opened()))
        if bench is None:
            link.report(ProbeEnded(probe=begun))
            return None
        known = bench.known(job.setting)
        link.report(RankMeasured(known=known))
        return _probe_on(replace(question, expected=expected_line(known, job.others)), work, bench)


def _state(job: ProbeJob, link: Link) -> TrialState:
    job.folder.mkdir(parents=True, exist_ok=True)
    clear_temporaries(job.folder)
    (job.folder / "timeline.jsonl").unlink(missing_ok=True)
    return TrialState("probe", job.kind, {}, job.settings, job.folder, job.data_folder, link, job.layout)


def _budget(setting: str, settings: Settings, device: torch.device) -> MemoryBudget:
    """The limit, how much of it may be used, where it comes from, and what this process is held to.

    Raises:
        UserError: the memory that a process has taken cannot be read here, or the margin leaves nothing.
    """
    if not peaks.LimitedMemory.is_known(device):
        raise UserError(
            f'{setting} = "max": the memory that a process takes on {device} cannot be read here; give a number'
        )
    given, is_on_cpu = settings.run.memory_limit_bytes, device.type == "cpu"
    available, whole = peaks.available_bytes(device)
    limit = given or available
    spared = round(settings.run.memory_margin * (given or whole))
    where = "of the machine" if is_on_cpu else "on the device"
    if (budget := limit - spared) <= 0:
        free = f"run.memory_limit_bytes = {given}" if given else f"{limit / 1e9:.3f} GB {where} are free"
        raise UserError(
            f'{setting} = "max": {free}, and run.memory_margin = {settings.run.memory_margin:g} reserves '
            f"{spared / 1e9:.3f} GB: nothing is left for a batch; set a smaller margin, or give the memory more room"
        )
    return MemoryBudget(
        limit_bytes=limit,
        budget_bytes=budget,
        enforced_bytes=budget if is_on_cpu else given,
        limit="run.memory_limit_bytes" if given else f"memory {where} that was free when the search began",
        memory="VmData" if is_on_cpu else "memory reserved by torch",
    )


def judged(probes: Sequence[Probe], then: MemoryBudget, now: MemoryBudget) -> list[Probe]:
    """Probes made under one memory budget, judged again under another, e.g. when less memory is free.

    A peak fits or does not. A probe that ran out of memory counts unless there is more memory now.
    """
    held_then, held_now = (budget.enforced_bytes or budget.limit_bytes for budget in (then, now))
    return [
        replace(probe, fits=probe.peak_bytes is not None and probe.peak_bytes <= now.budget_bytes)
        for probe in probes
        if probe.peak_bytes is not None or held_now <= held_then
    ]


def _unless_out_of_memory(work: Callable[[], T]) -> T | None:
    try:
        return work()
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return None


def _probe_on(question: BatchQuestion, work: Work, bench: Bench) -> LargestFound | None:
    """Probe for as long as this process can."""
    link, mine = bench.state.link, list[Probe]()
    while not isinstance(step := next_step(question), LargestBatch):
        if mine and not _goes_on(question, work, bench, step, mine):
            return None
        if link.stop_requested:
            raise StoppedError
        load, before = question.load(step.batch), Compiled.so_far()
        link.report(_beginning(step, load))
        scope = Scope(is_whole=step.is_whole, again=shares_processes(bench.device) and not mine)
        peak = _unless_out_of_memory(partial(_peak_bytes, work, bench, step.batch, scope))
        fits = peak is not None and peak <= question.budget_bytes
        mine.append(Probe(step.batch, load, peak, fits, is_first=not mine, is_whole=step.is_whole))
        question.probes.append(mine[-1])
        done = Compiled.so_far()
        compilations, compiling_s = done.regions - before.regions, done.seconds - before.seconds
        link.report(ProbeEnded(probe=mine[-1], compilations=compilations, compiling_s=compiling_s))
    return LargestFound(batch=step.batch, largest=question.largest)


def _goes_on(question: BatchQuestion, work: Work, bench: Bench, step: Try, mine: Sequence[Probe]) -> bool:
    """Whether this process, which has run the probes `mine`, can run another one as if it had just loaded the model."""
    has_merged = work.merges and any(probe.is_whole for probe in mine)
    if bench.held_bytes is None or step.confirms or has_merged:
        return False
    try:
        held = give_back(bench.device)
    except RuntimeError:  # a device that failed answers every call with its error
        return False
    left_over = _LEFT_OVER * (question.limit_bytes - question.budget_bytes)
    return held is not None and held - bench.held_bytes <= left_over


def _peak_bytes(work: Work, bench: Bench, batch: int, scope: Scope) -> int:
    with peaks.LimitedMemory(bench.device) as taken:
        work.run(bench, batch, scope)
    return taken.highest_bytes


@contextmanager
def _bench(state: TrialState, execution: Execution, prepared: Prepared) -> Iterator[Bench]:
    """Everything that a trial's process holds before it runs what is probed."""
    device = execution.device
    meters = open_meters(asked_of(state.settings, device))
    rate_hz = state.settings.meters.rate_hz
    with Session(
        state.folder,
        device,
        meters.energy,
        rate_hz,
        0.0,
        memory=ProcessMemory(device),
        cpu_energy=meters.cpu_energy,
        views=meters.views,
    ) as session:
        with session.phase("load"):
            model, tokenizer, eos = load_trial_model(state, execution, prepared.tokenizer_name)
        held = None
        if shares_processes(device):
            # Weights that move do so before they are counted. Why a model cannot run so, its own check tells.
            with suppress(UserError), running(model, execution.for_evaluation()):
                pass
            held = give_back(device)
        yield Bench(state, device, prepared, session, model, tokenizer, execution, min(eos, default=0), held)
