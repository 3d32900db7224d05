"""Phases as schema 1 recorded them: a flat field for each figure of an energy window.

Schema 1 kept the energies of the trial's own source in fields of the phase, and those of the CPU and of each of
several devices in a list. It kept no duration of the prefill, decode and pauses windows.
"""

from collections.abc import Iterator, Mapping

from howlow.records.energy import EnergyWindow
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
        if self.measured_energy_j is not None:
            yield EnergyWindow(
                part="measured",
                energy_j=self.measured_energy_j,
                error_j=self.measured_energy_error_j,
                duration_s=self.measured_duration_s,
                samples=self.measured_samples,
                readings=self.measured_energy_readings,
            )
        if self.pauses_energy_j is not None:
            yield EnergyWindow(
                part="pauses",
                energy_j=self.pauses_energy_j,
                error_j=self.pauses_energy_error_j,
                readings=self.pauses_energy_readings,
            )
        if self.prefill_energy_j is not None:
            yield EnergyWindow(
                part="prefill",
                energy_j=self.prefill_energy_j,
                error_j=self.prefill_energy_error_j,
                readings=self.prefill_energy_readings,
            )
        if self.decode_energy_j is not None:
            yield EnergyWindow(
                part="decode",
                energy_j=self.decode_energy_j,
                error_j=self.decode_energy_error_j,
                readings=self.decode_energy_readings,
            )
        if self.phase_energy_j is not None:
            yield EnergyWindow(
                part="phase",
                energy_j=self.phase_energy_j,
                error_j=self.phase_energy_error_j,
                duration_s=self.phase_energy_duration_s,
                readings=self.phase_energy_readings,
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
