"""What a phase has summed up so far: it travels in checkpoints, so that a resumed phase keeps it."""

from howlow.records import DeviceConditions, EnergyWindow, Frozen


class PhaseTotals(Frozen):
    """The sums of a phase, those from before an interruption included.

    `prefill_s` and `decode_s` are the two parts of the measured steps that generate; `pauses_s` is the time between
    measured steps. The peaks are None where this device or system does not report them.
    """

    start_s: float
    duration_s: float = 0.0
    measured_duration_s: float = 0.0
    samples: int = 0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    pauses: int = 0
    pauses_s: float = 0.0
    windows: tuple[EnergyWindow, ...] = ()
    conditions: tuple[DeviceConditions, ...] = ()
    peak_in_use_bytes: int | None = None
    peak_process_bytes: int | None = None
    peak_resident_bytes: int | None = None
    peak_allocated_bytes: int | None = None
    peak_reserved_bytes: int | None = None
