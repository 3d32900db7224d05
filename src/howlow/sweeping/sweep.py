"""The grid of trials: what is left to do, in which order, each in a process of its own, and how a sweep goes on.

The run directory is the whole memory of a sweep. A trial with a record is done; one without is run, from its last
checkpoint if it has one. So a sweep that was killed at any instant is continued by the same command.
"""

import json
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from howlow.batch_search.driver import (
    Place,
    SearchFailedError,
    largest_batch,
    nothing_fits,
    searched_settings,
)
from howlow.errors import UserError
from howlow.executors.local import LocalExecutor
from howlow.outcomes import DiskFullError, Finished, is_disk_full, is_held, kernel_kills, ran_out_of_memory
from howlow.records import (
    BatchSearch,
    HeapMode,
    LayoutChoice,
    Provenance,
    Record,
    Status,
    read_record,
    read_records,
    write_atomically,
    write_record,
)
from howlow.records.resolved import resolved_before
from howlow.records.run_directory import (
    joined,
    left_behind,
    out_folder,
    refuse_foreign,
    refuse_other_settings,
    set_aside,
)
from howlow.settings import Settings, TrialPlan, expand, layout_key, preparation_key, to_toml
from howlow.sweeping.setup import (
    Preparation,
    check_space,
    choose_layouts,
    prepare,
    refuse_changed_data,
    unwritable,
)

RETRYABLE: tuple[Status, ...] = ("failed", "out_of_memory", "diverged")


@dataclass(frozen=True)
class Event:
    """Something that a person watching wants to know; `kind` says which of the other fields are set."""

    kind: str  # "preparing", "prepared", "started", "probed", "waiting", "progress", "ended"
    plan: TrialPlan | None = None
    done: int = 0
    total: int = 0
    progress: Mapping[str, Any] = field(default_factory=dict)
    record: Record | None = None
    text: str = ""


Listener = Callable[[Event], None]


@dataclass(frozen=True)
class SweepResult:
    """The records of the trials that were asked for, and the folder."""

    folder: Path
    records: tuple[Record, ...]

    @property
    def failed(self) -> tuple[Record, ...]:
        """Trials that did not end as done."""
        return tuple(record for record in self.records if record.status != "done")


@dataclass(frozen=True)
class DryRun:
    """What a sweep would do: run those of its `plans` that have not `ended` (name -> status) and go on no more."""

    plans: tuple[TrialPlan, ...]
    ended: Mapping[str, Status]
    preparations: tuple[Preparation, ...]

    @property
    def to_run(self) -> tuple[str, ...]:
        """The names of the trials that would be run, in their order."""
        return tuple(plan.name for plan in self.plans if plan.name not in self.ended)

    @property
    def searched(self) -> tuple[str, ...]:
        """The settings that are "max" in any of them."""
        pending = [plan for plan in self.plans if plan.name not in self.ended]
        return tuple(dict.fromkeys(setting for plan in pending for setting in searched_settings(plan)))


def sweep(
    settings: Settings,
    out: Path | str,
    *,
    retry: Sequence[Status] = (),
    accept_different: Sequence[str] = (),
    on_event: Listener | None = None,
) -> SweepResult:
    """Run, or go on with, the sweep that `settings` describes in the folder `out`.

    Args:
        settings: resolved settings (`howlow.load_settings`).
        out: the run directory; made if missing.
        retry: statuses whose trials are run again; the old files are kept under `attempts/`.
        accept_different: keys that may differ from what the folder's trials ran with (`howlow.records.comparability`).
        on_event: told about progress.

    Raises:
        UserError: found before the first trial: other settings in the folder, wrong data, an unknown model, ...
        DiskFullError: in mid-sweep; nothing finished is lost.
        KeyboardInterrupt: after the running trial has written its checkpoint.
    """
    folder, listener = out_folder(out), on_event or (lambda event: None)
    with _opened(folder, settings, accept_different) as merged:
        plans = ordered(expand(settings), settings.run.order_seed)
        existing, again = _existing(folder, plans, retry)
        left, heap = left_behind(folder, existing), _heap_of(expand(merged))
        refuse_other_settings(folder, left, merged, accept_different)
        listener(Event("preparing"))
        executor = LocalExecutor()
        prepared = prepare(executor, plans, folder / ".howlow")
        refuse_changed_data(folder, left, prepared, expand(merged), heap, accept_different)
        check_space(folder, prepared.values(), plans)
        pending = [plan for plan in plans if plan.name not in existing]
        layouts = choose_layouts(executor, plans, pending, prepared, folder / ".howlow")
        write_atomically(folder / "sweep.toml", to_toml(merged))
        for name in again:
            set_aside(folder / "trials" / name)
        listener(Event("prepared", total=len(plans), done=len(plans) - len(pending)))
        _run_all(executor, plans, existing, prepared, layouts, heap, folder, listener)
        return SweepResult(folder, tuple(existing[plan.name] for plan in plans))


