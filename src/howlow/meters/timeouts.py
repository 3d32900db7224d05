"""A timeout for calls that may never return, as into a driver that hangs: each runs in a thread of its own."""

import threading
from collections.abc import Callable
from typing import TypeVar

_T = TypeVar("_T")


def answered(call: Callable[[], _T], timeout_s: float, raises: tuple[type[Exception], ...] = ()) -> _T | None:
    """The result of a call, or None where it does not return in time.

    raises: the errors of the call that are raised here too.
    """
    found: list[_T] = []
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
