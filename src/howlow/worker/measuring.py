"""One trial on this machine, from the idle reading to the record.

The worker's own process stays light: whatever needs torch runs in a child (`howlow.jobs`). A child that dies without
leaving a record gets one from here, with the most likely reason.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from howlow.batch_search.driver import SearchFailedError, SearchPlace, largest_batch, nothing_fits, searched_settings
from howlow.claims import Claim, Claims, detach, neighbours
from howlow.jobs import (
    BatchSetting,
    CounterPaces,
    Hear,
    IdleAbsent,
    IdleJob,
    JobEvent,
    JobFailedError,
    JobRunner,
    MeasureJob,
    NodeBusy,
    PaceJob,
    Probe,
    StepProgress,
    Tell,
    TrialEnded,
    TrialJob,
    TrialProbed,
    TrialProgress,
    TrialStarted,
    TrialWaits,
    on_device,
    value_of,
)
from howlow.outcomes import ClaimLostError, DiskFullError, Returned, Unfinished, is_disk_full, kernel_kills
from howlow.places import full_disk
from howlow.records import BatchSearch, Idle, Record, Status, read_record, torch_name, write_record
from howlow.worker.diagnosis import Diagnosis, diagnose, record_instead, too_large

_NOT_IDLE = IdleAbsent(reason="other trials run on this machine at the same time")


@dataclass
class Worker:
    """Runs trials of one run directory; `device` where this worker has an accelerator of its own."""

    runner: JobRunner
    run_directory: Path
    claims: Claims
    tell: Tell
    device: str | None = None
    is_alone: bool = True
    """Whether its process has no other worker."""
    _idle: Idle | IdleAbsent | None = None
    _paces: CounterPaces = field(default_factory=CounterPaces)
    _has_run: bool = False
    _has_read: bool = False

    def measure(self, trial: TrialJob, claim: Claim) -> Record:
        """Run a claimed trial to its record.

        Raises:
            UserError: something that the user can mend keeps trials from running here.
            DiskFullError: no space is left.
            StoppedError: the worker was asked to stop; what has to be kept is saved.
            ClaimLostError: another worker has taken the trial over.
        """
        self.tell(TrialStarted(trial=trial.name))
        folder = self.run_directory / trial.folder
        with _disk_full_as_error(folder):
            if claim.has_expired_before:
                detach(folder)
            record = self._record(trial, claim)
        self._has_run = True
        self.tell(TrialEnded(trial=trial.name, record=record))
        return record

    def _record(self, trial: TrialJob, claim: Claim) -> Record:
        if not self._has_read and _counts_costs(trial):  # before a search has heated the device
            self._has_read = True
            self._idle = self._read_idle(trial, 0.0)
            self._paces = self._read_paces(trial)
        searches: list[BatchSearch] = []
        failure = self._search_batches(trial, searches)
        if failure is not None:
            return self._leave(trial, claim, failure, searches)
        rest_s = trial.settings.run.cooldown_s if self._has_run and _counts_costs(trial) else 0.0
        if rest_s:
            self.tell(TrialWaits(trial=trial.name, reason=f"cooling down, at most {rest_s:g} s"))
            self._idle = self._read_idle(trial, rest_s)
        return self._run(trial, claim, searches)

    # -- before the trial -------------------------------------------------------------------------------------------

    def _read_idle(self, trial: TrialJob, rest_s: float) -> Idle | IdleAbsent | None:
        """Rest, then the device's idle power; None where no source could read it."""
        settings = on_device(trial.settings, self.device)
        if settings.meters.energy in ("none", "assumed"):
            self.runner.rest(rest_s)
            return None
        if self._has_company(trial):
            self.runner.rest(rest_s)
            return _NOT_IDLE
        job, log = IdleJob(settings=settings, rest_s=rest_s, **self._visit(trial)), self._hidden / "idle.log"
        try:
            found = value_of(self.runner.run(job, log, self._hear(trial)), job, log)
        except JobFailedError as error:
            return IdleAbsent(reason=f"the process that reads it failed: {error}")
        return _NOT_IDLE if isinstance(found, Idle) and self._has_company(trial) else found

    def _visit(self, trial: TrialJob) -> dict[str, Any]:
        """What the processes that read idle power and counters are told of whom they wait for."""
        return {"run_directory": self.run_directory, "trial": trial.name, "alone": trial.alone}

    def _read_paces(self, trial: TrialJob) -> CounterPaces:
        """How the energy counters behave; empty where there are none, or where the process that reads them fails."""
        if self._idle is None:  # there is no source that could be read
            return CounterPaces()
        settings = on_device(trial.settings, self.device)
        job, log = PaceJob(settings=settings, **self._visit(trial)), self._hidden / "pace.log"
        try:
            return value_of(self.runner.run(job, log, self._hear(trial)), job, log)
        except JobFailedError:
            return CounterPaces()  # the trial watches its counters itself, and its record says so

    @property
    def _hidden(self) -> Path:
        return self.run_directory / ".howlow"

    def _has_company(self, trial: TrialJob) -> bool:
        """Whether other trials of the run directory may run on this machine now; none does beside one that is alone."""
        if trial.alone:
            return False
        return not self.is_alone or bool(neighbours(self.run_directory, trial.name, only_now=True))

    def _search_batches(self, trial: TrialJob, searches: list[BatchSearch]) -> Diagnosis | None:
        """Find the largest batches that the trial asks for; why it cannot run, where it cannot."""

        def tell(setting: BatchSetting, probe: Probe) -> None:
            self.tell(TrialProbed(trial=trial.name, setting=setting, probe=probe))

        place = SearchPlace(self.run_directory, self.device, tell, partial(self._tell_busy, trial.name))
        try:
            for setting in searched_settings(trial.kind, trial.settings):
                searches.append(largest_batch(self.runner, trial, setting, place))
                if searches[-1].batch is None:
                    return too_large(searches[-1], nothing_fits(searches[-1]))
        except SearchFailedError as problem:
            return Diagnosis("failed", str(problem))
        return None

    # -- the trial --------------------------------------------------------------------------------------------------

    def _run(self, trial: TrialJob, claim: Claim, searches: list[BatchSearch]) -> Record:
        folder = self.run_directory / trial.folder
        job = MeasureJob(
            trial=trial,
            run_directory=self.run_directory,
            device=self.device,
            batch_search=tuple(searches),
            idle=self._idle if _counts_costs(trial) else None,
            paces=self._paces,
            claim=claim.generation,
        )
        status = self._process(job, folder)
        if status is None:  # fine-tuning has ended: inference has a process that never trained
            status = self._process(job.model_copy(update={"continues": True}), folder)
        if isinstance(status, Diagnosis):
            return self._leave(trial, claim, status, searches)
        record = read_record(folder)
        assert record is not None, "a trial that returned a status has written its record"
        return record

    def _process(self, job: MeasureJob, folder: Path) -> Status | Diagnosis | None:
        """Run one process of a trial; what it returned, or why it died."""
        trial, log = job.trial, folder / "log.txt"

        kills_before = kernel_kills()
        finished = self.runner.run(job, log, self._hear(trial))
        if isinstance(finished, Unfinished) and finished.outcome == "claim_lost":
            raise ClaimLostError(trial.name)
        if isinstance(finished, Returned) or finished.outcome not in ("crashed", "died", "user_error"):
            return value_of(finished, job, log)
        device = torch_name(self.device or trial.environment.device)
        return diagnose(trial, folder, finished, device, kernel_kills() > kills_before)

    def _hear(self, trial: TrialJob) -> Hear:
        """Passes on what the trial's processes report."""

        def hear(event: JobEvent) -> None:
            if isinstance(event, NodeBusy):
                return self._tell_busy(trial.name, event.other)
            assert isinstance(event, StepProgress), f"a trial does not report {event!r}"
            return self.tell(TrialProgress(trial=trial.name, progress=event))

        return hear

    def _tell_busy(self, trial: str, other: str) -> None:
        self.tell(TrialWaits(trial=trial, reason=f"waits for {other}: run.exclusive"))

    def _leave(self, trial: TrialJob, claim: Claim, found: Diagnosis, searches: list[BatchSearch]) -> Record:
        """Write the record of a trial that cannot write its own."""
        folder = self.run_directory / trial.folder
        record = record_instead(trial, folder, found, searches)
        if not claim.is_current():
            raise ClaimLostError(trial.name)
        write_record(folder, record)
        return record


def _counts_costs(trial: TrialJob) -> bool:
    """Whether the trial's costs count, and not its quality alone."""
    return trial.alone or not trial.settings.run.exclusive


@contextmanager
def _disk_full_as_error(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if is_disk_full(error):
            raise DiskFullError(full_disk(error, folder)) from None
        raise
