"""The largest batch of a trial: the processes of its search, and the results of earlier searches.

The search itself is a plain function (`howlow.batch_search.search`), which a probing process calls between its probes
(`howlow.batch_search.probe`). A process probes for as long as it can; the driver starts the next one with all probes so
far, until the batch is found. A probe whose process dies for lack of memory is one that does not fit. No process is
kept for the next rank: it would hold a part of the device while the trial between them is measured.

A found batch is cached in `DIR/.howlow/batch-*.json` under everything that it depends on: a sweep that is resumed, and
a trial that is run again, do not search again. The probes of other ranks in there say where to look first. Every probe
of a search that has not ended is in `probes-*.json`, so an interrupted search resumes with them. Of two workers that
need the same search, one waits for the other's result.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from filelock import Timeout
from pydantic import TypeAdapter

from howlow.batch_search.stopwatch import Effort, Stopwatch
from howlow.jobs import (
    BatchSetting,
    BudgetSet,
    JobEvent,
    JobRunner,
    LargestFound,
    MemoryBudget,
    NodeBusy,
    Probe,
    ProbeBegun,
    ProbeEnded,
    ProbeJob,
    ProbesJudged,
    RankMeasured,
    RankMemory,
    RankProbes,
    TrialJob,
    on_device,
    value_of,
    whole_takes_more,
)
from howlow.locks import file_lock, lacks_locks
from howlow.outcomes import Returned, StoppedError, Unfinished, kernel_kills, limits_process, ran_out_of_memory
from howlow.records import BatchProbe, BatchSearch, write_atomically
from howlow.settings import Settings, TrialKind, batch_search_keys, trains


class SearchFailedError(Exception):
    """The search ended neither with a batch nor for lack of memory."""


@dataclass(frozen=True)
class SearchPlace:
    """Where a search keeps its files, its processes' device (None: as the settings say), and how it reports.

    tell: is called with each probe. tell_busy: with each process of this machine that has to be waited for.
    """

    run_directory: Path
    device: str | None
    tell: Callable[[BatchSetting, Probe], None]
    tell_busy: Callable[[str], None] = lambda other: None

    @property
    def cache(self) -> Path:
        """The folder of earlier searches."""
        return self.run_directory / ".howlow"

    def folder(self, trial: str) -> Path:
        """The folder of the probing processes."""
        return self.cache / f"probe-{trial}"


@dataclass
class _Search:
    """What is known of one search. earlier_budget: the budget of the probes that an interrupted search left."""

    trial: TrialJob
    setting: BatchSetting
    settings: Settings
    budget: MemoryBudget | None = None
    earlier_budget: MemoryBudget | None = None
    known: RankMemory | None = None
    begun: ProbeBegun | None = None
    probes: tuple[Probe, ...] = ()
    has_probed: bool = False
    watch: Stopwatch = field(default_factory=Stopwatch)

    def hear(self, event: JobEvent) -> None:
        """Keep one event of a probing process."""
        self.watch.hear(event)
        match event:
            case BudgetSet():
                self.budget = event.budget
            case ProbesJudged():
                self.probes = event.probes
            case RankMeasured():
                self.known = event.known
            case ProbeBegun():
                self.begun = event
            case ProbeEnded():
                self.probes = (*self.probes, event.probe)
                self.begun, self.has_probed = None, True
            case _:
                raise AssertionError(f"a probing process does not report {event!r}")


def searched_settings(kind: TrialKind, settings: Settings) -> list[BatchSetting]:
    """The batch sizes of a trial that have to be searched for."""
    asked: dict[BatchSetting, bool] = {
        "training.batch_size": trains(kind, settings) and settings.training.batch_size == "max",
        "inference.batch_size": settings.inference.batch_size == "max",
    }
    return [setting for setting, is_asked in asked.items() if is_asked]


def largest_batch(runner: JobRunner, trial: TrialJob, setting: BatchSetting, place: SearchPlace) -> BatchSearch:
    """The result of an earlier search, or of a new one.

    Raises:
        UserError: the batch cannot be searched for here.
        SearchFailedError: a probe ended neither with a result nor for lack of memory.
        StoppedError: the search was asked to stop.
        DiskFullError: no space is left.
    """
    family = _family(trial, setting)
    key = _key(trial, setting, family)
    path = place.cache / f"batch-{key}.json"
    with _alone(runner, path.with_suffix(".lock")):
        earlier = BatchSearch(**json.loads(path.read_text(encoding="utf-8"))["search"]) if path.exists() else None
        if earlier is not None and earlier.batch is not None:
            return earlier  # a search that found nothing is repeated: there may be more memory now
        kept = place.cache / f"probes-{key}.json"
        told = _resumed(_Search(trial, setting, on_device(trial.settings, place.device)), kept)
        others = _other_ranks(place.cache, family)
        found: LargestFound | None = None
        while found is None:
            found = _one_process(runner, told, others, place, kept)
        search = _as_record(told, found)
        other = RankProbes(told.known, told.probes) if told.known else None
        document = {"family": family, "search": search.model_dump(), "other": asdict(other) if other else None}
        write_atomically(path, json.dumps(document))
        kept.unlink(missing_ok=True)
        shutil.rmtree(place.folder(trial.name), ignore_errors=True)
        return search


@contextmanager
def _alone(runner: JobRunner, path: Path) -> Iterator[None]:
    """Wait until no other worker of this machine does the same search."""
    lock = file_lock(path)
    while True:
        if runner.is_stopping:
            raise StoppedError
        try:
            lock.acquire(timeout=0.5)
            break
        except Timeout:
            continue
        except OSError as error:
            if not lacks_locks(error):
                raise
            break  # two workers may then do the same search, and find the same
    try:
        yield
    finally:
        lock.release()


def _resumed(search: _Search, kept: Path) -> _Search:
    """The search with the probes that an interrupted one left."""
    if not kept.exists():
        return search
    left = json.loads(kept.read_text(encoding="utf-8"))
    return replace(
        search,
        earlier_budget=MemoryBudget(**left["budget"]),
        known=_RANK_MEMORY.validate_python(left["known"]),
        probes=_PROBES.validate_python(left["probes"]),
        watch=Stopwatch(_EFFORT.validate_python(left.get("effort", {}))),
    )


_PROBES = TypeAdapter(tuple[Probe, ...])
_RANK_MEMORY = TypeAdapter(RankMemory | None)
_RANK_PROBES = TypeAdapter(RankProbes)
_EFFORT = TypeAdapter(Effort)


def _keep(search: _Search, kept: Path) -> None:
    assert search.budget is not None, "a process reports its budget before it probes"
    known = asdict(search.known) if search.known else None
    probes = [asdict(probe) for probe in search.probes]
    left = {"budget": search.budget.model_dump(), "known": known, "probes": probes}
    write_atomically(kept, json.dumps(left | {"effort": asdict(search.watch.effort())}))


def _job(search: _Search, others: tuple[RankProbes, ...], place: SearchPlace) -> ProbeJob:
    trial = search.trial
    return ProbeJob(
        setting=search.setting,
        kind=trial.kind,
        settings=search.settings,
        folder=place.folder(trial.name),
        data_folder=place.run_directory / trial.data_folder,
        layout=trial.layout,
        cores_shared_by=trial.cores_shared_by,
        run_directory=place.run_directory,
        trial=trial.name,
        budget=search.budget,
        earlier_budget=search.earlier_budget,
        probes=search.probes,
        others=others,
    )


def _one_process(
    runner: JobRunner, search: _Search, others: tuple[RankProbes, ...], place: SearchPlace, kept: Path
) -> LargestFound | None:
    """Probe in one process; None where it takes another."""

    def hear(event: JobEvent) -> None:
        if isinstance(event, NodeBusy):
            place.tell_busy(event.other)
            return
        search.hear(event)
        if isinstance(event, ProbeEnded):
            _keep(search, kept)
            place.tell(search.setting, event.probe)

    log = place.folder(search.trial.name) / "log.txt"
    log.parent.mkdir(exist_ok=True)
    log.write_text("", encoding="utf-8")
    kills = kernel_kills()
    search.begun, search.has_probed = None, False
    job = _job(search, others, place)
    search.watch.start_process()
    finished = runner.run(job, log, hear)
    if isinstance(finished, Returned) or finished.outcome not in ("crashed", "died"):
        return value_of(finished, job, log)
    if not _was_out_of_memory(search, finished, log, kernel_kills() > kills):
        raise SearchFailedError(f"a probe for the largest batch ended: {finished.problem}; see {log}")
    if search.begun is not None:
        hear(ProbeEnded(probe=_died(search.begun, is_first=not search.has_probed)))
    return None


def _died(begun: ProbeBegun, is_first: bool) -> Probe:
    """A probe in which memory ran out, so that its process died."""
    return Probe(begun.batch, begun.load, None, False, is_first=is_first, is_whole=begun.is_whole)


def _was_out_of_memory(search: _Search, ended: Unfinished, log: Path, killed_by_kernel: bool) -> bool:
    """Whether a probing process died because its batch does not fit."""
    is_enforced = search.budget is not None and search.budget.enforced_bytes is not None
    is_limited = is_enforced and limits_process(search.trial.environment.device)
    has_begun = search.begun is not None or search.has_probed
    return has_begun and ran_out_of_memory(ended, log, killed_by_kernel, is_limited)


def _as_record(search: _Search, found: LargestFound) -> BatchSearch:
    assert search.budget is not None, "the first process reports the budget"
    effort = search.watch.effort()
    return BatchSearch(
        setting=search.setting,
        batch=found.batch,
        largest=found.largest,
        probes=tuple(
            BatchProbe(
                batch=probe.batch,
                computed_tokens=probe.load,
                peak_memory_bytes=probe.peak_bytes,
                fits=probe.fits,
                whole=probe.is_whole,
                first_of_process=probe.is_first,
            )
            for probe in search.probes
        ),
        duration_s=effort.durations,
        processes=effort.processes,
        loads=effort.loads,
        compilations=effort.compilations,
        whole_takes_more_bytes=whole_takes_more(search.probes),
        **search.budget.model_dump(exclude={"enforced_bytes"}),
    )


def nothing_fits(search: BatchSearch) -> str:
    """What a batch of one example took, for a search that found nothing."""
    one = next(probe for probe in search.probes if probe.batch == 1)
    took = "more than the limit" if one.peak_memory_bytes is None else f"{one.peak_memory_bytes / 1e9:.3f} GB"
    return (
        f'{search.setting} = "max": not even one example fits: its heaviest batch has {one.computed_tokens} tokens and '
        f"takes {took}; {search.budget_bytes / 1e9:.3f} GB may be used ({search.limit}, less run.memory_margin)"
    )


# -- earlier searches -----------------------------------------------------------------------------------------------


def _key(trial: TrialJob, setting: BatchSetting, family: str) -> str:
    """What the batch depends on: all that its family has in common, the rank, and for training the seed."""
    own: dict[str, Any] = {"rank": trial.rank}
    if setting == "training.batch_size":
        own["seed"] = trial.seed
    return trial.settings.digest((), family=family, **own)


def _family(trial: TrialJob, setting: BatchSetting) -> str:
    """Equal for searches that differ in nothing but rank and seed, so that one's probes help another."""
    environment = trial.environment.model_dump()
    keys = ("device_name", "cpu", "cores", "threads", "versions")
    basis = {"data": trial.data.model_dump(), **{key: environment[key] for key in keys}}
    own = {"setting": setting, "kind": trial.kind, "layout": trial.layout.model_dump(), "basis": basis}
    return trial.settings.digest(batch_search_keys(setting), **own)


def _other_ranks(cache: Path, family: str) -> tuple[RankProbes, ...]:
    """The probes of the family's searches."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(cache.glob("batch-*.json"))]
    mine: Sequence[Mapping[str, Any]] = [document for document in found if document["family"] == family]
    return tuple(_RANK_PROBES.validate_python(document["other"]) for document in mine if document["other"])
