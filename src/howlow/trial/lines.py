"""The lines that a phase appends to its files, written where they cost no measured time.

A step's line is made and written by a thread, right after the step, so that whoever reads `steps.jsonl` sees it at
once. Scoring an answer can take as long as a step. It would take Python's lock from a thread that trains or generates,
so the lines of `predictions.jsonl` are made in the pauses of a phase and at its end.

Both are complete before a checkpoint is written: `flush` returns when every line has been handed to the system.
"""

from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Self

from howlow.records import LineWriter
from howlow.trial.threads import thread_beside_steps


class StepLines:
    """Appends lines to a file from a thread, in the order in which they are given.

    What goes wrong with a line (a full disk) is raised by the next call, once. No later line is written.
    """

    def __init__(self, path: Path) -> None:
        self._writer = LineWriter(path)
        self._thread = thread_beside_steps("howlow-lines")
        self._waiting: deque[Future[None]] = deque()
        self._is_whole = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        """Write what waits, whatever ends the phase, and close the file."""
        try:
            self.flush()
        finally:
            self._thread.shutdown()
            self._writer.close()

    def append(self, make: Callable[[], str]) -> None:
        """Have the thread make a line and write it."""
        while self._waiting and self._waiting[0].done():
            self._waiting.popleft().result()
        self._waiting.append(self._thread.submit(self._write, make))

    def flush(self) -> None:
        """Wait until every line is written."""
        while self._waiting:
            self._waiting.popleft().result()

    def _write(self, make: Callable[[], str]) -> None:
        if self._is_whole:
            self._is_whole = False  # a line that fails leaves it so
            self._writer.append(make())
            self._is_whole = True


@dataclass
class PredictionLines:
    """Appends the lines of batches to a file when `flush` is called, and at the end."""

    path: Path
    _waiting: list[Callable[[], Iterable[str]]] = field(default_factory=list)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        """Write what waits, whatever ends the phase."""
        self.flush()

    def add(self, make: Callable[[], Iterable[str]]) -> None:
        """Keep a batch whose lines will be made."""
        self._waiting.append(make)

    def flush(self) -> None:
        """Make and write the lines of all batches so far."""
        waiting, self._waiting = self._waiting, []
        writer = LineWriter(self.path)
        try:
            for line in chain.from_iterable(make() for make in waiting):
                writer.append(line)
        finally:
            writer.close()
