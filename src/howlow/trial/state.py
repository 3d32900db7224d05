"""What the parts of a trial share: its identity, the record as far as it is known, and the link to its worker."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from howlow.claims import machine_s, refuse_if_lost
from howlow.jobs import IdleAbsent, Link, MeasureJob, StepProgress
from howlow.meters.clock import now_s, utc
from howlow.meters.machine import process_age_s
from howlow.meters.phase import Timed
from howlow.meters.session import Session
from howlow.meters.steadiness import FEWEST_STEPS, BurnIn, drift, steady_from
from howlow.node import Presence
from howlow.outcomes import ClaimLostError, StoppedError
from howlow.records import (
    BatchSearch,
    CounterPace,
    DataRecord,
    EnergySource,
    Environment,
    HeapMode,
    Idle,
    LayoutChoice,
    MergedRecord,
    MeterRecord,
    ModelRecord,
    Neighbour,
    Part,
    PhaseName,
    PhaseRecord,
    RecordWarning,
    Resolved,
    Scores,
    ShrunkRecord,
    Step,
    WarningKind,
    measured_steps,
    read_lines,
    read_steps,
    window_times_s,
)
from howlow.records.resolved import batch_of, resolved_before
from howlow.settings import Settings, TrialKind, trains
from howlow.trial.followers import Followers

_SECONDS_BETWEEN_REPORTS = 0.25


@dataclass
class RecordDraft:
    """What the record will hold, as far as it is known."""

    resolved: Resolved = field(default_factory=Resolved)
    environment: Environment | None = None
    data: DataRecord | None = None
    energy: EnergySource | None = None
    meters: MeterRecord | None = None
    model: ModelRecord | None = None
    merged: MergedRecord | None = None
    validation: Scores | None = None
    shrunk: ShrunkRecord | None = None
    phases: list[PhaseRecord] = field(default_factory=list)
    warnings: list[RecordWarning] = field(default_factory=list)
    resumed: int = 0
    neighbours: tuple[Neighbour, ...] | None = ()
    """What ran beside its earlier processes, and once it has ended, beside all of them; None: not known."""
    started_at: str = field(default_factory=utc)
    preparation_s: float | None = None
    second_load: PhaseRecord | None = None
    handover_s: float | None = None
    trained_at_s: float | None = None
    """When fine-tuning ended, on the machine's clock, in the process that goes on from there."""
    fine_tuning: "ProcessMeters | None" = None
    """The meters of the process that fine-tuned."""


@dataclass(frozen=True)
class ProcessMeters:
    """How the meters did in one process, and what their shares refer to."""

    record: MeterRecord
    cpu_s: float
    steps_s: float


