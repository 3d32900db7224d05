"""The figures of one phase: raw steps, readings and the phase's record -> throughput, time, energy, step times.

Samples/s, tokens/s, time/sample, energy/sample and power are all of the *measured window*: from the first measured
step's start to the last one's end, less the pauses. So power = energy/sample x samples/s. Steps that the optimizer
skipped count, because they cost time. What lies between the steps is `host_share` of the window; a step by itself has a
median and percentiles.

Records of schema 1 are reported as they were: their throughput is of the sum of the steps' times, their energy of the
window, and `host_share` is absent.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from howlow.analysis.conditions import condition_figures, further_energy_figures
from howlow.analysis.energy import Seen, energy_figures, inside, percentile, ratio, timeline_figures
from howlow.records import EnergyWindow, PhaseName, PhaseRecord, Record, Step, measured_steps

_Figures = dict[str, float | None]
_STEP_TIMES = {"step_time_p05_s": 0.05, "step_time_p50_s": 0.5, "step_time_p95_s": 0.95}


@dataclass(frozen=True)
class MeasuredWindow:
    """The length of a phase's measured window, and what was processed in it.

    in_steps_s: the steps' own time. is_recorded: whether the length is the window's, not the steps' own time.
    """

    duration_s: float
    samples: int
    tokens: int
    in_steps_s: float
    is_recorded: bool

    @property
    def host_share(self) -> float | None:
        """The share of the window between steps."""
        if not self.is_recorded or not self.duration_s:
            return None
        return max(0.0, 1 - self.in_steps_s / self.duration_s)


def window_of(record: Record, phase: PhaseRecord, measured: Sequence[Step]) -> MeasuredWindow:
    """The window of the measured steps of a phase; the steps' own time where the record does not hold it."""
    samples, in_steps_s = sum(step.samples for step in measured), math.fsum(step.duration_s for step in measured)
    is_whole = record.schema_version > 1 and phase.measured_samples == samples
    recorded_s = phase.measured_duration_s if is_whole else None
    return MeasuredWindow(
        duration_s=in_steps_s if recorded_s is None else recorded_s,
        samples=samples,
        tokens=sum(step.tokens for step in measured),
        in_steps_s=in_steps_s,
        is_recorded=recorded_s is not None,
    )


def phase_figures(record: Record, name: PhaseName, steps: Sequence[Step], readings: Sequence[Seen]) -> _Figures:
    """The figures that every phase has, under the names of their columns without the stage."""
    phase, measured = _ended(record, name), measured_steps(steps, name)
    window, times_s = window_of(record, phase, measured), sorted(step.duration_s for step in measured)
    energies = energy_figures(record, phase, partial(_samples_of, record, window))
    return {
        "samples_per_s": ratio(window.samples, window.duration_s),
        "tokens_per_s": ratio(window.tokens, window.duration_s),
        "time_per_sample_s": ratio(window.duration_s, window.samples),
        "peak_memory_bytes": phase.peak_memory_bytes,
        "peak_process_memory_bytes": phase.peak_process_memory_bytes,
        "peak_allocated_bytes": phase.peak_allocated_bytes,
        "peak_reserved_bytes": phase.peak_reserved_bytes,
        **{column: percentile(times_s, share) for column, share in _STEP_TIMES.items()},
        "host_share": window.host_share,
        **energies,
        **further_energy_figures(record, phase, energies),
        **condition_figures(record, phase),
        **timeline_figures(record, inside(name, steps, readings)),
    }


def _samples_of(record: Record, window: MeasuredWindow, energy: EnergyWindow) -> float | None:
    """The samples by which an energy is divided.

    An energy that covers a part of the window (a segment was too short for the source) is divided by the samples that
    the window had in as much time, so that energy/sample and samples/s are of the same pace.
    """
    covered_s = energy.duration_s
    if record.schema_version == 1 or covered_s is None or not window.duration_s:
        return energy.samples
    if math.isclose(covered_s, window.duration_s):
        return energy.samples
    return window.samples * covered_s / window.duration_s


def generation_figures(record: Record, steps: Sequence[Step]) -> _Figures:
    """What was written, and the two parts of generation: prefill ends when every prompt has its first new token.

    The parts are parts of the steps. They have energies where those of every step were long enough for the source.
    """
    phase, measured = _ended(record, "generate"), measured_steps(steps, "generate")
    parted = [step for step in measured if None not in (step.prefill_s, step.prefill_tokens)]
    samples = sum(step.samples for step in parted)
    prefill_s = math.fsum(step.prefill_s or 0.0 for step in parted)
    decode_s = math.fsum(step.duration_s - (step.prefill_s or 0.0) for step in parted)
    read = sum(step.tokens - step.target_tokens for step in parted)  # real ones, however many were computed
    written = sum(step.target_tokens - step.samples for step in parted)
    return {
        "new_tokens_per_sample": ratio(
            sum(step.target_tokens for step in measured), sum(step.samples for step in measured)
        ),
        "prefill_time_per_sample_s": ratio(prefill_s, samples),
        "decode_time_per_sample_s": ratio(decode_s, samples),
        "prefill_tokens_per_s": ratio(read, prefill_s),
        "decode_tokens_per_s": ratio(written or None, decode_s),
        "prefill_energy_per_token_j": ratio(phase.energy_j("prefill"), read),
        "decode_energy_per_token_j": ratio(phase.energy_j("decode"), written),
    }


def _ended(record: Record, name: PhaseName) -> PhaseRecord:
    phase = record.phase(name)
    assert phase is not None, "only phases that ended have figures"
    return phase
