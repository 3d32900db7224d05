"""How it was measured, for the page: steps, energy sources, meters, machine."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from howlow.analysis.columns import ENERGY_SOURCE
from howlow.analysis.comparison import Comparison, Group
from howlow.analysis.rows import Trial, inference_phase
from howlow.records import CounterPace, Environment, Record
from howlow.reporting import formatting
from howlow.reporting.conditions import condition_facts
from howlow.reporting.summary import axes_words, label_of
from howlow.reporting.sweeps import told_apart


def measured_rows(comparison: Comparison) -> list[dict[str, str]]:
    """What stands behind the figures of each row of the table: steps, energy source, interruptions, time."""
    return [
        {
            "label": label_of(group),
            "axes": axes_words(group.axes),
            "train": _steps(group, "train"),
            "inference": _inference_steps(group),
            "energy": formatting.listed(_distinct(trial.row[ENERGY_SOURCE.name] or "absent" for trial in group.trials)),
            "resumed": _span(trial.record.resumed for trial in group.trials),
            "total": _span_of_time([trial.record.total_s for trial in group.trials]),
        }
        for group in comparison.groups
    ]


def _inference_steps(group: Group) -> str:
    phase = next((found for trial in group.trials if (found := inference_phase(trial.record))), None)
    return f"{phase}: {_steps(group, phase)}" if phase else formatting.ABSENT


def _steps(group: Group, phase: str) -> str:
    measured = _span(trial.measured_steps[phase] for trial in group.trials)
    burn_in = _span(trial.burn_in_steps[phase] for trial in group.trials)
    return formatting.ABSENT if (measured, burn_in) == ("0", "0") else f"{measured} measured, {burn_in} burn-in"


def _span(counts: Iterable[int]) -> str:
    there = sorted(set(counts))
    return f"{there[0]:,}" if len(there) == 1 else f"{there[0]:,} to {there[-1]:,}"


def _span_of_time(times_s: Sequence[float | None]) -> str:
    there = sorted(time for time in times_s if time is not None)
    if not there:
        return formatting.ABSENT
    first, last = formatting.duration(there[0]), formatting.duration(there[-1])
    return first if first == last else f"{first} to {last}"


def _distinct(texts: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(texts))


def energy_lines(comparison: Comparison) -> list[str]:
    """Where energy comes from, and what its errors cover."""
    sources = [trial.record.energy for trial in comparison.results.trials if trial.record.energy is not None]
    names = _distinct(f"{source.name or 'absent'}: {source.detail}" for source in sources)
    return names + _distinct(line for trial in comparison.results.trials for line in _source(trial.record))


def _source(record: Record) -> list[str]:
    """How often the source is renewed, the CPU's own source, and the idle power that is subtracted."""
    energy, idle = record.energy, record.meters.idle if record.meters else None
    lines = []
    if energy is not None and energy.update_period_s is not None:
        lines.append(f"updated every {formatting.duration(round(energy.update_period_s, 3))}")
    lines += [_counter(pace) for pace in energy.counters] if energy is not None else []
    if energy is not None and energy.power_sampled_share is not None:
        share = formatting.quantity(energy.power_sampled_share, "fraction")
        lines.append(f"the device's power sensor measures for {share} of the time only")
    lines += _uncovered(record)
    if energy is not None and energy.cpu == "rapl":
        lines.append("the CPU's energy: from rapl, in columns of its own, never added to the device's")
    if idle is not None:
        cpu = "" if idle.cpu_power_w is None else f", the CPU {formatting.quantity(idle.cpu_power_w, 'watts')}"
        lines.append(f"idle power {formatting.quantity(idle.power_w, 'watts')}{cpu}, measured {idle.measured_at}")
    return lines


def _uncovered(record: Record) -> Iterator[str]:
    """What the errors of the energies leave out."""
    covers = {window.error_covers for phase in record.phases for window in phase.windows}
    is_partial = record.energy is not None and record.energy.power_sampled_share is not None
    if "edges" in covers:
        beat = "; such a sensor may beat with the load, so there is no statistical error either" if is_partial else ""
        yield (
            "polled power: the error covers rounding, gaps at the edges and late readings; swings between two readings "
            f"are not in it{beat}"
        )
    if covers & {"all_but_losses", "all_but_lag_and_losses"}:
        yield (
            "where no power is read beside a counter, or a window is too short for it, nothing would show an update "
            "that the counter lost, and the error assumes that it lost none"
        )


def _counter(pace: CounterPace) -> str:
    """How one energy counter behaves; its lag is in the errors, or the line says that they assume none."""
    takes = f"a reading takes {formatting.duration(pace.latency_s)}"
    if pace.lag_s is None:
        return f"the counter of {pace.device}: {takes}; its lag could not be measured; the errors assume none"
    return (
        f"the counter of {pace.device}: {takes}; it lags by {formatting.duration(pace.lag_s)}, which the errors include"
    )


def meter_lines(comparison: Comparison) -> list[str]:
    """How the meters did, at worst over all trials."""
    found = [trial.record.meters for trial in comparison.results.trials if trial.record.meters is not None]
    rates = [meters.rate_hz for meters in found if meters.rate_hz is not None]
    gaps = [meters.largest_gap_s for meters in found if meters.largest_gap_s is not None]
    lines = []
    if rates and gaps:
        largest = formatting.duration(max(gaps))
        lines.append(f"at least {formatting.significant(min(rates))} readings a second, largest gap {largest}")
    lines += _share("CPU time of a trial", [meters.cpu_share for meters in found])
    return lines + _share("time of its steps", [meters.step_share for meters in found])


def _share(of: str, shares: Iterable[float | None]) -> list[str]:
    there = [share for share in shares if share is not None]
    return [f"the meters took at most {formatting.significant(max(there) * 100)} % of the {of}"] if there else []


def environment_facts(comparison: Comparison) -> Mapping[str, str]:
    """The machine and the versions; a fact in which trials differ has all its values."""
    told: dict[str, list[tuple[Trial, str]]] = {}
    for trial in comparison.results.trials:
        if trial.record.environment is not None:
            for key, value in _facts(trial.record.environment).items():
                told.setdefault(key, []).append((trial, value))
    return {key: told_apart(comparison.results, values) for key, values in told.items()}


def _facts(found: Environment) -> Mapping[str, str]:
    facts = {
        "device": f"{found.device_name} ({found.device})",
        "driver": found.driver,
        "device memory": formatting.quantity(found.device_memory_bytes, "bytes"),
        "CPU": f"{found.cpu}, {found.cores} cores, {found.threads} threads used",
        "memory": formatting.quantity(found.memory_bytes, "bytes"),
        **condition_facts(found),
        "platform": found.platform,
        "Python": found.python,
        **found.versions,
    }
    return {key: value for key, value in facts.items() if value is not None and value != formatting.ABSENT}
