"""The energy of a phase's parts, each summed over the stretches of time that belong to it.

Every part is summed for the trial's own energy source, for the CPU of a trial on an accelerator, and for each device
of a source that has several. The sums of the CPU and of single devices are never added to the trial's own.

Reading prompts and writing are parts of steps. No window of theirs can begin or end at a tick of the counter, so each
of their many stretches has the error of two update periods. Where the errors add up to more than `LARGEST_ERROR` of the
energy, the part has none.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from howlow.meters.energy import EnergyMeter, MeterName, window_energy
from howlow.meters.energy_bounds import BoundedEnergy, Missing
from howlow.meters.sampler import Reader
from howlow.records import EnergyPart, EnergyWindow, ErrorCover, RecordWarning, WarningKind, common_cover

SumKey = tuple[EnergyPart, str | None]
"""The part and the device of an `EnergyWindow`."""

LARGEST_ERROR = 0.5  # of the energy of reading prompts and of writing
_NEGLIGIBLE = 1e-3  # of a part's time: very short stretches, as of a batch whose rows all end at once, may lack energy
_TOLERATED: Mapping[Literal["measured", "phase", "prefill", "decode"], tuple[str, float]] = {
    "measured": ("", 0.05),
    "phase": ("the whole phase, ", _NEGLIGIBLE),
    "prefill": ("reading prompts, ", _NEGLIGIBLE),
    "decode": ("writing, ", _NEGLIGIBLE),
}
"""For each part: how its warning begins, and the share of its time that may lack energy without a warning.

Pauses are left out: a checkpoint is nearly always too short for a counter, and no figure needs its energy.
"""


@dataclass(frozen=True)
class Stretch:
    """A stretch of the trial's time, and the samples processed in it; None where samples are not counted."""

    start_s: float
    end_s: float
    samples: int | None = None

    @property
    def length_s(self) -> float:
        """Seconds from its start to its end."""
        return self.end_s - self.start_s

    def extended(self, end_s: float, samples: int) -> "Stretch":
        """The same stretch until a later end, with more samples."""
        return replace(self, end_s=end_s, samples=(self.samples or 0) + samples)


@dataclass
class EnergySums:
    """The energies of one phase; `before` are those from before an interruption."""

    meters: Mapping[MeterName, EnergyMeter]
    readers_of: Callable[[EnergyMeter], Sequence[Reader]]
    before: Sequence[EnergyWindow] = ()
    _sums: dict[SumKey, EnergyWindow] = field(init=False)
    _missing: dict[SumKey, Missing] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._sums = {(window.part, window.device): window for window in self.before}

    @property
    def windows(self) -> tuple[EnergyWindow, ...]:
        """All sums so far."""
        return tuple(self._sums.values())

    def add(self, part: EnergyPart, stretch: Stretch) -> None:
        """Add a stretch to the part's sums: of every meter, and of every device of a meter that has several."""
        for name, meter in self.meters.items():
            if meter.kind == "absent":
                continue
            readers = self.readers_of(meter)
            self._add_one((part, _device(name)), meter, readers, stretch)
            for reader in readers if len(readers) > 1 else ():
                self._add_one((part, reader.instrument.device), meter, [reader], stretch)

    def renew(self, part: EnergyPart, stretch: Stretch) -> None:
        """Replace what was added to a part in this process by one stretch."""
        self._sums = {key: window for key, window in self._sums.items() if key[0] != part}
        self._sums |= {(part, window.device): window for window in self.before if window.part == part}
        self._missing = {key: missing for key, missing in self._missing.items() if key[0] != part}
        self.add(part, stretch)

    def add_own(self, part: EnergyPart, stretch: Stretch) -> None:
        """Add a stretch to the sum of the trial's own meter only."""
        meter = self.meters["trial"]
        if meter.kind != "absent":
            self._add_one((part, None), meter, self.readers_of(meter), stretch)

    def _add_one(self, key: SumKey, meter: EnergyMeter, readers: Sequence[Reader], stretch: Stretch) -> None:
        found = window_energy(meter, [reader.readings for reader in readers], stretch.start_s, stretch.end_s)
        if isinstance(found, Missing):
            self._missing[key] = found
            return
        self._sums[key] = _summed(self._sums.get(key), _window(key, stretch, found))

    def recorded(self, parts_s: Mapping[EnergyPart, float]) -> tuple[EnergyWindow, ...]:
        """The sums for the record.

        The trial's own sum of a part other than the measured one is left out where more than a negligible share of the
        part's time has no energy, or where its error is too large.

        parts_s: the seconds of each part.
        """
        told = (window for window in self.windows if not _is_vague(window))
        return tuple(window for window in told if _is_whole(window, parts_s[window.part]))

    def warnings(self, parts_s: Mapping[EnergyPart, float]) -> Iterator[RecordWarning]:
        """For each meter, a warning of the first part that has no energy for more than its tolerated share."""
        for name, meter in self.meters.items():
            for part, (said, tolerated) in _TOLERATED.items():
                whole_s, key = parts_s[part], (part, _device(name))
                missing, found = self._missing.get(key), self._sums.get(key)
                left_s = whole_s - ((found.duration_s or 0.0) if found else 0.0)
                if missing is not None and left_s > tolerated * whole_s:
                    lack = f"{left_s:.3g} s of {whole_s:.3g} s have no energy: {missing.detail}"
                    detail = f"{said}{meter.name}: {lack}"
                    yield RecordWarning(kind=missing.kind, detail=detail, part=part, meter=name)
                    break  # what the measured part lacks, its parts lack too
                if found is not None and _is_vague(found):
                    detail = f"{said}{meter.name}: {found.energy_j:.3g} J with an error of {found.error_j:.3g} J"
                    yield RecordWarning(kind=WarningKind.ENERGY_OF_PART_VAGUE, detail=detail, part=part, meter=name)


