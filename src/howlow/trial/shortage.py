"""What a trial that ran out of memory had and asked for, as far as its own process can say."""

from howlow.memory.limits import failed_allocation
from howlow.memory.peaks import Peaks, available_bytes, held_bytes, peaks
from howlow.meters.session import Session
from howlow.records import MemoryShortage
from howlow.trial.state import TrialState


def shortage_of(state: TrialState, problem: Exception) -> MemoryShortage:
    """Look before anything is freed: the error's traceback still holds what the trial had."""
    asked, session = failed_allocation(problem), state.session
    if session is None:  # before the first phase
        return MemoryShortage(source="process", requested_bytes=asked, limit_bytes=_limit_bytes(state, None))
    highest, sensors = peaks(session.device), session.sensors
    phase = sensors.timeline.phase
    return MemoryShortage(
        source="process",
        phase=phase,
        peak_memory_bytes=_in_use_bytes(session, highest),
        peak_allocated_bytes=highest.allocated_bytes,
        peak_reserved_bytes=highest.reserved_bytes,
        held_bytes=held_bytes(session.device),
        requested_bytes=asked,
        limit_bytes=_limit_bytes(state, session),
    )


def _in_use_bytes(session: Session, highest: Peaks) -> int | None:
    if session.device.type != "cpu":
        return session.sensors.most_in_use_bytes(session.sensors.timeline.phase)
    return highest.resident_bytes if session.peak_problem is None else None


def _limit_bytes(state: TrialState, session: Session | None) -> int | None:
    asked = state.settings.run.memory_limit_bytes
    return asked or (available_bytes(session.device)[1] if session else None)
