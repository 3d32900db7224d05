"""The clocks: one that never goes back, for timing; one for the date on a record."""

import time
from datetime import UTC, datetime


def now_s() -> float:
    """Seconds on a monotonic clock of the highest resolution; only differences mean something."""
    return time.perf_counter()


def utc() -> str:
    """The date and time, UTC, ISO 8601, for people to read; never subtracted."""
    return datetime.now(UTC).isoformat(timespec="seconds")
