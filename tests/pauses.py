"""Stops the tests' processes at random moments, as a busy machine does: `pytest -p pauses`.

A test that fails only then asserts how long something takes, which the machine decides; or it stops a process itself,
and that one goes on because both stopped it at once.
"""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import psutil
import pytest

_BETWEEN_S, _PAUSE_S, _LONGEST_S = 0.3, 0.05, 1.0  # means of exponential distributions, and a bound


@pytest.hookimpl(wrapper=True)
def pytest_runtestloop() -> Iterator[None]:
    """Pause this process and those that it starts, until the tests have run."""
    pauser = subprocess.Popen([sys.executable, __file__, str(os.getpid())], start_new_session=True)
    try:
        return (yield)
    finally:
        pauser.terminate()
        pauser.wait()


def _pause_at_random(of: psutil.Process) -> None:
    while of.is_running():
        time.sleep(random.expovariate(1 / _BETWEEN_S))
        with contextlib.suppress(psutil.NoSuchProcess):
            others = [one for one in of.children(recursive=True) if one.pid != os.getpid()]
            paused = random.choice([of, *others])
            if paused.status() != psutil.STATUS_STOPPED:  # a test stopped that one, and it stays so
                paused.suspend()
                try:
                    time.sleep(min(random.expovariate(1 / _PAUSE_S), _LONGEST_S))
                finally:
                    paused.resume()


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    _pause_at_random(psutil.Process(int(sys.argv[1])))
