"""The lines that a phase appends to its files, written where they cost no measured time.

A step's line is made and written by a thread, at most a twentieth of a second later, so that whoever reads
`steps.jsonl` sees it soon. Scoring an answer can take as long as a step, and Python's lock with it. So the lines of
`predictions.jsonl` are made in the pauses of a phase and at its end.

Both are complete before a checkpoint is written: `flush` returns when every line has been handed to the system.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Self

from howlow.records import LineWriter
from howlow.trial.threads import thread_beside_steps

_LOOK_EVERY_S = 0.05


class StepLines:
    """Appends lines to a file in the order in which they are given; a thread makes and writes them a moment later.

    The thread looks for lines by itself: waking it would cost the step more than handing over a line.
    What goes wrong with a line (a full disk) is raised by the next call, once. No later line is written.
    """

    def __init__(self, path: Path) -> None:
        self._writer = LineWriter(path)
        self._waiting: deque[Callable[[], str]] = deque()
        self._problem: BaseException | None = None
        self._is_whole, self._is_over = True, threading.Event()
        self._writing = threading.Lock()
        self._thread = thread_beside_steps("howlow-lines", self._run)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        """Write what waits, whatever ends the phase, and close the file."""
        self._is_over.set()
        self._thread.join()
        try:
            self.flush()
        finally:
            self._writer.close()

    def append(self, make: Callable[[], str]) -> None:
        """Have the thread make a line and write it."""
        self._raise_problem()
        self._waiting.append(make)

    def flush(self) -> None:
        """Write every line that waits."""
        self._write()
        self._raise_problem()

    def _run(self) -> None:
        while not self._is_over.wait(_LOOK_EVERY_S):
            self._write()

    def _write(self) -> None:
        with self._writing:
            while self._waiting:
                make = self._waiting.popleft()
                if self._is_whole:
                    self._append(make)

    def _append(self, make: Callable[[], str]) -> None:
        try:
            self._writer.append(make())
        except BaseException as problem:  # whatever it is, the trial raises it
            self._problem, self._is_whole = problem, False

    def _raise_problem(self) -> None:
        problem, self._problem = self._problem, None
        if problem is not None:
            raise problem


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
