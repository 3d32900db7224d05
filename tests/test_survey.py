"""`howlow env`: what is there and not, why, and what to do; a driver that hangs is a line and not the end."""

import json
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch
from stand_ins import powercap_tree, run_with_nvml
from test_sources import TREE, shell_smi

from howlow.meters import rapl, survey
from howlow.meters.timeouts import answered
from howlow.reporting.machine import survey_text

ENV = ["-c", "import sys; sys.argv = ['howlow', 'env', '--json']; from howlow.cli import main; main()"]


def test_every_source_says_whether_it_is_there_why_not_and_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rapl, "POWERCAP", powercap_tree(tmp_path, TREE))
    monkeypatch.setenv("PATH", "/nonexistent")
    surveyed = survey.survey(torch.device("cpu"), None)
    document = surveyed.document()
    sources = {found["name"]: found for found in document["sources"]}
    assert list(sources) == ["nvml", "nvidia-smi", "rapl", "amd", "apple", "jetson", "assumed"]
    assert document["energy"] == "rapl"
    assert sources["rapl"]["detail"] == "package-0, dram-0, package-1"
    assert all(found["remedy"] for found in sources.values() if not found["is_available"])
    assert [name for name, found in sources.items() if not found["is_tested"]] == ["amd", "apple", "jetson"]
    text = survey_text(surveyed)
    assert "untested by us" in text
    assert "nvidia-smi is not on PATH" in text


def test_the_command_prints_one_document() -> None:
    done = subprocess.run([sys.executable, *ENV], capture_output=True, text=True, check=True)
    document = json.loads(done.stdout)
    assert {"device", "energy", "sources", "measures", "warnings"} <= set(document)


@pytest.mark.parametrize(("script", "detail"), [({}, "energy counter"), ({"HOWLOW_NVML_HANG_AFTER": "0"}, "no answer")])
def test_a_library_that_answers_and_one_that_hangs(script: dict[str, str], detail: str, library: Path) -> None:
    document = json.loads(run_with_nvml(library, ENV, **script))
    (nvml,) = [found for found in document["sources"] if found["name"] == "nvml"]
    assert detail in nvml["detail"]
    assert nvml["is_available"] == (not script)


def test_pace_and_latency_of_every_counter_are_told(library: Path) -> None:
    script = {"HOWLOW_NVML_PERIOD_MS": "100", "HOWLOW_NVML_LATENCY_US": "3000"}
    document = json.loads(run_with_nvml(library, ENV, **script))
    assert [counter["device"] for counter in document["counters"]] == ["GPU-11111111-aaaa", "GPU-22222222-bbbb"]
    for counter in document["counters"]:
        assert counter["period_s"] == pytest.approx(0.1, abs=0.03)
        assert counter["longest_s"] >= counter["period_s"]
        assert 0.003 <= counter["latency_s"] <= counter["largest_latency_s"]
        assert counter["lag_s"] is None  # nothing here can load such a device
    text = run_with_nvml(library, [*ENV[:1], ENV[1].replace(", '--json'", "")], **script)
    assert "lag not measured (errors assume none)" in text


@pytest.mark.parametrize(
    ("script", "is_available", "told"),
    [
        ({"HOWLOW_NVML_DENIED": "1"}, True, ["averaged power, energy counter: permission denied", "as root"]),
        ({"HOWLOW_NVML_LOST_AFTER": "0"}, False, ["the GPU is lost", "--gpu-reset", "restart the machine"]),
        ({"HOWLOW_NVML_UNSUPPORTED": "1"}, False, ["neither energy nor power", "install its driver"]),
    ],
)
def test_the_librarys_reason_is_told_with_what_to_do(
    script: dict[str, str], is_available: bool, told: list[str], library: Path
) -> None:
    document = json.loads(run_with_nvml(library, ENV, **script))
    (nvml,) = [found for found in document["sources"] if found["name"] == "nvml"]
    assert nvml["is_available"] == is_available
    for words in told:
        assert words in f"{nvml['detail']}; {nvml['remedy']}"


def test_an_nvidia_smi_that_hangs_does_not_outlive_the_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shell_smi(tmp_path, monkeypatch, f"echo $$ > {tmp_path}/pid; exec sleep 60")
    done = subprocess.run([sys.executable, *ENV], capture_output=True, text=True, check=True)
    assert not psutil.pid_exists(int((tmp_path / "pid").read_text()))
    (smi,) = [found for found in json.loads(done.stdout)["sources"] if found["name"] == "nvidia-smi"]
    assert smi["detail"] == "nvidia-smi did not answer within 4 s"
    assert "restart the machine" in smi["remedy"]


def test_a_call_that_does_not_come_back_is_none() -> None:
    import threading

    forever = threading.Event()
    assert answered(forever.wait, 0.05) is None
    forever.set()
    assert answered(lambda: 5, 1.0) == 5
