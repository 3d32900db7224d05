"""The grid of trials: what is left to do, in which order, each in a process of its own, and how a sweep goes on.

The run directory is the whole memory of a sweep. A trial with a record is done; one without is run, from its last
checkpoint if it has one. So a sweep that was killed at any instant is continued by the same command.
"""

import hashlib
import json
import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from howlow.errors import UserError
from howlow.executors import Finished, LocalExecutor, is_disk_full
from howlow.records import (
    Environment,
    Record,
    RecordWarning,
    Status,
    clear_temporaries,
    read_record,
    read_records,
    write_atomically,
    write_record,
)
from howlow.settings import Settings, TrialPlan, expand, first_difference, load, to_toml, united

RETRYABLE: tuple[Status, ...] = ("failed", "out_of_memory", "diverged")
_SMALLEST_FREE_BYTES = 4 << 20
_PREPARATION_KEYS = (
    "model",
    "tokenizer",
    "revision",
    "trust_remote_code",
    "random_weights",
    "task",
    "training.sequence_length",
    "inference.max_new_tokens",
)


class DiskFullError(Exception):
    """No space is left: what is measured stays, the same command goes on when there is room."""


@dataclass(frozen=True)
class Preparation:
    """What was prepared for the trials that share task, tokenizer and sequence length."""

    folder: Path
    report: dict[str, Any]

    @property
    def warnings(self) -> list[RecordWarning]:
        """What the data and the model gave rise to."""
        return [RecordWarning(**warning) for warning in self.report["warnings"]]


@dataclass(frozen=True)
class Event:
    """Something that a person watching wants to know; `kind` says which of the other fields are set."""

    kind: str  # "preparing", "prepared", "started", "progress", "ended", "waiting"
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
    """What a sweep would do."""

    plans: tuple[TrialPlan, ...]
    finished: tuple[str, ...]
    preparations: tuple[Preparation, ...]


def sweep(
    settings: Settings, out: Path | str, *, retry: Sequence[Status] = (), on_event: Listener | None = None
) -> SweepResult:
    """Run, or go on with, the sweep that `settings` describes in the folder `out`.

    Args:
        settings: resolved settings (`howlow.load_settings`).
        out: the run directory; made if missing.
        retry: statuses whose trials are run again; the old files are kept under `attempts/`.
        on_event: told about progress.

    Raises:
        UserError: found before the first trial: other settings in the folder, wrong data, an unknown model, ...
        DiskFullError: in mid-sweep; nothing finished is lost.
        KeyboardInterrupt: after the running trial has written its checkpoint.
    """
    folder, listener = Path(out), on_event or (lambda event: None)
    with _opened(folder, settings) as merged:
        plans = ordered(expand(settings), settings.run.order_seed)
        existing = {record.trial: record for record in read_records(folder)}
        listener(Event("preparing"))
        executor = LocalExecutor()
        prepared = _prepare(executor, plans, folder / ".howlow")
        for preparation in prepared.values():
            _refuse_changed(existing.values(), preparation, plans)
        _check_space(folder, prepared.values(), plans)
        write_atomically(folder / "sweep.toml", to_toml(merged))
        for plan in plans:
            if plan.name in existing and existing[plan.name].status in retry:
                _set_aside(folder / "trials" / plan.name)
                del existing[plan.name]
        listener(Event("prepared", total=len(plans), done=sum(plan.name in existing for plan in plans)))
        _run_all(executor, plans, existing, prepared, folder, listener)
        return SweepResult(folder, tuple(existing[plan.name] for plan in plans))


def dry_run(settings: Settings, out: Path | None = None) -> DryRun:
    """What `sweep` would do with these settings, without running a trial or writing into `out`.

    Raises:
        UserError: as in `sweep`.
    """
    finished: tuple[str, ...] = ()
    if out is not None and (out / "sweep.toml").exists():
        _refuse_other(out, settings)
        finished = tuple(record.trial for record in read_records(out))
    plans = ordered(expand(settings), settings.run.order_seed)
    with tempfile.TemporaryDirectory(prefix="howlow-") as scratch:
        prepared = _prepare(LocalExecutor(), plans, Path(scratch))
    return DryRun(tuple(plans), finished, tuple(prepared.values()))


def ordered(plans: Sequence[TrialPlan], order_seed: int) -> list[TrialPlan]:
    """Zero-shot baselines first, then everything else shuffled, so that heat and drift do not line up with the rank."""
    first = [plan for plan in plans if plan.kind == "base"]
    rest = [plan for plan in plans if plan.kind != "base"]
    random.Random(order_seed).shuffle(rest)
    return first + rest


# -- the folder -----------------------------------------------------------------------------------------------------


@contextmanager
def _opened(folder: Path, settings: Settings) -> Iterator[Settings]:
    """Lock the folder; gives the settings of the sweep in it joined with those asked for now."""
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
        merged = _refuse_other(folder, settings)
        try:
            (hidden / "owner.json").write_text(json.dumps({"pid": os.getpid()}), encoding="utf-8")
            (folder / "trials").mkdir(exist_ok=True)
        except OSError as error:
            raise _unwritable(folder, error) from None
        yield merged
    finally:
        lock.release()


