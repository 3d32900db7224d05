"""Phases as schema 1 recorded them: a flat field for each figure of an energy window.

Schema 1 kept the energies of the trial's own source in fields of the phase, and those of the CPU and of each of
several devices in a list. It kept no duration of the prefill, decode and pauses windows.
"""

from collections.abc import Iterator, Mapping

from howlow.records.energy import EnergyPart, EnergyWindow
from howlow.records.schema import PhaseRecord
from howlow.records.warnings import Frozen, PhaseName


class PhaseOfSchema1(Frozen):
    """A phase of a record of schema 1, field by field."""

    phase: PhaseName
    start_s: float
    duration_s: float
    peak_memory_bytes: int | None = None
    peak_allocated_bytes: int | None = None
    peak_reserved_bytes: int | None = None
    measured_energy_j: float | None = None
    measured_energy_error_j: float | None = None
    measured_energy_readings: int | None = None
    measured_duration_s: float | None = None
    measured_samples: int | None = None
    prefill_energy_j: float | None = None
    prefill_energy_error_j: float | None = None
    prefill_energy_readings: int | None = None
    decode_energy_j: float | None = None
    decode_energy_error_j: float | None = None
    decode_energy_readings: int | None = None
    pauses: int | None = None
    pauses_duration_s: float | None = None
    pauses_energy_j: float | None = None
    pauses_energy_error_j: float | None = None
    pauses_energy_readings: int | None = None
    phase_energy_j: float | None = None
    phase_energy_error_j: float | None = None
    phase_energy_readings: int | None = None
    phase_energy_duration_s: float | None = None
    energies: tuple[EnergyWindow, ...] = ()

    @property
    def windows(self) -> tuple[EnergyWindow, ...]:
        """The same energies as windows."""
        return (*self._of_the_source(), *self.energies)

    def _of_the_source(self) -> Iterator[EnergyWindow]:
        parts: tuple[tuple[EnergyPart, float | None, int | None], ...] = (
            ("measured", self.measured_duration_s, self.measured_samples),
            ("pauses", None, None),
            ("prefill", None, None),
            ("decode", None, None),
            ("phase", self.phase_energy_duration_s, None),
        )
        for part, duration_s, samples in parts:
            energy_j, error_j, readings = (
                getattr(self, f"{part}_energy_{figure}") for figure in ("j", "error_j", "readings")
            )
            if energy_j is not None:
                yield EnergyWindow(
                    part=part,
                    energy_j=energy_j,
                    error_j=error_j,
                    duration_s=duration_s,
                    samples=samples,
                    readings=readings,
                )


def phase_from_schema_1(document: Mapping[str, object]) -> PhaseRecord:
    """A phase of a record of schema 1, in today's form.

    Where schema 1 had energy it kept the duration and the samples of the energy alone, so `measured_duration_s` and
    `measured_samples` are those of the energy's window then.

    Raises:
        pydantic.ValidationError: the document is no phase of schema 1.
    """
    phase = PhaseOfSchema1.model_validate(document)
    kept = PhaseRecord.model_fields.keys() & PhaseOfSchema1.model_fields.keys()
    return PhaseRecord(windows=phase.windows, **{name: getattr(phase, name) for name in kept})
