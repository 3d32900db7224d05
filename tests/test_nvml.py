"""NVIDIA readings through the real nvidia-ml-py, from a stand-in for the library that it loads."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from stand_ins import build_nvml, energy, has_joules_of, run_with_nvml

from howlow import load_settings as load
from howlow.records import PhaseRecord, Spread
from howlow.settings import expand, merge
from howlow.sweeping.sweep import ordered

Ask = Callable[..., dict[str, Any]]

QUESTIONS = """
import json, sys, time
from pathlib import Path
import torch
from howlow.meters import sources
from howlow.meters.nvml import NvmlAbsentError, NvmlDevice
from howlow.meters.session import Session
from howlow.meters.sources import Asked, open_energy
from howlow.meters.idle import measure_idle
from howlow.records import read_timeline

sources.own_uuid = lambda device: sys.argv[1]  # there is no CUDA device whose UUID could be asked for
meter = open_energy(Asked("nvml", torch.device("cuda:0")))
found = {"source": meter.name, "detail": meter.detail, "other": meter.of_another_device, "warnings": []}
warn = lambda warning: found["warnings"].append([warning.kind, warning.detail])
with Session(Path(sys.argv[2]), torch.device("cpu"), meter, 20.0, 0.0, warn=warn) as session:
    time.sleep(0.7)
    with session.phase("train") as phase:
        with phase.step(measured=False, samples=1):
            time.sleep(0.1)
        for _ in range(4):
            started = time.perf_counter()
            with phase.step(measured=True, samples=1) as timed:
                time.sleep(0.2)
            found["slowest_step_s"] = max(found.get("slowest_step_s", 0), time.perf_counter() - started)
        phase.pause()
        time.sleep(0.5)
        with phase.step(measured=True, samples=2):
            time.sleep(0.7)
        record = phase.end()
    found["meters"] = session.report(None).model_dump()
    found["period_s"] = next((reader.update_period_s for reader in session.sensors.of(meter)), None)
