"""`benchmarks/recompute.py` computes the figures of results.csv again, from the raw files of real tiny trials."""

import ast
import csv
import importlib
import json
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from stand_ins import Scripted
from test_resuming import Stopper, run

from howlow.analysis import load_results
from howlow.meters import clock
from howlow.meters.energy import EnergyMeter, no_energy
from howlow.meters.sources import Meters
from howlow.records import LayoutChoice, measured_steps, read_record, read_steps, window_times_s
from howlow.reporting.results import csv_text
from howlow.settings import merge

# A killed process leaves its files to the system.
pytestmark = [
    pytest.mark.filterwarnings("ignore:unclosed file"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "recompute.py"
TINY = {"meters": {"rate_hz": 50.0}, "grid": {"lora.rank": [1]}}
ASSUMED = {"meters": {"energy": "assumed", "assumed_power_w": 30.0}}
EVERY_STEP = {"training": {"checkpoint_every_s": 1e-9}}
SMALL_TEST_BATCHES = {"inference": {"batch_size": 2}}
PADDED = LayoutChoice(layout="padded")
PACKED, SHARED = (LayoutChoice(layout=layout, kernel="sdpa") for layout in ("packed", "shared"))


@dataclass(frozen=True)
class Kind:
    """A trial: its settings and layout, after which step it is killed once, and what it reads its energy from."""

    changes: dict[str, Any]
    layout: LayoutChoice = PADDED
    killed: tuple[str, int] | None = None
    meter: Callable[[], EnergyMeter] | None = None


def counter() -> EnergyMeter:
    """100 W, counted."""
    instrument = Scripted(counter_j=lambda: 100.0 * clock.now_s(), may_hang=False)
    return EnergyMeter("a counter", "scripted", "counter", (instrument,), 0.001)


def power() -> EnergyMeter:
    """Between 50 and 150 W, polled."""
    instrument = Scripted(power_w=lambda: 100.0 + 50.0 * math.sin(clock.now_s()), may_hang=False)
    return EnergyMeter("a power sensor", "scripted", "power", (instrument,), 0.01)


KINDS = {
    "padded": Kind(ASSUMED),
    "packed": Kind(ASSUMED, PACKED),
    "shared": Kind(ASSUMED, SHARED),
    "accumulation": Kind(ASSUMED | {"training": {"batch_size": 2, "effective_batch_size": 4}}, PACKED),
    "checkpoints": Kind(ASSUMED | EVERY_STEP | SMALL_TEST_BATCHES),
    "resumed": Kind(ASSUMED | EVERY_STEP, killed=("train", 4)),
    "resumed in generation": Kind(ASSUMED | EVERY_STEP | SMALL_TEST_BATCHES, SHARED, ("generate", 4)),
    "counter": Kind(EVERY_STEP, SHARED, meter=counter),
    "power": Kind({}, SHARED, meter=power),
}
SCORED_FROM_STEPS = {
    f"{stage}_{name}"
    for stage in ("train", "inference")
    for name in (
        *("samples_per_s", "tokens_per_s", "time_per_sample_s", "host_share", "energy_per_sample_j", "power_w"),
        *("step_time_p05_s", "step_time_p50_s", "step_time_p95_s", "phase_energy_j", "phase_power_w"),
    )
} | {
    *("train_final_loss", "loss", "inference_new_tokens_per_sample"),
    *(f"inference_{part}_{name}" for part in ("prefill", "decode") for name in ("time_per_sample_s", "tokens_per_s")),
    *(f"inference_{part}_energy_per_token_j" for part in ("prefill", "decode")),
}


@pytest.fixture(scope="module", params=KINDS)
def kind(request: Any) -> Kind:
    return KINDS[request.param]


@pytest.fixture(scope="module")
def folder(kind: Kind, tiny_table: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory with one trial, and its results."""
    table, out = merge(merge(tiny_table, TINY), kind.changes), tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("howlow.trial.state._SECONDS_BETWEEN_REPORTS", 0.0)
        if kind.meter is not None:
            meters = Meters(kind.meter(), no_energy("none"))
            patched.setattr("howlow.trial.setup.open_meters", lambda _: meters)
        if kind.killed:
            assert run(table, out, Stopper(*kind.killed), layout=kind.layout) is None
        record = run(table, out, Stopper(), layout=kind.layout)
    assert record is not None
    assert (record.status, record.resumed) == ("done", 1 if kind.killed else 0), record.error
    (out / "results.csv").write_text(csv_text(load_results(out)), encoding="utf-8")
    return out


def row_of(folder: Path) -> dict[str, str]:
    with (folder / "results.csv").open(encoding="utf-8", newline="") as file:
        (row,) = csv.DictReader(file)
    return row


def recomputed(folder: Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(SCRIPT), str(folder)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_every_figure_comes_out_again(kind: Kind, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(SCRIPT.parent)
    found, _ = importlib.import_module("recompute").compared(folder)
    assert [str(one) for one in found if not one.agrees] == []
    there = {one.column for one in found if one.ours is not None}
    # A short stretch of a tiny trial, as the time between two checkpoints, has no energy from a sensor.
    energies = {name for name in SCORED_FROM_STEPS if name.endswith(("_j", "_w"))}
    assert there >= (SCORED_FROM_STEPS - energies if kind.meter else SCORED_FROM_STEPS)
    assert not kind.meter or "train_phase_energy_j" in there


def test_the_window_of_the_record_is_that_of_the_lines(folder: Path) -> None:
    (trial,) = (folder / "trials").iterdir()
    record = read_record(trial)
    assert record is not None
    for phase in record.phases:
        measured = measured_steps(read_steps(trial), phase.phase)
        assert sum(window_times_s(measured)) == pytest.approx(phase.measured_duration_s or 0.0)
        assert sum(step.samples for step in measured) == (phase.measured_samples or 0)
        assert all(step.opens_segment for step in measured[:1])


def test_power_is_energy_per_sample_times_samples_per_second_exactly(kind: Kind, folder: Path) -> None:
    row = row_of(folder)
    for stage in ("train", "inference"):
        if kind.meter and not row[f"{stage}_power_w"]:
            continue
        power_w, energy_j, rate = (
            float(row[f"{stage}_{name}"]) for name in ("power_w", "energy_per_sample_j", "samples_per_s")
        )
        assert power_w == pytest.approx(energy_j * rate, rel=1e-12)
        assert kind.meter or power_w == pytest.approx(30.0, rel=1e-12)


def test_a_figure_that_is_wrong_is_found(folder: Path, tmp_path: Path) -> None:
    assert recomputed(folder).returncode == 0
    row = row_of(folder)
    copy = tmp_path / "run"
    (copy / "trials").mkdir(parents=True)
    (copy / "trials" / row["trial"]).symlink_to(folder / "trials" / row["trial"])
    for column in ("train_samples_per_s", "inference_step_time_p95_s", "train_host_share"):
        wrong = row | {column: str(float(row[column]) * 1.0001 + 1e-6)}
        with (copy / "results.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, wrong)
            writer.writeheader()
            writer.writerow(wrong)
        done = recomputed(copy)
        assert done.returncode == 1, done.stderr
        assert json.loads(done.stdout.splitlines()[-1])["disagree"] == [f"{row['trial']} {column}"]


def test_it_uses_none_of_our_code() -> None:
    for path in (SCRIPT, SCRIPT.with_name("raw_figures.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        names |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        assert {name.partition(".")[0] for name in names} <= sys.stdlib_module_names | {"raw_figures"}
