"""Reasons for distrust: unsteady speed, work of others, swapping, throttling; and the device at rest."""

import itertools
import random
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stand_ins import Scripted, energy, has_joules_of, powercap_tree

from howlow.meters import clock, idle
from howlow.meters.energy import EnergyMeter, assumed_power
from howlow.meters.energy_bounds import Missing
from howlow.meters.idle import measure_idle, rest
from howlow.meters.interference import MachineCounters, machine_counters, machine_findings, throttling
from howlow.meters.steadiness import FEWEST_STEPS, BurnIn, drift, steady_from
from howlow.records import Idle, Reading, WarningKind

BEFORE = MachineCounters(at_s=0.0, own_s=0.0, busy_s=100.0, load=1.5, cores=4, swapped_pages=10, throttles=0)


def test_halves_that_agree_are_steady_and_a_warm_up_is_not() -> None:
    noise = random.Random(0)
    even = [100 + noise.gauss(0, 2) for _ in range(40)]
    found = drift(even)
    assert found is not None
    assert found.is_steady
    warming = [60 + 2 * step for step in range(20)] + even
    late = drift(warming)
    assert late is not None
    assert not late.is_steady
    assert late.relative > 0.05
    assert steady_from(warming) is not None
    assert 5 <= (steady_from(warming) or 0) <= 20


def test_too_few_steps_cannot_tell() -> None:
    assert drift([1.0] * 5) is None
    assert steady_from([1.0] * 5) is None