def _unwritable(folder: Path, error: OSError) -> UserError:
    if is_disk_full(error):
        return UserError(f"--out {folder}: the disk is full; make room or give a folder on another disk")
    return UserError(f"--out {folder}: {error.strerror}")


def _owner(hidden: Path) -> str:
    try:
        return f"process {json.loads((hidden / 'owner.json').read_text(encoding='utf-8'))['pid']}"
    except (OSError, ValueError, KeyError):
        return "another process"


def _refuse_other(folder: Path, settings: Settings) -> Settings:
    """The folder's own sweep joined with this one; a folder with another sweep, or other things, is refused."""
    if not (folder / "sweep.toml").exists():
        clear_temporaries(folder)
        foreign = [entry.name for entry in folder.iterdir() if entry.name not in (".howlow", "trials")]
        if foreign:
            raise UserError(f"--out {folder}: holds other files ({sorted(foreign)[0]}) and no sweep; give a new folder")
        return settings
    there = load(str(folder / "sweep.toml"))
    difference = first_difference(there, settings)
    if difference is not None:
        key, old, new = difference
        raise UserError(
            f"--out {folder}: holds another sweep: {key} is {old!r} there and {new!r} now; give another folder, or the "
            f"same settings (howlow sweep {folder / 'sweep.toml'} --out {folder})"
        )
    return united(there, settings)


def _set_aside(trial: Path) -> None:
    """Keep an earlier attempt's files under `attempts/`, so that the trial starts afresh."""
    attempts = trial / "attempts"
    number = 1 + sum(entry.is_dir() for entry in attempts.iterdir()) if attempts.exists() else 1
    target = attempts / str(number)
    target.mkdir(parents=True)
    record = trial / "record.json"
    for entry in sorted(trial.iterdir(), key=lambda entry: entry == record):
        if entry.name not in ("attempts", ".lock"):
            entry.rename(target / entry.name)


# -- preparing ------------------------------------------------------------------------------------------------------


def _preparation_key(settings: Settings) -> str:
    values = [settings.get(key) for key in _PREPARATION_KEYS]
    plain = [value.model_dump() if hasattr(value, "model_dump") else value for value in values]
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]


def _prepare(executor: LocalExecutor, plans: Sequence[TrialPlan], folder: Path) -> dict[str, Preparation]:
    """Prepare once for each combination of model, task and lengths among the trials."""
    prepared: dict[str, Preparation] = {}
    for plan in plans:
        key = _preparation_key(plan.settings)
        if key in prepared:
            continue
        alike = [other for other in plans if other.kind == "lora" and _preparation_key(other.settings) == key]
        adapters = {(other.settings.lora.rank, other.settings.lora.target_modules) for other in alike}
        payload = {
            "settings": plan.settings.model_dump_json(),
            "adapters": sorted(adapters),
            "folder": str(folder / f"prepared-{key}"),
        }
        try:
            folder.mkdir(parents=True, exist_ok=True)
            finished = executor.run("howlow.trial.prepare_entry", payload, folder / "preparation.log")
        except OSError as error:
            raise _unwritable(folder.parent, error) from None
        prepared[key] = Preparation(folder / f"prepared-{key}", _checked(finished, folder))
    return prepared


def _checked(finished: Finished, folder: Path) -> dict[str, Any]:
    if finished.outcome == "result":
        report: dict[str, Any] = finished.value
        return report
    if finished.outcome == "user_error":
        raise UserError(finished.value)
    if finished.outcome == "disk_full":
        raise UserError(f"--out {folder.parent}: the disk is full ({finished.value}); make room or give another folder")
    if finished.outcome == "stopped":
        raise KeyboardInterrupt
    log = folder / "preparation.log"
    written = log.read_text(errors="replace")[-4000:] if log.exists() else "(no log)"
    raise RuntimeError(f"preparing the data ended with {finished.value}:\n{written}")


def _refuse_changed(records: Sequence[Record] | Any, preparation: Preparation, plans: Sequence[TrialPlan]) -> None:
    """Going on with other data or on another machine would mix what cannot be compared."""
    environment = Environment(**preparation.report["environment"])
    here = {plan.name: plan for plan in plans}
    for record in records:
        if record.trial not in here or _preparation_key(here[record.trial].settings) != preparation.folder.name[9:]:
            continue
        if record.data is not None:
            for side in ("train_sha256", "test_sha256"):
                old, new = getattr(record.data, side), preparation.report["data"][side]
                if old != new:
                    raise UserError(
                        f"the data has changed since {record.trial} was measured: data.{side} was {old[:12]}, is "
                        f"{new[:12]}; give another --out folder"
                    )
        if record.environment is not None:
            for key in ("device_name", "cpu", "cores", "versions"):
                old, new = getattr(record.environment, key), getattr(environment, key)
                if old != new:
                    raise UserError(
                        f"{record.trial} was measured elsewhere: environment.{key} was {old!r}, is {new!r}; figures "
                        "measured differently are not compared, give another --out folder"
                    )


