"""`howlow sweep --detach`: submit to SLURM and return; called again, show how far the trials have come."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from howlow.records import Record
from howlow.sweeping.detached import DetachedSweep, submit_detached


def print_detached(
    settings: Any, out: Path | str, retry: Sequence[Any], accepted: Sequence[str]
) -> tuple[Record, ...] | None:
    """Print the state of a detached sweep; the records once every trial has ended, else None."""
    found = submit_detached(settings, out, retry=retry, accept_different=accepted)
    if found.is_over:
        return found.records
    _print_states(found)
    ended = len(found.records)
    print(
        f"{found.submitted} trials submitted now, {ended} of {len(found.states)} ended; the same command shows the "
        "state again, and without --detach it watches"
    )
    return None


def _print_states(found: DetachedSweep) -> None:
    table = Table("trial", "state", "", box=None, pad_edge=False)
    for one in found.states:
        table.add_row(one.trial, one.state, one.detail)
    Console(highlight=False).print(table)
