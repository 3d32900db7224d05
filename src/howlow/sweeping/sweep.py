"""A sweep: the grid of trials in an order, which of them are left, and the workers that run them.

The run directory is the whole memory of a sweep. A trial with a record is done; one without is run, from its last
checkpoint if it has one. So the same command resumes a sweep that was killed at any instant.
"""

import random
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from filelock import Timeout

from howlow.batch_search.driver import searched_settings
from howlow.claims import Claims
from howlow.errors import UserError
from howlow.executors.fork_server import ForkServer
from howlow.executors.local import run_workers
from howlow.jobs import Link, Preparing, SweepEvent, SweepPrepared, Tell, TrialJob
from howlow.jobs.remote import PrepareSweepJob
from howlow.locks import file_lock, lacks_locks
from howlow.node import place_of_tickets, refuse_no_node
from howlow.records import (
    HeapMode,
    LayoutChoice,
    Provenance,
    Record,
    Status,
    groups_of,
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
from howlow.sweeping.elsewhere import Elsewhere, cluster_of
from howlow.sweeping.rehearsal import DryRun, scratch_folder
from howlow.sweeping.setup import (
    Preparation,
    check_space,
    choose_layouts,
    foretell,
    prepare_all,
    refuse_changed_data,
    unwritable,
)
from howlow.sweeping.watching import Watch, record_that_ended
from howlow.worker.board import owner_name, read_board, remove_board, write_board, write_owner
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
    with opened(folder, settings, accept_different) as merged:
        if settings.run.executor == "local":
            runner = ForkServer()
            ready, prepared = _prepared(runner, folder, settings, merged, retry, accept_different, tell)
            run = partial(_run, runner, folder, devices=_devices(settings, prepared), tell=tell)
            return _in_rounds(folder, ready, rounds, run)
        with cluster_of(settings, folder) as cluster:
            elsewhere = Elsewhere(folder, cluster, accept_different, tell)
            tell(Preparing())
            tell(elsewhere.prepare(settings, retry))
            write_owner(folder)  # it was the process that prepared
            return _in_rounds(folder, _prepared_elsewhere(folder, settings), rounds, elsewhere.run)


def prepare_sweep_entry(job: PrepareSweepJob, link: Link) -> SweepPrepared:
    """Prepare a sweep for workers elsewhere, in the name of the process that has locked its folder."""
    folder, accepted = job.submitter.run_directory, job.submitter.accept_different
    merged, told = joined(folder, job.settings, accepted), list[SweepEvent]()
    write_owner(folder)
    remove_board(folder)
    ready, _ = _prepared(ForkServer(), folder, job.settings, merged, job.retry, accepted, told.append)
    write_board(folder, ready.jobs)
    return next(event for event in told if isinstance(event, SweepPrepared))


@dataclass(frozen=True)
class _Ready:
    """A prepared sweep: its trials, the records of those that have ended, and the jobs of those that have not."""

    plans: Sequence[TrialPlan]
    existing: dict[str, Record]
    jobs: tuple[TrialJob, ...]


def _prepared_elsewhere(folder: Path, settings: Settings) -> _Ready:
    """The sweep that a cluster has prepared."""
    plans, board = ordered(expand(settings), settings.run.order_seed), read_board(folder)
    assert board is not None, "a preparation that returned has written its board"
    return _Ready(plans, {record.trial: record for record in read_records(folder)}, board.trials)


def _prepared(
    runner: ForkServer,
    folder: Path,
    settings: Settings,
    merged: Settings,
    retry: Sequence[Status],
    accept_different: Sequence[str],
    tell: Tell,
) -> tuple[_Ready, Mapping[str, Preparation]]:
    """Prepare a sweep on this machine."""
    plans = ordered(expand(settings), settings.run.order_seed)
    existing, again = _existing(folder, plans, retry)
    left, heap = left_behind(folder, existing), _heap_of(expand(merged))
    refuse_other_settings(folder, left, merged, accept_different)
    if settings.run.exclusive:
        refuse_no_node()
    tell(Preparing())
    shared_by = processes_of(settings)
    prepared = prepare_all(runner, plans, folder / ".howlow", cores_shared_by=shared_by)
    refuse_changed_data(folder, left, prepared, expand(merged), heap, accept_different)
    check_space(folder, prepared.values(), plans)
    pending = [plan for plan in plans if plan.name not in existing]
    hidden = folder / ".howlow"
    layouts = choose_layouts(runner, plans, pending, prepared, hidden, left, cores_shared_by=shared_by)
    if pending or not (folder / "sweep.toml").exists():  # else it says what was measured, whatever is accepted now
        write_atomically(folder / "sweep.toml", to_toml(merged))
    for name in again:
        set_aside(folder / "trials" / name)
    jobs = _jobs(pending, prepared, layouts, heap, shared_by, merged.grid["seed"][0])
    sizes = tuple(one.sizes for one in prepared.values() if one.sizes is not None)
    tell(SweepPrepared(total=len(plans), done=len(plans) - len(pending), sizes=sizes))
    return _Ready(plans, existing, jobs), prepared


def _in_rounds(
    folder: Path, ready: _Ready, rounds: Rounds | None, run: Callable[[tuple[TrialJob, ...]], None]
) -> SweepResult:
    """Run the trials that have no record, in rounds."""
    plans, existing = ready.plans, dict(ready.existing)
    for names in [[plan.name for plan in plans]] if rounds is None else rounds(plans):
        chosen = tuple(job for job in ready.jobs if job.name in names and job.name not in existing)
        write_board(folder, chosen)
        if chosen:
            run(chosen)
        existing |= {job.name: record_that_ended(folder, job.name) for job in chosen}
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
    with scratch_folder() as scratch:
        prepared = prepare_all(runner, plans, scratch, cores_shared_by=processes_of(settings))
        refuse_changed_data(folder, left, prepared, expand(merged), _heap_of(expand(merged)), accept_different)
        layouts = choose_layouts(runner, plans, pending, prepared, scratch)
        warnings = foretell(runner, pending, layouts, scratch)
    ended = {plan.name: existing[plan.name].status for plan in plans if plan.name in existing}
    return DryRun(tuple(plans), ended, tuple(prepared.values()), warnings)


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
def opened(folder: Path, settings: Settings, accept_different: Sequence[str]) -> Iterator[Settings]:
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
            if settings.run.executor == "local":  # a cluster prepares later, and its workers may be at work now
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


def _run(
    runner: ForkServer, folder: Path, jobs: tuple[TrialJob, ...], *, devices: Sequence[str | None], tell: Tell
) -> None:
    """Run the trials with a worker a device, until each has a record, whoever ran it."""
    claims = Claims(folder, node=place_of_tickets())
    watch = Watch(folder, claims, tuple(job.name for job in jobs), tell)

    def body(device: str | None, tell: Tell) -> None:
        worker = Worker(runner, folder, claims, tell, device, is_alone=len(devices) == 1)
        take_trials(worker, lambda: jobs, waits=True)

    workers: list[Callable[[Tell], None]] = [partial(body, device) for device in devices]
    with claims.renewed():
        run_workers(runner, workers, watch.hear, watch.look)
    watch.look(is_over=True)
