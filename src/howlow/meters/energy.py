"""Where energy comes from: counters, polled power, watts that the user gave, or nowhere.

A meter has a name for the record and the instruments that are read for it. Energy is the difference of a counter's
readings (`howlow.meters.energy_bounds`), or polled power integrated over time (`howlow.meters.power_bounds`). Watts
that the user gave are multiplied by time, and every place that shows the result calls it `assumed`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Literal

from howlow.meters.energy_bounds import BoundedEnergy, Missing, Point, counter_energy, standstill, suspect_s
from howlow.meters.instruments import Instrument
from howlow.meters.power_bounds import power_energy
from howlow.records import CounterPace, ErrorCover, WarningKind, common_cover

LONGEST_STANDSTILL = 1.5  # update periods for which a counter may keep its value
SHORTEST_STANDSTILL_S = 0.05  # less is no fault: the driver of a fast counter may be held up as long
_CONTRADICTED = 1.1  # more than a power sensor and a counter may differ by
_CONTRADICTED_IN_PART = 1.25  # the same where the power sensor measures for a part of the time
_FEWEST_POWERS = 3

MeterKind = Literal["counter", "power", "assumed", "absent"]
MeterName = Literal["trial", "cpu"]
"""The trial's own energy source, and that of the CPU of a trial on an accelerator."""


@dataclass(frozen=True)
class EnergyMeter:
    """A source of energy: `name` is None where there is none, and `detail` then says why.

    `update_period_s` is how often the source has something new, where its documentation says so. For a counter without
    such documentation the sampler finds it. `sampled_share` is the share of the time in which the power sensor of its
    devices measures, where it is known to measure for only a part.
    """

    name: str | None
    detail: str
    kind: MeterKind
    instruments: tuple[Instrument, ...] = ()
    update_period_s: float | None = None
    watts: float | None = None
    of_another_device: bool = False
    sampled_share: float | None = None


def no_energy(detail: str) -> EnergyMeter:
    """No source: energy stays absent, and the record says why."""
    return EnergyMeter(None, detail, "absent")


def assumed_power(watts: float) -> EnergyMeter:
    """Watts that the user gave, multiplied by time; every place that shows the result says that it is not measured."""
    detail = f"{watts:g} W given in meters.assumed_power_w, not measured"
    return EnergyMeter("assumed", detail, "assumed", watts=watts)


@dataclass(frozen=True)
class InstrumentReadings:
    """The readings of one instrument so far, and how often it is read and updated.

    update_period_s: the longest time between two updates; usual_period_s: the usual one, by default the same.
    """

    counters: Sequence[Point]
    powers: Sequence[Point]
    period_s: float
    update_period_s: float
    step_j: float = 0.0
    device: str = ""
    problems: Mapping[str, str] = field(default_factory=dict)
    usual_period_s: float | None = None
    pace: CounterPace | None = None


def window_energy(
    meter: EnergyMeter, traces: Sequence[InstrumentReadings], start_s: float, end_s: float
) -> BoundedEnergy | Missing:
    """The energy of a window, summed over the meter's instruments; missing where one of them misses it."""
    if meter.kind == "assumed":
        assert meter.watts is not None, "assumed energy comes with watts"
        return BoundedEnergy(meter.watts * (end_s - start_s), None, 0)
    energies = []
    for trace in traces:
        found = _instrument_energy(meter, trace, start_s, end_s)
        if isinstance(found, Missing):
            return found if len(traces) == 1 else _of_one(found, trace)
        energies.append(found)
    return _summed(energies)


def _summed(energies: Sequence[BoundedEnergy]) -> BoundedEnergy:
    """The energy of all instruments: errors add up, statistical ones too, because one load may drive all devices."""
    errors = [part.error_j for part in energies if part.error_j is not None]
    statistical = [part.statistical_error_j for part in energies if part.statistical_error_j is not None]
    return BoundedEnergy(
        sum(part.energy_j for part in energies),
        sum(errors) if len(errors) == len(energies) else None,
        sum(part.readings for part in energies),
        common_cover(part.covers for part in energies),
        sum(statistical) if energies and len(statistical) == len(energies) else None,
    )


def _of_one(missing: Missing, trace: InstrumentReadings) -> Missing:
    return Missing(missing.kind, f"{missing.detail} ({trace.device}; meters.devices can leave it out)")


def _instrument_energy(
    meter: EnergyMeter, trace: InstrumentReadings, start_s: float, end_s: float
) -> BoundedEnergy | Missing:
    if meter.kind == "counter":
        found = _counted(meter, trace, start_s, end_s)
    else:
        found = power_energy(
            trace.powers,
            start_s,
            end_s,
            trace.period_s,
            trace.update_period_s,
            measures_always=meter.sampled_share is None,
        )
    problem = trace.problems.get(meter.kind)
    if isinstance(found, Missing) and found.kind == WarningKind.ENERGY_GAP and problem is not None:
        return Missing(found.kind, f"{found.detail}: {problem}")
    return found


