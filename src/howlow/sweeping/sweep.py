"""A sweep: the grid of trials in an order, which of them are left, and the workers that run them.

The run directory is the whole memory of a sweep. A trial with a record is done; one without is run, from its last
checkpoint if it has one. So the same command resumes a sweep that was killed at any instant.
"""

import random
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from filelock import Timeout

from howlow.batch_search.driver import searched_settings
from howlow.claims import Claims
from howlow.errors import UserError
from howlow.executors.fork_server import ForkServer
from howlow.executors.local import run_workers
from howlow.jobs import JobFailedError, Preparing, SweepEvent, SweepPrepared, Tell, TrialElsewhere, TrialEnded, TrialJob
from howlow.locks import file_lock, lacks_locks
from howlow.node import refuse_no_node
from howlow.records import (
    HeapMode,
    LayoutChoice,
    Provenance,
    Record,
    RecordWarning,
    Status,
    groups_of,
    has_record,
    read_record,
    read_records,
    write_atomically,
)
from howlow.records.run_directory import (
    joined,
    left_behind,
    out_folder,
    refuse_foreign,
    refuse_other_settings,
    set_aside,
)
from howlow.settings import Settings, TrialPlan, expand, layout_key, preparation_key, processes_of, to_toml
from howlow.sweeping.setup import (
    Preparation,
    check_space,
    choose_layouts,
    foretell,
    prepare_all,
    refuse_changed_data,
    unwritable,
)
from howlow.worker.board import owner_name, remove_board, write_board, write_owner
from howlow.worker.measuring import Worker
from howlow.worker.taking import take_trials

RETRYABLE: tuple[Status, ...] = ("failed", "out_of_memory", "diverged")
Rounds = Callable[[Sequence[TrialPlan]], Iterable[Collection[str]]]
"""Chooses from all trials of a sweep the names of those to run next, again and again once these have their records."""


@dataclass(frozen=True)
class SweepResult:
    """The records of the trials that were asked for and run, and the folder."""

    folder: Path
    records: tuple[Record, ...]

    @property
    def failed(self) -> tuple[Record, ...]:
        """Trials that did not end as done."""
        return tuple(record for record in self.records if record.status != "done")


@dataclass(frozen=True)
class DryRun:
    """What a sweep would do: run those of its `plans` that have not `ended` (name -> status).

    warnings: what these trials would warn about before their first steps, beyond what the preparations say.
    """

    plans: tuple[TrialPlan, ...]
    ended: Mapping[str, Status]
    preparations: tuple[Preparation, ...]
    warnings: tuple[RecordWarning, ...] = ()

    @property
    def to_run(self) -> tuple[str, ...]:
        """The names of the trials that would be run, in their order."""
        return tuple(plan.name for plan in self.plans if plan.name not in self.ended)

    @property
    def searched(self) -> tuple[str, ...]:
        """The settings that are "max" in any of them."""
        pending = [plan for plan in self.plans if plan.name not in self.ended]
        return tuple(
            dict.fromkeys(setting for plan in pending for setting in searched_settings(plan.kind, plan.settings))
        )


def sweep(
    settings: Settings,
    out: Path | str,
    *,
    retry: Sequence[Status] = (),
    accept_different: Sequence[str] = (),
    on_event: Tell | None = None,
    rounds: Rounds | None = None,
) -> SweepResult:
    """Run, or resume, the sweep that `settings` describes in the folder `out`.

    Args:
        settings: resolved settings (`howlow.load_settings`).
        out: the run directory; made if missing.
        retry: statuses whose trials are run again; the old files are kept under `attempts/`.
        accept_different: keys that may differ from what the folder's trials ran with (`howlow.records.comparability`).
        on_event: is called with each event (`howlow.jobs`), in this thread.
        rounds: which trials to run, in rounds; None: all of them.

    Raises:
        UserError: found before the first trial: other settings in the folder, wrong data, an unknown model, ...
        DiskFullError: in mid-sweep; nothing finished is lost.
        KeyboardInterrupt: after the running trials have written their checkpoints.
    """
    folder, tell = out_folder(out), on_event or (lambda event: None)
    with _opened(folder, settings, accept_different) as merged:
        plans = ordered(expand(settings), settings.run.order_seed)
        existing, again = _existing(folder, plans, retry)
        left, heap = left_behind(folder, existing), _heap_of(expand(merged))
        refuse_other_settings(folder, left, merged, accept_different)
        if settings.run.exclusive:
            refuse_no_node()
        tell(Preparing())
        runner, shared_by = ForkServer(), processes_of(settings)
        prepared = prepare_all(runner, plans, folder / ".howlow", cores_shared_by=shared_by)
        refuse_changed_data(folder, left, prepared, expand(merged), heap, accept_different)
        check_space(folder, prepared.values(), plans)
        pending = [plan for plan in plans if plan.name not in existing]
        hidden = folder / ".howlow"
        layouts = choose_layouts(runner, plans, pending, prepared, hidden, left, cores_shared_by=shared_by)
        write_atomically(folder / "sweep.toml", to_toml(merged))
        for name in again:
            set_aside(folder / "trials" / name)
        jobs = _jobs(pending, prepared, layouts, heap, shared_by, merged.grid["seed"][0])
        sizes = tuple(one.sizes for one in prepared.values() if one.sizes is not None)
        tell(SweepPrepared(total=len(plans), done=len(plans) - len(pending), sizes=sizes))
        for names in [[plan.name for plan in plans]] if rounds is None else rounds(plans):
            chosen = tuple(job for job in jobs if job.name in names and job.name not in existing)
            write_board(folder, chosen)
            if chosen:
                _run(runner, folder, chosen, _devices(settings, prepared), tell)
            existing |= {job.name: _ended(folder, job.name) for job in chosen}
        return SweepResult(folder, tuple(existing[plan.name] for plan in plans if plan.name in existing))


