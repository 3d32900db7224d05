"""NVIDIA readings through the real nvidia-ml-py, from a stand-in for the library that it loads."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Ask = Callable[..., dict[str, Any]]

QUESTIONS = """
import json, sys, time
import torch
from howlow.meters import energy
from howlow.meters.nvml import NvmlAbsentError, NvmlDevice
from howlow.meters.session import Session
from pathlib import Path

try:
    device = NvmlDevice(sys.argv[1])
except NvmlAbsentError as error:
    print(json.dumps({"absent": str(error)}))
    sys.exit()
reading = device.read()
energy.open_nvml = lambda asked: device  # there is no CUDA device whose UUID could be asked for
source = energy.open_energy("auto", None, torch.device("cuda:0"))
with Session(Path(sys.argv[2]), torch.device("cpu"), source, 50.0, 0.0) as session:
    session.sampler._nvml = device
    with session.phase("train") as meter:
        with meter.step(measured=False, samples=1):
            time.sleep(0.1)
        with meter.step(measured=True, samples=1):
            time.sleep(0.4)
        meter.pause()
        time.sleep(0.5)
        with meter.step(measured=True, samples=2):
            time.sleep(0.4)
        phase = meter.end()
print(json.dumps({
    "driver": device.driver(), "source": source.name, "detail": source.detail, "power_w": reading.power_w,
    "memory_bytes": reading.memory_bytes, "utilization": reading.utilization, "temperature_c": reading.temperature_c,
    "energy_j": phase.measured_energy_j, "duration_s": phase.measured_duration_s, "samples": phase.measured_samples,
}))
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler for the stand-in library")
    folder = tmp_path_factory.mktemp("nvml")
    source = Path(__file__).parent / "nvml_stand_in.c"
    command = [compiler, "-shared", "-fPIC", "-Wall", "-o", str(folder / "libnvidia-ml.so.1"), str(source)]
    subprocess.run(command, check=True)
    return folder


@pytest.fixture
def ask(library: Path, tmp_path: Path) -> Ask:
    def run(uuid: str, **environment: str) -> dict[str, Any]:
        scripted = {"LD_LIBRARY_PATH": str(library), **environment}
        command = [sys.executable, "-c", QUESTIONS, uuid, str(tmp_path)]
        done = subprocess.run(command, env=os.environ | scripted, capture_output=True, text=True, check=True)
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    return run


def test_a_device_is_found_by_its_uuid_and_read_in_si_units(ask: Ask) -> None:
    found = ask("22222222-bbbb", HOWLOW_NVML_MILLIWATTS="250000")
    assert found["driver"] == "999.01"
    assert found["power_w"] == 250
    assert found["memory_bytes"] == 2 << 30
    assert found["utilization"] == 0.87
    assert found["temperature_c"] == 61


def test_the_counters_joules_are_those_of_the_measured_segments(ask: Ask) -> None:
    found = ask("GPU-11111111-aaaa", HOWLOW_NVML_MILLIWATTS="250000")
    assert found["source"] == "nvml counter"
    assert found["samples"] == 3
    assert 0.8 <= found["duration_s"] < 1.2  # the pause and the burn-in are outside
    assert found["energy_j"] == pytest.approx(250 * found["duration_s"], rel=0.01)


def test_without_a_counter_power_is_integrated_and_the_source_says_so(ask: Ask) -> None:
    found = ask("11111111-aaaa", HOWLOW_NVML_MILLIWATTS="80000", HOWLOW_NVML_NO_COUNTER="1")
    assert found["source"] == "nvml power"
    assert "integrated" in found["detail"]
    assert found["energy_j"] == pytest.approx(80 * found["duration_s"], rel=0.01)


def test_a_device_without_readings_has_no_energy_rather_than_zero(ask: Ask) -> None:
    found = ask("11111111-aaaa", HOWLOW_NVML_UNSUPPORTED="1")
    assert found["source"] is None
    assert found["energy_j"] is None
    assert found["power_w"] is None


def test_an_unknown_device_is_absent_with_the_librarys_reason(ask: Ask) -> None:
    assert ask("33333333-cccc")["absent"].startswith("NVML: ")
