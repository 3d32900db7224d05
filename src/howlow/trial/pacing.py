"""What is measured of the energy counters before the first trial of a sweep: once for each device.

The figures are stored in `DIR/.howlow/pace-*.json`, under the machine and the device, so that all trials of the sweep
on that device have the same ones, also when the sweep is started again. A worker with another device measures its own.
"""

import hashlib
import platform
from pathlib import Path

import torch
from pydantic import ValidationError

from howlow.locks import locked
from howlow.meters.instruments import Instrument
from howlow.meters.pace import measure_pace
from howlow.meters.sources import Meters
from howlow.meters.timeouts import answered
from howlow.records import CounterPace, write_atomically
from howlow.trial.burst import load_for

_TIMEOUT_S = 30.0  # of one counter


def counter_paces(meters: Meters, device: torch.device, run_directory: Path) -> tuple[CounterPace, ...]:
    """How the counters of these meters behave; those that do not answer are left out."""
    with_counter = [meter for meter in (meters.energy, meters.cpu_energy) if meter.kind == "counter"]
    found = [_stored(part, device, run_directory / ".howlow") for meter in with_counter for part in meter.instruments]
    return tuple(pace for pace in found if pace is not None)


def _stored(instrument: Instrument, device: torch.device, folder: Path) -> CounterPace | None:
    """The figures of one counter, measured where nobody has measured them before."""
    key = f"{platform.node()} {getattr(instrument, 'uuid', instrument.device)}"
    path = folder / f"pace-{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"
    with locked(path.with_suffix(".lock")):
        try:
            found = CounterPace.model_validate_json(path.read_text(encoding="utf-8"))
        except (OSError, ValidationError):
            measured = answered(lambda: measure_pace(instrument, load_for(instrument, device)), _TIMEOUT_S)
            if measured is None:
                return None
            found = measured
            write_atomically(path, found.model_dump_json())
    return found.model_copy(update={"device": instrument.device})
