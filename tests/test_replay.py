"""A recorded session replayed through a whole sweep: on a clock that the work moves, every figure is exact."""

import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from stand_ins import Scripted, energy

import howlow
from howlow import load_settings as load
from howlow.engine import evaluation, generation
from howlow.engine.training import Trainer
from howlow.jobs import Job
from howlow.memory.heap import Heap
from howlow.meters import clock
from howlow.meters.energy import EnergyMeter
from howlow.meters.instruments import Finding, Look
from howlow.meters.sources import Meters
from howlow.outcomes import Returned
from howlow.records import Idle, read_record, read_timeline
from howlow.reporting import read_report
from howlow.trial import entries, setup

pytestmark = pytest.mark.slow

RECORDED = Path(__file__).parent / "recorded"
STEP_S, EVALUATE_S, GENERATE_S = 0.5, 0.3, 0.4
IDLE_W, CPU_W, CPU_IDLE_W = 60.0, 20.0, 5.0


class Clock:
    """Seconds that pass only when the work says so."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def after(self, work: Callable[..., Any], seconds: float) -> Callable[..., Any]:
        def timed(*arguments: Any, **options: Any) -> Any:
            result = work(*arguments, **options)
            self.now_s = round(self.now_s + seconds, 6)
            return result

        return timed


class Replay:
    """An instrument that answers with what a recorded timeline held at that time."""

    device, range_j, may_hang, programs_cpu_s, problems = "cuda:0", None, False, 0.0, dict[str, str]()

    def __init__(self, now: Callable[[], float]) -> None:
        self._readings = read_timeline(RECORDED)
        self._now = now

    def _reading(self) -> Any:
        now_s = self._now()
        return next(reading for reading in reversed(self._readings) if reading.time_s <= now_s + 1e-9)

    def counter_j(self) -> float:
        counter: float = self._reading().energy_counter_j
        return counter

    def look(self) -> Look:
        seen = self._reading()
        return Look(power_w=seen.power_w, counter_j=seen.energy_counter_j, temperature_c=seen.temperature_c)

    def findings(self) -> list[Finding]:
        return []


class Here:
    """Runs the jobs of a sweep in this process."""

    is_stopping = False

    def run(self, job: Job[Any], log: Path, hear: Any = None) -> Returned[Any]:
        class Link:
            stop_requested = False

            def report(self, event: Any) -> None:
                pass

        return Returned(getattr(entries, job.entry.rpartition(".")[2])(job, Link()))


@pytest.fixture
def replayed(monkeypatch: pytest.MonkeyPatch) -> Clock:
    moved = Clock()
    trial_started = {"s": 0.0}

    def open_meters(asked: Any) -> Meters:
        trial_started["s"] = moved.now_s
        instrument = Replay(lambda: moved.now_s - trial_started["s"])
        meter = EnergyMeter("nvml counter", "replayed", "counter", (instrument,), 0.05)
        package = Scripted(lambda: CPU_W * moved.now_s, device="package-0", may_hang=False)
        return Meters(meter, EnergyMeter("rapl", "replayed", "counter", (package,), 0.001))

    def measure_idle(meter: EnergyMeter, rate_hz: float) -> Idle:
        power_w = CPU_IDLE_W if meter.name == "rapl" else IDLE_W
        return Idle(power_w=power_w, duration_s=3.0, measured_at="2026-11-24T00:00:00+00:00")

    monkeypatch.setattr(clock, "now_s", lambda: moved.now_s)
    monkeypatch.setattr(entries, "open_meters", open_meters)
    monkeypatch.setattr(setup, "open_meters", open_meters)
    monkeypatch.setattr(entries, "measure_idle", measure_idle)
    monkeypatch.setattr(entries, "counter_paces", lambda *_: ())  # nothing moves the clock while a counter is watched
    monkeypatch.setattr(setup, "keep_heap", lambda: Heap("default", 1024))
    monkeypatch.setattr(Trainer, "step", moved.after(Trainer.step, STEP_S))
    monkeypatch.setattr(evaluation, "evaluate", moved.after(evaluation.evaluate, EVALUATE_S))
    monkeypatch.setattr(generation, "generate", moved.after(generation.generate, GENERATE_S))
    monkeypatch.setattr(import_module("howlow.sweeping.sweep"), "ForkServer", Here)
    return moved


def counter_at(time_s: float) -> float:
    """The recorded counter: what the file's last line up to that time holds."""
    lines = [json.loads(line) for line in (RECORDED / "timeline.jsonl").read_text().splitlines()]
    return float(next(line["energy_counter_j"] for line in reversed(lines) if line["time_s"] <= time_s + 1e-9))


def test_a_recorded_session_gives_exact_figures(replayed: Clock, tiny_table: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "out"
    howlow.sweep(load(None, [{**tiny_table, "grid": {"lora.rank": [4]}}]), out)
    row = {row["trial"]: row for row in read_report([out]).comparison.results.rows}["r0004-s0"]

    # 24 examples in steps of 4: two steps of burn-in, then four measured, from second 1 to second 3.
    train_j = counter_at(3.0) - counter_at(1.0)
    assert row["train_samples_per_s"] == pytest.approx(16 / 2.0)
    assert row["train_time_per_sample_s"] == pytest.approx(2.0 / 16)
    assert row["train_energy_per_sample_j"] == pytest.approx(train_j / 16)
    assert row["train_power_w"] == pytest.approx(train_j / 2.0)
    assert row["train_energy_above_idle_per_sample_j"] == pytest.approx((train_j - 2.0 * IDLE_W) / 16)
    assert row["train_phase_energy_j"] == pytest.approx(counter_at(3.0) - counter_at(0.0))
    assert row["train_cpu_energy_per_sample_j"] == pytest.approx(CPU_W * 2.0 / 16)
    assert row["train_cpu_energy_above_idle_per_sample_j"] == pytest.approx((CPU_W - CPU_IDLE_W) * 2.0 / 16)

    # 12 test examples in batches of 4: evaluation to 3.9 s, then generation, its first batch burn-in, to 5.1 s.
    generated_j = counter_at(5.1) - counter_at(4.3)
    assert row["inference_samples_per_s"] == pytest.approx(8 / 0.8)
    assert row["inference_energy_per_sample_j"] == pytest.approx(generated_j / 8)
    assert row["inference_power_w"] == pytest.approx(generated_j / 0.8)
    assert row["inference_phase_power_w"] == pytest.approx((counter_at(5.1) - counter_at(3.9)) / 1.2)
    assert row["energy_source"] == "nvml counter"
    assert row["idle_power_w"] == IDLE_W


def test_the_record_names_source_pace_error_and_readings(
    replayed: Clock, tiny_table: dict[str, Any], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    howlow.sweep(load(None, [{**tiny_table, "grid": {"lora.rank": [4]}, "baselines": []}]), out)
    record = read_record(out / "trials" / "r0004-s0")
    assert record is not None
    assert record.energy is not None
    assert (record.energy.name, record.energy.update_period_s, record.energy.devices) == (
        "nvml counter",
        0.05,
        ("cuda:0",),
    )
    assert (record.energy.cpu, record.energy.cpu_update_period_s) == ("rapl", 0.001)
    train = record.phase("train")
    assert train is not None
    measured = energy(train)
    assert measured.readings >= 5  # one at the start, one at each step's end
    assert measured.error_j > 0
    assert record.meters is not None
    assert record.meters.idle is not None
