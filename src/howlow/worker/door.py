"""What a machine has to see before a worker of it may join a sweep: the folder, the model, and the same time of day.

Claims compare no clocks (`howlow.claims`). The dates in records and logs do: those of a machine whose clock is off
would contradict the others'. A file that was just written bears the time of the file server, so each machine knows how
far its own clock is from that, and two machines from one another.
"""

import socket
from collections.abc import Sequence
from pathlib import Path

from howlow.errors import UserError, reason
from howlow.jobs import TrialJob
from howlow.meters.clock import date_s
from howlow.outcomes import is_disk_full
from howlow.records import Environment
from howlow.records.comparability import CLOCK, Difference, Figures, not_accepted, shown
from howlow.worker.board import Board, board_path, clock_ahead_s

MOST_APART_S = 10.0
_BOTH: frozenset[Figures] = frozenset({"quality", "costs"})
_PLACES = ("model", "tokenizer", "lora.start")


def refuse_unseen(run_directory: Path) -> None:
    """Refuse a run directory that is not there on this machine.

    Raises:
        UserError: there is no such folder, or it cannot be read.
    """
    try:
        is_there = run_directory.is_dir()
        if is_there:
            next(run_directory.iterdir(), None)
    except OSError as error:
        raise UserError(f"{run_directory}: {reason(error)} on {_here()}; let this user read the folder") from None
    if not is_there:
        what = "a file, no run directory" if run_directory.exists() else f"there is no such folder on {_here()}"
        raise UserError(
            f"{run_directory}: {what}; name the run directory of a started sweep by the path under which this machine "
            "sees it, and mount the shared folder if it lies on another machine"
        )


def refuse_unwritable(run_directory: Path) -> float:
    """Refuse a run directory into which a worker cannot write; gives how far this machine's clock is ahead of it.

    Raises:
        UserError: the folder cannot be written.
    """
    try:
        return clock_ahead_s(run_directory)
    except OSError as error:
        if is_disk_full(error):
            raise UserError(f"{run_directory}: the disk is full ({reason(error)}); make room") from None
        raise UserError(
            f"{run_directory}: {_here()} cannot write there ({reason(error)}); mount it for writing, or give this user "
            "the right to write"
        ) from None


def refuse_other_clock(ahead_s: float, board: Board, where: Path, accept_different: Sequence[str]) -> None:
    """Refuse a machine whose clock disagrees with that of the sweep's machine, both held against the folder's.

    Raises:
        UserError: they are more than `MOST_APART_S` apart, or the board was written in this machine's future.
    """
    apart_s = ahead_s - (board.clock_ahead_s or 0.0)
    written_ago_s = date_s() - board_path(where).stat().st_mtime
    apart_s = min(apart_s, written_ago_s) if written_ago_s < -MOST_APART_S else apart_s
    costs: frozenset[Figures] = frozenset({"costs"})
    found = [Difference(CLOCK, "here", apart_s, "the sweep", 0.0, costs)] if abs(apart_s) > MOST_APART_S else []
    if not_accepted(found, accept_different):
        how = f"{abs(apart_s):,.0f} s {'ahead of' if apart_s > 0 else 'behind'}"
        raise UserError(
            f"{where}: the clock of {_here()} is {how} that of {board.host or 'the machine of the sweep'}; the dates "
            "in the records would contradict each other; set both clocks (timedatectl, chrony), or "
            f"--accept-different {CLOCK}"
        )


def refuse_other_model(
    model: str, here: str | None, there: str | None, where: Path, accept_different: Sequence[str]
) -> None:
    """Refuse a model of another content than the sweep's, both given by their hashes.

    Raises:
        UserError: names the model and both hashes.
    """
    found = [Difference("data.model_sha256", "here", here, "the sweep", there, _BOTH)] if here != there else []
    if not_accepted(found, accept_different):
        raise UserError(
            f"{where}: {_here()} has another model under model = {model} (config and weights: {shown(here)} here, "
            f"{shown(there)} in the sweep); copy the sweep's there, or put it into a folder that all machines see"
        )


def refuse_other_precision(
    jobs: Sequence[TrialJob], here: Environment, where: Path, accept_different: Sequence[str]
) -> None:
    """Refuse a machine on which trials would compute in another precision, whose quality is another.

    Raises:
        UserError: names both precisions.
    """
    for job in jobs:
        ours, theirs = (job.settings.training.precision_on(one.device) for one in (here, job.environment))
        found = [Difference("resolved.precision", "here", ours, "the sweep", theirs, _BOTH)] if ours != theirs else []
        if not_accepted(found, accept_different):
            raise UserError(
                f'{where}: training.precision = "auto" is {ours} on {_here()} ({here.device}), and {theirs} in the '
                f"sweep ({job.environment.device}), which is another quality; join with a machine like the sweep's, or "
                "start a sweep whose settings name the precision"
            )


def refuse_unseen_files(jobs: Sequence[TrialJob], where: Path) -> None:
    """Refuse a machine that does not see the files which the trials load; names on the hub are left to the loader.

    Raises:
        UserError: names the setting and the path.
    """
    places = {key: job.settings.get(key) for job in jobs for key in _PLACES}
    for key, value in places.items():
        if value is not None and Path(value).is_absolute() and not Path(value).exists():
            raise UserError(
                f"{where}: {_here()} does not see {key} = {value}; put it into a folder that all machines see under "
                "this path"
            )


def _here() -> str:
    return socket.gethostname()
