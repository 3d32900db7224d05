"""Readings at a fixed rate, each instrument from a thread of its own: the timeline, one JSON line a reading.

A reader may hang with its instrument; nothing else does. A step that wants a fresh counter asks the reader and waits
for a moment only; while an answer is outstanding nobody waits again. (What cannot hang, a file of the kernel's, is read
by the step itself: on a machine whose cores are all busy that costs less.) A reading that comes late is written with
the time at which it was taken; a reading that is missed is a gap, never a repeated value or a zero.

Times are on the trial's own scale. The counters' wrap-around is undone here; a counter that falls by more than a wrap
explains has been set back, and no window crosses that moment.
"""

import math
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from howlow.meters import clock
from howlow.meters.energy import MeterKind, Trace
from howlow.meters.energy_bounds import MOST_W, Point
from howlow.meters.instruments import Finding, Instrument, Look
from howlow.records import LineWriter, PhaseName, Reading

T = TypeVar("T")
PATIENCE_S = 0.05
_FAST_S, _FAST_READINGS, _CHANGES = 0.001, 600, 5
_SLOW_READINGS, _SLOW_CHANGES = 3000, 2  # a slow counter is watched until one of its periods has been seen whole
_NOMINAL_S = 0.1
_LOOK_FOR_S = 0.02
_FOLLOWED_S = 0.01  # a faster counter knows of a step's end at once
_FOLLOWED_LATER_S = 0.002  # the step begins, or has ended, a moment after its reading was asked for


class Timeline:
    """`timeline.jsonl`, written by several threads; the first problem (a full disk) is kept for the trial to raise."""

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
        """Close the file; a thread that hangs may still come back and finds the problem of a closed file."""
        with self._lock:
            self.problem = self.problem or OSError("the timeline is closed")
            self._writer.close()


@dataclass
class _Job:
    call: Callable[[], Any]
    done: threading.Event = field(default_factory=threading.Event)
    result: Any = None


