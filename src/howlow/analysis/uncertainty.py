"""What the error of a trial's figure rests on: blocks of its own steps, readings or test examples, and energy's bound.

The step sums are those of the measured window: a step's share of its time includes what lies between steps
(`howlow.records.window_times_s`; `howlow.analysis.statistics` has the formulas). An energy varies with its time and its
power: blocks of steps give the spread of the time, blocks of power readings that of the power where there are any.
Assumed watts are exact, so that energy's error is that of time. A test score varies with the test examples. Sizes and
peaks of one process are exact. Of any other figure one process shows no error.
"""

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from howlow.analysis.column import Column, StepSum
from howlow.analysis.columns import COLUMNS
from howlow.analysis.energy import Seen, inside, looks_of, powers_of
from howlow.analysis.statistics import Interval, LogVariance, NoError, Sample, interval_around, of_steps, summed
from howlow.records import PhaseRecord, Record, ScoredLine, Step, measured_steps, read_scored, window_times_s


@dataclass(frozen=True)
class Evidence:
    """What the error of one process's figure rests on.

    samples: their spreads add up; empty: nothing about it is random; None: no error is known, and `lack` says why.
    bound: the share of the figure by which its energy may be off at most; None: no bound is known.
    """

    samples: tuple[Sample, ...] | None = ()
    bound: float | None = 0.0
    lack: NoError = "process"

    @property
    def spread(self) -> LogVariance | None:
        """The spread within the process; None where it is not known."""
        return None if self.samples is None else summed([sample.spread for sample in self.samples])

    def interval(self, value: float) -> Interval | None:
        """The interval of the figure by what this process alone shows; None where it is not known."""
        spread = self.spread
        if spread is None or spread.is_too_wide or self.bound is None or value <= 0:
            return None
        return interval_around(value, spread, self.bound)


def of_sample(sample: Sample | None, lack: NoError) -> Evidence:
    """The evidence of one sample; `lack`: what is too little where there is none."""
    return Evidence(None if sample is None else (sample,), lack=lack)


def evidence_of(
    record: Record,
    phases: Mapping[str, PhaseRecord],
    row: Mapping[str, Any],
    steps: Sequence[Step],
    readings: Sequence[Seen],
    folder: Path,
) -> dict[str, Evidence]:
    """The evidence of every figure of a trial that has an error, by its column's name.

    phases: the phase that the columns of each stage are about.
    """
    found: dict[str, Evidence] = {}
    stages = {stage: _Stage.of(record, phase, steps, readings) for stage, phase in phases.items()}
    for column in COLUMNS:
        if row[column.name] is not None and column.stage in stages:
            found[column.name] = stages[column.stage].evidence(column, row)
    return found | _of_quality(row, steps, folder)


def interval_figures(row: Mapping[str, Any], evidence: Mapping[str, Evidence]) -> dict[str, float | None]:
    """The ends of the intervals of a trial's own figures, by the names of their columns."""
    found: dict[str, float | None] = {}
    for column in COLUMNS:
        if column.interval is not None and column.name in evidence:
            ends = evidence[column.name].interval(row[column.name]) or Interval(None, None)
            found |= dict(zip(column.interval, (ends.low, ends.high), strict=True))
    return found


