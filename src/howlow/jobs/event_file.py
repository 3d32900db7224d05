"""The events of a process on another machine, as lines of a file that the two share."""

from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from howlow.jobs.events import SweepEvent

_EVENT: TypeAdapter[SweepEvent] = TypeAdapter(SweepEvent)


def append_event(path: Path, event: SweepEvent) -> None:
    """Add one event; each opens the file anew, so that a network file system shows it soon."""
    with path.open("ab") as file:
        file.write(_EVENT.dump_json(event) + b"\n")


@dataclass
class EventTail:
    """Reads the events of one file as they come."""

    path: Path
    _read_bytes: int = 0

    def new(self) -> list[SweepEvent]:
        """The events since the last call; a line that is not whole yet comes with the next one."""
        try:
            with self.path.open("rb") as file:
                file.seek(self._read_bytes)
                text = file.read()
        except OSError:  # not there yet
            return []
        whole = text[: text.rfind(b"\n") + 1]
        self._read_bytes += len(whole)
        return [event for line in whole.splitlines() if (event := _parsed(line)) is not None]


def _parsed(line: bytes) -> SweepEvent | None:
    """None for a line that a process left unfinished when it was killed, and another one went on with."""
    try:
        return _EVENT.validate_json(line)
    except ValidationError:
        return None
