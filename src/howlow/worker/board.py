"""The board: the file `DIR/.howlow/board.json`, in which a prepared sweep says what there is to do.

The sweep writes it whole once data, model and layouts are prepared, and removes it before it prepares again. Workers
in other processes, here or on other machines that see the folder, read it before each trial. Beside it, `owner.json`
says which process runs, or last ran, a sweep in the folder.
"""

import json
import os
import socket
import uuid
from dataclasses import asdict
from pathlib import Path

import psutil
from pydantic import Field, ValidationError

from howlow.claims import Host
from howlow.jobs import TrialJob
from howlow.meters.clock import date_s
from howlow.records import write_atomically
from howlow.records.own_sources import code_sha256, revision
from howlow.records.warnings import Frozen


class Board(Frozen):
    """The trials of a sweep in their order, the code that prepared them, and the machine and its clock."""

    code: str
    trials: tuple[TrialJob, ...]
    revision: str | None = None
    host: str | None = None
    clock_ahead_s: float | None = Field(None, description="of the sweep's machine, ahead of the run directory's")


def write_board(run_directory: Path, trials: tuple[TrialJob, ...]) -> None:
    """Let other workers join."""
    host, ahead_s = socket.gethostname(), clock_ahead_s(run_directory)
    board = Board(code=code_sha256(), trials=trials, revision=revision(), host=host, clock_ahead_s=ahead_s)
    write_atomically(board_path(run_directory), board.model_dump_json())


def remove_board(run_directory: Path) -> None:
    """Let no other worker take a trial until the sweep is prepared."""
    board_path(run_directory).unlink(missing_ok=True)


def read_board(run_directory: Path) -> Board | None:
    """None where no sweep is prepared, or where another version of howlow wrote the file."""
    try:
        return Board.model_validate_json(board_path(run_directory).read_text(encoding="utf-8"))
    except (OSError, ValidationError):
        return None


class Author(Frozen, extra="ignore"):
    """The code that wrote a board, which any version of howlow can read, whatever else the board holds."""

    code: str
    revision: str | None = None


def read_author(run_directory: Path) -> Author | None:
    """None where no sweep is prepared."""
    try:
        return Author.model_validate_json(board_path(run_directory).read_text(encoding="utf-8"))
    except (OSError, ValidationError):
        return None


def board_path(run_directory: Path) -> Path:
    """Where the board is."""
    return run_directory / ".howlow" / "board.json"


def clock_ahead_s(run_directory: Path) -> float:
    """How far this machine's clock is ahead of the one by which the run directory's files are dated.

    Raises:
        OSError: nothing can be written there.
    """
    probe = run_directory / ".howlow" / f".clock-{uuid.uuid4().hex}.tmp"
    try:
        probe.write_text("x", encoding="utf-8")
        return date_s() - probe.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)


# -- who runs a sweep -----------------------------------------------------------------------------------------------


def write_owner(run_directory: Path) -> None:
    """Say that this process runs a sweep in the folder."""
    owner = {"pid": os.getpid(), "host": asdict(Host.here())}
    write_atomically(run_directory / ".howlow" / "owner.json", json.dumps(owner))


def owner_name(run_directory: Path) -> str:
    """The process that runs a sweep in the folder, and its machine where that is another one."""
    found = _owner(run_directory)
    if found is None:
        return "another process"
    return f"process {found[0]}" + ("" if found[1] == Host.here() else f" on {found[1].name}")


def may_be_preparing(run_directory: Path) -> bool:
    """Whether the owner is alive, or runs on a machine where this cannot be seen."""
    found = _owner(run_directory)
    return found is not None and (found[1] != Host.here() or psutil.pid_exists(found[0]))


def _owner(run_directory: Path) -> tuple[int, Host] | None:
    try:
        found = json.loads((run_directory / ".howlow" / "owner.json").read_text(encoding="utf-8"))
        return found["pid"], Host(**found["host"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
