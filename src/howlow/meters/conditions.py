"""The conditions of a measured window: clocks, heat, throttling and power limit of each device that reports them.

A window consists of stretches, because pauses are left out. What a resumed phase had before its interruption is merged
with what it has later; means and shares are weighted by the readings.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import fsum

from howlow.records import DeviceConditions, PhaseName, Reading, RecordWarning, Spread, WarningKind

LASTING = 0.5  # of the measured window
_FEWEST_READINGS = 3
_FARTHEST = 0.2  # of the window: the driver's times are read once a second, and a short window has none at its edges
_QUANTITIES = (
    "sm_clock_hz",
    "memory_clock_hz",
    "cpu_clock_hz",
    "temperature_c",
    "memory_temperature_c",
    "power_limit_w",
)


def conditions_between(
    readings: Iterable[Sequence[Reading]], start_s: float, end_s: float
) -> tuple[DeviceConditions, ...]:
    """The conditions of each device between two moments; devices that report none are left out.

    readings: those of each device, in the order of time.
    """
    found = (_of_device(one, start_s, end_s) for one in readings if one)
    return tuple(conditions for conditions in found if conditions is not None)


def _of_device(readings: Sequence[Reading], start_s: float, end_s: float) -> DeviceConditions | None:
    first = bisect_left(readings, start_s, key=_time_s)
    inside = readings[first : bisect_right(readings, end_s, key=_time_s)]
    spreads = {name: _spread([getattr(reading, name) for reading in inside]) for name in _QUANTITIES}
    throttled = _throttled_share(readings, inside, start_s, end_s)
    if throttled is None and not any(spreads.values()):
        return None
    return DeviceConditions(
        device=readings[0].device,
        readings=len(inside),
        duration_s=end_s - start_s,
        throttled_share=throttled,
        **spreads,
    )


def _time_s(reading: Reading) -> float:
    return reading.time_s


def _spread(values: Iterable[float | None]) -> Spread | None:
    there = [value for value in values if value is not None]
    return Spread(low=min(there), mean=fsum(there) / len(there), high=max(there)) if there else None


def _throttled_share(
    readings: Sequence[Reading], inside: Sequence[Reading], start_s: float, end_s: float
) -> dict[str, float] | None:
    """From the driver's times; where they do not say enough, from the readings inside."""
    from_times = _share_of_times([(one.time_s, one.throttled_s) for one in readings if one.throttled_s], start_s, end_s)
    if from_times is not None:
        return from_times
    reasons = [reading.throttle_reasons for reading in inside if reading.throttle_reasons is not None]
    names = sorted({name for found in reasons for name in found})
    return {name: sum(name in found for found in reasons) / len(reasons) for name in names} if reasons else None


def _share_of_times(
    known: Sequence[tuple[float, Mapping[str, float]]], start_s: float, end_s: float
) -> dict[str, float] | None:
    """Between the two readings closest to the edges; None where they are far from them, or are no seconds."""
    if not known:
        return None
    (first_s, before), (last_s, after) = (_closest(known, moment_s) for moment_s in (start_s, end_s))
    away_s = abs(first_s - start_s) + abs(last_s - end_s)
    if last_s <= first_s or away_s > _FARTHEST * (end_s - start_s):
        return None
    shares = {name: (after[name] - before[name]) / (last_s - first_s) for name in after if name in before}
    return shares if all(0 <= share <= 1.05 for share in shares.values()) else None


def _closest(known: Sequence[tuple[float, Mapping[str, float]]], moment_s: float) -> tuple[float, Mapping[str, float]]:
    return min(known, key=lambda reading: abs(reading[0] - moment_s))


def joined_conditions(
    before: Sequence[DeviceConditions], added: Sequence[DeviceConditions]
) -> tuple[DeviceConditions, ...]:
    """The conditions of both stretches together, device by device."""
    devices = {one.device: one for one in before}
    return tuple(
        [_merged(devices.pop(one.device), one) if one.device in devices else one for one in added] + [*devices.values()]
    )


def _merged(one: DeviceConditions, other: DeviceConditions) -> DeviceConditions:
    weights = (one.readings, other.readings)
    spreads = {name: _wider(getattr(one, name), getattr(other, name), weights) for name in _QUANTITIES}
    return DeviceConditions(
        device=one.device,
        readings=sum(weights),
        duration_s=one.duration_s + other.duration_s,
        throttled_share=_mean_shares(one, other),
        **spreads,
    )


def _wider(one: Spread | None, other: Spread | None, weights: tuple[int, int]) -> Spread | None:
    if one is None or other is None:
        return one or other
    mean = (one.mean * weights[0] + other.mean * weights[1]) / max(1, sum(weights))
    return Spread(low=min(one.low, other.low), mean=mean, high=max(one.high, other.high))


def _mean_shares(one: DeviceConditions, other: DeviceConditions) -> dict[str, float] | None:
    """Weighted by time, as shares of time are."""
    if one.throttled_share is None or other.throttled_share is None:
        return one.throttled_share or other.throttled_share
    whole_s = one.duration_s + other.duration_s
    parts = [(one.throttled_share, one.duration_s / whole_s), (other.throttled_share, other.duration_s / whole_s)]
    names = dict.fromkeys([*one.throttled_share, *other.throttled_share])
    return {name: fsum(shares.get(name, 0.0) * weight for shares, weight in parts) for name in names}


def condition_warnings(phase: PhaseName, conditions: Iterable[DeviceConditions]) -> Iterator[RecordWarning]:
    """A device that the power limit held back for most of the measured window."""
    for one in conditions:
        share = (one.throttled_share or {}).get("sw_power_cap", 0.0)
        if share >= LASTING and one.readings >= _FEWEST_READINGS:
            limit = f" of {one.power_limit_w.mean:g} W" if one.power_limit_w else ""
            detail = f"{phase}, {one.device}: the power limit{limit} held its clocks down for {share:.0%} of the time"
            yield RecordWarning(kind=WarningKind.HELD_BY_POWER_LIMIT, detail=detail, phase=phase)
