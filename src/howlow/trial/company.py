"""What runs beside a trial on its machine: when its processes may begin, and what its record says of the others.

Every process that loads a model for a trial is known to the node (`howlow.node`). With `run.exclusive` those of trials
whose costs count are alone there. Otherwise the record says which processes of howlow worked at the same time, on which
device, and during which phases of this trial. The figures of these phases are marked. With `run.exclusive` they are
left out: costs come from the trials that were alone.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from howlow.claims import machine_s, neighbours
from howlow.jobs import Link, NodeBusy
from howlow.node import VARIABLE, Presence, Stay, Visitor, place_of_tickets, present
from howlow.outcomes import StoppedError
from howlow.records import Neighbour, PhaseName, WarningKind
from howlow.trial.state import TrialState

_PHASES: tuple[PhaseName, ...] = ("load", "train", "evaluate", "generate")


@contextmanager
def visiting(link: Link, visitor: Visitor) -> Iterator[Presence | None]:
    """Work on this machine once it may be used, and tell the worker who has to be waited for.

    Raises:
        StoppedError: the worker asked to stop meanwhile.
        UserError: as `present`.
    """
    told: set[str] = set()

    def wait(other: Visitor) -> None:
        if link.stop_requested:
            raise StoppedError
        if str(other) not in told:
            told.add(str(other))
            link.report(NodeBusy(other=str(other)))

    with present(visitor, wait) as presence:
        yield presence


def describe_device(state: TrialState) -> None:
    """Tell the node's other processes which device this one uses."""
    found = state.found.environment
    if state.presence is not None and found is not None:
        state.presence.describe(found.device, found.device_uuid)


def neighbours_so_far(state: TrialState) -> tuple[Neighbour, ...] | None:
    """What has worked beside the trial, in its earlier processes and in this one; None where it is not known."""
    if state.presence is None or state.found.neighbours is None:
        return None
    own = [found for stay in state.presence.neighbours() if (found := _neighbour(state, stay)) is not None]
    return _merged((*state.found.neighbours, *own))


def _neighbour(state: TrialState, stay: Stay) -> Neighbour | None:
    """What another process was to this one; None for another process of this trial."""
    visitor, here = stay.visitor, str(state.folder.parent.parent.resolve())
    is_same = visitor.run_directory == here
    if is_same and visitor.trial == state.name:
        return None
    overlaps = {name: shared_s for name, shared_s in _overlaps_s(state, stay) if shared_s > 0}
    return Neighbour(
        trial=visitor.trial,
        work=visitor.work,
        run_directory=None if is_same else visitor.run_directory,
        device=visitor.device,
        device_uuid=visitor.device_uuid,
        phases=tuple(name for name in _PHASES if name in overlaps),
        overlap_s=sum(overlaps.values()),
    )


def _overlaps_s(state: TrialState, stay: Stay) -> Iterator[tuple[PhaseName, float]]:
    """How long another process worked during each phase of this one."""
    if state.session is None:
        return
    clock_s = machine_s() - state.session.trial_time()
    for span in state.session.spans:
        begun_s, ended_s = clock_s + span.start_s, clock_s + (span.end_s or state.session.trial_time())
        yield span.phase, min(ended_s, stay.ended_s) - max(begun_s, stay.began_s)


def _merged(found: Iterable[Neighbour]) -> tuple[Neighbour, ...]:
    """Each other trial and kind of work once."""
    merged: dict[tuple[str, str, str | None, str], Neighbour] = {}
    for one in found:
        same = merged.setdefault((one.trial, one.work, one.run_directory, one.device), one)
        if same is not one:
            phases = tuple(name for name in _PHASES if name in (*same.phases, *one.phases))
            changes = {"phases": phases, "overlap_s": same.overlap_s + one.overlap_s}
            merged[one.trial, one.work, one.run_directory, one.device] = same.model_copy(update=changes)
    return tuple(merged.values())


def conclude_company(state: TrialState) -> None:
    """Put into the record what ran beside the trial, and a warning for each phase in which something did."""
    state.found.neighbours = neighbours_so_far(state)
    if state.found.neighbours is None:
        _warn_by_claims(state, None)
        return
    _warn_by_claims(state, place_of_tickets())
    for phase in _PHASES:
        there = [one for one in state.found.neighbours if phase in one.phases]
        ours, others = ([one for one in there if (one.run_directory is None) is is_ours] for is_ours in (True, False))
        if there and state.settings.run.exclusive:
            state.warn(WarningKind.COSTS_LEFT_OUT, f"{phase}: {_told(there)} ran beside it", phase)
            continue
        if ours:
            state.warn(
                WarningKind.RAN_BESIDE_OTHER_TRIALS, f"{phase}: at the same time on this machine: {_told(ours)}", phase
            )
        if others:
            detail = f"{phase}: trials of other sweeps ran at the same time: {_told(others)}"
            state.warn(WarningKind.OTHER_WORK_ON_MACHINE, detail, phase)


def _told(there: Iterable[Neighbour]) -> str:
    names = (f"{one.trial}{f' of {one.run_directory}' if one.run_directory else ''} on {one.device}" for one in there)
    return ", ".join(dict.fromkeys(names))


def _warn_by_claims(state: TrialState, tickets: str | None) -> None:
    """Where the tickets of a trial are not seen, its claim tells that it ran beside this one, but not in which phase.

    tickets: the place of those that are seen; None where there are none.
    """
    folder = state.folder.parent.parent
    others = neighbours(folder, state.name, unseen_by=tickets) if state.claim is not None else ()
    if others:
        unseen = "" if tickets is None else f" (with a {VARIABLE} of its own)"
        detail = f"at the same time on this machine{unseen}: {', '.join(others)}"
        state.warn(WarningKind.RAN_BESIDE_OTHER_TRIALS, detail)
