"""The clocks: a monotonic one for timing, and the date for a record."""

import time
from datetime import UTC, datetime


def now_s() -> float:
    """Seconds on a monotonic clock of the highest resolution; only differences are meaningful."""
    return time.perf_counter()


def sleep(seconds: float) -> None:
    """Wait for so many seconds of that clock."""
    time.sleep(seconds)


def thread_cpu_s() -> float:
    """Seconds of CPU that the calling thread has used."""
    return time.thread_time()


def process_cpu_s() -> float:
    """Seconds of CPU that all threads of this process have used."""
    return time.process_time()


def boot_s() -> float | None:
    """Seconds since the system started, suspensions included; None where the system does not report it."""
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return None if clock is None else time.clock_gettime(clock)


def date_s() -> float:
    """Seconds of the date's clock since 1970; only for comparing it with another machine's."""
    return time.time()


def utc() -> str:
    """The date and time, UTC, ISO 8601, for people to read; never subtracted."""
    return datetime.now(UTC).isoformat(timespec="seconds")