found["phase"] = record.model_dump()
found["counter_j"] = timed.energy_counter_j
own = [reading for reading in read_timeline(Path(sys.argv[2])) if reading.device == "cuda:0"]
found["readings"] = [json.loads(reading.model_dump_json()) for reading in own]
idle = measure_idle(meter, 20.0, 1.0) if len(sys.argv) > 3 else None
found["idle"] = idle and [idle.power_w, idle.error_w]
print(json.dumps(found))
"""


def answers(output: str) -> dict[str, Any]:
    """The answers to `QUESTIONS`."""
    found: dict[str, Any] = json.loads(output)
    return found | {"phase": PhaseRecord(**found["phase"])}


@pytest.fixture
def ask(library: Path, tmp_path: Path) -> Ask:
    def run(*arguments: str, uuid: str = "GPU-11111111-aaaa", **environment: str) -> dict[str, Any]:
        command = ["-c", QUESTIONS, uuid, str(tmp_path), *arguments]
        return answers(run_with_nvml(library, command, **environment))

    return run


def kinds(found: dict[str, Any]) -> set[str]:
    return {kind for kind, _ in found["warnings"]}


def test_known_joules_go_in_and_the_same_come_out(library: Path) -> None:
    command = ["-m", "pytest", "-q", "-p", "no:cacheprovider", str(Path(__file__).parent / "nvml_properties.py")]
    out = run_with_nvml(
        library, command, HOWLOW_NVML_PERIOD_MS="100", HOWLOW_NVML_WRAP_MJ=str(2**32), HOWLOW_NVML_START_MJ="4294967000"
    )
    assert "4 passed" in out


@pytest.mark.parametrize(
    ("expected", "script"),
    [
        ("energy", {}),
        ("energy", {"HOWLOW_NVML_LATENCY_US": "3500", "HOWLOW_NVML_JITTER": "0.03", "HOWLOW_NVML_OFFSET_MS": "37"}),
        pytest.param("energy", {"HOWLOW_NVML_LATE": "7:0.8", "HOWLOW_NVML_LATENCY_US": "2400"}, marks=pytest.mark.slow),
        pytest.param(
            "energy", {"HOWLOW_NVML_PERIOD_MS": "20", "HOWLOW_NVML_LATENCY_US": "500"}, marks=pytest.mark.slow
        ),
        pytest.param(
            "energy",
            {"HOWLOW_NVML_WRAP_MJ": str(2**32), "HOWLOW_NVML_START_MJ": str(2**32 - 1_700_000)},
            marks=pytest.mark.slow,
        ),
        ("counter_stood_still", {"HOWLOW_NVML_FROZEN": "4.3:5.2", "HOWLOW_NVML_LATENCY_US": "3500"}),
        ("energy_gap", {"HOWLOW_NVML_RESET_AT": "4.7", "HOWLOW_NVML_LATENCY_US": "3500"}),
    ],
    ids=lambda value: value if isinstance(value, str) else ",".join(value) or "plain",
)
def test_windows_of_a_scripted_counter(expected: str, script: dict[str, str], library: Path) -> None:
    command = ["-m", "pytest", "-q", "-p", "no:cacheprovider", str(Path(__file__).parent / "nvml_windows.py")]
    environment = {"HOWLOW_EXPECTED": expected, "HOWLOW_NVML_PERIOD_MS": "100", **script}
    assert "4 passed" in run_with_nvml(library, command, **environment)


def test_a_device_is_found_by_its_uuid_and_read_in_si_units(ask: Ask) -> None:
    found = ask(uuid="22222222-bbbb", HOWLOW_NVML_MILLIWATTS="250000", HOWLOW_NVML_THROTTLE="4")
    seen = found["readings"][-1]
    assert seen["power_w"] == 250
    assert seen["memory_bytes"] == 2 << 30
    assert (seen["utilization"], seen["memory_utilization"], seen["temperature_c"]) == (0.87, 0.4, 61)
    assert (seen["sm_clock_hz"], seen["memory_clock_hz"]) == (1410e6, 1593e6)
    assert seen["throttle_reasons"] == ["sw_power_cap"]
    assert not kinds(found) & {"throttled", "power_capped"}


def test_the_counters_joules_are_those_of_the_measured_segments(ask: Ask) -> None:
    found = ask("idle", HOWLOW_NVML_MILLIWATTS="250000", HOWLOW_NVML_PERIOD_MS="20")
    phase = found["phase"]
    measured, whole, pauses = energy(phase), energy(phase, "phase"), energy(phase, "pauses")
    assert found["source"] == "nvml counter"
    assert not found["other"]
    assert measured.samples == 6
    assert measured.duration_s >= 1.5
    assert measured.duration_s + pauses.duration_s < whole.duration_s - 0.1  # the burn-in is in neither
    assert measured.error_j < measured.energy_j
    assert has_joules_of(250, measured)
    assert has_joules_of(250, whole)
    assert whole.duration_s > 2.1
    assert phase.pauses == 1
    assert phase.pauses_duration_s >= 0.5
    assert pauses.duration_s == phase.pauses_duration_s
    assert has_joules_of(250, pauses)
    assert pauses.readings > 5
    assert found["period_s"] >= 0.02
    assert found["counter_j"] > 1000
    idle_w, error_w = found["idle"]
    assert abs(idle_w - 250) <= error_w


@pytest.mark.parametrize("period_ms", [400, 1000])
def test_a_slow_counter_is_found_out_and_windows_shorter_than_its_period_have_no_energy(
    period_ms: int, ask: Ask
) -> None:
    found = ask(HOWLOW_NVML_MILLIWATTS="100000", HOWLOW_NVML_PERIOD_MS=str(period_ms))
    assert found["period_s"] >= 0.99 * period_ms / 1000  # two moments are known to a reading's time each
    assert found["phase"].pauses == 1
    measured = found["phase"].window("measured")
    if period_ms == 400:
        assert has_joules_of(100, measured)
        return
    assert measured is None
    details = [detail for kind, detail in found["warnings"] if kind == "energy_window_too_short"]
    told = [re.search(r"; (\S+) s would do$", detail) for detail in details]
    assert any(one and float(one[1]) >= 0.98 for one in told), found["warnings"]


def test_a_device_that_is_named_twice_counts_once(library: Path, tmp_path: Path) -> None:
    asked = 'Asked("nvml", torch.device("cpu"), devices=("GPU-1", "GPU-11111111-aaaa"))'
    code = QUESTIONS.replace('Asked("nvml", torch.device("cuda:0"))', asked)
    found = answers(run_with_nvml(library, ["-c", code, "none", str(tmp_path)], HOWLOW_NVML_MILLIWATTS="100000"))
    measured = energy(found["phase"])
    assert has_joules_of(100, measured)


def test_without_a_counter_power_is_integrated_and_the_source_says_so(ask: Ask) -> None:
    found = ask(HOWLOW_NVML_MILLIWATTS="80000", HOWLOW_NVML_NO_COUNTER="1", HOWLOW_NVML_INSTANT="1")
    assert found["source"] == "nvml power"
    assert found["detail"].startswith("instantaneous power of GPU-11111111-aaaa, integrated")
    measured = energy(found["phase"])
    assert measured.energy_j == pytest.approx(80 * measured.duration_s, rel=0.01)
    assert found["counter_j"] is None


def test_fields_are_told_where_the_driver_has_them(ask: Ask) -> None:
    found = ask(HOWLOW_NVML_FIELDS="1", HOWLOW_NVML_INSTANT="1", HOWLOW_NVML_THROTTLE="4")
    readings = found["readings"]
    assert {seen["memory_temperature_c"] for seen in readings} == {77}
    limits = [seen["power_limit_w"] for seen in readings if seen["power_limit_w"] is not None]
    assert set(limits) == {300}
    most = 2 + readings[-1]["time_s"]  # once a second, of twenty readings
    assert len(limits) <= most
    times = [seen["throttled_s"] for seen in readings if seen["throttled_s"] is not None]
    assert 2 <= len(times) <= most
    assert times[-1]["sw_power_cap"] > times[0]["sw_power_cap"] > 0
    assert times[-1]["hw_thermal_slowdown"] == 0
    (conditions,) = found["phase"].conditions
    assert conditions.sm_clock_hz == Spread(low=1410e6, mean=1410e6, high=1410e6)
    assert conditions.memory_temperature_c == Spread(low=77, mean=77, high=77)
    assert conditions.throttled_share is not None
    assert conditions.throttled_share["sw_power_cap"] > 0.5
    (warning,) = [detail for kind, detail in found["warnings"] if kind == "held_by_power_limit"]
    assert warning.startswith("train, cuda:0: the power limit")


def test_a_driver_without_fields_is_asked_through_the_older_functions(ask: Ask) -> None:
    found = ask(HOWLOW_NVML_NO_FIELDS="1", HOWLOW_NVML_INSTANT="1", HOWLOW_NVML_MILLIWATTS="120000")
    seen = found["readings"][-1]
    assert (seen["power_w"], seen["temperature_c"], seen["throttled_s"]) == (120, 61, None)
    assert found["source"] == "nvml counter"
    assert "sensor_failed" not in kinds(found)
    (conditions,) = found["phase"].conditions
    assert conditions.throttled_share == {}


@pytest.mark.parametrize(
    ("name", "instant", "share"),
    [("NVIDIA H100 80GB HBM3", True, 0.25), ("NVIDIA H100 80GB HBM3", False, None), ("NVIDIA A100-SXM4", False, 0.25)],
)
def test_a_power_sensor_that_measures_for_a_part_of_the_time_is_named(
    library: Path, name: str, instant: bool, share: float | None
) -> None:
    code = """
