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


def _line(found: _Finding) -> str:
    mark = "yes" if found.is_available else "no"
    untested = "" if found.is_tested else " (untested by us)"
    remedy = f"; {found.remedy}" if found.remedy else ""
    return f"  {found.name:28} {mark:4} {found.detail}{untested}{remedy}"
