"""What a machine can measure, in words: the lines of `howlow env`."""

from collections.abc import Iterable, Mapping
from typing import Any

from howlow.reporting import formatting


def survey_text(document: Mapping[str, Any]) -> str:
    """The document of `howlow env --json` for people."""
    lines = [f"device: {document['device_name']} ({document['device']})", f"energy: {_energy(document)}", "", "sources"]
    lines += _findings(document["sources"])
    lines += ["", "beside energy"]
    lines += _findings(document["measures"])
    for warning in document["warnings"]:
        lines.append(f"warning: {warning['kind']}: {warning['detail']}; {warning['remedy']}")
    return "\n".join(lines)


def _energy(document: Mapping[str, Any]) -> str:
    if document["energy"] is None:
        return f"absent: {document['energy_detail']}"
    idle = document["idle_power_w"]
    at_rest = "" if idle is None else f", {formatting.quantity(idle, 'watts')} now"
    return f"{document['energy']}: {document['energy_detail']}{at_rest}"


def _findings(findings: Iterable[Mapping[str, Any]]) -> list[str]:
    lines = []
    for found in findings:
        mark = "yes" if found["is_available"] else "no"
        untested = "" if found["is_tested"] else " (untested by us)"
        remedy = f"; {found['remedy']}" if found["remedy"] else ""
        lines.append(f"  {found['name']:28} {mark:4} {found['detail']}{untested}{remedy}")
    return lines