import json, torch
from howlow.meters.sources import Asked, open_energy
from howlow.meters.survey import survey
from howlow.trial.metering import energy_source
from howlow.meters.sources import Meters
from howlow.meters.energy import no_energy
meter = open_energy(Asked("nvml", torch.device("cpu")))
source = energy_source(Meters(meter, no_energy("")))
lines = [tried.detail for tried in survey(torch.device("cpu"), None).sources if tried.name == "nvml"]
print(json.dumps([source.detail, source.power_sampled_share, lines]))
"""
    script = {"HOWLOW_NVML_NAME": name, "HOWLOW_NVML_NO_COUNTER": "1"} | (
        {"HOWLOW_NVML_INSTANT": "1"} if instant else {}
    )
    detail, told, (line,) = json.loads(run_with_nvml(library, ["-c", code], **script))
    assert told == share
    for text in (detail, line):
        assert ("its power sensor measures for 25% of the time" in text) == (share is not None)


def test_a_window_too_short_for_averaged_power_has_none_with_the_warning(ask: Ask) -> None:
    found = ask(HOWLOW_NVML_NO_COUNTER="1")
    assert "averaged power" in found["detail"]
    assert found["phase"].window("measured") is None
    assert "energy_window_too_short" in kinds(found)
    assert any("3 s would do" in detail for _, detail in found["warnings"])


@pytest.mark.parametrize("why", ["HOWLOW_NVML_UNSUPPORTED", "HOWLOW_NVML_DENIED"])
def test_a_device_without_a_counter_has_no_energy_rather_than_zero(why: str, ask: Ask) -> None:
    found = ask(**{why: "1"})
    assert found["source"] == (None if why.endswith("UNSUPPORTED") else "nvml power")
    assert ("permission denied" in found["detail"]) == why.endswith("DENIED")
    assert found["phase"].window("measured") is None
    assert found["counter_j"] is None


def test_an_unknown_device_is_absent_with_the_librarys_reason(ask: Ask) -> None:
    found = ask(uuid="99999999-dddd")
    assert found["source"] is None
    assert found["detail"].startswith("no nvml: NVML: ")


def test_a_device_lost_in_mid_run_leaves_a_gap_and_a_warning(ask: Ask) -> None:
    found = ask(HOWLOW_NVML_LOST_AFTER="2.0")
    assert "energy_gap" in kinds(found)
    measured = found["phase"].window("measured")
    assert measured is None or measured.duration_s < 0.9
    assert any("the GPU is lost" in detail for kind, detail in found["warnings"] if kind == "energy_gap")
    phase = found["phase"]
    assert found["readings"][-1]["time_s"] < phase.start_s + phase.duration_s - 0.5  # what tells nothing is no line
    assert found["meters"]["largest_gap_s"] > 0.5


def test_a_sensor_that_hangs_blocks_no_step(ask: Ask) -> None:
    found = ask(HOWLOW_NVML_HANG_AFTER="1.5")
    assert found["slowest_step_s"] < 60, "it hangs for an hour"
    assert {"energy_gap", "sensor_late"} <= kinds(found)
    assert found["phase"].duration_s > 2


def test_a_partitions_energy_is_that_of_the_whole_card_and_says_so(ask: Ask) -> None:
    found = ask(uuid="MIG-33333333-cccc", HOWLOW_NVML_MILLIWATTS="250000")
    measured = energy(found["phase"])
    assert found["source"] == "nvml counter"
    assert has_joules_of(250, measured)
    assert found["readings"][-1]["memory_bytes"] == 3 << 30
    assert "device_partitioned" in kinds(found)


def test_a_partition_is_found_by_the_uuid_that_cuda_tells(ask: Ask) -> None:
    found = ask(uuid="GPU-33333333-cccc")
    assert found["detail"].endswith("MIG-33333333-cccc")
    assert "device_partitioned" in kinds(found)


def test_an_older_drivers_missing_questions_cost_no_energy(tmp_path: Path) -> None:
    old = build_nvml(tmp_path, "-DOLD_DRIVER")
    command = ["-c", QUESTIONS, "GPU-11111111-aaaa", str(tmp_path)]
    found = answers(run_with_nvml(old, command, HOWLOW_NVML_OTHERS="2", HOWLOW_NVML_MILLIWATTS="100000"))
    measured = energy(found["phase"])
    assert has_joules_of(100, measured)
    assert "other_process_on_device" in kinds(found)
    assert "sensor_failed" not in kinds(found)


def test_a_device_that_is_gone_takes_none_of_the_others_with_it(library: Path, tmp_path: Path) -> None:
    whole, named = 'Asked("nvml", torch.device("cpu"))', 'Asked("nvml", torch.device("cpu"), devices=("GPU-2",))'
    for asked in (whole, named):
        code = QUESTIONS.replace('Asked("nvml", torch.device("cuda:0"))', asked)
        found = answers(run_with_nvml(library, ["-c", code, "none", str(tmp_path)], HOWLOW_NVML_GONE="0"))
        assert (found["phase"].window("measured") is None) == (asked is whole)
        told = "no nvml: NVML: the GPU is lost (device 0); meters.devices can name the others"
        assert found["detail"] == (told if asked is whole else "total energy consumption of GPU-22222222-bbbb")


def test_a_device_without_a_sensor_takes_the_sum_away_and_not_the_others_rows(library: Path, tmp_path: Path) -> None:
    code = QUESTIONS.replace('Asked("nvml", torch.device("cuda:0"))', 'Asked("nvml", torch.device("cpu"))')
    found = answers(run_with_nvml(library, ["-c", code, "none", str(tmp_path)], HOWLOW_NVML_MUTE="1"))
    assert found["phase"].window("measured") is None
    assert {window.device for window in found["phase"].windows} == {"GPU-11111111-aaaa"}
    (why,) = [detail for kind, detail in found["warnings"] if kind == "energy_gap"]
    assert "(GPU-22222222-bbbb; meters.devices can leave it out)" in why


CHOOSE = """
import json, sys
import torch
from howlow.errors import UserError
from howlow.meters import sources
from howlow.meters.sources import Asked, open_energy