def dry_run(
    settings: Settings,
    out: Path | str | None = None,
    *,
    retry: Sequence[Status] = (),
    accept_different: Sequence[str] = (),
) -> DryRun:
    """Say what `sweep` would do with these settings, without running a trial or writing into `out`.

    Raises:
        UserError: as in `sweep`.
    """
    plans = ordered(expand(settings), settings.run.order_seed)
    merged, left, existing = settings, list[Provenance](), dict[str, Record]()
    folder = None if out is None else out_folder(out)
    if folder is not None:
        refuse_foreign(folder)
        merged = joined(folder, settings, accept_different)
        existing, _ = _existing(folder, plans, retry)
        left = left_behind(folder, existing)
        refuse_other_settings(folder, left, merged, accept_different)
    pending, runner = [plan for plan in plans if plan.name not in existing], ForkServer()
    with _scratch() as scratch:
        prepared = prepare_all(runner, plans, scratch, cores_shared_by=processes_of(settings))
        refuse_changed_data(folder, left, prepared, expand(merged), _heap_of(expand(merged)), accept_different)
        layouts = choose_layouts(runner, plans, pending, prepared, scratch)
        warnings = foretell(runner, pending, layouts, scratch)
    ended = {plan.name: existing[plan.name].status for plan in plans if plan.name in existing}
    return DryRun(tuple(plans), ended, tuple(prepared.values()), warnings)


@contextmanager
def _scratch() -> Iterator[Path]:
    """A temporary folder; it stays where the work in it ended with an error, whose line names the log in it."""
    folder = Path(tempfile.mkdtemp(prefix="howlow-"))
    try:
        yield folder
    except (UserError, JobFailedError) as error:
        if str(folder) not in str(error):
            shutil.rmtree(folder, ignore_errors=True)
        raise
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)


def _existing(
    folder: Path, plans: Sequence[TrialPlan], retry: Sequence[Status]
) -> tuple[dict[str, Record], tuple[str, ...]]:
    """The records in the folder, and the names of the trials that `retry` runs again."""
    records = {record.trial: record for record in read_records(folder)} if (folder / "trials").is_dir() else {}
    asked = {plan.name for plan in plans}
    again = tuple(name for name, record in records.items() if name in asked and record.status in retry)
    return {name: record for name, record in records.items() if name not in again}, again


def _heap_of(plans: Sequence[TrialPlan]) -> HeapMode:
    """How all trials of a sweep keep freed memory: bounded as soon as one has a limit, or a batch size of "max"."""
    is_bounded = any(
        plan.settings.run.memory_limit_bytes or searched_settings(plan.kind, plan.settings) for plan in plans
    )
    return "bounded" if is_bounded else "kept"


def ordered(plans: Sequence[TrialPlan], order_seed: int) -> list[TrialPlan]:
    """All trials shuffled, baselines included, so that heat and drift do not line up with the rank.

    Each repeat of the sweep is a pass over all trials in an order of its own (a randomized complete block design).
    Drift between two passes then cancels where repeats are paired, a sweep that was stopped early has whole passes, and
    more repeats leave the order of the first ones as it was.
    """
    shuffle = random.Random(order_seed).shuffle
    passes: dict[int, list[TrialPlan]] = {}
    for plan in plans:
        passes.setdefault(plan.repeat, []).append(plan)
    for one in passes.values():
        shuffle(one)
    return [plan for one in passes.values() for plan in one]


# -- the folder -----------------------------------------------------------------------------------------------------


