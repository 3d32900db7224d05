"""Probing: a batch's heaviest part run for real, and the memory's peak read, to find the largest batch that fits.

The process is a trial's in everything that takes memory: the same meters, model, adapter and optimizer with its
moments. What is run is the heaviest part of what the trial will run (`howlow.batch_search.workload`).

On a CPU the process is held to what may be used (`RLIMIT_DATA` at the limit less the margin), so whether a batch fits
is not a matter of how often VmData is looked at; the peak, from those looks, serves the record and the prediction.
There every probe has a process of its own: what an earlier one left in the heap would count as the next one's. On CUDA,
where the allocator's cache can be emptied, a process goes on while batches grow; after an allocation that failed, and
to confirm, a fresh one is taken there too.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar

import torch

from howlow.batch_search.search import Found, Known, Line, Other, Probe, Question, expected_line, next_step
from howlow.batch_search.workload import Bench, InferenceWork, TrainingWork, Work
from howlow.engine.execution import Execution
from howlow.errors import UserError
from howlow.memory import heap, peaks
from howlow.memory.limits import is_out_of_memory, limit_memory, unlimit_memory
from howlow.memory.phases import ProcessMemory
from howlow.meters.machine import choose_device
from howlow.meters.session import Session
from howlow.meters.sources import open_meters
from howlow.outcomes import StoppedError
from howlow.records import LayoutChoice, clear_temporaries
from howlow.settings import Settings
from howlow.trial.entries import settle
from howlow.trial.loading import execution_of, load_trial_model
from howlow.trial.metering import asked_of
from howlow.trial.preparation import Prepared, read_prepared
from howlow.trial.state import SweepLink, TrialState

T = TypeVar("T")
_LOOKED_AT = 200_000
"""Examples that are laid out in thought, at most, to look for lighter schedules among batches that lie side by side."""


def probe_entry(payload: Mapping[str, Any], link: SweepLink) -> dict[str, Any] | None:
    """Probe until the largest batch is found, or until it takes a fresh process to go on (None).

    Told on the way: "limit", what holds for the whole search; "probes", what an earlier start of it left, judged by
    that limit; "known", what is certain of this rank; "probing" before and "probe" after every probe, so that one that
    ends the process is known too.
    """
    settle()
    kept = heap.bound_heap().kernels_kept
    state = _state(payload, link)
    device = choose_device(state.settings.run.device)
    limit = payload["limit"] or _limit(payload["setting"], state.settings, device)
    link.report("limit", limit)
    prepared = read_prepared(state.data_folder)
    work = (TrainingWork if payload["setting"] == "training.batch_size" else InferenceWork)(state, prepared)
    probes = [Probe(**probe) for probe in payload["probes"]]
    if payload["limit"] is None and probes:
        probes = judged(probes, payload["earlier_limit"], limit)
        link.report("probes", [asdict(probe) for probe in probes])
    beyond = limit["enforced_bytes"] or limit["limit_bytes"]
    question = Question(work.largest, limit["budget_bytes"], beyond, cache(work.load), probes=probes)
    question = replace(question, beyond=_LOOKED_AT // work.examples, is_fresh=device.type == "cpu")
    step = next_step(question)
    if isinstance(step, Found):
        return {"batch": step.batch, "largest": work.largest}
    # What fails for want of memory from here on, in loading or in the probe, is a batch that does not fit.
    begun = Probe(step.batch, question.load(step.batch), None, False)
    link.report("probing", {"batch": begun.batch, "load": begun.load})
    limit_memory(limit["enforced_bytes"], device)
    try:
        return _within_limit(
            question,
            begun,
            work,
            partial(_bench, work, state, execution_of(state, device, kept), prepared, limit),
            payload,
            link,
        )
    finally:
        unlimit_memory()


def _within_limit(
    question: Question,
    begun: Probe,
    work: Work,
    opened: Callable[[], AbstractContextManager[Bench]],
    payload: Mapping[str, Any],
    link: SweepLink,
) -> dict[str, Any] | None:
    """Load, and probe; a load that takes too much is the end of the probe that it was for."""
    with ExitStack() as stack:
        bench = _unless_out_of_memory(lambda: stack.enter_context(opened()))
        if bench is None:
            link.report("probe", asdict(begun))
            return None
        known = bench.known(payload["setting"])
        link.report("known", asdict(known))
        others = [_other(other) for other in payload["others"]]
        return _probe_on(replace(question, expected=expected_line(known, others)), work, bench)


def _state(payload: Mapping[str, Any], link: SweepLink) -> TrialState:
    folder = Path(payload["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    clear_temporaries(folder)
    (folder / "timeline.jsonl").unlink(missing_ok=True)
    settings, choice = Settings.model_validate_json(payload["settings"]), LayoutChoice(**payload["layout"])
    taken = settings.training.model_copy(update={"layout": choice.layout})
    settings = settings.model_copy(update={"training": taken})
    return TrialState("probe", payload["kind"], {}, settings, folder, Path(payload["data"]), link, choice)


def _limit(setting: str, settings: Settings, device: torch.device) -> dict[str, Any]:
    """The limit, what of it may be used, and where it comes from; enforced_bytes: what this process is held to.

    Raises:
        UserError: nothing tells here what a process has taken, or the margin leaves nothing to take.
    """
    if not peaks.LimitedMemory.is_known(device):
        raise UserError(f'{setting} = "max": nothing tells on {device} here what a process has taken; give a number')
    given, is_on_cpu = settings.run.memory_limit_bytes, device.type == "cpu"
    available, whole = peaks.available_bytes(device)
    limit = given or available
    spared = round(settings.run.memory_margin * (given or whole))
    where = "of the machine" if is_on_cpu else "on the device"
    if (budget := limit - spared) <= 0:
        free = f"run.memory_limit_bytes = {given}" if given else f"{limit / 1e9:.3f} GB {where} are free"
        raise UserError(
            f'{setting} = "max": {free}, and run.memory_margin = {settings.run.memory_margin:g} spares '
            f"{spared / 1e9:.3f} GB: nothing is left for a batch; set a smaller margin, or give the memory more room"
        )
    return {
        "limit_bytes": limit,
        "budget_bytes": budget,
        "enforced_bytes": budget if is_on_cpu else given,
        "limit": "run.memory_limit_bytes" if given else f"memory {where} that was free when the search began",
        "memory": "VmData" if is_on_cpu else "memory reserved by torch",
    }


def judged(probes: Sequence[Probe], then: Mapping[str, Any], now: Mapping[str, Any]) -> list[Probe]:
    """Probes made under one limit as they count under another, as where less memory is free than was.

    A peak fits or does not; that memory ran out counts as long as there is not more of it.
    """
    held_then, held_now = (limit["enforced_bytes"] or limit["limit_bytes"] for limit in (then, now))
    return [
        replace(probe, fits=probe.peak_bytes is not None and probe.peak_bytes <= now["budget_bytes"])
        for probe in probes
        if probe.peak_bytes is not None or held_now <= held_then
    ]


def _other(plain: Mapping[str, Any]) -> Other:
    known = Known(plain["known"]["rank"], Line(**plain["known"]["line"]))
    return Other(known, tuple(Probe(**probe) for probe in plain["probes"]))


def _unless_out_of_memory(work: Callable[[], T]) -> T | None:
    try:
        return work()
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return None


def _probe_on(question: Question, work: Work, bench: Bench) -> dict[str, Any] | None:
    """Probe as long as this process may."""
    link, last = bench.state.link, 0
    while not isinstance(step := next_step(question), Found):
        if last and (bench.device.type == "cpu" or work.merges or step.confirms or step.batch <= last):
            return None
        if link.stop_requested:
            raise StoppedError
        last, load = step.batch, question.load(step.batch)
        link.report("probing", {"batch": last, "load": load})
        peak = _unless_out_of_memory(partial(_peak_bytes, work, bench, last))
        probe = Probe(last, load, peak, peak is not None and peak <= question.budget_bytes)
        question.probes.append(probe)
        link.report("probe", asdict(probe))
        if peak is None:
            return None
    return {"batch": step.batch, "largest": question.largest}


def _peak_bytes(work: Work, bench: Bench, batch: int) -> int:
    with peaks.LimitedMemory(bench.device) as taken:
        work.run(bench, batch)
    return taken.highest_bytes


@contextmanager
def _bench(
    work: Work, state: TrialState, execution: Execution, prepared: Prepared, limit: Mapping[str, Any]
) -> Iterator[Bench]:
    """All that a trial's process has before what is probed."""
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
        bench = Bench(state, device, prepared, session, model, tokenizer, execution, min(eos, default=0))
        # What comes before may use the margin, as in the trial.
        limit_memory(None if limit["enforced_bytes"] is None else limit["limit_bytes"], device)
        work.prepare(bench)
        limit_memory(limit["enforced_bytes"], device)
        yield bench