sources.own_uuid = lambda device: "GPU-33333333-cccc"
try:
    meter = open_energy(Asked("nvml", torch.device(sys.argv[1]), devices=tuple(sys.argv[2:])))
    print(json.dumps([meter.name, meter.of_another_device, [part.device for part in meter.instruments]]))
except UserError as error:
    print(json.dumps(str(error)))
"""


@pytest.mark.parametrize(
    ("device", "names", "script", "told"),
    [
        (
            "cpu",
            ["MIG-typo"],
            {},
            "meters.devices 'MIG-typo' must match exactly one device of the source; it has: GPU-1",
        ),
        (
            "cpu",
            ["GPU-1"],
            {"HOWLOW_NVML_GONE": "0"},
            "of the source; it has: GPU-22222222-bbbb; NVML: the GPU is lost (dev",
        ),
        ("cpu", ["MIG-33333333-cccc"], {}, ["nvml counter", True, ["MIG-33333333-cccc"]]),
        ("cuda:0", ["MIG-33333333-cccc"], {}, ["nvml counter", False, ["cuda:0"]]),  # CUDA tells it as a card's
        ("cpu", [], {"HOWLOW_NVML_MUTE": "1", "HOWLOW_NVML_NO_COUNTER": "1"}, ["nvml power", True, None]),
    ],
)
def test_what_is_named_is_taken_or_refused_with_the_reason(
    library: Path, device: str, names: list[str], script: dict[str, str], told: Any
) -> None:
    found = json.loads(run_with_nvml(library, ["-c", CHOOSE, device, *names], **script))
    if isinstance(told, str):
        assert told in found
    else:
        assert found[:2] == told[:2]
        assert told[2] is None or found[2] == told[2]


@pytest.mark.parametrize("counter", [{}, {"HOWLOW_NVML_INSTANT": "1"}])
def test_a_power_of_0_is_no_reading(counter: dict[str, str], ask: Ask) -> None:
    found = ask(HOWLOW_NVML_NO_COUNTER="1", HOWLOW_NVML_MILLIWATTS="0", **counter)
    assert found["source"] is None
    assert found["phase"].window("measured") is None


def test_a_wrap_around_is_no_loss(ask: Ask) -> None:
    found = ask(
        HOWLOW_NVML_MILLIWATTS="400000", HOWLOW_NVML_WRAP_MJ=str(2**32), HOWLOW_NVML_START_MJ=str(2**32 - 500_000)
    )
    measured = energy(found["phase"])
    assert has_joules_of(400, measured)


def test_outside_work_and_limits_are_warnings(ask: Ask) -> None:
    found = ask(
        HOWLOW_NVML_OTHERS="2",
        HOWLOW_NVML_MIG="1",
        HOWLOW_NVML_VGPU="1",
        HOWLOW_NVML_LIMIT="200000",
        HOWLOW_NVML_THROTTLE=str(0x40),
    )
    assert {
        "other_process_on_device",
        "device_partitioned",
        "device_virtual",
        "power_capped",
        "throttled",
    } <= kinds(found)
    assert any("200 W, its default is 300 W" in detail for _, detail in found["warnings"])


OWN_MEMORY = """
import json, sys
from howlow.meters import nvml
nvml._in_namespace, nvml._uses_cuda = lambda: sys.argv[2] == "container", lambda: sys.argv[3] == "cuda"
print(json.dumps(nvml.NvmlDevice(sys.argv[1]).look().process_memory_bytes))
"""


@pytest.mark.parametrize(
    ("listed", "where", "seen"),
    [
        ({"OWN": "5000"}, ("host", "cuda"), 5000),
        ({"OWN": "5000", "OTHERS": "2"}, ("host", "cuda"), 5000),
        ({"OWN": "-1"}, ("host", "cuda"), None),  # the driver does not tell it
        ({"OTHERS": "1"}, ("container", "cuda"), 1 << 20),  # listed under the host's number, and nobody else is there
        ({"OTHERS": "1"}, ("container", "cpu"), None),
        ({"OTHERS": "1"}, ("host", "cuda"), None),
        ({"OTHERS": "2"}, ("container", "cuda"), None),
        ({}, ("container", "cuda"), None),
    ],
)
def test_the_memory_of_this_process_is_told_apart_or_absent(
    library: Path, listed: dict[str, str], where: tuple[str, str], seen: int | None
) -> None:
    asked = {f"HOWLOW_NVML_{name}": value for name, value in listed.items()}
    assert json.loads(run_with_nvml(library, ["-c", OWN_MEMORY, "GPU-11111111-aaaa", *where], **asked)) == seen


def test_on_a_cpu_every_device_of_a_source_asked_for_by_name_is_summed_with_rows_of_its_own(
    library: Path, tmp_path: Path
) -> None:
    code = QUESTIONS.replace('Asked("nvml", torch.device("cuda:0"))', 'Asked("nvml", torch.device("cpu"))')
    environment = {"HOWLOW_NVML_MILLIWATTS": "100000", "CUDA_VISIBLE_DEVICES": ""}
    found = answers(run_with_nvml(library, ["-c", code, "none", str(tmp_path)], **environment))
    measured = energy(found["phase"])
    assert found["other"]
    assert has_joules_of(200, measured)
    devices = {(window.device, window.part) for window in found["phase"].windows}
    assert devices >= {("GPU-11111111-aaaa", "measured"), ("GPU-22222222-bbbb", "measured")}
    lines = [json.loads(line) for line in (tmp_path / "timeline.jsonl").read_text().splitlines()]
    assert {line["device"] for line in lines} == {"cpu", "GPU-11111111-aaaa", "GPU-22222222-bbbb"}


SWEEP = """
import json, sys
import howlow
from howlow.reporting import read_report
from howlow import load_settings as load
howlow.sweep(load(None, [json.loads(sys.argv[1])]), sys.argv[2])
report = read_report([sys.argv[2]])
print(report.json_text())
"""


@pytest.mark.slow
def test_a_whole_sweep_on_a_source_asked_for_by_name(library: Path, tiny_table: dict[str, Any], tmp_path: Path) -> None:
    table = tiny_table | {"grid": {"lora.rank": [4]}, "baselines": [], "meters": {"energy": "nvml", "rate_hz": 20.0}}
    table |= {"training": tiny_table["training"] | {"epochs": 10}}
    out = run_with_nvml(
        library, ["-c", SWEEP, json.dumps(table), str(tmp_path / "out")], HOWLOW_NVML_MILLIWATTS="200000"
    )
    document = json.loads(out)
    (row,) = document["rows"]
    assert row["energy_source"] == "nvml counter"
    assert row["idle_power_w"] == pytest.approx(400, rel=0.02)
    assert abs(row["train_power_w"] - 400) * row["train_time_per_sample_s"] <= row["train_energy_error_per_sample_j"]
    assert row["train_power_p50_w"] == pytest.approx(400)
    assert abs(row["train_energy_above_idle_per_sample_j"]) < row["train_energy_error_per_sample_j"] * 1.5
    assert row["train_cpu_energy_per_sample_j"] is None
    assert "energy_of_another_device" in {warning["kind"] for warning in document["warnings"]}


@pytest.mark.slow
def test_idle_power_is_read_although_no_batch_of_the_first_trial_fits(
    library: Path, tiny_table: dict[str, Any], tmp_path: Path
) -> None:
    """Half a GB of weights, gradients and moments leave the first rank nothing."""
    changes = {
        "grid": {"lora.rank": [1, 65536]},
        "baselines": [],
        "training": {"batch_size": "max", "epochs": 10},
        "meters": {"energy": "nvml", "rate_hz": 20.0},
        "run": {"memory_limit_bytes": 900_000_000},
    }
    table = merge(tiny_table, changes)
    plans = expand(load(None, [table]))
    seed = next(seed for seed in range(99) if ordered(plans, seed)[0].rank == 65536)
    table = merge(table, {"run": {"order_seed": seed}})
    environment = {"HOWLOW_NVML_MILLIWATTS": "200000", "HOWLOW_NVML_PERIOD_MS": "20"}
    rows = json.loads(run_with_nvml(library, ["-c", SWEEP, json.dumps(table), str(tmp_path / "out")], **environment))
    assert {row["rank"]: row["status"] for row in rows["rows"]} == {1: "done", 65536: "out_of_memory"}
    (row,) = [row for row in rows["rows"] if row["rank"] == 1]
    assert row["idle_power_w"] == pytest.approx(400, rel=0.05)
