"""What a sweep tells of trials that other processes run."""

from dataclasses import dataclass, field
from pathlib import Path

from howlow.claims import Claims
from howlow.jobs import SweepEvent, Tell, TrialElsewhere, TrialEnded
from howlow.records import Record, has_record, read_record


@dataclass
class Watch:
    """What this sweep has shown of trials that other processes run."""

    folder: Path
    claims: Claims
    names: tuple[str, ...]
    tell: Tell
    started: set[str] = field(default_factory=set)
    elsewhere: set[str] = field(default_factory=set)
    ended: set[str] = field(default_factory=set)

    def hear(self, event: SweepEvent) -> None:
        """Pass an event of our own workers on."""
        if event.event == "trial_started":
            self.started.add(event.trial)
        elif event.event == "trial_ended":
            self.ended.add(event.trial)
        self.tell(event)

    def look(self, *, is_over: bool = False) -> None:
        """Show the trials that others have begun or ended; `is_over`: our own workers have ended."""
        for name in self.names:
            if name in self.ended or (name in self.started and not is_over):
                continue
            if has_record(self.folder, name):
                self.hear(TrialEnded(trial=name, record=record_that_ended(self.folder, name)))
            elif name not in self.elsewhere and (holder := self.claims.holder(name)):
                self.elsewhere.add(name)
                self.tell(TrialElsewhere(trial=name, holder=str(holder)))


def record_that_ended(folder: Path, name: str) -> Record:
    """The record of a trial that has one."""
    record = read_record(folder / "trials" / name)
    assert record is not None, "the workers end when every trial has a record"
    return record
