"""Jobs, each for one process, and what runs them."""

from pathlib import Path
from typing import ClassVar, Generic, Literal, NoReturn, Protocol, TypeVar

from pydantic import Field, JsonValue

from howlow.errors import OURS, SYSTEM, UserError
from howlow.jobs.events import Hear, JobEvent
from howlow.jobs.search import BatchSetting, LargestFound, MemoryBudget, Probe, RankProbes
from howlow.outcomes import DiskFullError, Finished, Returned, StoppedError, Unfinished, names_lack_of_memory
from howlow.records import (
    BatchSearch,
    CounterPace,
    DataRecord,
    Environment,
    GemmRecord,
    Idle,
    LayoutChoice,
    RecordWarning,
    Status,
)
from howlow.records.warnings import Frozen
from howlow.settings import Settings, TrialKind

T = TypeVar("T")


class TrialJob(Frozen):
    """One trial of a sweep, the same for every worker that may run it; paths are relative to the run directory."""

    name: str
    kind: TrialKind
    rank: int | None
    seed: int
    axes: dict[str, JsonValue] = Field(description="the further grid axes under their dotted names")
    repeat: int = Field(1, ge=1, description="which measurement of the same trial this is, counted from 1")
    settings: Settings = Field(description="as asked: a batch size may still be max, the layout auto")
    data_folder: str = Field(description="where the prepared examples are")
    data: DataRecord
    environment: Environment = Field(description="the machine that prepared the sweep; in a worker: its own")
    layout: LayoutChoice
    is_bounded: bool = Field(description="whether the heap gives memory back at once, as for a search or a limit")
    cores_shared_by: int = Field(
        1, ge=1, description="processes that run at one time; each takes its part of the cores"
    )
    alone: bool = Field(False, description="whether it has its machine to itself, so that its costs count")

    @property
    def folder(self) -> str:
        """The trial's own folder."""
        return f"trials/{self.name}"


def on_device(settings: Settings, device: str | None) -> Settings:
    """The settings for a worker that has a device of its own; None leaves `run.device` as it is."""
    if device is None:
        return settings
    return settings.model_copy(update={"run": settings.run.model_copy(update={"device": device})})


class IdleAbsent(Frozen):
    """Why there is no idle power."""

    reason: str


class PreparationReport(Frozen):
    """What the preparation found out."""

    data: DataRecord
    warnings: tuple[RecordWarning, ...]
    tokenizer: str
    architecture: str
    total_parameters: int
    adapter_parameters: tuple[int, ...] = Field(description="of each adapter that was asked about")
    environment: Environment
    devices: int = Field(1, description="accelerators of the kind that trials run on")
    gpu_uuids: tuple[str, ...] = Field((), description="of these, where trials run on CUDA")


class Job(Frozen, Generic[T]):
    """Work for one process; T is what it returns."""

    entry: ClassVar[str]
    """The function that runs it, as module.function."""
    stop_within_s: ClassVar[float] = 60.0
    """How long the process may take to save its work when it is asked to stop."""

    @property
    def subject(self) -> str:
        """What an error in it is about, for messages."""
        return "this machine"


class PrepareJob(Job[PreparationReport]):
    """Choose and tokenise the examples of a sweep, and check its model."""

    entry: ClassVar[str] = "howlow.trial.entries.prepare_entry"
    stop_within_s: ClassVar[float] = 2.0  # there is nothing to save

    settings: Settings
    adapters: tuple[tuple[int, tuple[str, ...]], ...] = Field(description="rank and target modules of each adapter")
    heads: tuple[str, ...] = Field(description="the values of training.head")
    variants: tuple[tuple[Literal["dora", "pissa"], int, tuple[str, ...]], ...] = Field(
        (), description="variant, rank and target modules of each adapter that is not plain LoRA"
    )
    quantizations: tuple[Literal["nf4", "int8"], ...] = Field((), description="the values of quantization but none")
    folder: Path
    cores_shared_by: int = 1

    @property
    def subject(self) -> str:
        """The model; data and tokenizer are named where they are read."""
        return f"model {self.settings.model}"


class LayoutJob(Job[LayoutChoice]):
    """Choose the layout of trials with these settings."""

    entry: ClassVar[str] = "howlow.trial.entries.choose_entry"

    settings: Settings
    data_folder: Path
    gemms: tuple[GemmRecord, ...] = Field((), description="what was chosen before, for other trials of the sweep")
    cores_shared_by: int = 1

    @property
    def subject(self) -> str:
        """The model that is run."""
        return f"model {self.settings.model}"


class ForetellJob(Job[tuple[RecordWarning, ...]]):
    """Say what will qualify the numbers of trials with these settings and layouts."""

    entry: ClassVar[str] = "howlow.trial.entries.foretell_entry"
    stop_within_s: ClassVar[float] = 2.0  # there is nothing to save

    trials: tuple[tuple[TrialKind, Settings, LayoutChoice], ...]

    @property
    def subject(self) -> str:
        """The models that are built."""
        return f"model {', '.join(dict.fromkeys(settings.model for _, settings, _ in self.trials))}"


class EnvironmentJob(Job[Environment]):
    """Say what trials would run on here."""

    entry: ClassVar[str] = "howlow.trial.entries.environment_entry"

    device: str
    devices_per_trial: int = 1
    cores_shared_by: int = 1


