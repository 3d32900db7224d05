"""What a person sees while a sweep runs: the trial, its phase, the time left, the figures so far.

On a terminal one line is redrawn; elsewhere (a log file, a pipe) calm whole lines appear, one a trial and one a phase.
"""

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.text import Text

from howlow.analysis.comparison import metrics_of
from howlow.meters.clock import now_s
from howlow.records import Record
from howlow.reporting import formatting
from howlow.sweeping.sweep import Event


class Progress:
    """Listens to a sweep's events and shows them on stderr."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True, highlight=False)
        self._live = Live(console=self._console, refresh_per_second=4) if self._console.is_terminal else None
        self._trial_started_s = 0.0
        self._durations_s: list[float] = []
        self._phase: str | None = None
        self._left = 0

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._live:
            self._live.update(Text(""))
            self._live.stop()

    def on_event(self, event: Event) -> None:
        """Show one event."""
        getattr(self, f"_on_{event.kind}", lambda event: None)(event)

    def _say(self, text: str) -> None:
        self._console.print(Text(text), soft_wrap=True)

    def _on_preparing(self, event: Event) -> None:
        self._say("preparing: data, tokens, model")

    def _on_prepared(self, event: Event) -> None:
        self._say(f"{event.total} trials, {event.done} of them ended before")

    def _on_waiting(self, event: Event) -> None:
        self._say(event.text)

    def _on_started(self, event: Event) -> None:
        assert event.plan is not None
        self._trial_started_s, self._phase, self._left = now_s(), None, event.total - event.done - 1
        self._say(f"[{event.done + 1}/{event.total}] {event.plan.name}")
        if self._live:
            self._live.update(Text(f"{event.plan.name}  loading{self._time_left()}"))

    def _on_probed(self, event: Event) -> None:
        seen = event.progress
        peak = "out of memory" if seen["peak_bytes"] is None else formatting.quantity(seen["peak_bytes"], "bytes")
        fits = "fits" if seen["fits"] else "does not fit"
        self._say(f"    {seen['setting']} {seen['batch']}: {peak}, {fits}")

    def _on_progress(self, event: Event) -> None:
        assert event.plan is not None
        seen = event.progress
        if self._live:
            loss = "" if seen["loss"] is None else f"  loss {seen['loss']:.3f}"
            bar = f"{event.plan.name}  {seen['phase']} {seen['step']}/{seen['steps']}{loss}{self._time_left()}"
            self._live.update(Text(bar))
        elif seen["phase"] != self._phase:
            self._say(f"    {seen['phase']}: {seen['steps']} steps")
        self._phase = seen["phase"]

    def _time_left(self) -> str:
        """An estimate from the trials that have ended; nothing where none has."""
        if not self._durations_s:
            return ""
        usual = sum(self._durations_s) / len(self._durations_s)
        left_s = max(0.0, usual - (now_s() - self._trial_started_s)) + usual * self._left
        return f"  about {formatting.duration(left_s)} left"

    def _on_ended(self, event: Event) -> None:
        assert event.record is not None
        if event.record.kind != "base":  # the baseline does not train and says nothing about the others' time
            self._durations_s.append(now_s() - self._trial_started_s)
        self._say(f"    {_figures(event.record)}")
        if self._left and self._durations_s and not self._live:
            usual = sum(self._durations_s) / len(self._durations_s)
            self._say(f"    about {formatting.duration(usual * self._left)} left")


def _figures(record: Record) -> str:
    """The quality that a trial reached, or how it failed."""
    if record.status != "done":
        return f"{record.status}: {record.error}"
    found = ((column, getattr(record.scores, column.name)) for column in metrics_of(record))
    figures = [
        f"{column.label} {formatting.quantity(value, column.unit)}" for column, value in found if value is not None
    ]
    time = "" if record.total_s is None else f" in {formatting.duration(record.total_s)}"
    return f"done{time}: {', '.join(figures) or 'no quality (random weights)'}"
