"""Where energy comes from, and the energy of a phase: a window for each of its parts and each source that was read.

`PhaseRecord.windows` holds them. A part without energy has no window; the record's warnings say why.
"""

from collections.abc import Iterable, Mapping
from typing import Literal

from pydantic import Field

from howlow.records.warnings import Frozen

EnergyPart = Literal["measured", "pauses", "prefill", "decode", "phase"]
ErrorCover = Literal["everything", "all_but_lag", "all_but_losses", "all_but_lag_and_losses", "edges"]
"""What a window's `error_j` covers; polled power can only have the last."""


_LEFT_OUT: Mapping[ErrorCover, frozenset[str]] = {
    "everything": frozenset(),
    "all_but_lag": frozenset({"lag"}),
    "all_but_losses": frozenset({"losses"}),
    "all_but_lag_and_losses": frozenset({"lag", "losses"}),
    "edges": frozenset({"lag", "losses", "swings"}),
}
"""What each of them leaves out."""


def common_cover(covers: Iterable[ErrorCover]) -> ErrorCover:
    """What the sum of several errors covers: nothing that one of them leaves out."""
    left_out = frozenset[str]().union(*(_LEFT_OUT[cover] for cover in covers))
    return next(cover for cover, parts in _LEFT_OUT.items() if left_out <= parts)


class CounterPace(Frozen):
    """How one device's energy counter behaves, read without a pause before the first trial of a sweep."""

    device: str = Field(description="its name in the timeline")
    period_s: float | None = Field(
        description="the usual time between two updates (the median); None: not two updates were seen"
    )
    longest_s: float | None = Field(description="the longest time that can have been between two updates")
    step_j: float = Field(0.0, description="what the counter is a multiple of; 0: as fine as its unit")
    latency_s: float = Field(description="what one reading takes (the median), under the load where there was one")
    largest_latency_s: float
    watched_s: float = Field(description="how long the counter was read")
    is_loaded: bool = Field(False, description="whether for a part of that time a load ran on the device")
    lag_s: float | None = Field(
        None,
        description="how far the counter was behind a load that was switched on and off; None: no load could be "
        "switched, and the errors of energies assume that it does not lag",
    )


class EnergySource(Frozen):
    """Where energy and power come from, or why they are absent."""

    name: str | None = Field(
        description="nvml counter, nvml power, nvidia-smi, rapl, amd, apple, jetson, assumed; None: no source"
    )
    detail: str = Field(description="the device, or the reason for the absence")
    update_period_s: float | None = Field(None, description="how often the source has a new value")
    devices: tuple[str, ...] = Field((), description="their names in the timeline; several are summed")
    power_sampled_share: float | None = Field(
        None,
        description="the share of the time in which the power sensor of such a device measures, where it is known to "
        "measure for only a part (0.25: 25 of every 100 ms on A100 and H100, arXiv 2312.02741); None: not known",
    )
    cpu: str | None = Field(
        None, description="where the trial has an accelerator: the source of the CPU's energy, or why there is none"
    )
    cpu_update_period_s: float | None = Field(None, description="how often that source has a new value")
    counters: tuple[CounterPace, ...] = Field(
        (),
        description="what was measured of each counter before the first trial, the same for all trials of a sweep on "
        "one device; empty for other sources and in older records",
    )


class EnergyWindow(Frozen):
    """The energy of one part of a phase, as one device or the trial's whole energy source gave it."""

    part: EnergyPart = Field(
        description="measured: the measured steps; pauses: between measured steps, as for a checkpoint; prefill: of "
        "the steps that generate, until every prompt was read; decode: the rest of these steps; "
        "phase: the whole phase, burn-in and pauses included"
    )
    device: str | None = Field(
        None,
        description="None: the trial's energy source, summed over its devices; cpu: the CPU of a trial on an "
        "accelerator, never added to the former; else one of several devices of a source",
    )
    energy_j: float
    error_j: float | None = Field(
        None,
        description="how far energy_j can be from what the sensor measured, in joules, as far as error_covers says; "
        "None: no bound is known",
    )
    error_covers: ErrorCover | None = Field(
        None,
        description="everything: all that a counter's readings leave open, its lag and an update that it lost "
        "included; all_but_lag: nobody could measure whether the counter lags, and the error assumes that it does not; "
        "all_but_losses: no power was read that would show a lost update, or the window is too short for it, and the "
        "error assumes that none was lost (older records call this everything, too); all_but_lag_and_losses: it "
        "assumes both; edges: rounding, gaps at the edges and in holes, and late readings of polled power, but not "
        "swings that start and end between two readings; None: no error, or an older record",
    )
    statistical_error_j: float | None = Field(
        None,
        description="of polled power: half of the 95 % interval, in joules, that follows from the spread of the "
        "readings (means of blocks of them), swings between readings included; None: the readings are too few, all "
        "equal, or not stationary, or the sensor is known to measure for only a part of the time "
        "(`power_sampled_share`), so that it may beat with the load",
    )
    duration_s: float | None = Field(None, description="the time that energy_j covers; schema 1 did not always keep it")
    samples: int | None = Field(
        None, description="the samples that energy_j covers; not counted for the pauses and the whole phase"
    )
    readings: int | None = Field(None, description="the readings that energy_j rests on")
