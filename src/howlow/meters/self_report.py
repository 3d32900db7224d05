"""How the meters themselves did: their rate, gaps, late and failed readings, and what they cost."""

from collections.abc import Iterator, Sequence
from itertools import pairwise

from howlow.meters.instruments import Finding
from howlow.meters.sensors import Sensors
from howlow.records import Idle, MeterRecord, WarningKind

LARGEST_OVERHEAD = 0.005
_STARTING_S = 5.0  # a program that is read, as nvidia-smi, takes seconds to its first line
_LONG_ENOUGH_S = 10.0  # of steps: before that, finding a counter's update period is most of the cost


def meter_record(sensors: Sensors, own_cpu_s: float, idle: Idle | None) -> MeterRecord:
    """The figures for the record.

    own_cpu_s: the CPU time of this process since the readers started.
    """
    programs_cpu_s = programs_time_s(sensors)
    meters_cpu_s = sum(reader.cpu_s for reader in sensors.readers) + programs_cpu_s
    all_cpu_s = own_cpu_s + programs_cpu_s
    waited_s = sum(reader.waited_s for reader in sensors.readers)
    whole_s = sensors.until_s - sensors.began_s
    return MeterRecord(
        rate_hz=min((_rate_hz(times_s, whole_s) for times_s in _times_s(sensors)), default=None),
        largest_gap_s=_largest_gap_s(sensors),
        readings=sum(len(reader.looks) for reader in sensors.readers),
        late=sum(reader.late for reader in sensors.readers),
        cpu_share=meters_cpu_s / all_cpu_s if all_cpu_s else None,
        core_share=meters_cpu_s / whole_s if whole_s else None,
        step_share=waited_s / sensors.steps_s if sensors.steps_s else None,
        idle=idle,
    )


def meter_findings(sensors: Sensors, record: MeterRecord) -> Iterator[Finding]:
    """What was wrong with the meters themselves."""
    asked = sum(reader.asked for reader in sensors.readers)
    if record.late > max(1, asked // 50):
        yield WarningKind.SENSOR_LATE, f"{record.late} of {asked} readings did not come in time"
    gap_s = _largest_gap_s(sensors, _STARTING_S)
    if gap_s is not None and gap_s > max(1.0, 4 / sensors.rate_hz):
        yield WarningKind.TIMELINE_GAP, f"{gap_s:.2f} s without a reading"
    for reader in sensors.readers:
        if reader.failures:
            detail = f"{reader.instrument.device}: {reader.failures} times, the last one: {reader.failure}"
            yield WarningKind.SENSOR_FAILED, detail
    shares = (record.cpu_share or 0.0, record.step_share or 0.0)
    if sensors.steps_s > _LONG_ENOUGH_S and max(shares) > LARGEST_OVERHEAD:
        detail = f"the meters took {shares[0]:.2%} of the CPU time and {shares[1]:.2%} of the steps' time"
        yield WarningKind.METER_OVERHEAD, detail


def programs_time_s(sensors: Sensors) -> float:
    """The CPU time of the programs that the meters started."""
    return sum(reader.instrument.programs_cpu_s for reader in sensors.readers)


def _times_s(sensors: Sensors) -> list[list[float]]:
    """The moments of each reader's readings."""
    return [[look.time_s for look in reader.looks] for reader in sensors.readers]


def _largest_gap_s(sensors: Sensors, starting_s: float = 0.0) -> float | None:
    """The longest time without a reading of one reader, its first `starting_s` left out."""
    edges = [(sensors.began_s + starting_s, *times_s, sensors.until_s) for times_s in _times_s(sensors)]
    return max((later - sooner for times_s in edges for sooner, later in pairwise(times_s)), default=None)


def _rate_hz(times_s: Sequence[float], whole_s: float) -> float:
    """Readings a second, from the first to the last or over the whole time, whichever is less."""
    over_all = len(times_s) / max(1e-9, whole_s)
    return over_all if len(times_s) < 2 else min((len(times_s) - 1) / max(1e-9, times_s[-1] - times_s[0]), over_all)