class ModelJob(Job[str | None]):
    """Hash the local model that these settings name, as a machine sees it; None for one of the hub."""

    entry: ClassVar[str] = "howlow.trial.entries.model_entry"

    settings: Settings

    @property
    def subject(self) -> str:
        """The model that is read."""
        return f"model {self.settings.model}"


class GpusJob(Job[tuple[str, ...]]):
    """List the UUIDs of the GPUs that trials on this device may use here; none where it is no GPU."""

    entry: ClassVar[str] = "howlow.trial.entries.gpus_entry"

    device: str


class IdleJob(Job[Idle | IdleAbsent | None]):
    """Let the device rest, then read its idle power; None where no source could read it."""

    entry: ClassVar[str] = "howlow.trial.entries.idle_entry"

    settings: Settings
    rest_s: float
    run_directory: Path | None = Field(None, description="absent: no other process of this machine is waited for")
    trial: str = Field("", description="the one that follows")
    alone: bool = Field(False, description="whether the machine is to be this process's alone")


class CounterPaces(Frozen):
    """What was measured of the energy counters; empty where no source of energy is a counter."""

    counters: tuple[CounterPace, ...] = ()


class PaceJob(Job[CounterPaces]):
    """Measure how the energy counters behave, unless that is stored in the run directory."""

    entry: ClassVar[str] = "howlow.trial.entries.pace_entry"

    settings: Settings
    run_directory: Path
    trial: str = Field("", description="the one that follows")
    alone: bool = Field(False, description="whether the machine is to be this process's alone")


class ProbeJob(Job[LargestFound | None]):
    """Probe batches until the largest that fits is found; None where that takes a fresh process."""

    entry: ClassVar[str] = "howlow.batch_search.probe.probe_entry"

    setting: BatchSetting
    kind: TrialKind
    settings: Settings
    folder: Path
    data_folder: Path
    layout: LayoutChoice
    cores_shared_by: int = 1
    run_directory: Path | None = Field(None, description="absent: no other process of this machine is waited for")
    trial: str = ""
    budget: MemoryBudget | None = Field(None, description="the budget of this search's earlier processes")
    earlier_budget: MemoryBudget | None = Field(None, description="the budget under which an interrupted search probed")
    probes: tuple[Probe, ...] = ()
    others: tuple[RankProbes, ...] = ()


class MeasureJob(Job[Status | None]):
    """Run one trial to its record; None where fine-tuning has ended, and inference takes a fresh process."""

    entry: ClassVar[str] = "howlow.trial.entries.trial_entry"

    trial: TrialJob
    run_directory: Path
    device: str | None = Field(None, description="the worker's own device; absent: as the settings say")
    batch_search: tuple[BatchSearch, ...] = ()
    idle: Idle | IdleAbsent | None = None
    paces: CounterPaces = CounterPaces()
    claim: int | None = Field(None, description="the generation of the worker's claim; absent: nobody else is there")
    continues: bool = Field(False, description="whether the process that fine-tuned has ended just now")


# -- running them ---------------------------------------------------------------------------------------------------


class Link(Protocol):
    """A job's connection to the process that started it."""

    @property
    def stop_requested(self) -> bool:
        """Whether to stop at the next chance."""

    def report(self, event: JobEvent) -> None:
        """Send an event up."""

    def end(self, finished: Unfinished) -> NoReturn:
        """End this process at once, with that end."""


class JobRunner(Protocol):
    """Runs jobs, each in a process of its own."""

    @property
    def is_stopping(self) -> bool:
        """Whether no further job is started."""

    def rest(self, seconds: float) -> None:
        """Wait, but return at once when no further job may start."""

    def run(self, job: Job[T], log: Path, hear: Hear | None = None) -> Finished[T]:
        """Run a job and wait for it; what its process prints goes into `log`."""


def value_of(finished: Finished[T], job: Job[T], log: Path) -> T:
    """What a job returned; `log` is where its process left the traceback.

    Raises:
        StoppedError: it was asked to stop.
        UserError: the user can mend what is wrong: a mistake, a file that the system refused, or a model or data that a
            library cannot take.
        DiskFullError: no space is left.
        JobFailedError: it ended in any other way.
    """
    if isinstance(finished, Returned):
        return finished.value
    if finished.outcome == "stopped":
        raise StoppedError
    if finished.outcome == "user_error":
        raise UserError(finished.problem)
    if finished.outcome == "disk_full":
        raise DiskFullError(finished.problem)
    raise _failure(finished, finished.subject or job.subject, log)


def _failure(finished: Unfinished, subject: str, log: Path) -> "UserError | JobFailedError":
    """The error of a process that crashed or was killed, in one line."""
    problem, who = finished.problem, finished.raised_by
    if finished.outcome == "died":
        end = problem if finished.exit_signal is None else f"signal {finished.exit_signal}"
        return JobFailedError(f"{subject}: the process that worked on it was ended by {end}; its output is in {log}")
    if names_lack_of_memory(problem, is_limited=False):
        return JobFailedError(f"{subject}: out of memory: {problem}; the traceback is in {log}")
    if who == SYSTEM:
        return UserError(f"{problem}; the traceback is in {log}")
    if who == OURS:
        return JobFailedError(f"{subject}: a defect in howlow: {problem}; please report it with the traceback in {log}")
    whose = "its own code" if who == "transformers_modules" else who
    return UserError(f"{subject} cannot be used: {whose} raised {problem}; the traceback is in {log}")


class JobFailedError(Exception):
    """A job ended without a result, by an error of ours or because its process died."""