@dataclass
class TrialState:
    """One running trial."""

    name: str
    kind: TrialKind
    axes: dict[str, Any]
    settings: Settings
    folder: Path
    data_folder: Path
    link: Link
    choice: LayoutChoice
    idle: Idle | IdleAbsent | None = None
    paces: tuple[CounterPace, ...] = ()
    batch_search: tuple[BatchSearch, ...] = ()
    is_bounded: bool = False
    device: str | None = None
    """The worker's own device; None: as the settings say."""
    claim: int | None = None
    repeat: int = 1
    continues: bool = False
    """Whether the process that fine-tuned has handed over to this one."""
    followers: Followers = field(default_factory=Followers)
    """The processes of the trial's other devices."""
    alone: bool = False
    """Whether the trial has its machine to itself."""
    has_lost_claim: bool = False
    """Whether another worker may have taken the trial over (`howlow.trial.lease`)."""
    presence: Presence | None = None
    """This process, as others on the machine see it; None where they cannot."""
    found: RecordDraft = field(default_factory=RecordDraft)
    session: Session | None = None
    _reported_s: float = -math.inf
    _has_looked: bool = False

    def __post_init__(self) -> None:
        """Note what was decided before the trial."""
        heap: HeapMode = "bounded" if self.is_bounded else "kept"
        self.found.resolved = resolved_before(self.kind, self.settings, self.choice, self.batch_search, heap)

    @property
    def steps_path(self) -> Path:
        """The raw steps."""
        return self.folder / "steps.jsonl"

    @property
    def predictions_path(self) -> Path:
        """The answers, or the texts' log-likelihoods."""
        return self.folder / "predictions.jsonl"

    @property
    def waited_s(self) -> float:
        """How long this process waited until it might use the machine."""
        return self.presence.waited_s if self.presence is not None else 0.0

    @property
    def trains(self) -> bool:
        """Whether the trial has optimizer steps."""
        return trains(self.kind, self.settings)

    @property
    def training_batch_size(self) -> int:
        """Examples in one forward and backward pass."""
        return self._number("training.batch_size")

    @property
    def inference_batch_size(self) -> int:
        """Test examples in one batch."""
        return self._number("inference.batch_size")

    def _number(self, setting: str) -> int:
        """The batch size that was asked for or, for "max", found."""
        number = batch_of(self.settings, self.batch_search, setting)
        assert number is not None, "the largest batch is searched for before anything runs with it"
        return number

    def warn(self, kind: WarningKind, detail: str, phase: PhaseName | None = None) -> None:
        """Put a warning into the record, once."""
        self.keep(RecordWarning(kind=kind, detail=detail, phase=phase))

    def keep(self, warning: RecordWarning) -> None:
        """Put this warning into the record, once."""
        if warning not in self.found.warnings:
            self.found.warnings.append(warning)

    def keep_all(self, warnings: Iterable[RecordWarning]) -> None:
        """Put these warnings into the record, each once."""
        for warning in warnings:
            self.keep(warning)

    def resolve(self, **facts: Any) -> None:
        """Note what was decided."""
        self.found.resolved = self.found.resolved.model_copy(update=facts)

    def stop_if_asked(self) -> None:
        """End here when the worker asks for it.

        Raises:
            StoppedError: the caller has saved before what has to be kept.
        """
        if self.link.stop_requested:
            raise StoppedError

    def refuse_if_lost(self) -> None:
        """To be called before a checkpoint or the record is written.

        Raises:
            ClaimLostError: another worker has taken this trial over.
        """
        refuse_if_lost(self.folder.parent.parent, self.name, self.claim)

    def report_progress(self, phase: PhaseName, step: int, steps: int, loss: float | None = None) -> None:
        """Report to the worker, a few times a second at most, so that it costs nothing.

        Raises:
            ClaimLostError: another worker may have taken this trial over.
        """
        if self.has_lost_claim:
            raise ClaimLostError(self.name)
        if now_s() - self._reported_s >= _SECONDS_BETWEEN_REPORTS or step == steps:
            self._reported_s = now_s()
            self.link.report(StepProgress(phase=phase, step=step, steps=steps, loss=loss))

    def burn_in(self, phase: PhaseName, samples: Sequence[int]) -> "PhaseParts":
        """Decides for each step of a phase whether it is burn-in or measured. samples: those of each step."""
        return PhaseParts(self, phase, samples)

    def skipped_steps(self) -> int:
        """How many of the steps so far, those before an interruption included, the optimizer skipped."""
        return sum(bool(line.get("skipped")) for line in read_lines(self.steps_path))

    def note_first_step(self) -> None:
        """Note how long the process took to its first step, and look for other work on the machine."""
        if self.session is not None and not self._has_looked:
            self._has_looked = True
            self.session.look_for_outside_work()
        if self.found.preparation_s is None:
            self.found.preparation_s = process_age_s() - self.waited_s
        if self.found.trained_at_s is not None and self.found.handover_s is None:
            self.found.handover_s = machine_s() - self.found.trained_at_s - self.waited_s


