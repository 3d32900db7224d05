"""A trial watches its worker's claim while it runs, so that it ends soon after another worker may have taken it.

On one machine it also waits for a process of the same trial that is still ending.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from howlow.claims import HEARTBEAT_S, Host, claim_folder, is_current
from howlow.trial.state import TrialState
from howlow.trial.threads import thread_beside_steps


def own_lock() -> str:
    """The lock of a trial's processes on this machine: one of a dead worker may still be ending.

    Those of other machines are held off by the claim. A suspended one would keep a lock for ever.
    """
    return f".lock-{Host.here().boot[:8]}"


@contextmanager
def lease_watched(state: TrialState, every_s: float = HEARTBEAT_S) -> Iterator[None]:
    """Look at the claim in a thread; once it is lost in two looks, `TrialState.report_progress` ends the trial.

    Two, because a folder that cannot be reached for a moment shows no claim either.
    """
    if state.claim is None:
        yield
        return
    ended, generation = threading.Event(), state.claim
    folder = claim_folder(state.folder.parent.parent, state.name)

    def watch() -> None:
        losses = 0
        while losses < 2 and not ended.wait(every_s):
            with suppress(OSError):
                losses = 0 if is_current(folder, generation) else losses + 1
        state.has_lost_claim = losses == 2

    thread = thread_beside_steps("howlow-lease", watch)
    try:
        yield
    finally:
        ended.set()
        thread.join(1.0)
