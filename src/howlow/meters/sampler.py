"""Readings at a mean rate (`howlow.meters.schedule`): each instrument is read by a thread of its own.

A reader may hang with its instrument; nothing else does. A step that wants a fresh counter hands the question to the
reader and goes on; while an answer is outstanding nobody asks again. An instrument that cannot hang (a file of the
kernel's) is read by the step's own thread, which costs less where all cores are busy. A reading that comes late is
written with the time at which it was taken. A reading that is missed is a gap, never a repeated value or a zero.

A counter changes at ticks (`howlow.meters.energy_bounds`). At the edges of a window the reader polls it until it
changes. In between it is read at the timeline's rate, and at the ends of steps as far as that costs no more than
`STEP_SHARE` of the time.

Times are on the trial's own scale.
"""

import math
import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from howlow.meters import clock
from howlow.meters.counters import NOMINAL_PERIOD_S, Unwrapping, UpdatePeriod
from howlow.meters.energy import LONGEST_STANDSTILL, SHORTEST_STANDSTILL_S, InstrumentReadings
from howlow.meters.energy_bounds import LATEST_UPDATE, Point
from howlow.meters.instruments import Finding, Instrument, Look
from howlow.meters.schedule import Schedule
from howlow.meters.timeline import Timeline
from howlow.records import CounterPace, PhaseName, Reading

_T = TypeVar("_T")
STEP_SHARE = 0.005  # of the time, for readings of the counter at the ends of steps
ANSWER_TIMEOUT_S = 0.05
_FAST_S = 0.001
_LOOK_FOR_S = 0.02
_FOLLOWED_S = 0.01  # a counter that is updated more often includes an edge at once
_FOLLOWED_LATER_S = 0.002  # a window begins a moment after its tick was seen
_SELDOM_S = 0.6  # between two readings: longer than the timeline's rate makes them
_POLLS_IN_PERIOD, _MOST_POLLS = 100, 300
_LATENCIES_AT_EDGE = 20  # how many readings' time an edge may take in addition to its update periods


@dataclass
class _Job:
    call: Callable[[], Any]
    done: threading.Event = field(default_factory=threading.Event)
    result: Any = None


