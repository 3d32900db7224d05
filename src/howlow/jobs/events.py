"""Events: what a job reports to its worker, and what workers report to whoever watches a sweep."""

from collections.abc import Callable
from typing import Annotated, Literal

from pydantic import Field

from howlow.jobs.capacity import Sizes
from howlow.jobs.search import BatchSetting, MemoryBudget, Probe, RankMemory
from howlow.records import PhaseName, Record
from howlow.records.warnings import Frozen

# -- of a job -------------------------------------------------------------------------------------------------------


class StepProgress(Frozen):
    """How far a trial has come."""

    event: Literal["step_progress"] = "step_progress"
    phase: PhaseName
    step: int
    steps: int
    loss: float | None = None


class BudgetSet(Frozen):
    """The memory that the search may use."""

    event: Literal["budget_set"] = "budget_set"
    budget: MemoryBudget


class ProbesJudged(Frozen):
    """The probes of an interrupted search, judged by the budget of this one."""

    event: Literal["probes_judged"] = "probes_judged"
    probes: tuple[Probe, ...]


class RankMeasured(Frozen):
    """The part of this rank's memory that can be computed without a probe."""

    event: Literal["rank_measured"] = "rank_measured"
    known: RankMemory


class ProbeBegun(Frozen):
    """A batch is about to be run; if the process dies now, this batch does not fit."""

    event: Literal["probe_begun"] = "probe_begun"
    batch: int
    load: int
    is_whole: bool = True
    confirms: bool = False


class ProbeEnded(Frozen):
    """A batch was run, and so many regions of the model were compiled for it."""

    event: Literal["probe_ended"] = "probe_ended"
    probe: Probe
    compilations: int = 0
    compiling_s: float = 0.0


class NodeBusy(Frozen):
    """The process waits until this machine may be used: for one that has it to itself, or to have it to itself."""

    event: Literal["node_busy"] = "node_busy"
    other: str


JobEvent = Annotated[
    StepProgress | NodeBusy | BudgetSet | ProbesJudged | RankMeasured | ProbeBegun | ProbeEnded,
    Field(discriminator="event"),
]
Hear = Callable[[JobEvent], None]


# -- of a sweep -----------------------------------------------------------------------------------------------------


class Preparing(Frozen):
    """Data, tokens and model are being prepared."""

    event: Literal["preparing"] = "preparing"


class SweepPrepared(Frozen):
    """The trials are known; `done` of the `total` have a record."""

    event: Literal["prepared"] = "prepared"
    total: int
    done: int
    sizes: tuple[Sizes, ...] = Field((), description="of adapters and data; one for each data set and model")


class ClusterBusy(Frozen):
    """A cluster has begun none of the jobs that it was given, and why, in its own word."""

    event: Literal["cluster_busy"] = "cluster_busy"
    reason: str


class TrialStarted(Frozen):
    """A worker of this process, or of the cluster that it uses, begins with a trial."""

    event: Literal["trial_started"] = "trial_started"
    trial: str
    host: str | None = Field(None, description="the machine of the cluster; absent: this one")


class TrialWaits(Frozen):
    """A trial waits before it starts."""

    event: Literal["trial_waits"] = "trial_waits"
    trial: str
    reason: str


class TrialProbed(Frozen):
    """The search for a trial's largest batch has run one batch."""

    event: Literal["trial_probed"] = "trial_probed"
    trial: str
    setting: BatchSetting
    probe: Probe


class TrialProgress(Frozen):
    """How far a trial of this process's workers has come."""

    event: Literal["trial_progress"] = "trial_progress"
    trial: str
    progress: StepProgress


class TrialElsewhere(Frozen):
    """Another process is running a trial."""

    event: Literal["trial_elsewhere"] = "trial_elsewhere"
    trial: str
    holder: str


class TrialEnded(Frozen):
    """A trial has its record."""

    event: Literal["trial_ended"] = "trial_ended"
    trial: str
    record: Record


SweepEvent = Annotated[
    Preparing
    | SweepPrepared
    | ClusterBusy
    | TrialStarted
    | TrialWaits
    | TrialProbed
    | TrialProgress
    | TrialElsewhere
    | TrialEnded,
    Field(discriminator="event"),
]
Tell = Callable[[SweepEvent], None]