def _device(meter: MeterName) -> str | None:
    return None if meter == "trial" else meter


def _is_vague(window: EnergyWindow) -> bool:
    """Whether the error of a part of the steps is so large that its energy says nothing."""
    is_of_steps = window.part in ("prefill", "decode")
    return is_of_steps and window.error_j is not None and window.error_j > LARGEST_ERROR * window.energy_j


def _is_whole(window: EnergyWindow, whole_s: float) -> bool:
    if window.device is not None or window.part == "measured":
        return True
    return (window.duration_s or 0.0) >= (1 - _NEGLIGIBLE) * whole_s


def _window(key: SumKey, stretch: Stretch, found: BoundedEnergy) -> EnergyWindow:
    part, device = key
    return EnergyWindow(
        part=part,
        device=device,
        energy_j=found.energy_j,
        error_j=found.error_j,
        error_covers=None if found.error_j is None else found.covers,
        statistical_error_j=found.statistical_error_j,
        duration_s=stretch.length_s,
        samples=stretch.samples,
        readings=found.readings,
    )


def _common(*covers: ErrorCover | None) -> ErrorCover | None:
    """What the error of a sum covers; None where one of the errors is of an older record, which does not say."""
    known = [cover for cover in covers if cover is not None]
    return common_cover(known) if len(known) == len(covers) else None


def _summed(before: EnergyWindow | None, added: EnergyWindow) -> EnergyWindow:
    if before is None:
        return added
    has_error = before.error_j is not None and added.error_j is not None
    statistical = before.statistical_error_j, added.statistical_error_j
    return added.model_copy(
        update={
            "energy_j": before.energy_j + added.energy_j,
            "error_j": (before.error_j or 0.0) + (added.error_j or 0.0) if has_error else None,
            "error_covers": _common(before.error_covers, added.error_covers) if has_error else None,
            "statistical_error_j": None if None in statistical else math.hypot(*filter(None, statistical)),
            "duration_s": (before.duration_s or 0.0) + (added.duration_s or 0.0),
            "samples": None if added.samples is None else (before.samples or 0) + added.samples,
            "readings": (before.readings or 0) + (added.readings or 0),
        }
    )