def warn_unsteady(state: TrialState) -> None:
    """A warning for each phase whose measured steps do not run at one speed, or are too few to tell.

    A step's time is that of the measured window that it took, so what slows down between steps shows, too.
    """
    lines = read_steps(state.folder)
    for phase in state.found.phases:
        steps = measured_steps(lines, phase.phase)
        times_s = window_times_s(steps)
        speeds = [step.computed_tokens / time_s for step, time_s in zip(steps, times_s, strict=True)]
        if not speeds:
            continue
        found = drift(speeds)
        if found is None:
            detail = f"{phase.phase}: only {len(speeds)} measured steps"
            state.warn(WarningKind.STEADINESS_UNKNOWN, detail, phase.phase)
        elif not found.is_steady:
            later = steady_from(speeds)
            advice = "" if later is None else f"; {later} more burn-in steps would make it steady"
            detail = (
                f"{phase.phase}: the speed changed by {found.relative:+.1%} from the first half of the measured steps "
                f"to the second{advice}"
            )
            state.warn(WarningKind.NOT_STEADY, detail, phase.phase)


class PhaseParts:
    """The part of each step of a phase, as it comes: first burn-in, at most half of the steps, then measured."""

    def __init__(self, state: TrialState, phase: PhaseName, samples: Sequence[int]) -> None:
        self._state, self._phase, self._steps = state, phase, len(samples)
        self._burn_in = BurnIn(state.settings.meters.burn_in_steps, samples)
        self._has_warned = False

    @property
    def of_next(self) -> Part:
        """The part of the next step."""
        if not self._burn_in.is_over:
            return "burn_in"
        if self._burn_in.ran_out and not self._has_warned:
            self._has_warned = True
            self._warn()
        return "measured"

    def ended(self, part: Part, timed: Timed, computed_tokens: int) -> None:
        """A step of this part has ended."""
        if part == "burn_in":
            self._burn_in.add(computed_tokens / timed.duration_s)

    def _warn(self) -> None:
        asked, found = self._state.settings.meters.burn_in_steps, self._burn_in.steps
        there = f"burn-in steps in a phase of {self._steps}"
        kind = WarningKind.SHORT_BURN_IN
        if asked != "auto":
            told = f"{found} instead of {asked} {there}"
        elif found < FEWEST_STEPS:
            told = f"{found} {there}, too few to tell a steady speed"
        else:
            kind, told = WarningKind.NOT_STEADY, f"{found} {there} did not reach a steady speed"
        self._state.warn(kind, f"{self._phase}: {told}", self._phase)


def step_line(timed: Timed, **fields: Any) -> str:
    """The raw line of one step, with its times and the counter at its end; it may wait for the counter's reading."""
    step = Step(
        start_s=timed.start_s,
        duration_s=timed.duration_s,
        opens_segment=timed.opens_segment or None,
        energy_counter_j=timed.counter_j(),
        prefill_s=timed.prefill_s,
        prefill_tokens=timed.prefill_tokens,
        **fields,
    )
    return step.model_dump_json(exclude_none=True)


def split(items: Sequence[int], size: int) -> Iterator[list[int]]:
    """Consecutive parts of at most `size`."""
    for start in range(0, len(items), size):
        yield list(items[start : start + size])


def state_of(job: MeasureJob, link: Link, followers: Followers) -> TrialState:
    """The trial that a job asks for, in a process of its own."""
    trial = job.trial
    return TrialState(
        name=trial.name,
        kind=trial.kind,
        axes=trial.axes,
        repeat=trial.repeat,
        settings=trial.settings,
        folder=job.run_directory / trial.folder,
        data_folder=job.run_directory / trial.data_folder,
        link=link,
        choice=trial.layout,
        idle=job.idle,
        paces=job.paces.counters,
        is_bounded=trial.is_bounded,
        batch_search=job.batch_search,
        device=job.device,
        claim=job.claim,
        continues=job.continues,
        alone=trial.alone,
        followers=followers,
    )