@given(st.integers(0, 8), st.integers(1, 40), st.floats(0.5, 100))
def test_burn_in_has_the_steps_asked_for_but_never_more_than_half(asked: int, steps: int, speed: float) -> None:
    burn_in = BurnIn(asked, [3] * steps)
    while not burn_in.is_over:
        burn_in.add(speed)
    assert burn_in.steps == min(asked, steps // 2)
    assert burn_in.ran_out == (asked > steps // 2)


def test_what_a_large_batch_leaves_over_is_not_all_that_is_measured() -> None:
    assert BurnIn(2, [63, 1]).is_over
    burn_in = BurnIn(3, [40, 40, 40, 4, 4, 4])
    burn_in.add(1.0)
    assert not burn_in.is_over
    burn_in.add(1.0)
    assert burn_in.is_over
    assert burn_in.ran_out


@given(st.lists(st.floats(0.5, 100), min_size=1, max_size=40))
def test_burn_in_by_itself_ends_when_its_last_steps_agree(speeds: list[float]) -> None:
    burn_in = BurnIn("auto", [3] * len(speeds))
    while not burn_in.is_over:
        burn_in.add(speeds[burn_in.steps])
    assert burn_in.steps <= len(speeds) // 2
    last = drift(speeds[max(0, burn_in.steps - FEWEST_STEPS) : burn_in.steps])
    assert burn_in.ran_out != (last is not None and last.is_steady)
    for earlier in range(FEWEST_STEPS, burn_in.steps):
        found = drift(speeds[earlier - FEWEST_STEPS : earlier])
        assert found is not None
        assert not found.is_steady


def test_burn_in_by_itself_waits_for_a_machine_that_gets_faster() -> None:
    speeds = [10.0 * 1.3**step for step in range(10)] + [140.0] * 30
    burn_in = BurnIn("auto", [3] * len(speeds))
    while not burn_in.is_over:
        burn_in.add(speeds[burn_in.steps])
    assert 10 < burn_in.steps <= 16
    assert not burn_in.ran_out


@given(st.floats(1, 1e6), st.integers(6, 60))
def test_one_speed_throughout_is_steady(speed: float, steps: int) -> None:
    found = drift([speed] * steps)
    assert found is not None
    assert found.is_steady


def kinds(after: MachineCounters) -> set[WarningKind]:
    return {kind for kind, _ in machine_findings(BEFORE, after)}


def test_only_the_work_of_others_counts() -> None:
    own = replace(BEFORE, at_s=10.0, own_s=39.0, busy_s=139.5)
    assert kinds(own) == set()
    others = replace(BEFORE, at_s=10.0, own_s=10.0, busy_s=130.0)
    assert kinds(others) == {WarningKind.OTHER_WORK_ON_MACHINE}
    ((_, detail),) = machine_findings(BEFORE, others)
    assert "50% of the 4 cores' time; load average 1.50" in detail


def test_swapping_and_heat_are_found_and_the_unknown_is_no_finding() -> None:
    after = replace(BEFORE, at_s=10.0, swapped_pages=100_000, throttles=3)
    assert kinds(after) == {WarningKind.SWAPPING, WarningKind.THROTTLED}
    blind = replace(BEFORE, at_s=10.0, busy_s=None, swapped_pages=None, throttles=None)
    assert kinds(blind) == set()


def test_this_machine_tells_something() -> None:
    before = machine_counters()
    until = time.perf_counter() + 0.2
    while time.perf_counter() < until:
        pass
    after = machine_counters()
    assert after.own_s > before.own_s
    assert after.cores >= 1


def reading(*reasons: str, phase: str = "train") -> Reading:
    return Reading(time_s=0.0, device="cuda:0", phase=phase, throttle_reasons=reasons or None)  # type: ignore[arg-type]


def test_throttling_is_heat_or_a_brake_not_a_power_limit_at_work() -> None:
    assert throttling([reading("sw_power_cap"), reading()]) is None
    assert throttling([reading("hw_slowdown", phase="load"), reading()]) is None
    found = throttling([reading("sw_thermal_slowdown"), reading(), reading(), reading()])
    assert found == (WarningKind.THROTTLED, "cuda:0: sw_thermal_slowdown in 25% of readings")


# -- at rest --------------------------------------------------------------------------------------------------------


def test_the_idle_power_is_that_of_the_source(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idle, "_SETTLING_S", 0.1)
    monkeypatch.setattr(idle, "_FIRST_WITHIN_S", 0.3)
    instrument = Scripted(counter_j=lambda: 1000 + 55 * clock.now_s(), temperature_c=41.0)
    found = measure_idle(EnergyMeter("nvml counter", "", "counter", (instrument,), 0.01), 20.0, 0.5)
    assert isinstance(found, Idle)
    assert found.error_w is not None
    assert abs(found.power_w - 55) <= found.error_w
    assert found.temperature_c == 41
    assert measure_idle(assumed_power(30.0), 4.0) is None
    silent = Scripted(counter_j=lambda: None)
    missing = measure_idle(EnergyMeter("rapl", "", "counter", (silent,), 0.01), 20.0, 0.2)
    assert isinstance(missing, Missing)
    assert missing.detail == "no reading of the counter at an edge of the window"


def test_the_window_at_rest_waits_for_the_first_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    """nvidia-smi's first line may come seconds after it was started."""
    monkeypatch.setattr(idle, "_SETTLING_S", 0.1)
    from_s = clock.now_s() + 1.0
    late = Scripted(counter_j=lambda: None, power_w=lambda: 40.0 if clock.now_s() > from_s else None)
    found = measure_idle(EnergyMeter("nvidia-smi", "", "power", (late,), 0.05), 20.0, 0.5)
    assert isinstance(found, Idle)
    assert found.power_w == pytest.approx(40)


def test_rest_ends_when_the_temperature_is_steady_and_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idle, "_LOOK_EVERY_S", 0.02)
    cooling = iter([80, 75, 71, 68, 66, 65, 65, 65, 65, 65, 65, 65])
    assert rest(lambda: next(cooling), 60.0, lambda: False) < 60
    assert next(cooling) == 65  # it did not wait for more of them
    hot = itertools.count(90, 5)
    assert rest(lambda: next(hot), 0.2, lambda: False) >= 0.2
    assert rest(lambda: None, 0.2, lambda: False) >= 0.2
    assert rest(lambda: None, 60.0, lambda: True) < 60


def test_records_name_a_remedy_for_every_warning() -> None:
    from howlow.records import REMEDIES

    assert set(REMEDIES) == set(WarningKind)


def test_the_powercap_tree_is_read_by_a_whole_session(tmp_path: Path) -> None:
    import torch

    from howlow.meters import rapl
    from howlow.meters.session import Session

    root = powercap_tree(tmp_path / "tree", {"intel-rapl:0": ("package-0", 0, 2_000_000_000)})
    zones = rapl.zones(root)
    started = clock.now_s()
    real = type(zones[0]).counter_j

    def advance(zone: rapl.RaplZone) -> float | None:
        joules = 1990 + 100 * (clock.now_s() - started)
        (zone.folder / "energy_uj").write_text(str(int(joules * 1e6) % 2_000_000_000))
        return real(zone)

    meter = EnergyMeter("rapl", "test", "counter", tuple(zones), 0.001)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rapl.RaplZone, "counter_j", advance)
        session = Session(tmp_path, torch.device("cpu"), meter, 50.0, 0.0)
        with session, session.phase("train") as phase:
            for _ in range(5):
                with phase.step(measured=True, samples=1):
                    time.sleep(0.05)
            record = phase.end()
    measured = energy(record)
    assert has_joules_of(100, measured)
