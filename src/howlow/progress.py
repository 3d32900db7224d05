"""What a person sees while a sweep runs: the trials, their phases, the time left, the figures so far.

On a terminal one line a running trial is redrawn; elsewhere (a log file, a pipe) only whole lines appear, one a trial
and one a phase.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from types import TracebackType
from typing import Self, assert_never

from rich.console import Console
from rich.live import Live
from rich.text import Text

from howlow.analysis.capacity import capacity
from howlow.analysis.comparison import metrics_of
from howlow.jobs import (
    ClusterBusy,
    Preparing,
    Sizes,
    SweepEvent,
    SweepPrepared,
    TrialElsewhere,
    TrialEnded,
    TrialProbed,
    TrialProgress,
    TrialStarted,
    TrialWaits,
)
from howlow.meters.clock import now_s
from howlow.records import Record
from howlow.reporting import formatting
from howlow.reporting.capacity import capacity_lines
from howlow.reporting.failure import failure_words


@dataclass
class _RunningTrial:
    """A trial of this process's workers."""

    started_s: float
    phase: str | None = None
    line: str = ""


class Progress:
    """Listens to a sweep's events and shows them on stderr."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True, highlight=False)
        self._live = Live(console=self._console, refresh_per_second=4) if self._console.is_terminal else None
        self._running: dict[str, _RunningTrial] = {}
        self._durations_s: list[float] = []
        self._total, self._begun, self._ended = 0, 0, 0
        self.has_begun = False
        """Whether a trial of this process has begun."""

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._live:
            self._live.update(Text(""))
            self._live.stop()

    def on_event(self, event: SweepEvent) -> None:
        """Show one event."""
        match event:
            case Preparing():
                self._say("preparing: data, tokens, model")
            case SweepPrepared():
                self._total, self._begun, self._ended = event.total, event.done, event.done
                self._say(f"{event.total} trials, {event.done} of them already finished")
                for line in chain.from_iterable(map(size_lines, event.sizes)):
                    self._say(line)
            case ClusterBusy():
                self._say(f"    waits in the cluster's queue: {event.reason}")
            case TrialStarted():
                self._on_started(event)
            case TrialWaits():
                self._say(f"    {self._name(event.trial)}{event.reason}")
            case TrialElsewhere():
                self._begun += 1
                self._say(f"[{self._begun}/{self._total}] {event.trial}: run by {event.holder}")
            case TrialProbed():
                self._on_probed(event)
            case TrialProgress():
                self._on_progress(event)
            case TrialEnded():
                self._on_ended(event)
            case _:
                assert_never(event)
        self._redraw()

    def _say(self, text: str) -> None:
        self._console.print(Text(text), soft_wrap=True)

    def _name(self, trial: str) -> str:
        """The trial's name before a line, where several run at once."""
        return f"{trial}: " if len(self._running) > 1 or trial not in self._running else ""

    def _redraw(self) -> None:
        if self._live:
            self._live.update(Text("\n".join(trial.line + self._time_left() for trial in self._running.values())))

    def _on_started(self, event: TrialStarted) -> None:
        self._begun, self.has_begun = self._begun + 1, True
        self._running[event.trial] = _RunningTrial(now_s(), line=f"{event.trial}  loading")
        where = "" if event.host is None else f" on {event.host}"
        self._say(f"[{self._begun}/{self._total}] {event.trial}{where}")

    def _on_probed(self, event: TrialProbed) -> None:
        probe = event.probe
        peak = "out of memory" if probe.peak_bytes is None else formatting.quantity(probe.peak_bytes, "bytes")
        fits = "fits" if probe.fits else "does not fit"
        self._say(f"    {self._name(event.trial)}{event.setting} {probe.batch}: {peak}, {fits}")

    def _on_progress(self, event: TrialProgress) -> None:
        seen, trial = event.progress, self._running[event.trial]
        if not self._live and seen.phase != trial.phase:
            self._say(f"    {self._name(event.trial)}{seen.phase}: {seen.steps} steps")
        loss = "" if seen.loss is None else f"  loss {seen.loss:.3f}"
        trial.phase, trial.line = seen.phase, f"{event.trial}  {seen.phase} {seen.step}/{seen.steps}{loss}"

    def _time_left(self) -> str:
        """An estimate from the trials that have ended; nothing where none has."""
        if not self._durations_s or not self._running:
            return ""
        usual = sum(self._durations_s) / len(self._durations_s)
        spent = sum(min(usual, now_s() - trial.started_s) for trial in self._running.values())
        left_s = (usual * (self._total - self._ended) - spent) / len(self._running)
        return f"  about {formatting.duration(max(0.0, left_s))} left"

    def _on_ended(self, event: TrialEnded) -> None:
        self._ended += 1
        name, trial = self._name(event.trial), self._running.pop(event.trial, None)
        # The zero-shot baseline does not train, so its time says nothing about the others'.
        if trial is not None and event.record.kind != "base":
            self._durations_s.append(now_s() - trial.started_s)
        self._say(f"    {name}{_figures(event.record)}")
        left = self._total - self._ended
        if left and self._durations_s and not self._live:
            usual = sum(self._durations_s) / len(self._durations_s)
            self._say(f"    about {formatting.duration(usual * left / max(1, len(self._running) + 1))} left")


def size_lines(sizes: Sizes) -> Iterator[str]:
    """The capacity tables of a sweep's adapters, one for each choice of target modules."""
    for modules in dict.fromkeys(adapter.target_modules for adapter in sizes.adapters):
        own = [(one.rank, one.parameters) for one in sizes.adapters if one.target_modules == modules]
        yield from capacity_lines(capacity(sizes.completion_tokens, own), modules)


def _figures(record: Record) -> str:
    """The quality that a trial reached, or how it failed."""
    if record.status != "done":
        return f"{record.status}: {failure_words(record)}"
    found = ((column, getattr(record.scores, column.name)) for column in metrics_of(record))
    figures = [
        f"{column.label} {formatting.quantity(value, column.unit)}" for column, value in found if value is not None
    ]
    time = "" if record.total_s is None else f" in {formatting.duration(record.total_s)}"
    return f"done{time}: {', '.join(figures) or 'no quality (random weights)'}"