class Reader:
    """Reads one instrument: at the sampler's rate, and when it is asked to."""

    def __init__(
        self,
        instrument: Instrument,
        rate_hz: float,
        timeline: Timeline,
        now: Callable[[], float],
        update_period_s: float | None = None,
    ) -> None:
        self.instrument = instrument
        self.points: list[Point] = []
        self._counters: list[Point] = []
        self._powers: list[Point] = []
        self.looks: list[Reading] = []
        self.cpu_s = 0.0
        self.waited_s = 0.0
        self.asked, self.late = 0, 0
        self.failures = 0
        self.failure: str | None = None
        self._period_s = 1 / rate_hz
        self._timeline = timeline
        self._now = now
        self._update_period_s = update_period_s
        self._pace = _Pace()
        self._raw: tuple[float, float] | None = None
        self._total_j, self._epoch = 0.0, 0
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._pending: _Job | None = None
        self._lock = threading.Lock()
        self._due_s, self._follow_s = math.inf, math.inf
        self._thread = threading.Thread(target=self._run, name=f"howlow-{instrument.device}", daemon=True)

    # -- what the trial's thread calls --------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End, and close an instrument that has something to close; a thread that hangs is left behind."""
        self._jobs.put(None)
        self._thread.join(1.0)
        close = getattr(self.instrument, "close", None)
        if close is not None:
            close()

    def ask(self, call: Callable[[], Any], patience_s: float = PATIENCE_S) -> Any:
        """Have the reader's thread call something; None where it does not answer in time, or has not yet answered."""
        self.asked += 1
        if self._pending is not None and not self._pending.done.is_set():
            self.late += 1
            return None
        job = self._pending = _Job(call)
        self._jobs.put(job)
        if not job.done.wait(patience_s):
            self.late += 1
        return job.result

    def counter_now(self) -> Point | None:
        """A fresh reading of the counter."""
        asked_s = clock.now_s()
        read = self._read_and_follow if self.update_period_s > _FOLLOWED_S else self.read_counter
        point: Point | None = self.ask(read) if self.instrument.may_hang else read()
        self.waited_s += clock.now_s() - asked_s
        return point

    def findings(self, patience_s: float) -> list[Finding]:
        """What the instrument knows of outside work; nothing where it does not answer in time."""
        found: list[Finding] | None = self.ask(lambda: self._told(self.instrument.findings), patience_s)
        return found or []

    def settle(self, moment_s: float, kind: MeterKind) -> None:
        """Wait until a reading has been taken that knows all of what happened before a moment; not longer than that.

        kind: what is read of it.
        """
        wait_s = moment_s + self.update_period_s - self._now()
        if kind == "counter" and 0 < wait_s < 0.5 and self._counters and self.points[-1].counter_j is not None:
            threading.Event().wait(wait_s)
            self.counter_now()
        elif kind == "power" and self._powers:  # the reader takes them by itself; a program prints at its own time
            until_s = moment_s + self.update_period_s + 2 * self._period_s
            while self._powers[-1].time_s < moment_s + self.update_period_s and self._now() < until_s:
                threading.Event().wait(_LOOK_FOR_S)

    @property
    def update_period_s(self) -> float:
        """How often the source has something new: as documented, else as found out, else a usual value."""
        return self._update_period_s or self._pace.period_s or _NOMINAL_S

    @property
    def has_energy(self) -> bool:
        """Whether there is a reading of a counter or of power."""
        return bool(self._counters or self._powers)

    @property
    def trace(self) -> Trace:
        """The readings so far."""
        period_s, update_s, step_j = self._period_s, self.update_period_s, self._pace.step_j
        told = self.instrument.device, self.instrument.problems
        return Trace(self._counters, self._powers, period_s, update_s, step_j, *told)

    # -- the thread -------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        self._due_s = clock.now_s()
        while True:
            is_pacing = self._update_period_s is None and self._pace.is_open
            wait_s = _FAST_S if is_pacing else min(self._due_s, self._follow_s) - clock.now_s()
            try:
                job = self._jobs.get(timeout=max(0.0, wait_s))
            except queue.Empty:
                if is_pacing:
                    self.find_pace()
                self._read_what_is_due()
            else:
                if job is None:
                    return
                job.result = job.call()
                job.done.set()
            self.cpu_s = clock.thread_cpu_s()

    def _told(self, ask: Callable[[], T]) -> T | None:
        """What the instrument tells; where it fails in a way that it should not, that is a gap and a warning."""
        try:
            return ask()
        except Exception as error:  # drivers and their bindings fail in ways of their own
            self.failures += 1
            self.failure = f"{type(error).__name__}: {error}"
            return None

    def _read_what_is_due(self) -> None:
        """The timeline's reading; or one that follows a step's, as soon as the counter knows of that step's end."""
        if clock.now_s() >= self._due_s:
            self.look()
            self._due_s = max(self._due_s + self._period_s, clock.now_s())  # a late one does not make the next hurry
        elif clock.now_s() >= self._follow_s:
            self.read_counter()
            self._follow_s = math.inf

    def find_pace(self) -> None:
        """One fast reading, until the counter's pace is known."""
        self._pace.see(self._now(), self._told(self.instrument.counter_j))

    def read_counter(self) -> Point | None:
        """One reading of the counter alone."""
        with self._lock:
            asked_s = self._now()
            counter_j = self._told(self.instrument.counter_j)
            return None if counter_j is None else self._keep(asked_s, counter_j, None)

    def _read_and_follow(self) -> Point | None:
        point = self.read_counter()
        if self._follow_s == math.inf:
            self._follow_s = clock.now_s() + self.update_period_s + _FOLLOWED_LATER_S
        return point

    def look(self) -> None:
        """One reading of everything, for the timeline too; one that tells nothing is none."""
        with self._lock:
            asked_s = self._now()
            look = self._told(self.instrument.look)
            if look is None or replace(look, age_s=0.0) == Look():
                return
            before = self.points[-1] if self.points else None
            point = self._keep(asked_s, look.counter_j, look.power_w, look.age_s)
        power_w = look.power_w
        if power_w is None and point.counter_j is not None:
            power_w = self._mean_power_w(before, point)
        reading = _reading(self.instrument.device, point, look, power_w, self._timeline.phase)
        self.looks.append(reading)
        self._timeline.write(reading)

    def _mean_power_w(self, before: Point | None, point: Point) -> float | None:
        """A counter without a power reading: its rise since the last reading; absent over a very short time."""
        if before is None or before.counter_j is None or before.epoch != point.epoch or point.counter_j is None:
            return None
        elapsed_s = point.time_s - before.time_s
        return (point.counter_j - before.counter_j) / elapsed_s if elapsed_s > 5 * self.update_period_s else None

    def _keep(self, asked_s: float, raw_j: float | None, power_w: float | None, age_s: float = 0.0) -> Point:
        time_s = self._now()
        counter_j = None if raw_j is None else self._unwrapped(raw_j, time_s)
        self._pace.doubt(time_s, raw_j)
        point = Point(asked_s - age_s, time_s - age_s, counter_j, power_w, self._epoch)
        self.points.append(point)
        if point.counter_j is not None:
            self._counters.append(point)
        if point.power_w is not None:
            self._powers.append(point)
        return point

    def _unwrapped(self, raw_j: float, time_s: float) -> float:
        """The counter without its wrap-arounds; where a wrap cannot be told from a reset, a new epoch begins."""
        last, self._raw = self._raw, (time_s, raw_j)
        if last is None:
            self._total_j = raw_j
            return self._total_j
        elapsed_s, rise_j, range_j = time_s - last[0], raw_j - last[1], self.instrument.range_j
        if rise_j < 0 and range_j is not None:
            rise_j += range_j
        is_blind = range_j is not None and elapsed_s > range_j / MOST_W  # it may have wrapped more than once
        if rise_j < 0 or rise_j > MOST_W * (elapsed_s + 1) or is_blind:
            self._epoch += 1
            rise_j = 0.0
        self._total_j += rise_j
        return self._total_j


