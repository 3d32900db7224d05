"""What a machine can measure, in words: the lines of `howlow env`."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from howlow.reporting import formatting


class _Finding(Protocol):
    """One thing that the machine can measure or not."""

    @property
    def name(self) -> str: ...
    @property
    def is_available(self) -> bool: ...
    @property
    def detail(self) -> str: ...
    @property
    def remedy(self) -> str | None: ...
    @property
    def is_tested(self) -> bool: ...


class _Pace(Protocol):
    """How one energy counter behaves."""

    @property
    def device(self) -> str: ...
    @property
    def period_s(self) -> float | None: ...
    @property
    def longest_s(self) -> float | None: ...
    @property
    def latency_s(self) -> float: ...
    @property
    def largest_latency_s(self) -> float: ...
    @property
    def watched_s(self) -> float: ...
    @property
    def is_loaded(self) -> bool: ...
    @property
    def lag_s(self) -> float | None: ...


class _Findings(Protocol):
    """What the text needs of `howlow.meters.survey.Survey`."""

    @property
    def device(self) -> str: ...
    @property
    def device_name(self) -> str: ...
    @property
    def energy(self) -> str | None: ...
    @property
    def energy_detail(self) -> str: ...
    @property
    def idle_power_w(self) -> float | None: ...
    @property
    def counters(self) -> Sequence[_Pace]: ...
    @property
    def silent_counters(self) -> Sequence[str]: ...
    @property
    def sources(self) -> Sequence[_Finding]: ...
    @property
    def measures(self) -> Sequence[_Finding]: ...
    @property
    def warnings(self) -> Sequence[Mapping[str, str]]: ...


def survey_text(found: _Findings) -> str:
    """The findings of `howlow env` for people."""
    lines = [
        f"device: {found.device_name} ({found.device})",
        f"energy: {_energy(found)}",
        "",
        "energy sources",
        *map(_line, found.sources),
        *_counters(found),
        "",
        "what else is watched",
        *map(_line, found.measures),
    ]
    lines += [f"warning: {warning['kind']}: {warning['detail']}; {warning['remedy']}" for warning in found.warnings]
    return "\n".join(lines)


def _energy(found: _Findings) -> str:
    if found.energy is None:
        return f"absent: {found.energy_detail}"
    idle = "" if found.idle_power_w is None else f", {formatting.quantity(found.idle_power_w, 'watts')} now"
    return f"{found.energy}: {found.energy_detail}{idle}"


def _counters(found: _Findings) -> list[str]:
    """How the energy counters behave, a line each; none where there are none."""
    lines = [f"  {pace.device:28} {_pace(pace)}" for pace in found.counters]
    lines += [f"  {device:28} did not answer" for device in found.silent_counters]
    return ["", "energy counters", *lines] if lines else []


def _pace(pace: _Pace) -> str:
    """The update period, what a reading takes, and the lag."""
    if pace.period_s is None or pace.longest_s is None:
        updates = f"not updated twice in {formatting.duration(pace.watched_s)}"
    else:
        updates = f"updated every {formatting.duration(pace.period_s)} (at most {formatting.duration(pace.longest_s)})"
    taken = f"{formatting.duration(pace.latency_s)} (at most {formatting.duration(pace.largest_latency_s)})"
    under = " under load" if pace.is_loaded else ""
    lag = "lag not measured (errors assume none)" if pace.lag_s is None else f"lag {formatting.duration(pace.lag_s)}"
    return f"{updates}; a reading takes {taken}{under}; {lag}"


def _line(found: _Finding) -> str:
    mark = "yes" if found.is_available else "no"
    untested = "" if found.is_tested else " (untested by us)"
    remedy = f"; {found.remedy}" if found.remedy else ""
    return f"  {found.name:28} {mark:4} {found.detail}{untested}{remedy}"
