"""A thread that works beside a trial's steps."""

import threading
from concurrent.futures import ThreadPoolExecutor

STACK_BYTES = 1 << 20
"""The default, 8 MiB, would count against a trial's memory limit. A probe for the largest batch has no such threads."""


def thread_beside_steps(name: str) -> ThreadPoolExecutor:
    """One thread, already started, that runs calls in the order in which they are submitted."""
    before = threading.stack_size(STACK_BYTES)
    try:
        thread = ThreadPoolExecutor(1, name)
        thread.submit(int)  # a pool starts its thread with the first call
    finally:
        threading.stack_size(before)
    return thread
