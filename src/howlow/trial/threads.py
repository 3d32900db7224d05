"""Threads that work beside a trial's steps."""

import threading
from collections.abc import Callable

STACK_BYTES = 1 << 20
"""The default, 8 MiB, would count against a trial's memory limit. A probe for the largest batch has no such threads."""


def thread_beside_steps(name: str, run: Callable[[], None]) -> threading.Thread:
    """Start a thread."""
    thread, before = threading.Thread(target=run, name=name, daemon=True), threading.stack_size(STACK_BYTES)
    try:
        thread.start()
    finally:
        threading.stack_size(before)
    return thread