def _counted(meter: EnergyMeter, trace: InstrumentReadings, start_s: float, end_s: float) -> BoundedEnergy | Missing:
    """The energy by the counter, unless it is at fault."""
    pace = trace.pace
    if pace is not None and pace.period_s is None:
        detail = f"the counter was not updated twice in the {pace.watched_s:.3g} s before the first trial"
        return Missing(WarningKind.COUNTER_STOOD_STILL, detail)
    longest_s = max(SHORTEST_STANDSTILL_S, LONGEST_STANDSTILL * trace.update_period_s)
    tolerance = _CONTRADICTED if meter.sampled_share is None else _CONTRADICTED_IN_PART
    fault = standstill(
        trace.counters, start_s, end_s, trace.update_period_s, longest_s, trace.powers, tolerance=tolerance
    )
    if fault is not None:
        return fault
    lag_s = pace.lag_s if pace else None
    found = counter_energy(
        trace.counters,
        start_s,
        end_s,
        trace.update_period_s,
        trace.step_j,
        lag_s=lag_s or 0.0,
        shortest_s=trace.usual_period_s,
        powers=trace.powers,
    )
    if isinstance(found, Missing):
        return found
    covers: ErrorCover = "all_but_lag" if lag_s is None else "everything"
    fault = _contradiction(meter, trace.powers, start_s, end_s, found)
    return fault or _against_power(trace, (start_s, end_s), replace(found, covers=covers), tolerance)


def _contradiction(
    meter: EnergyMeter, powers: Sequence[Point], start_s: float, end_s: float, found: BoundedEnergy
) -> Missing | None:
    """Why a counter cannot be right: it rose by less than the lowest power that was read would make it rise.

    The lowest reading of a power sensor that measures for only a part of the time proves nothing.
    """
    read = _powers_in(powers, start_s, end_s)
    if meter.sampled_share is not None or len(read) < _FEWEST_POWERS:
        return None
    least_j, highest_j = min(read) * (end_s - start_s), found.energy_j + (found.error_j or 0.0)
    if least_j <= _CONTRADICTED * highest_j:
        return None
    detail = (
        f"the counter rose by {found.energy_j:.3g} J, but at least {min(read):.3g} W were drawn for {least_j:.3g} J"
    )
    return Missing(WarningKind.COUNTER_STOOD_STILL, detail)


def _against_power(
    trace: InstrumentReadings, window: tuple[float, float], found: BoundedEnergy, tolerance: float
) -> BoundedEnergy | Missing:
    """The counter's energy compared with integrated power: no energy, or the error that the power leaves possible.

    A rise below the integrated power by more than both errors and the tolerance is a fault. What the tolerance lets
    pass is added to the error, and so is what the counter may have lost unseen, up to what the power has room for.
    Where there is no power to compare with, the error says that it assumes no loss.
    """
    first_s = window[0] + trace.update_period_s  # an earlier reading may show what was drawn before the window
    inside = [point for point in trace.powers if first_s < point.asked_s and point.time_s < window[1]]
    power = power_energy(inside, *window, trace.period_s, trace.update_period_s)
    if isinstance(power, Missing):
        return replace(found, covers=common_cover([found.covers, "all_but_losses"]))
    error_j = found.error_j or 0.0
    most_w = max(_powers_in(inside, *window))
    unseen_j = most_w * suspect_s(trace.counters, *window, trace.update_period_s)
    power_error_j = max(power.statistical_error_j or 0.0, _between_j(inside, trace.update_period_s))
    least_j, missing_j = power.energy_j - power_error_j, power.energy_j + power_error_j - found.energy_j
    if least_j > tolerance * (found.energy_j + error_j):
        detail = f"the counter rose by {found.energy_j:.3g} J, but the power read amounts to {power.energy_j:.3g} J"
        return Missing(WarningKind.COUNTER_STOOD_STILL, detail)
    is_short = least_j > found.energy_j + error_j
    return replace(found, error_j=max(error_j, missing_j if is_short else min(error_j + unseen_j, missing_j)))


def _between_j(powers: Sequence[Point], update_period_s: float) -> float:
    """How far power between its readings, and readings that are a period late, may change the integrated energy."""
    return math.fsum(
        abs((later.power_w or 0.0) - (sooner.power_w or 0.0)) * (update_period_s + (later.time_s - sooner.time_s) / 2)
        for sooner, later in pairwise(powers)
    )


def _powers_in(powers: Sequence[Point], start_s: float, end_s: float) -> list[float]:
    return [point.power_w for point in powers if start_s <= point.time_s <= end_s and point.power_w is not None]
