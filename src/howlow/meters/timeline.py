"""The timeline: one JSON line a reading, written by the readers' threads."""

import threading
from pathlib import Path

from howlow.records import LineWriter, PhaseName, Reading


class Timeline:
    """`timeline.jsonl`. The first problem in writing it (a full disk) is kept, and the trial raises it at its end."""

    def __init__(self, path: Path) -> None:
        self.phase: PhaseName = "load"
        self.problem: OSError | None = None
        self._writer = LineWriter(path)
        self._lock = threading.Lock()

    def write(self, reading: Reading) -> None:
        """Append one reading."""
        with self._lock:
            try:
                if self.problem is None:
                    self._writer.append(reading.model_dump_json(exclude_none=True))
            except OSError as error:
                self.problem = error

    def close(self) -> None:
        """Close the file. A reader that hung may still write later; it then finds the problem and writes nothing."""
        with self._lock:
            self.problem = self.problem or OSError("the timeline is closed")
            self._writer.close()
