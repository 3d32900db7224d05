"""Which source is used, what it reads, and why it is absent: RAPL, nvidia-smi, assumed watts, names and devices."""

import itertools
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from stand_ins import Scripted, powercap_tree, soon

from howlow import load_settings as load
from howlow.errors import UserError
from howlow.jobs import IdleAbsent, IdleJob
from howlow.meters import clock, nvidia_smi, rapl, sources
from howlow.meters.energy import no_energy
from howlow.meters.instruments import Look
from howlow.meters.nvidia_smi import NvidiaSmi, SmiAbsentError, parse, smi_devices
from howlow.meters.rapl import RaplAbsentError, zones
from howlow.meters.session import Session
from howlow.meters.sources import Asked, open_energy, open_meters
from howlow.records import Idle, WarningKind
from howlow.trial.entries import idle_entry

CPU = torch.device("cpu")
TREE = {
    "intel-rapl:0": ("package-0", 5_000_000, 262_143_328_850),
    "intel-rapl:0:0": ("core", 1_000_000, 262_143_328_850),
    "intel-rapl:0:1": ("dram", 700_000, 65_712_999_613),
    "intel-rapl:1": ("package-1", 6_000_000, 262_143_328_850),
    "intel-rapl:2": ("psys", 90_000_000, 262_143_328_850),
}


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = powercap_tree(tmp_path / "powercap", TREE)
    monkeypatch.setattr(rapl, "POWERCAP", root)
    return root


def test_a_cpu_trial_without_a_sensor_has_no_energy_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rapl, "POWERCAP", tmp_path)
    meter = open_energy(Asked("auto", CPU))
    assert (meter.name, meter.kind) == (None, "absent")
    assert meter.detail.startswith("no energy sensor of the device cpu: no package zone in")
    assert open_energy(Asked("none", CPU)).detail == "meters.energy = none"


def test_a_cpu_trial_has_package_and_memory_and_no_zone_twice(tree: Path) -> None:
    meters = open_meters(Asked("auto", CPU))
    assert meters.energy.name == "rapl"
    assert not meters.energy.of_another_device
    assert [part.device for part in meters.energy.instruments] == ["package-0", "dram-0", "package-1"]
    assert [part.counter_j() for part in meters.energy.instruments] == [5.0, 0.7, 6.0]
    assert meters.energy.instruments[1].range_j == pytest.approx(65_712.999613)
    assert meters.cpu_energy.name is None  # the CPU is the trial's own device, and stands in one column only


def test_devices_are_heeded_where_the_source_is_looked_for(tree: Path) -> None:
    meter = open_energy(Asked("auto", CPU, devices=("package-0",)))
    assert [part.device for part in meter.instruments] == ["package-0"]
    with pytest.raises(UserError, match=r"meters.devices 'nonsense' must match exactly one device"):
        open_energy(Asked("auto", CPU, devices=("nonsense",)))


def test_a_tree_without_its_flat_links_is_read_as_deep_as_it_is(tmp_path: Path) -> None:
    nested = {
        f"intel-rapl:{key}" if ":" not in key else f"intel-rapl:0/intel-rapl:{key}": value
        for key, value in {"0": ("package-0", 1, 10), "0:0": ("core", 1, 10), "0:1": ("dram", 1, 10)}.items()
    }
    assert [zone.device for zone in zones(powercap_tree(tmp_path, nested))] == ["package-0", "dram-0"]


def test_a_zone_that_vanishes_or_is_torn_is_a_gap(tree: Path) -> None:
    (zone, *_) = zones()
    (tree / "intel-rapl:0" / "energy_uj").write_text("")
    assert zone.counter_j() is None
    (tree / "intel-rapl:0" / "energy_uj").unlink()
    assert zone.look().counter_j is None


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_zone_that_may_not_be_read_says_what_to_do(tree: Path) -> None:
    (tree / "intel-rapl:0" / "energy_uj").chmod(0)
    with pytest.raises(RaplAbsentError, match="permission denied") as problem:
        zones()
    assert "chmod a+r" in problem.value.remedy