def dry_run(
    settings: Settings,
    out: Path | str | None = None,
    *,
    retry: Sequence[Status] = (),
    accept_different: Sequence[str] = (),
) -> DryRun:
    """What `sweep` would do with these settings, without running a trial or writing into `out`.

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
    with tempfile.TemporaryDirectory(prefix="howlow-") as scratch:
        prepared = prepare(LocalExecutor(), plans, Path(scratch))
    refuse_changed_data(folder, left, prepared, expand(merged), _heap_of(expand(merged)), accept_different)
    ended = {plan.name: existing[plan.name].status for plan in plans if plan.name in existing}
    return DryRun(tuple(plans), ended, tuple(prepared.values()))


def _existing(
    folder: Path, plans: Sequence[TrialPlan], retry: Sequence[Status]
) -> tuple[dict[str, Record], tuple[str, ...]]:
    """The records in the folder, and the names of the trials whose records count no longer: they are run again."""
    records = {record.trial: record for record in read_records(folder)} if (folder / "trials").is_dir() else {}
    asked = {plan.name for plan in plans}
    again = tuple(name for name, record in records.items() if name in asked and record.status in retry)
    return {name: record for name, record in records.items() if name not in again}, again


def _heap_of(plans: Sequence[TrialPlan]) -> HeapMode:
    """How all trials of a sweep keep freed memory: bounded as soon as one has a limit, or a batch size of "max"."""
    is_bounded = any(plan.settings.run.memory_limit_bytes or searched_settings(plan) for plan in plans)
    return "bounded" if is_bounded else "kept"


def ordered(plans: Sequence[TrialPlan], order_seed: int) -> list[TrialPlan]:
    """Zero-shot baselines first, then everything else shuffled, so that heat and drift do not line up with the rank."""
    first = [plan for plan in plans if plan.kind == "base"]
    rest = [plan for plan in plans if plan.kind != "base"]
    random.Random(order_seed).shuffle(rest)
    return first + rest


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
        raise UserError(f"--out {folder}: {error.strerror}") from None
    lock = FileLock(hidden / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        owner = _owner(hidden)
        raise UserError(
            f"--out {folder}: {owner} is running a sweep there; wait for it, or give another folder"
        ) from None
    except OSError as error:
        raise UserError(f"--out {folder}: cannot be written to: {error.strerror}") from None
    try:
        merged = joined(folder, settings, accept_different)
        try:
            for left in folder.glob(".sweep.toml.*.tmp"):  # by a sweep that was killed while it wrote
                left.unlink()
            (hidden / "owner.json").write_text(json.dumps({"pid": os.getpid()}), encoding="utf-8")
            (folder / "trials").mkdir(exist_ok=True)
        except OSError as error:
            raise unwritable(folder, error) from None
        yield merged
    finally:
        lock.release()


def _owner(hidden: Path) -> str:
    try:
        return f"process {json.loads((hidden / 'owner.json').read_text(encoding='utf-8'))['pid']}"
    except (OSError, ValueError, KeyError):
        return "another process"


# -- running --------------------------------------------------------------------------------------------------------


def _run_all(
    executor: LocalExecutor,
    plans: Sequence[TrialPlan],
    existing: dict[str, Record],
    prepared: Mapping[str, Preparation],
    layouts: Mapping[str, dict[str, Any]],
    heap: HeapMode,
    folder: Path,
    listener: Listener,
) -> None:
    pending = [plan for plan in plans if plan.name not in existing]
    idle: dict[str, Any] | None = None
    for index, plan in enumerate(pending):
        done, trial = len(plans) - len(pending) + index, folder / "trials" / plan.name
        listener(Event("started", plan, done=done, total=len(plans)))
        preparation, layout = prepared[preparation_key(plan.settings)], layouts[layout_key(plan.settings)]
        if not index:  # before a search has heated the device
            idle = _idle(executor, plan.settings, folder / ".howlow" / "idle.log", 0.0)
        record = _search_batches(executor, plan, preparation, layout, heap, folder, listener)
        if not isinstance(record, Record):
            rest_s = plan.settings.run.cooldown_s if index else 0.0
            if rest_s:
                listener(Event("waiting", plan, text=f"cooling down, at most {rest_s:g} s"))
                idle = _idle(executor, plan.settings, folder / ".howlow" / "idle.log", rest_s)
            record = _run_one(executor, plan, record, heap, preparation, layout, trial, idle, listener)
        existing[plan.name] = record
        listener(Event("ended", plan, done=done + 1, total=len(plans), record=record))


def _search_batches(
    executor: LocalExecutor,
    plan: TrialPlan,
    preparation: Preparation,
    layout: Mapping[str, Any],
    heap: HeapMode,
    folder: Path,
    listener: Listener,
) -> list[BatchSearch] | Record:
    """The largest batches of a trial that asks for them; its record where there is none to run with."""
    trial, searches = folder / "trials" / plan.name, list[BatchSearch]()
    environment = preparation.report["environment"]
    keys = ("device_name", "cpu", "cores", "threads", "versions")
    basis = {"data": preparation.report["data"], **{key: environment[key] for key in keys}}
    place = Place(folder / ".howlow", preparation.folder, layout, basis, environment["device"])
    record: Record | None = None
    try:
        for setting in searched_settings(plan):
            tell = partial(_tell_probe, listener, plan, setting)
            searches.append(largest_batch(executor, plan, setting, place, tell))
            if searches[-1].batch is None:
                record = _record_without_trial(
                    plan, "out_of_memory", nothing_fits(searches[-1]), searches, layout, heap
                )
                break
    except SearchFailedError as problem:
        record = _record_without_trial(plan, "failed", str(problem), searches, layout, heap)
    except OSError as error:
        if is_disk_full(error):
            raise DiskFullError(f"{place.folder}: {error.strerror}") from None
        raise
    if record is None:
        return searches
    trial.mkdir(parents=True, exist_ok=True)
    write_record(trial, record)
    return record


def _tell_probe(listener: Listener, plan: TrialPlan, setting: str, probe: Mapping[str, Any]) -> None:
    listener(Event("probed", plan, progress={"setting": setting, **probe}))


def _idle(executor: LocalExecutor, settings: Settings, log: Path, rest_s: float) -> dict[str, Any] | None:
    """Rest, and then the device's idle power, or why it is `absent`; None where no source could read it.

    Raises:
        UserError: `meters.devices` names what is not there.
    """
    if settings.meters.energy in ("none", "assumed"):
        time.sleep(rest_s)
        return None
    payload = {"settings": settings.model_dump_json(), "rest_s": rest_s}
    finished = executor.run("howlow.trial.entries.idle_entry", payload, log)
    if finished.outcome == "user_error":
        raise UserError(finished.value)
    if finished.outcome == "stopped":
        raise KeyboardInterrupt
    if finished.outcome != "result":
        return {"absent": f"the process that was to read it ended: {finished.outcome}, {finished.value}"}
    idle: dict[str, Any] | None = finished.value
    return idle


def _run_one(
    executor: LocalExecutor,
    plan: TrialPlan,
    searches: Sequence[BatchSearch],
    heap: HeapMode,
    preparation: Preparation,
    layout: dict[str, Any],
    trial: Path,
    idle: Mapping[str, Any] | None,
    listener: Listener,
) -> Record:
    payload = {
        "name": plan.name,
        "kind": plan.kind,
        "axes": plan.axes,
        "settings": plan.settings.model_dump_json(),
        "folder": str(trial),
        "data": str(preparation.folder),
        "layout": layout,
        "idle": idle,
        "batch_search": [search.model_dump() for search in searches],
        "is_bounded": heap == "bounded",
    }
    kills_before = kernel_kills()
    try:
        trial.mkdir(parents=True, exist_ok=True)
        finished = executor.run(
            "howlow.trial.entries.trial_entry",
            payload,
            trial / "log.txt",
            lambda kind, value: listener(Event(kind, plan, progress=value)),
        )
        if finished.outcome == "stopped":
            raise KeyboardInterrupt
        if finished.outcome == "disk_full":
            raise DiskFullError(f"{trial}: {finished.value}")
        if finished.outcome != "result":
            limited = plan.settings.run.memory_limit_bytes is not None and is_held(preparation.environment.device)
            memory = ran_out_of_memory(finished, trial / "log.txt", kernel_kills() > kills_before, limited)
            write_record(trial, _record_death(plan, searches, trial, finished, memory, layout, heap))
    except OSError as error:
        if is_disk_full(error):
            raise DiskFullError(f"{trial}: {error.strerror}") from None
        raise
    record = read_record(trial)
    assert record is not None, "a trial that returned has written its record"
    return record


def _record_death(
    plan: TrialPlan,
    searches: Sequence[BatchSearch],
    trial: Path,
    finished: Finished,
    memory: bool,
    layout: Mapping[str, Any],
    heap: HeapMode,
) -> Record:
    """The record of a trial whose process died without leaving one."""
    cause = str(finished.value)
    if finished.exit_signal is not None:
        cause = f"killed by signal {finished.exit_signal}"
    if memory:
        cause += " (the kernel was out of memory)" if finished.exit_signal == 9 else " (an allocation failed)"
    error = f"the trial's process ended: {cause}; see {trial / 'log.txt'}"
    return _record_without_trial(plan, "out_of_memory" if memory else "failed", error, searches, layout, heap)


def _record_without_trial(
    plan: TrialPlan,
    status: Status,
    error: str,
    searches: Sequence[BatchSearch],
    layout: Mapping[str, Any],
    heap: HeapMode,
) -> Record:
    """The record of a trial that cannot write its own."""
    return Record(
        trial=plan.name,
        kind=plan.kind,
        rank=plan.rank,
        seed=plan.seed,
        axes=plan.axes,
        status=status,
        error=error,
        settings=plan.settings,
        resolved=resolved_before(plan.kind, plan.settings, LayoutChoice(**layout), searches, heap),
        environment=None,
        model=None,
        data=None,
        batch_search=tuple(searches),
    )