@contextmanager
def _opened(folder: Path, settings: Settings, accept_different: Sequence[str]) -> Iterator[Settings]:
    """Lock the folder; gives the settings of the sweep in it joined with those asked for now."""
    refuse_foreign(folder)
    hidden = folder / ".howlow"
    try:
        hidden.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise UserError(f"--out {folder}: a file stands in the way; give a folder") from None
    except OSError as error:
        raise unwritable(folder, error) from None
    lock = file_lock(hidden / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(
            f"--out {folder}: {owner_name(folder)} is running a sweep there; wait for it, help it with howlow worker "
            f"{folder}, or give another folder"
        ) from None
    except OSError as error:
        if not lacks_locks(error):  # without locks two sweeps prepare the same, and share the trials by their claims
            raise unwritable(folder, error) from None
    try:
        merged = joined(folder, settings, accept_different)
        try:
            for left in folder.glob(".sweep.toml.*.tmp"):  # by a sweep that was killed while it wrote
                left.unlink()
            write_owner(folder)
            remove_board(folder)
            (folder / "trials").mkdir(exist_ok=True)
        except OSError as error:
            raise unwritable(folder, error) from None
        yield merged
    finally:
        lock.release()


# -- running --------------------------------------------------------------------------------------------------------


def _jobs(
    pending: Sequence[TrialPlan],
    prepared: Mapping[str, Preparation],
    layouts: Mapping[str, LayoutChoice],
    heap: HeapMode,
    shared_by: int,
    first_seed: int,
) -> tuple[TrialJob, ...]:
    """The jobs of the trials that are left, for the workers; with `run.exclusive` first those whose costs count."""
    found = []
    for plan in pending:
        preparation = prepared[preparation_key(plan.settings)]
        found.append(
            TrialJob(
                name=plan.name,
                kind=plan.kind,
                rank=plan.rank,
                seed=plan.seed,
                axes=plan.axes,
                repeat=plan.repeat,
                settings=plan.settings,
                data_folder=f".howlow/{preparation.folder.name}",
                data=preparation.report.data,
                environment=preparation.report.environment,
                layout=layouts[layout_key(plan.settings)],
                is_bounded=heap == "bounded",
                cores_shared_by=shared_by,
                alone=plan.settings.run.exclusive and (plan.kind == "base" or plan.seed == first_seed),
            )
        )
    return tuple(sorted(found, key=lambda job: not job.alone))


def _devices(settings: Settings, prepared: Mapping[str, Preparation]) -> list[str | None]:
    """The device of each worker; None: as the settings say."""
    asked = settings.run.device
    gpus = max((preparation.report.gpu_uuids for preparation in prepared.values()), key=len)
    groups = groups_of(gpus, settings.run.devices_per_trial) if asked in ("auto", "cuda") else []
    devices: list[str | None] = [*groups] if len(groups) > 1 else [None]
    number = settings.run.workers or len(devices)
    return [devices[index % len(devices)] for index in range(number)]


@dataclass
class _Watch:
    """What this sweep has shown of trials that other processes run."""

    folder: Path
    claims: Claims
    names: tuple[str, ...]
    tell: Tell
    started: set[str] = field(default_factory=set)
    elsewhere: set[str] = field(default_factory=set)
    ended: set[str] = field(default_factory=set)

    def hear(self, event: SweepEvent) -> None:
        """Pass an event of our own workers on."""
        if event.event == "trial_started":
            self.started.add(event.trial)
        elif event.event == "trial_ended":
            self.ended.add(event.trial)
        self.tell(event)

    def look(self, *, is_over: bool = False) -> None:
        """Show the trials that others have begun or ended; `is_over`: our own workers have ended."""
        for name in self.names:
            if name in self.ended or (name in self.started and not is_over):
                continue
            if has_record(self.folder, name):
                self.hear(TrialEnded(trial=name, record=_ended(self.folder, name)))
            elif name not in self.elsewhere and (holder := self.claims.holder(name)):
                self.elsewhere.add(name)
                self.tell(TrialElsewhere(trial=name, holder=str(holder)))


def _run(
    runner: ForkServer, folder: Path, jobs: tuple[TrialJob, ...], devices: Sequence[str | None], tell: Tell
) -> None:
    """Run the trials with a worker a device, until each has a record, whoever ran it."""
    claims = Claims(folder)
    watch = _Watch(folder, claims, tuple(job.name for job in jobs), tell)

    def body(device: str | None, tell: Tell) -> None:
        worker = Worker(runner, folder, claims, tell, device, is_alone=len(devices) == 1)
        take_trials(worker, lambda: jobs, waits=True)

    workers: list[Callable[[Tell], None]] = [partial(body, device) for device in devices]
    with claims.renewed():
        run_workers(runner, workers, watch.hear, watch.look)
    watch.look(is_over=True)


def _ended(folder: Path, name: str) -> Record:
    record = read_record(folder / "trials" / name)
    assert record is not None, "the workers end when every trial has a record"
    return record
