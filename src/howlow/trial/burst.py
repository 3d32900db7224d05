"""A load that can be switched on and off: matrix products, to see how an energy counter follows it."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from howlow.meters.instruments import Instrument
from howlow.meters.pace import Load
from howlow.meters.rapl import RaplZone

_SIZE, _PRODUCTS = 4096, 2  # on an accelerator; a product takes 3 ms on an H100
_SIZE_ON_CPU = 512
_REST_S = 0.5  # after the first products, which set the library up


def load_for(instrument: Instrument, device: torch.device) -> Load | None:
    """A load on the device that an instrument measures; None where a process of this trial cannot load that device."""
    if isinstance(instrument, RaplZone):
        return ready_load(torch.device("cpu"))
    return ready_load(device) if instrument.device == str(device) and device.type == "cuda" else None


def ready_load(device: torch.device) -> Load | None:
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
