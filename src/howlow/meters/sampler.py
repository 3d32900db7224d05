"""Readings at a mean rate (`howlow.meters.schedule`): each instrument is read by a thread of its own.

A reader may hang with its instrument; nothing else does. A step that wants a fresh counter asks the reader and waits
for its answer only briefly; while an answer is outstanding nobody waits again. An instrument that cannot hang (a file
of the kernel's) is read by the step's own thread, which costs less where all cores are busy. A reading that comes late
is written with the time at which it was taken. A reading that is missed is a gap, never a repeated value or a zero.

Times are on the trial's own scale.
"""

import math
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from howlow.meters import clock
from howlow.meters.counters import NOMINAL_PERIOD_S, Unwrapping, UpdatePeriod
from howlow.meters.energy import InstrumentReadings, MeterKind
from howlow.meters.energy_bounds import Point
from howlow.meters.instruments import Finding, Instrument, Look
from howlow.meters.schedule import Schedule
from howlow.meters.timeline import Timeline
from howlow.records import PhaseName, Reading

_T = TypeVar("_T")
_ANSWER_TIMEOUT_S = 0.05
_FAST_S = 0.001
_LOOK_FOR_S = 0.02
_FOLLOWED_S = 0.01  # a counter that is updated more often includes a step's end at once
_FOLLOWED_LATER_S = 0.002  # the step begins, or has ended, a moment after its reading was asked for


@dataclass
class _Job:
    call: Callable[[], Any]
    done: threading.Event = field(default_factory=threading.Event)
    result: Any = None


