"""Asking what may never answer: a call in a thread of its own that is given some seconds."""

import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def answered(call: Callable[[], T], timeout_s: float, raises: tuple[type[Exception], ...] = ()) -> T | None:
    """What the call gives, or None where it does not come back in time; of its errors, those named are raised here."""
    found: list[T] = []
    raised: list[Exception] = []

    def ask() -> None:
        try:
            found.append(call())
        except raises as error:
            raised.append(error)

    thread = threading.Thread(target=ask, name="howlow-timeout", daemon=True)
    thread.start()
    thread.join(timeout_s)
    if raised:
        raise raised[0]
    return found[0] if found else None
