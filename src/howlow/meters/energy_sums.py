"""The energy of a phase's parts, summed over the windows of each: what a window had, and why another had none.

A part is what is summed: the measured steps, the pauses between them, the whole phase, and of a generation the reading
of prompts and the writing. Every part is summed for the trial's own meter, for the CPU beside an accelerator, and for
each device of several; the latter are never added to the first.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from howlow.meters.energy import EnergyMeter, window_energy
from howlow.meters.energy_bounds import Missing
from howlow.meters.sampler import Reader
from howlow.records import EnergyWindow, RecordWarning

Part = Literal["measured", "pauses", "phase", "prefill", "decode"]
_NEGLIGIBLE = 1e-3
"""Of a part's time: a window so short, as of a batch whose rows all end at once, may lack energy."""
_MISSED: Mapping[Part, tuple[str, float]] = {
    "measured": ("", 0.05),
    "phase": ("the whole phase, ", _NEGLIGIBLE),
    "prefill": ("reading prompts, ", _NEGLIGIBLE),
    "decode": ("writing, ", _NEGLIGIBLE),
}
"""How a warning of a part begins, and the share of its time that may lack energy without one.

Pauses are not in it: a checkpoint is nearly always too short for a counter, and nothing rests on its energy.
"""


@dataclass
class Window:
    """A stretch of the trial's time, and the samples worked off in it."""

    start_s: float
    end_s: float
    samples: int = 0

    @property
    def length_s(self) -> float:
        """Seconds from its start to its end."""
        return self.end_s - self.start_s


@dataclass
class EnergySum:
    """Energy summed over windows, with the time and the samples of exactly those windows."""

    energy_j: float = 0.0
    error_j: float | None = 0.0
    measured_duration_s: float = 0.0
    samples: int = 0
    readings: int = 0


@dataclass
class EnergySums:
    """The sums of one phase.

    `kept` holds them as plain values by part and meter, `measured trial` or `phase cpu`, as they go into a checkpoint.
    """

    meters: Mapping[str, EnergyMeter]
    readers_of: Callable[[EnergyMeter], Sequence[Reader]]
    kept: dict[str, Any]
    _missing: dict[tuple[Part, str], Missing] = field(init=False, default_factory=dict)
    _before: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        self._before = {key: dict(value) for key, value in self.kept.items()}

    def add(self, part: Part, window: Window) -> None:
        """Add a window to the sums of every meter, and of every device where there are several."""
        for name, meter in self.meters.items():
            if meter.kind == "absent":
                continue
            readers = self.readers_of(meter)
            self._add_one(part, name, meter, readers, window)
            for reader in readers if len(readers) > 1 else ():
                self._add_one(part, reader.instrument.device, meter, [reader], window)

    def renew(self, part: Part, window: Window) -> None:
        """Let a part consist of what it had before an interruption, and of one window instead of those added since."""
        for key in [key for key in self.kept if key.startswith(f"{part} ")]:
            del self.kept[key]
        self.kept.update({key: dict(value) for key, value in self._before.items() if key.startswith(f"{part} ")})
        self._missing = {place: missing for place, missing in self._missing.items() if place[0] != part}
        self.add(part, window)

    def add_own(self, part: Part, window: Window) -> None:
        """Add a window to the sum of the trial's own meter alone."""
        meter = self.meters["trial"]
        if meter.kind != "absent":
            self._add_one(part, "trial", meter, self.readers_of(meter), window)

    def _add_one(self, part: Part, name: str, meter: EnergyMeter, readers: Sequence[Reader], window: Window) -> None:
        found = window_energy(meter, [reader.trace for reader in readers], window.start_s, window.end_s)
        if isinstance(found, Missing):
            self._missing[part, name] = found
            return
        total = EnergySum(**self.kept.get(f"{part} {name}", {}))
        total.energy_j += found.energy_j
        is_bounded = total.error_j is not None and found.error_j is not None
        total.error_j = total.error_j + found.error_j if is_bounded else None  # type: ignore[operator]
        total.measured_duration_s += window.length_s
        total.samples += window.samples
        total.readings += found.readings
        self.kept[f"{part} {name}"] = asdict(total)

    def of(self, part: Part, name: str = "trial") -> EnergySum | None:
        """What the windows of a part had together; None where none of them had energy."""
        found = self.kept.get(f"{part} {name}")
        return EnergySum(**found) if found else None

    def whole(self, part: Part, whole_s: float) -> EnergySum | None:
        """The same of the trial's own meter, but None where more than a negligible part has no energy."""
        found = self.of(part)
        return found if found is not None and found.measured_duration_s >= (1 - _NEGLIGIBLE) * whole_s else None

    def beside(self) -> tuple[EnergyWindow, ...]:
        """The sums of the CPU beside an accelerator, and of each device of several."""
        found = []
        for key, total in self.kept.items():
            part, _, device = key.partition(" ")
            if device != "trial":
                duration_s = total["measured_duration_s"]
                fields = {name: value for name, value in total.items() if name != "measured_duration_s"}
                found.append(EnergyWindow(part=part, device=device, duration_s=duration_s, **fields))
        return tuple(found)

    def lacking(self, parts_s: Mapping[Part, float]) -> Iterator[RecordWarning]:
        """Warnings of the measured part, or else of another one, that has no energy for more than is let pass.

        parts_s: the seconds of each part.
        """
        for name, meter in self.meters.items():
            for part, (said, let_pass) in _MISSED.items():
                whole_s, missing, found = parts_s[part], self._missing.get((part, name)), self.of(part, name)
                left_s = whole_s - (found.measured_duration_s if found else 0.0)
                if missing is not None and left_s > let_pass * whole_s:
                    lack = f"{left_s:.3g} s of {whole_s:.3g} s have no energy: {missing.detail}"
                    detail = f"{said}{meter.name}: {lack}"
                    yield RecordWarning(kind=missing.kind, detail=detail, part=part, meter=name)
                    break  # what the measured part lacks its parts lack as well