class Reader:
    """Reads one instrument: at the timeline's rate, and when it is asked to.

    now: the trial's time. update_period_s: how often the source has something new; None: the reader finds it out.
    """

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
        self._found_period = UpdatePeriod()
        self._unwrapping = Unwrapping(instrument.range_j)
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._pending: _Job | None = None
        self._lock = threading.Lock()
        self._schedule, self._follow_s = Schedule(self._period_s, instrument.device), math.inf
        self._thread = threading.Thread(target=self._run, name=f"howlow-{instrument.device}", daemon=True)

    # -- what the trial's thread calls --------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread and close the instrument where it can be closed; a thread that hangs is left behind."""
        self._jobs.put(None)
        self._thread.join(1.0)
        close = getattr(self.instrument, "close", None)
        if close is not None:
            close()

    def ask(self, call: Callable[[], Any], timeout_s: float = _ANSWER_TIMEOUT_S) -> Any:
        """Have the reader's thread call something; None where this answer or an earlier one does not come in time."""
        self.asked += 1
        if self._pending is not None and not self._pending.done.is_set():
            self.late += 1
            return None
        job = self._pending = _Job(call)
        self._jobs.put(job)
        if not job.done.wait(timeout_s):
            self.late += 1
        return job.result

    def counter_now(self) -> Point | None:
        """A fresh reading of the counter."""
        asked_s = clock.now_s()
        read = self._read_and_follow if self.update_period_s > _FOLLOWED_S else self.read_counter
        point: Point | None = self.ask(read) if self.instrument.may_hang else read()
        self.waited_s += clock.now_s() - asked_s
        return point

    def findings(self, timeout_s: float) -> list[Finding]:
        """What the instrument knows of outside work; nothing where it does not answer in time."""
        found: list[Finding] | None = self.ask(lambda: self._answer(self.instrument.findings), timeout_s)
        return found or []

    def settle(self, moment_s: float, kind: MeterKind) -> None:
        """Wait until a reading includes all that happened before a moment, but not much longer than it takes.

        kind: whether energy comes from the instrument's counter or its power.
        """
        wait_s = moment_s + self.update_period_s - self._now()
        if kind == "counter" and 0 < wait_s < 0.5 and self._counters and self.points[-1].counter_j is not None:
            threading.Event().wait(wait_s)
            self.counter_now()
        elif kind == "power" and self._powers:  # the thread reads them at its rate; a program prints at its own times
            until_s = moment_s + self.update_period_s + 2 * self._period_s
            while self._powers[-1].time_s < moment_s + self.update_period_s and self._now() < until_s:
                threading.Event().wait(_LOOK_FOR_S)

    @property
    def update_period_s(self) -> float:
        """How often the source has something new: as documented, else as the reader found it, else a usual value."""
        return self._update_period_s or self._found_period.period_s or NOMINAL_PERIOD_S

    @property
    def has_energy(self) -> bool:
        """Whether there is a reading of a counter or of power."""
        return bool(self._counters or self._powers)

    @property
    def readings(self) -> InstrumentReadings:
        """The readings so far."""
        return InstrumentReadings(
            self._counters,
            self._powers,
            self._period_s,
            self.update_period_s,
            self._found_period.step_j,
            self.instrument.device,
            self.instrument.problems,
        )

    # -- the thread -------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        self._schedule.start(clock.now_s())
        while True:
            is_fast = self._update_period_s is None and self._found_period.wants_fast_readings
            wait_s = _FAST_S if is_fast else min(self._schedule.due_s, self._follow_s) - clock.now_s()
            try:
                job = self._jobs.get(timeout=max(0.0, wait_s))
            except queue.Empty:
                if is_fast:
                    self.read_fast()
                self._read_what_is_due()
            else:
                if job is None:
                    return
                job.result = job.call()
                job.done.set()
            self.cpu_s = clock.thread_cpu_s()

    def _answer(self, ask: Callable[[], _T]) -> _T | None:
        """The instrument's answer; where it raises an error of any kind, that is a gap and a warning."""
        try:
            return ask()
        except Exception as error:  # drivers and their bindings fail in ways of their own
            self.failures += 1
            self.failure = f"{type(error).__name__}: {error}"
            return None

    def _read_what_is_due(self) -> None:
        """Read for the timeline, or once more after a step, as soon as the counter includes the step's end."""
        if clock.now_s() >= self._schedule.due_s:
            self.look()
            self._schedule.taken(clock.now_s())
        elif clock.now_s() >= self._follow_s:
            self.read_counter()
            self._follow_s = math.inf

    def read_fast(self) -> None:
        """One of the fast readings that find the counter's update period."""
        self._found_period.add_fast(self._now(), self._answer(self.instrument.counter_j))

    def read_counter(self) -> Point | None:
        """One reading of the counter alone."""
        with self._lock:
            asked_s = self._now()
            counter_j = self._answer(self.instrument.counter_j)
            return None if counter_j is None else self._keep(asked_s, counter_j, None)

    def _read_and_follow(self) -> Point | None:
        point = self.read_counter()
        if self._follow_s == math.inf:
            self._follow_s = clock.now_s() + self.update_period_s + _FOLLOWED_LATER_S
        return point

    def look(self) -> None:
        """One reading of everything, for the timeline too; an empty answer is no reading."""
        with self._lock:
            asked_s = self._now()
            look = self._answer(self.instrument.look)
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
        """The power of a counter without one: its rise since the last reading; None over a very short time."""
        if before is None or before.counter_j is None or before.epoch != point.epoch or point.counter_j is None:
            return None
        elapsed_s = point.time_s - before.time_s
        return (point.counter_j - before.counter_j) / elapsed_s if elapsed_s > 5 * self.update_period_s else None

    def _keep(self, asked_s: float, raw_j: float | None, power_w: float | None, age_s: float = 0.0) -> Point:
        time_s = self._now()
        counter_j = None if raw_j is None else self._unwrapping.total_j(time_s, raw_j)
        self._found_period.add(time_s, raw_j)
        point = Point(asked_s - age_s, time_s - age_s, counter_j, power_w, self._unwrapping.epoch)
        self.points.append(point)
        if point.counter_j is not None:
            self._counters.append(point)
        if point.power_w is not None:
            self._powers.append(point)
        return point


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
        throttle_reasons=look.throttle_reasons,
        throttled_s=None if look.throttled_s is None else dict(look.throttled_s),
        memory_temperature_c=look.memory_temperature_c,
        power_limit_w=look.power_limit_w,
        cpu_clock_hz=look.cpu_clock_hz,
        phase=phase,
    )