# -- costs ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Stage:
    """The steps and the readings of a phase's measured part."""

    record: Record
    phase: PhaseRecord
    steps: Sequence[Step]
    times_s: Sequence[float]
    work: str
    looks: Sequence[Seen]
    powers_w: Sequence[float]
    found: dict[tuple[StepSum, ...], Sample | None] = field(default_factory=dict)
    """the samples of two sums over the steps, which several columns share"""

    @classmethod
    def of(cls, record: Record, phase: PhaseRecord, steps: Sequence[Step], readings: Sequence[Seen]) -> "_Stage":
        measured, looks = measured_steps(steps, phase.phase), inside(phase.phase, steps, readings)
        times_s, powers_w = window_times_s(measured), powers_of(record, looks)
        return cls(record, phase, measured, times_s, work_of(measured), looks_of(record, looks), powers_w)

    def evidence(self, column: Column, row: Mapping[str, Any]) -> Evidence:
        """What the error of one of the phase's figures rests on."""
        is_assumed = self.record.energy is not None and self.record.energy.name == "assumed"
        found = self._random(column)
        if not column.energy_of or is_assumed:
            return found
        if self._is_polled_in_part(column):
            return Evidence(None, lack="sensor")
        power = self._power(column)
        samples = found.samples if found.samples is None or power is None else (*found.samples, power)
        return replace(found, samples=samples, bound=self._bound(column, row))

    def _random(self, column: Column) -> Evidence:
        """What varies from step to step, or from reading to reading."""
        if column.over_steps is not None:
            return of_sample(self._over_steps(*column.over_steps), "steps")
        if column.reading is not None:
            read = [getattr(seen, column.reading) for seen in self.looks]
            return of_sample(self._over_readings(read), "readings")
        return Evidence() if column.is_exact or column.energy_of else Evidence(None)

    def _is_polled_in_part(self, column: Column) -> bool:
        """Whether the energy is polled from a sensor that measures for only a part of the time."""
        energy = self.record.energy
        if energy is None or energy.power_sampled_share is None:
            return False
        windows = [self.phase.window(*which) for which in column.energy_of]
        return any(window is not None and window.error_covers == "edges" for window in windows)

    def _over_steps(self, *names: StepSum) -> Sample | None:
        if names not in self.found:
            above, below = (
                [_SUMS[name](*pair) for pair in zip(self.steps, self.times_s, strict=True)] for name in names
            )
            self.found[names] = of_steps(above, below, self.work)
        return self.found[names]

    def _power(self, column: Column) -> Sample | None:
        """The readings of the power of the trial's energy source; a CPU beside it has none."""
        is_own = any(device is None for _, device in column.energy_of)
        return self._over_readings(self.powers_w) if is_own else None

    def _over_readings(self, values: Iterable[float | None]) -> Sample | None:
        there = [value for value in values if value is not None]
        return of_steps(there, [1.0] * len(there), (self.record.trial, self.phase.phase))

    def _bound(self, column: Column, row: Mapping[str, Any]) -> float | None:
        """How far the energy may be off; the worst of all its windows together."""
        if column.error is not None:
            error, value = row[column.error], row[column.name]
            return None if error is None or value <= 0 else error / value
        windows = [window for which in column.energy_of if (window := self.phase.window(*which)) is not None]
        errors_j = [window.error_j for window in windows if window.error_j is not None]
        value = math.fsum(window.energy_j for window in windows)
        return math.fsum(errors_j) / value if len(errors_j) == len(column.energy_of) and value > 0 else None


_SUMS: Mapping[StepSum, Callable[[Step, float], float]] = {
    "time": lambda step, time_s: time_s,
    "samples": lambda step, time_s: step.samples,
    "tokens": lambda step, time_s: step.tokens,
    "prompt_tokens": lambda step, time_s: step.tokens - step.target_tokens,
    "later_tokens": lambda step, time_s: step.target_tokens - step.samples,
    "prefill_time": lambda step, time_s: step.prefill_s or 0.0,
    "decode_time": lambda step, time_s: step.duration_s - (step.prefill_s or 0.0),
}
"""What each sum over the steps adds up."""


def work_of(steps: Sequence[Step]) -> str:
    """Equal for phases whose steps read equally many examples and tokens; what a generation wrote may differ."""
    written = {step.step: step.target_tokens if step.phase == "generate" else 0 for step in steps}
    return _digest([(step.step, step.samples, step.tokens - written[step.step]) for step in steps])


def _digest(parts: Sequence[Any]) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


# -- quality --------------------------------------------------------------------------------------------------------


def _of_quality(row: Mapping[str, Any], steps: Sequence[Step], folder: Path) -> dict[str, Evidence]:
    """Blocks of test examples; of the loss of answers, which is known for whole batches, blocks of batches."""
    columns = [column for column in COLUMNS if column.is_quality and (row[column.name] or 0) > 0]
    if not columns:
        return {}
    lines = list(read_scored(folder))
    loss = _of_texts(lines) or _of_batches([step for step in steps if step.phase == "evaluate"])
    found = {}
    for column in columns:
        sample = _of_answers(lines, column) if "answers" in column.subjects else loss
        if sample is not None and "exponential" in column.subjects:
            sample = sample.scaled(math.log(row[column.name]))
        found[column.name] = of_sample(sample, "examples")
    return found


def _of_answers(lines: Sequence[ScoredLine], column: Column) -> Sample | None:
    scored = [line for line in lines if column.name in line.scores]
    return of_steps([line.scores[column.name] for line in scored], [1.0] * len(scored), _examples(scored))


def _of_texts(lines: Sequence[ScoredLine]) -> Sample | None:
    scored = [line for line in lines if line.log_likelihood is not None]
    losses = [-(line.log_likelihood or 0.0) for line in scored]
    return of_steps(losses, [line.counts.get("tokens", 0) for line in scored], _examples(scored))


def _examples(lines: Iterable[ScoredLine]) -> str:
    return _digest([line.id for line in lines])


def _of_batches(steps: Sequence[Step]) -> Sample | None:
    scored = [step for step in steps if step.loss is not None]
    losses = [(step.loss or 0.0) * step.target_tokens for step in scored]
    return of_steps(losses, [step.target_tokens for step in scored], work_of(scored))