def test_permission_denied_is_told_with_its_remedy(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.read_text

    def denied(path: Path, *arguments: str) -> str:
        if path.name == "energy_uj":
            raise PermissionError(13, "Permission denied")
        return real(path, *arguments)

    monkeypatch.setattr(Path, "read_text", denied)
    with pytest.raises(RaplAbsentError, match="permission denied") as problem:
        zones()
    assert "chmod a+r" in problem.value.remedy


def test_devices_choose_among_the_sources_own(tree: Path) -> None:
    meter = open_energy(Asked("rapl", CPU, devices=("package-1", "dram-0")))
    assert [part.device for part in meter.instruments] == ["dram-0", "package-1"]
    with pytest.raises(
        UserError, match=r"meters.devices 'package-7' must match exactly one .*: package-0, dram-0, package-1"
    ):
        open_energy(Asked("rapl", CPU, devices=("package-7",)))


def test_a_zone_that_cannot_be_read_takes_the_sum_away_but_not_the_zones_asked_for(tree: Path) -> None:
    (tree / "intel-rapl:0:1" / "energy_uj").write_text("nonsense")
    assert "intel-rapl:0:1" in open_energy(Asked("auto", CPU)).detail
    assert open_energy(Asked("auto", CPU)).kind == "absent"
    meter = open_energy(Asked("auto", CPU, devices=("package-0", "package-1")))
    assert [part.counter_j() for part in meter.instruments] == [5.0, 6.0]


def test_a_source_asked_for_by_name_is_used_for_another_device(tree: Path) -> None:
    assert open_energy(Asked("rapl", torch.device("cuda:0"))).of_another_device
    assert not open_energy(Asked("rapl", CPU)).of_another_device


def test_an_accelerator_has_its_cpu_beside_it(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "own_uuid", lambda device: "GPU-none")
    meters = open_meters(Asked("auto", torch.device("cuda:0")))
    assert meters.energy.name is None
    assert "NVML" in meters.energy.detail
    assert meters.cpu_energy.name == "rapl"
    assert open_meters(Asked("assumed", torch.device("cuda:0"), 30.0)).cpu_energy.name is None


def test_the_exact_name_of_a_device_is_not_the_beginning_of_anothers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zones_there = {f"intel-rapl:{n}": (f"package-{n}", 5_000_000, 262_143_328_850) for n in (0, 1, 10)}
    monkeypatch.setattr(rapl, "POWERCAP", powercap_tree(tmp_path / "powercap", zones_there))
    meter = open_energy(Asked("rapl", CPU, devices=("package-1",)))
    assert [part.device for part in meter.instruments] == ["package-1"]


@pytest.mark.parametrize("source", ["nvml", "nvidia-smi", "amd", "apple"])
def test_a_named_source_that_is_not_there_says_why(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    meter = open_energy(Asked(source, CPU))
    assert meter.name is None
    assert meter.detail.startswith(f"no {source}: ")


def test_a_source_that_hangs_when_it_is_opened_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    forever = threading.Event()
    monkeypatch.setattr(sources, "OPEN_TIMEOUT_S", 0.1)
    monkeypatch.setattr(sources, "device_uuids", lambda: forever.wait(30) and ([], []))
    meter = open_energy(Asked("nvml", CPU))
    assert meter.detail == "no nvml: no answer within 0.1 s"
    forever.set()


def test_devices_belong_to_a_source_that_is_read() -> None:
    table = {"model": "m", "task": {"name": "completion", "train": "a.jsonl", "test": "b.jsonl"}}
    found = load(None, [table | {"meters": {"energy": "rapl", "devices": ["package-0"]}}])
    assert found.meters.devices == ("package-0",)
    with pytest.raises(UserError, match=r"meters.devices"):
        load(None, [table | {"meters": {"energy": "rapl", "devices": [""]}}])
    with pytest.raises(UserError, match="does not apply"):
        load(None, [table | {"meters": {"energy": "none", "devices": ["package-0"]}}])


# -- nvidia-smi -----------------------------------------------------------------------------------------------------

SMI = """#!{python}
import os, sys, time
while time.process_time() < {busy_s}:
    pass
row = "GPU-11111111-aaaa, {power}, 2048, 87, 40, 61, 1410, 1593"
if any(part.startswith("-lms") for part in sys.argv):
    for count in range({lines}):
        print(row, flush=True)
        time.sleep({pause} if count != {pause_at} else 1.5)
    sys.exit(9)
print("uuid, power.draw [W], memory.used [MiB]")
print(row)
"""


def stand_in_smi(folder: Path, monkeypatch: pytest.MonkeyPatch, **script: object) -> None:
    usual = {"python": sys.executable, "power": "250.5", "lines": 10_000, "pause_at": -1, "pause": 0.02, "busy_s": 0}
    values = usual | script
    program = folder / "nvidia-smi"
    program.write_text(SMI.format(**values), encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def shell_smi(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def looked_at(device: NvidiaSmi, is_enough: Callable[[list[float | None]], bool]) -> list[float | None]:
    """The powers seen until they are enough, twenty looks a second."""
    found: list[float | None] = []

    def look() -> bool:
        found.append(device.look().power_w)
        time.sleep(0.05)
        return is_enough(found)

    soon(look)
    device.close()
    return found


def test_a_line_of_nvidia_smi_is_read_in_si_units_and_na_is_absent() -> None:
    look = parse("GPU-1, 250.5, 2048, 87, 40, 61, 1410, 1593\n")
    assert look is not None
    assert (look.power_w, look.memory_bytes, look.utilization, look.sm_clock_hz) == (250.5, 2 << 30, 0.87, 1410e6)
    absent = parse("GPU-1, [N/A], 2048, [Not Supported], [Unknown Error], 61, 1410, 1593")
    assert absent is not None
    assert (absent.power_w, absent.utilization, absent.memory_utilization) == (None, None, None)
    for power in ("0.00", "nan", "inf", "-5"):
        odd = parse(f"GPU-1, {power}, 2048, nan, 3, 61, 1410, 1593")
        assert odd is not None
        assert (odd.power_w, odd.utilization) == (None, None)
    assert parse("uuid, power.draw [W]") is None
    assert parse("GPU-1, 250.5, 20") is None


def test_nvidia_smi_is_followed_and_a_line_is_given_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in_smi(tmp_path, monkeypatch)
    assert smi_devices() == {"GPU-11111111-aaaa": True}
    meter = open_energy(Asked("nvidia-smi", CPU))
    assert (meter.name, meter.kind, meter.of_another_device) == ("nvidia-smi", "power", True)
    powers = looked_at(NvidiaSmi("GPU-11111111-aaaa", 10.0), lambda seen: seen.count(250.5) > 5)
    assert set(powers) == {None, 250.5}


def test_a_device_that_nvidia_smi_has_no_power_of_is_told_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = "GPU-1, 250.5, 2048, 87, 40, 61, 1410, 1593\nGPU-2, [N/A], 2048, 87, 40, 61, 1410, 1593"
    shell_smi(tmp_path, monkeypatch, f"echo '{rows}'")
    assert smi_devices() == {"GPU-1": True, "GPU-2": False}
    assert open_energy(Asked("nvidia-smi", CPU, devices=("GPU-2",))).detail == (
        "no nvidia-smi: nvidia-smi reads no power of GPU-2"
    )
    assert [part.device for part in open_energy(Asked("nvidia-smi", CPU)).instruments] == ["GPU-1", "GPU-2"]


def test_the_cpu_time_of_nvidia_smi_is_the_meters_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvidia_smi, "_RESTART_AFTER_S", 0.5)
    stand_in_smi(tmp_path, monkeypatch, lines=3, busy_s=0.4)  # it ends, and is started again
    device = NvidiaSmi("GPU-11111111-aaaa", 20.0)
    with Session(tmp_path, CPU, no_energy("test"), 20.0, 0.0, views=[device]) as session, session.phase("train"):
        soon(lambda: device.programs_cpu_s >= 0.8)
    share, elapsed_s = session.report(None).cpu_share, session.trial_time()
    assert share is not None
    assert share >= device.programs_cpu_s / elapsed_s


def test_idle_power_is_read_also_where_the_timeline_is_slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in_smi(tmp_path, monkeypatch, pause="int(sys.argv[-1]) / 1000")  # as often as it is asked to
    table = {
        "model": "m",
        "task": {"name": "question_answering", "train": "t", "test": "t"},
        "meters": {"energy": "nvidia-smi", "rate_hz": 0.5},
    }
    settings = load(None, [table])
    link = SimpleNamespace(stop_requested=False)
    found = idle_entry(IdleJob(settings=settings, rest_s=0.0), link)
    assert isinstance(found, Idle)
    assert found.power_w == pytest.approx(250.5)


def test_why_there_is_no_idle_power_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in_smi(tmp_path, monkeypatch, lines=8)  # it falls silent
    monkeypatch.setattr("howlow.meters.nvidia_smi._RESTART_AFTER_S", 60.0)
    table = {"model": "m", "task": {"name": "question_answering", "train": "t", "test": "t"}}
    settings = load(None, [{**table, "meters": {"energy": "nvidia-smi", "rate_hz": 20.0}}])
    found = idle_entry(IdleJob(settings=settings, rest_s=0.0), SimpleNamespace(stop_requested=False))
    assert found == IdleAbsent(reason="readings of power are missing inside the window: nvidia-smi ended with 9")


@pytest.mark.parametrize(
    ("devices", "is_another"),
    [((), False), (("GPU-11111111-aaaa",), False), (("GPU-22222222-bbbb",), True), (("GPU-1", "GPU-2"), True)],
)
def test_energy_that_is_not_the_trials_own_cards_alone_is_told(
    monkeypatch: pytest.MonkeyPatch, devices: tuple[str, ...], is_another: bool
) -> None:
    there = ["GPU-11111111-aaaa", "GPU-22222222-bbbb"]
    monkeypatch.setattr(sources, "own_uuid", lambda _: there[0])
    monkeypatch.setattr(sources, "smi_devices", lambda: dict.fromkeys(there, True))
    meter = open_energy(Asked("nvidia-smi", torch.device("cuda:0"), None, devices, 4.0))
    assert (meter.name, meter.of_another_device) == ("nvidia-smi", is_another)


@pytest.mark.parametrize(("share", "note"), [(0.25, "; its power sensor measures for 25% of the time"), (None, "")])
def test_nvidia_smi_names_a_sensor_that_measures_in_part(
    monkeypatch: pytest.MonkeyPatch, share: float | None, note: str
) -> None:
    card = SimpleNamespace(averaged_share=share)
    monkeypatch.setattr(sources, "smi_devices", lambda: {"GPU-1": True})
    monkeypatch.setattr(sources, "_through_nvml", lambda _: card)
    meter = open_energy(Asked("nvidia-smi", CPU))
    assert (meter.sampled_share, meter.detail) == (share, f"power.draw of GPU-1, integrated{note}")


def test_nvidia_smi_leaves_outside_work_to_the_library() -> None:
    other = (WarningKind.OTHER_PROCESS_ON_DEVICE, "pid 7")
    assert NvidiaSmi("GPU-1", 4.0, None, Scripted(findings=[other])).findings() == [other]
    assert NvidiaSmi("GPU-1", 4.0).findings() == []


def test_nvidia_smi_leaves_throttling_to_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in_smi(tmp_path, monkeypatch)
    library = Scripted()
    monkeypatch.setattr(library, "look", lambda: Look(throttle_reasons=("hw_slowdown",)))
    device = NvidiaSmi("GPU-11111111-aaaa", 4.0, None, library)
    looks: list[Look] = []
    soon(lambda: looks.append(device.look()) or looks[-1].power_w)
    device.close()
    assert (looks[-1].power_w, looks[-1].throttle_reasons) == (250.5, ("hw_slowdown",))


def test_a_line_knows_its_age(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in_smi(tmp_path, monkeypatch, pause=60)
    device = NvidiaSmi("GPU-11111111-aaaa", 0.1)  # so old a line is fresh for a program that prints so seldom
    started_s = clock.now_s()
    device.look()
    soon(lambda: device._newest)
    time.sleep(0.2)
    look = device.look()
    elapsed_s = clock.now_s() - started_s
    device.close()
    assert look.power_w == 250.5
    assert 0.2 <= look.age_s < elapsed_s


def test_a_pause_is_a_gap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in_smi(tmp_path, monkeypatch, pause_at=3)
    runs: list[tuple[float | None, int]] = []

    def has_gone_on(seen: list[float | None]) -> bool:
        runs[:] = [(power, len(list(same))) for power, same in itertools.groupby(seen)]
        return seen[-1] == 250.5 and any(power is None and looks >= 12 for power, looks in runs[1:])

    looked_at(NvidiaSmi("GPU-11111111-aaaa", 20.0), has_gone_on)


def test_a_crash_is_a_gap_until_it_runs_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in_smi(tmp_path, monkeypatch, lines=3)
    monkeypatch.setattr(nvidia_smi, "_RESTART_AFTER_S", 0.5)
    device = NvidiaSmi("GPU-11111111-aaaa", 20.0)
    assert looked_at(device, lambda seen: [power for power, _ in itertools.groupby(seen)][-3:] == [250.5, None, 250.5])


@pytest.mark.parametrize(
    ("script", "why"), [({"power": "[N/A]"}, "reads no power"), ({"python": "/nonexistent"}, "nvidia-smi failed")]
)
def test_an_nvidia_smi_of_no_use_says_why(
    script: dict[str, str], why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in_smi(tmp_path, monkeypatch, **script)
    with pytest.raises(SmiAbsentError, match=why):
        smi_devices()


@pytest.mark.parametrize(
    ("code", "remedy"), [(9, "modprobe nvidia"), (15, "--gpu-reset"), (4, "as root"), (255, "run plain nvidia-smi")]
)
def test_an_nvidia_smi_that_fails_is_told_in_its_own_words(
    code: int, remedy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shell_smi(tmp_path, monkeypatch, f"echo 'NVIDIA-SMI has failed:'; echo 'no driver.'; exit {code}")
    with pytest.raises(SmiAbsentError) as caught:
        smi_devices()
    assert str(caught.value) == f"nvidia-smi ended with {code}: NVIDIA-SMI has failed: no driver."
    assert remedy in (caught.value.remedy or "")


def test_an_nvidia_smi_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shell_smi(tmp_path, monkeypatch, f"echo $$ > {tmp_path}/pid; exec sleep 60")
    with pytest.raises(SmiAbsentError, match=r"did not answer within 1 s"):
        smi_devices(1.0)
    assert not psutil.pid_exists(int((tmp_path / "pid").read_text()))


def test_closing_does_not_wait_for_an_nvidia_smi_that_the_driver_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    class Held:
        pid, returncode = os.getpid(), None

        def kill(self) -> None:
            pass

        def wait(self, timeout: float | None = None) -> None:
            assert timeout is not None, "it would wait for ever"
            raise subprocess.TimeoutExpired("nvidia-smi", timeout)

    device = NvidiaSmi("GPU-11111111-aaaa", 10.0)
    monkeypatch.setattr(device, "_process", Held())
    device.close()