@dataclass
class _Plateau:
    """Readings in a row that show the same value; `before_s`: the last reading that showed another."""

    value_j: float
    first_s: float
    before_s: float | None = None
    last_s: float = 0.0

    @property
    def length_s(self) -> float:
        """For how long it stood still, as far as it was seen: the counter's period is no shorter."""
        return max(0.0, self.last_s - self.first_s)

    def length_at_most_s(self, next_s: float) -> float:
        """For how long it can have stood still, where the next reading showed another value."""
        return next_s - (self.first_s if self.before_s is None else self.before_s)


@dataclass
class _Pace:
    """Finds out how often a counter is renewed, and by how much: the longest time and the largest rise seen.

    Fast readings come first. What is read later can only lengthen the period: a counter that has stood still for longer
    is a slower one.
    """

    period_s: float | None = None
    step_j: float = 0.0
    _readings: int = 0
    _changes: int = 0
    _plateau: _Plateau | None = None

    @property
    def is_open(self) -> bool:
        """Whether more fast readings are wanted."""
        if self._changes < _SLOW_CHANGES:
            return self._readings < _SLOW_READINGS
        return self._readings < _FAST_READINGS and self._changes < _CHANGES

    def see(self, time_s: float, counter_j: float | None) -> None:
        """One fast reading."""
        self._readings += 1
        before = self._plateau
        self.doubt(time_s, counter_j)
        if before is None or counter_j is None or self._plateau is before:
            return
        self._changes += 1
        if self._changes > 1 and counter_j > before.value_j:  # the first change came in the middle of a period
            self.period_s = max(self.period_s or 0.0, before.length_at_most_s(time_s))
            self.step_j = max(self.step_j, counter_j - before.value_j)

    def doubt(self, time_s: float, counter_j: float | None) -> None:
        """Any reading: does it show that the counter is slower than was thought?"""
        if counter_j is None:
            return
        plateau, known_s = self._plateau, self.period_s or 0.0
        if plateau is None or counter_j != plateau.value_j:
            if plateau is not None and plateau.length_s >= known_s > 0 and counter_j > plateau.value_j:
                self.period_s = plateau.length_at_most_s(time_s)
            self._plateau = _Plateau(counter_j, time_s, None if plateau is None else plateau.last_s, time_s)
        else:
            plateau.last_s = time_s
            if plateau.length_s > max(known_s, _NOMINAL_S):
                self.period_s = plateau.length_s


def _reading(device: str, point: Point, look: Look, power_w: float | None, phase: PhaseName) -> Reading:
    return Reading(
        time_s=point.time_s,
        device=device,
        power_w=power_w,
        energy_counter_j=point.counter_j,
        memory_bytes=look.memory_bytes,
        utilization=look.utilization,
        memory_utilization=look.memory_utilization,
        temperature_c=look.temperature_c,
        sm_clock_hz=look.sm_clock_hz,
        memory_clock_hz=look.memory_clock_hz,
        throttle_reasons=look.throttle_reasons or None,
        phase=phase,
    )