class Reader:
    """Reads one instrument: at the timeline's rate, and when it is asked to.

    now: the trial's time. update_period_s: how often the source has something new, where that is documented. pace: what
    was measured of the counter before; without it and without documentation the reader watches the counter first.
    is_polled_power: whether energy is integrated from its power, which is then read at random moments.
    """

    def __init__(
        self,
        instrument: Instrument,
        rate_hz: float,
        timeline: Timeline,
        now: Callable[[], float],
        update_period_s: float | None = None,
        pace: CounterPace | None = None,
        is_polled_power: bool = False,
    ) -> None:
        self.instrument = instrument
        self.pace = pace
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
        self._schedule, self._follow_s = Schedule(self._period_s, instrument.device, is_polled_power), math.inf
        self._between_s, self._between_took_s = -math.inf, 0.0
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

    def begin(self, call: Callable[[], Any]) -> _Job | None:
        """Have the reader's thread call something; None where an earlier answer is still outstanding."""
        self.asked += 1
        if self._pending is not None and not self._pending.done.is_set():
            self.late += 1
            return None
        job = self._pending = _Job(call)
        self._jobs.put(job)
        return job

    def ask(self, call: Callable[[], Any], timeout_s: float = ANSWER_TIMEOUT_S) -> Any:
        """What the reader's thread answers; None where this answer or an earlier one does not come in time."""
        job = self.begin(call)
        return None if job is None else self.answer(job, timeout_s)

    def answer(self, job: _Job, timeout_s: float) -> Any:
        """Wait for an answer, but no longer than that."""
        if not job.done.wait(max(0.0, timeout_s)):
            self.late += 1
        return job.result

    def counter_soon(self, then: Callable[[Point | None], None]) -> None:
        """Have the counter read and go on; `then` is called with the reading, or with None where there will be none."""
        asked_s = clock.now_s()
        if not self.instrument.may_hang:
            then(self._read_in_between())
        elif self.begin(lambda: then(self._read_in_between())) is None:
            then(None)
        self.waited_s += clock.now_s() - asked_s

    def _read_in_between(self) -> Point | None:
        begun_s = clock.now_s()
        point = self.read_counter()
        self._between_s = clock.now_s()
        self._between_took_s = self._between_s - begun_s
        return point

    def may_read_in_between(self, share: float) -> bool:
        """Whether the last reading between two edges is so old that another one takes less than a share of the time."""
        took_s = max(self._between_took_s, self.pace.latency_s if self.pace else 0.0)
        return clock.now_s() - self._between_s >= took_s / share

    def findings(self, timeout_s: float) -> list[Finding]:
        """What the instrument knows of outside work; nothing where it does not answer in time."""
        found: list[Finding] | None = self.ask(lambda: self._answer(self.instrument.findings), timeout_s)
        return found or []

    def begin_tick(self, after_s: float = -math.inf) -> _Job | None:
        """Begin to poll the counter for a tick after a moment; None where nothing has to be waited for."""
        if not self.has_counter:
            return None
        if not self.instrument.may_hang:
            self.poll_tick(after_s)
            return None
        if self._pending is not None:  # the reading of the last step
            self._pending.done.wait(ANSWER_TIMEOUT_S)
        return self.begin(lambda: self.poll_tick(after_s))

    @property
    def edge_timeout_s(self) -> float:
        """How long polling for a tick may take."""
        latency_s = self.pace.largest_latency_s if self.pace else _FAST_S
        wait_s = LATEST_UPDATE * self.update_period_s + self.lag_s
        return wait_s + max(ANSWER_TIMEOUT_S, _LATENCIES_AT_EDGE * latency_s)

    def settle_power(self, moment_s: float) -> None:
        """Wait until a reading of power includes all that happened before a moment, but not much longer."""
        until_s = moment_s + self.update_period_s + 2 * self._period_s
        while (
            self._powers and self._powers[-1].time_s < moment_s + self.update_period_s and self._now() < until_s
        ):  # the thread reads them at its rate; a program prints at its own times
            clock.sleep(_LOOK_FOR_S)

    # -- what is known of the source ----------------------------------------------------------------------------------

    @property
    def update_period_s(self) -> float:
        """The longest time between two updates: as measured, as documented, or a usual value until it is known."""
        measured_s = self.pace.longest_s if self.pace else None
        return measured_s or self._update_period_s or self._found_period.period_s or NOMINAL_PERIOD_S

    @property
    def usual_period_s(self) -> float:
        """The usual time between two updates."""
        measured_s = self.pace.period_s if self.pace else None
        return measured_s or self._update_period_s or self._found_period.usual_period_s or NOMINAL_PERIOD_S

    @property
    def known_pace(self) -> CounterPace | None:
        """How the counter behaves: as it was measured before, or as this reader found; None where nobody watched it."""
        if self.pace is not None or not self._found_period.latencies_s:
            return self.pace
        return self._found_period.as_pace(self.instrument.device)

    @property
    def lag_s(self) -> float:
        """How far the counter is behind, where that was measured."""
        return (self.pace.lag_s if self.pace else None) or 0.0

    @property
    def has_counter(self) -> bool:
        """Whether there is a reading of a counter, or no reading yet."""
        return bool(self._counters) or not self.points

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
            self.pace.step_j if self.pace else self._found_period.step_j,
            self.instrument.device,
            self.instrument.problems,
            usual_period_s=self.usual_period_s,
            pace=self.pace,
        )

    # -- the thread -------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        self._schedule.start(clock.now_s())
        while True:
            is_fast = self._watches and self._found_period.wants_fast_readings
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

    @property
    def _watches(self) -> bool:
        """Whether the update period has to be found out here."""
        return self.pace is None and self._update_period_s is None

    def _answer(self, ask: Callable[[], _T]) -> _T | None:
        """The instrument's answer; where it raises an error of any kind, that is a gap and a warning."""
        try:
            return ask()
        except Exception as error:  # drivers and their bindings fail in ways of their own
            self.failures += 1
            self.failure = f"{type(error).__name__}: {error}"
            return None

    def _read_what_is_due(self) -> None:
        """Read for the timeline, or once more after an edge, as soon as the counter includes it."""
        if clock.now_s() >= self._schedule.due_s:
            self.look()
            self._schedule.taken(clock.now_s())
        elif clock.now_s() >= self._follow_s:
            self.read_counter()
            self._follow_s = math.inf

    def read_fast(self) -> None:
        """One of the fast readings that find the counter's update period."""
        asked_s = self._now()
        counter_j = self._answer(self.instrument.counter_j)
        self._found_period.add_fast(self._now(), counter_j, asked_s)

    def read_counter(self) -> Point | None:
        """One reading of the counter alone."""
        with self._lock:
            asked_s = self._now()
            counter_j = self._answer(self.instrument.counter_j)
            return None if counter_j is None else self._keep(asked_s, counter_j, None)

    def poll_tick(self, after_s: float) -> None:
        """Read the counter until a tick is seen that came after a moment, lag included; give up where none comes.

        A reading of everything comes before and after, because power near the edge bounds what lies between.
        """
        self.look()
        give_up_s = self._now() + LATEST_UPDATE * self.update_period_s + self.lag_s
        pause_s = self.usual_period_s / _POLLS_IN_PERIOD
        last = self.read_counter()
        for _ in range(_MOST_POLLS):
            if last is None or self._now() > give_up_s:
                break
            took_s = last.time_s - last.asked_s
            if took_s < pause_s:
                clock.sleep(pause_s - took_s)
            point = self.read_counter()
            if point is not None and point.counter_j != last.counter_j and last.asked_s - self.lag_s >= after_s:
                break
            last = point
        self._look_around_edge(is_end=after_s > -math.inf)

    def _look_around_edge(self, is_end: bool) -> None:
        """The reading of everything after a tick: at a window's end now, at its start as soon as it has begun."""
        if is_end or not self.instrument.may_hang:
            self.look()
        else:
            self._schedule.hurry(clock.now_s() + _FOLLOWED_LATER_S)
        if self.update_period_s > _FOLLOWED_S:
            self._follow_s = clock.now_s() + self.update_period_s + self.lag_s + 2 * _FOLLOWED_LATER_S

    def look(self) -> None:
        """One reading of everything, for the timeline too; an empty answer is no reading."""
        with self._lock:
            asked_s = self._now()
            look = self._answer(self.instrument.look)
            if look is None or replace(look, age_s=0.0) == Look():
                return
            before = self.points[-1] if self.points else None
            self._look_again_soon(asked_s, look)
            point = self._keep(asked_s, look.counter_j, look.power_w, look.age_s)
        power_w = look.power_w
        if power_w is None and point.counter_j is not None:
            power_w = self._mean_power_w(before, point)
        reading = _reading(self.instrument.device, point, look, power_w, self._timeline.phase)
        self.looks.append(reading)
        self._timeline.write(reading)

    def _look_again_soon(self, asked_s: float, look: Look) -> None:
        """Have a counter that is seldom read be read twice, so that its standing still shows."""
        if look.counter_j is None or not self._counters or asked_s - self._counters[-1].time_s < _SELDOM_S:
            return
        standstill_s = max(SHORTEST_STANDSTILL_S, LONGEST_STANDSTILL * self.update_period_s)
        self._follow_s = min(self._follow_s, clock.now_s() + standstill_s + _FOLLOWED_LATER_S)

    def _mean_power_w(self, before: Point | None, point: Point) -> float | None:
        """The power of a counter without one: its rise since the last reading; None over a very short time."""
        if before is None or before.counter_j is None or before.epoch != point.epoch or point.counter_j is None:
            return None
        elapsed_s = point.time_s - before.time_s
        return (point.counter_j - before.counter_j) / elapsed_s if elapsed_s > 5 * self.update_period_s else None

    def _keep(self, asked_s: float, raw_j: float | None, power_w: float | None, age_s: float = 0.0) -> Point:
        time_s = self._now()
        counter_j = None if raw_j is None else self._unwrapping.total_j(time_s, raw_j)
        point = Point(asked_s - age_s, time_s - age_s, counter_j, power_w, self._unwrapping.epoch)
        self.points.append(point)
        if point.counter_j is not None:
            self._counters.append(point)
        if point.power_w is not None:
            self._powers.append(point)
        return point


def await_ticks(readers: Sequence[Reader], after_s: float = -math.inf) -> None:
    """Wait until every counter has been seen to change after a moment, at most a little longer than that takes."""
    begun_s = clock.now_s()
    jobs = [(reader, reader.begin_tick(after_s)) for reader in readers]
    for reader, job in jobs:
        if job is not None:
            reader.answer(job, begun_s + reader.edge_timeout_s - clock.now_s())


def await_sources(counters: Sequence[Reader], polled: Sequence[Reader], moment_s: float) -> None:
    """Wait until every source has a reading that includes all that happened before a moment."""
    await_ticks(counters, moment_s)
    for reader in polled:
        reader.settle_power(moment_s)


def _reading(device: str, point: Point, look: Look, power_w: float | None, phase: PhaseName) -> Reading:
    return Reading(
        time_s=point.time_s,
        device=device,
        power_w=power_w,
        energy_counter_j=point.counter_j,
        memory_bytes=look.memory_bytes,
        process_memory_bytes=look.process_memory_bytes,
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
