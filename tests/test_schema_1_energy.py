"""Phases of schema 1: every field of theirs is in today's form, and nothing else."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from howlow.records import EnergyWindow, PhaseRecord
from howlow.records.schema_1_energy import phase_from_schema_1

RECORDED = sorted((Path(__file__).parent / "recorded").glob("schema-1/**/record.json"))
JOULES, SECONDS = st.floats(0, 1e9), st.floats(0, 1e6)
MAYBE_COUNT = st.none() | st.integers(0, 10**9)
OF_WINDOW = ("energy_j", "error_j", "duration_s", "samples", "readings")


@st.composite
def energies_of(draw: st.DrawFn, part: str) -> dict[str, Any]:
    """The flat fields of one part, as schema 1 wrote them: all of them, or none."""
    if not draw(st.booleans()):
        return {}
    readings = draw(MAYBE_COUNT)
    error_j = draw(st.none() | JOULES)
    return {
        f"{part}_energy_j": draw(JOULES),
        f"{part}_energy_error_j": error_j,
        f"{part}_energy_readings": readings,
    }


@st.composite
def phases(draw: st.DrawFn) -> dict[str, Any]:
    """The document of a phase of schema 1, its absent fields None as it wrote them."""
    parts = ("measured", "pauses", "prefill", "decode", "phase")
    flat = {name: value for part in parts for name, value in draw(energies_of(part)).items()}
    absent = {f"{part}_energy{figure}": None for part in parts for figure in ("_j", "_error_j", "_readings")}
    window = st.fixed_dictionaries(
        {
            "device": st.sampled_from(["cpu", "GPU-1", "package-0"]),
            "part": st.sampled_from(["measured", "pauses", "phase"]),
            "energy_j": JOULES,
            "error_j": st.none() | JOULES,
            "duration_s": SECONDS,
            "samples": st.integers(0, 10**6),
            "readings": st.integers(0, 10**6),
        }
    )
    whole = draw(
        st.fixed_dictionaries(
            {
                "phase": st.sampled_from(["load", "train", "evaluate", "generate"]),
                "start_s": SECONDS,
                "duration_s": SECONDS,
                "peak_memory_bytes": MAYBE_COUNT,
                "peak_allocated_bytes": MAYBE_COUNT,
                "peak_reserved_bytes": MAYBE_COUNT,
                "measured_duration_s": st.none() | SECONDS,
                "measured_samples": MAYBE_COUNT,
                "pauses": MAYBE_COUNT,
                "pauses_duration_s": st.none() | SECONDS,
                "energies": st.lists(window, unique_by=lambda window: (window["device"], window["part"])),
            }
        )
    )
    covered_s = draw(SECONDS) if "phase_energy_j" in flat else None
    return absent | whole | flat | {"phase_energy_duration_s": covered_s}


NEWER = {"conditions", "peak_process_memory_bytes"}
NEWER_OF_WINDOWS = {"error_covers", "statistical_error_j"}
"""Fields that schema 1 does not have."""


def as_schema_1(phase: PhaseRecord) -> dict[str, Any]:
    """The flat fields again, from today's form."""
    own = ("measured", "pauses", "prefill", "decode", "phase")
    found: dict[str, Any] = phase.model_dump(exclude={"windows", *NEWER})
    for part in own:
        window = phase.window(part)  # type: ignore[arg-type]
        found[f"{part}_energy_j"] = window and window.energy_j
        found[f"{part}_energy_error_j"] = window and window.error_j
        found[f"{part}_energy_readings"] = window and window.readings
    whole = phase.window("phase")
    found["phase_energy_duration_s"] = whole and whole.duration_s
    of_devices = [window for window in phase.windows if window.device is not None]
    found["energies"] = [window.model_dump(exclude=NEWER_OF_WINDOWS) for window in of_devices]
    return found


@given(phases())
def test_every_field_of_a_phase_is_kept(document: dict[str, Any]) -> None:
    phase = phase_from_schema_1(document)
    assert as_schema_1(phase) == document
    assert not any(phase.model_dump(include=NEWER).values())
    assert all(window.error_covers is None for window in phase.windows)
    measured = phase.window("measured")
    if measured is not None:  # what the figures of a table are computed from
        assert (measured.duration_s, measured.samples) == (
            document["measured_duration_s"],
            document["measured_samples"],
        )


@given(phases())
def test_todays_form_is_written_and_read_as_it_is(document: dict[str, Any]) -> None:
    phase = phase_from_schema_1(document)
    assert PhaseRecord.model_validate_json(phase.model_dump_json()) == phase


def test_fields_that_an_early_record_lacks_are_absent() -> None:
    phase = phase_from_schema_1({"phase": "train", "start_s": 0.0, "duration_s": 2.0, "measured_energy_j": 5.0})
    assert phase.windows == (EnergyWindow(part="measured", energy_j=5.0),)
    assert (phase.pauses, phase.peak_memory_bytes) == (None, None)


def test_a_phase_of_another_schema_is_refused() -> None:
    with pytest.raises(ValidationError):
        phase_from_schema_1({"phase": "train", "start_s": 0.0, "duration_s": 2.0, "windows": []})


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.parent.name)
def test_a_recorded_phase_is_kept(path: Path) -> None:
    for document in json.loads(path.read_text(encoding="utf-8"))["phases"]:
        found = as_schema_1(phase_from_schema_1(document))
        assert {name: found[name] for name in document} == document
        assert not [name for name, value in found.items() if name not in document and value]
