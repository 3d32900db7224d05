"""The record of a trial that cannot write its own: its process died, or no batch fits.

The kernel kills without a word, and a library that cannot allocate may crash. A worker knows how the process ended,
the trial's log, its last checkpoint and its timeline. Phases that had ended keep their figures.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from howlow.errors import UserError
from howlow.jobs import TrialJob
from howlow.outcomes import Unfinished, end_of_log, limits_process, ran_out_of_memory, requested_bytes
from howlow.records import BatchSearch, MemoryShortage, Reading, Record, Status, read_timeline
from howlow.records.resolved import resolved_before
from howlow.records.run_directory import phases_before_death


@dataclass(frozen=True)
class Diagnosis:
    """How a trial ended, and what is known of its memory where it was short of it."""

    status: Status
    error: str
    shortage: MemoryShortage | None = None


def diagnose(trial: TrialJob, folder: Path, ended: Unfinished, device: str, killed_by_kernel: bool) -> Diagnosis:
    """What ended a trial's process; `device`: the one that it ran on."""
    log = folder / "log.txt"
    is_limited = trial.settings.run.memory_limit_bytes is not None and limits_process(device)
    no_memory = ran_out_of_memory(ended, log, killed_by_kernel, is_limited)
    cause = ended.problem if ended.exit_signal is None else f"killed by signal {ended.exit_signal}"
    if no_memory:
        cause += " (the kernel was out of memory)" if ended.exit_signal == 9 else " (an allocation failed)"
    error = f"the trial's process ended: {cause}; see {log}"
    return Diagnosis("out_of_memory", error, _left(trial, folder, device)) if no_memory else Diagnosis("failed", error)


def _left(trial: TrialJob, folder: Path, device: str) -> MemoryShortage:
    """What the log and the last readings say of the memory."""
    readings = _last_readings(folder)
    in_use = [reading.memory_bytes for reading in readings if reading.device == device and reading.memory_bytes]
    machine = trial.environment
    whole = machine.memory_bytes if limits_process(device) else machine.device_memory_bytes
    return MemoryShortage(
        source="timeline",
        phase=readings[-1].phase if readings else None,
        peak_memory_bytes=max(in_use, default=None),
        requested_bytes=requested_bytes(end_of_log(folder / "log.txt")),
        limit_bytes=trial.settings.run.memory_limit_bytes or whole,
    )


def _last_readings(folder: Path) -> list[Reading]:
    """The readings of the phase in which the process died, oldest first."""
    try:
        readings = read_timeline(folder)
    except UserError:  # a damaged line
        return []
    return [*takewhile(lambda reading: reading.phase == readings[-1].phase, reversed(readings))][::-1]


def too_large(search: BatchSearch, error: str) -> Diagnosis:
    """A trial that is not run, because not even one example fits."""
    one = next(probe for probe in search.probes if probe.batch == 1)
    shortage = MemoryShortage(source="probe", held_bytes=one.peak_memory_bytes, limit_bytes=search.budget_bytes)
    return Diagnosis("out_of_memory", error, shortage)


def record_instead(trial: TrialJob, folder: Path, found: Diagnosis, searches: Sequence[BatchSearch]) -> Record:
    """The record that the trial's own process could not write."""
    before = phases_before_death(folder)
    left, phases = before or (None, ())
    decided = resolved_before(
        trial.kind, trial.settings, trial.layout, searches, "bounded" if trial.is_bounded else "kept"
    )
    return Record(
        trial=trial.name,
        kind=trial.kind,
        rank=trial.rank,
        seed=trial.seed,
        axes=trial.axes,
        repeat=trial.repeat,
        status=found.status,
        error=found.error,
        shortage=found.shortage,
        settings=trial.settings,
        resolved=left.resolved if left else decided,
        environment=left.environment if left else None,
        model=left.model if left else None,
        data=left.data if left else None,
        energy=left.energy if left else None,
        phases=phases,
        batch_search=tuple(searches),
    )
