"""What is measured of the energy counters before the first trial of a sweep: once for each device.

The figures are stored in `DIR/.howlow/pace-*.json`, under the machine and the device, so that all trials of the sweep
on that device have the same ones, also when the sweep is started again. A worker with another device measures its own.
"""

import hashlib
import platform
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from filelock import FileLock
from pydantic import ValidationError

from howlow.meters.instruments import Instrument
from howlow.meters.pace import Load, measure_pace
from howlow.meters.rapl import RaplZone
from howlow.meters.sources import Meters
from howlow.meters.timeouts import answered
from howlow.records import CounterPace, write_atomically

_TIMEOUT_S = 30.0  # of one counter
_SIZE, _PRODUCTS = 4096, 2  # of a burst on an accelerator; a product takes 3 ms on an H100
_SIZE_ON_CPU = 512
_REST_S = 0.5  # after the first products, which set the library up


def counter_paces(meters: Meters, device: torch.device, run_directory: Path) -> tuple[CounterPace, ...]:
    """How the counters of these meters behave; those that do not answer are left out."""
    with_counter = [meter for meter in (meters.energy, meters.cpu_energy) if meter.kind == "counter"]
    found = [_stored(part, device, run_directory / ".howlow") for meter in with_counter for part in meter.instruments]
    return tuple(pace for pace in found if pace is not None)


def _stored(instrument: Instrument, device: torch.device, folder: Path) -> CounterPace | None:
    """The figures of one counter, measured where nobody has measured them before."""
    key = f"{platform.node()} {getattr(instrument, 'uuid', instrument.device)}"
    path = folder / f"pace-{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"
    with FileLock(path.with_suffix(".lock")):
        try:
            found = CounterPace.model_validate_json(path.read_text(encoding="utf-8"))
        except (OSError, ValidationError):
            measured = answered(lambda: measure_pace(instrument, load_for(instrument, device)), _TIMEOUT_S)
            if measured is None:
                return None
            found = measured
            write_atomically(path, found.model_dump_json())
    return found.model_copy(update={"device": instrument.device})


def load_for(instrument: Instrument, device: torch.device) -> Load | None:
    """A load on the device that an instrument measures; None where a process of this trial cannot load that device."""
    if isinstance(instrument, RaplZone):
        return _ready(torch.device("cpu"))
    return _ready(device) if instrument.device == str(device) and device.type == "cuda" else None


def _ready(device: torch.device) -> Load | None:
    """A load that starts at once, because its library is set up; None where the device has no memory left for it."""
    size = _SIZE_ON_CPU if device.type == "cpu" else _SIZE
    try:
        a, b = torch.rand(size, size, device=device), torch.rand(size, size, device=device)
        out = torch.empty_like(a)
        _multiply(a, b, out)
    except torch.OutOfMemoryError:
        return None
    threading.Event().wait(_REST_S)

    @contextmanager
    def load() -> Iterator[None]:
        over = threading.Event()

        def work() -> None:
            while not over.is_set():
                _multiply(a, b, out)

        thread = threading.Thread(target=work, name="howlow-load", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    return load


def _multiply(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor) -> None:
    for _ in range(_PRODUCTS):
        torch.mm(a, b, out=out)
    if a.device.type == "cuda":
        torch.cuda.synchronize(a.device)