def _check_space(folder: Path, prepared: Any, plans: Sequence[TrialPlan]) -> None:
    """Refuse to start where the largest trial cannot write its checkpoint and adapter.

    A checkpoint holds the weights and AdamW's two moments in fp32; a new one is written before the old one goes.
    """
    full = any(plan.kind == "full" for plan in plans)
    parameters = max(max([0, *preparation.report["adapter_parameters"]], default=0) for preparation in prepared)
    if full:
        parameters = max(parameters, *(preparation.report["total_parameters"] for preparation in prepared))
    needed = _SMALLEST_FREE_BYTES + parameters * 4 * (1 + 2 * 3)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"--out {folder}: {free / 1e6:.0f} MB are free on that disk, the largest trial needs about "
            f"{needed / 1e6:.0f} MB for its checkpoint; make room or give another folder"
        )


# -- running --------------------------------------------------------------------------------------------------------


def _run_all(
    executor: LocalExecutor,
    plans: Sequence[TrialPlan],
    existing: dict[str, Record],
    prepared: Mapping[str, Preparation],
    folder: Path,
    listener: Listener,
) -> None:
    pending = [plan for plan in plans if plan.name not in existing]
    idle: dict[str, Any] | None = None
    for index, plan in enumerate(pending):
        rest_s = plan.settings.run.cooldown_s if index else 0.0
        if rest_s:
            listener(Event("waiting", plan, text=f"cooling down, at most {rest_s:g} s"))
        if rest_s or not index:
            idle = _idle(executor, plan.settings, folder / ".howlow" / "idle.log", rest_s)
        done = len(plans) - len(pending) + index
        listener(Event("started", plan, done=done, total=len(plans)))
        preparation = prepared[_preparation_key(plan.settings)]
        record = _run_one(executor, plan, preparation, folder / "trials" / plan.name, idle, listener)
        existing[plan.name] = record
        listener(Event("ended", plan, done=done + 1, total=len(plans), record=record))


def _idle(executor: LocalExecutor, settings: Settings, log: Path, rest_s: float) -> dict[str, Any] | None:
    """Rest, and then the device's idle power; None where no source reads it.

    Raises:
        UserError: `meters.devices` names what is not there.
    """
    if settings.meters.energy in ("none", "assumed"):
        time.sleep(rest_s)
        return None
    payload = {"settings": settings.model_dump_json(), "rest_s": rest_s}
    finished = executor.run("howlow.trial.idle_entry", payload, log)
    if finished.outcome == "user_error":
        raise UserError(finished.value)
    if finished.outcome == "stopped":
        raise KeyboardInterrupt
    idle: dict[str, Any] | None = finished.value if finished.outcome == "result" else None
    return idle


def _run_one(
    executor: LocalExecutor,
    plan: TrialPlan,
    preparation: Preparation,
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
        "idle": idle,
    }
    kills_before = _kernel_kills()
    try:
        trial.mkdir(parents=True, exist_ok=True)
        finished = executor.run(
            "howlow.trial.trial_entry",
            payload,
            trial / "log.txt",
            lambda kind, value: listener(Event(kind, plan, progress=value)),
        )
        if finished.outcome == "stopped":
            raise KeyboardInterrupt
        if finished.outcome == "disk_full":
            raise DiskFullError(f"{trial}: {finished.value}")
        if finished.outcome != "result":
            _record_death(plan, trial, finished, killed_by_kernel=_kernel_kills() > kills_before)
    except OSError as error:
        if is_disk_full(error):
            raise DiskFullError(f"{trial}: {error.strerror}") from None
        raise
    record = read_record(trial)
    assert record is not None, "a trial that returned has written its record"
    return record


def _record_death(plan: TrialPlan, trial: Path, finished: Finished, killed_by_kernel: bool) -> None:
    """The record of a trial whose process died without leaving one."""
    log = (trial / "log.txt").read_text(encoding="utf-8", errors="replace")[-4000:]
    allocation = any(text in log for text in ("bad_alloc", "can't allocate memory", "out of memory", "MemoryError"))
    memory = (finished.exit_signal == 9 and killed_by_kernel) or (finished.exit_signal != 9 and allocation)
    cause = str(finished.value)
    if finished.exit_signal is not None:
        cause = f"killed by signal {finished.exit_signal}"
    if memory:
        cause += " (the kernel was out of memory)" if finished.exit_signal == 9 else " (an allocation failed)"
    record = Record(
        trial=plan.name,
        kind=plan.kind,
        rank=plan.rank,
        seed=plan.seed,
        axes=plan.axes,
        status="out_of_memory" if memory else "failed",
        error=f"the trial's process ended: {cause}; see {trial / 'log.txt'}",
        settings=plan.settings,
        environment=None,
        model=None,
        data=None,
    )
    write_record(trial, record)


def _kernel_kills() -> int:
    """How many processes the kernel has killed for want of memory since it started (0 where it does not say)."""
    try:
        lines = Path("/proc/vmstat").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)
