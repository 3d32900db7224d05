"""The idle device: its power before the trials, and the wait between them until its temperature is steady."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Event

from howlow.meters import clock
from howlow.meters.energy import EnergyMeter, window_energy
from howlow.meters.energy_bounds import Missing
from howlow.meters.sampler import Reader, await_sources, await_ticks
from howlow.meters.timeline import Timeline
from howlow.records import Idle

MEASURED_S = 3.0
SLOWEST_HZ = 4.0
_FIRST_WITHIN_S = 5.0
_SETTLING_S = 0.7  # the sampler first finds a counter's update period
_STEADY_C, _STEADY_READINGS = 1.0, 5
_LOOK_EVERY_S = 1.0


def measure_idle(meter: EnergyMeter, rate_hz: float, duration_s: float = MEASURED_S) -> Idle | Missing | None:
    """The mean power while this process only waits: None without a source for it, `Missing` where the source failed.

    rate_hz: the rate of the readings, at least `SLOWEST_HZ`; instruments that print by themselves have the same one.
    """
    if meter.kind not in ("counter", "power"):
        return None
    origin_s = clock.now_s()
    timeline = Timeline(Path(os.devnull))
    readers = [
        Reader(
            part,
            rate_hz,
            timeline,
            lambda: clock.now_s() - origin_s,
            meter.update_period_s,
            is_polled_power=meter.kind == "power",
        )
        for part in meter.instruments
    ]
    for reader in readers:
        reader.start()
    start_s, end_s = _window(meter, readers, origin_s, duration_s)
    found = window_energy(meter, [reader.readings for reader in readers], start_s, end_s)
    for reader in readers:
        reader.stop()
    timeline.close()
    if isinstance(found, Missing):
        return found
    length_s = end_s - start_s
    return Idle(
        power_w=found.energy_j / length_s,
        error_w=None if found.error_j is None else found.error_j / length_s,
        duration_s=length_s,
        temperature_c=_temperature_c(readers),
        measured_at=clock.utc(),
    )


def _window(meter: EnergyMeter, readers: Sequence[Reader], origin_s: float, duration_s: float) -> tuple[float, float]:
    """Let so many seconds pass after all readers have begun to read; returns their start and end."""
    while not all(reader.has_energy for reader in readers) and clock.now_s() - origin_s < _FIRST_WITHIN_S:
        Event().wait(0.05)  # nvidia-smi needs seconds for its first line where the driver sleeps
    Event().wait(_SETTLING_S)
    counters, polled = (readers, []) if meter.kind == "counter" else ([], readers)
    await_ticks(counters)
    start_s = clock.now_s() - origin_s
    Event().wait(duration_s)
    end_s = clock.now_s() - origin_s
    await_sources(counters, polled, end_s)
    return start_s, end_s


def _temperature_c(readers: Sequence[Reader]) -> float | None:
    found = [look.temperature_c for reader in readers for look in reader.looks[-1:] if look.temperature_c is not None]
    return max(found, default=None)


def rest(read_c: Callable[[], float | None], at_most_s: float, is_stopped: Callable[[], bool]) -> float:
    """Wait until the last readings of the temperature are within one degree; returns the seconds it took.

    Without a temperature it waits for the whole time, because nothing shows that less is enough.
    """
    started_s = clock.now_s()
    seen: list[float] = []
    while (left_s := at_most_s - (clock.now_s() - started_s)) > 0 and not is_stopped():
        temperature_c = read_c()
        if temperature_c is not None:
            seen = [*seen, temperature_c][-_STEADY_READINGS:]
            if len(seen) == _STEADY_READINGS and max(seen) - min(seen) <= _STEADY_C:
                break
        Event().wait(min(_LOOK_EVERY_S, left_s))
    return clock.now_s() - started_s
