"""`benchmarks/recompute.py` computes the figures of results.csv again, from the raw files of real tiny trials."""

import ast
import csv
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from test_resuming import Stopper, run

from howlow.analysis import load_results
from howlow.records import LayoutChoice, measured_steps, read_record, read_steps, window_times_s
from howlow.reporting.results import csv_text
from howlow.settings import merge

# A killed process leaves its files to the system.
pytestmark = [
    pytest.mark.filterwarnings("ignore:unclosed file"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "recompute.py"
ASSUMED = {"meters": {"energy": "assumed", "assumed_power_w": 30.0, "rate_hz": 50.0}, "grid": {"lora.rank": [1]}}
EVERY_STEP = {"training": {"checkpoint_every_s": 1e-9}}
KINDS: dict[str, tuple[dict[str, Any], LayoutChoice, tuple[str, int] | None]] = {
    "padded": ({}, LayoutChoice(layout="padded"), None),
    "packed": ({}, LayoutChoice(layout="packed", kernel="sdpa"), None),
    "shared": ({}, LayoutChoice(layout="shared", kernel="sdpa"), None),
    "accumulation": (
        {"training": {"batch_size": 2, "effective_batch_size": 4}},
        LayoutChoice(layout="packed", kernel="sdpa"),
        None,
    ),
    "checkpoints": (EVERY_STEP | {"inference": {"batch_size": 2}}, LayoutChoice(layout="padded"), None),
    "resumed": (EVERY_STEP | {"meters": {"burn_in_steps": 0}}, LayoutChoice(layout="padded"), ("train", 4)),
    "resumed in generation": (
        EVERY_STEP | {"inference": {"batch_size": 2}},
        LayoutChoice(layout="shared", kernel="sdpa"),
        ("generate", 4),
    ),
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
def folder(request: Any, tiny_table: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory with one trial, and its report."""
    changes, layout, killed = KINDS[request.param]
    table, out = merge(merge(tiny_table, ASSUMED), changes), tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("howlow.trial.state._SECONDS_BETWEEN_REPORTS", 0.0)
        if killed:
            assert run(table, out, Stopper(*killed), layout=layout) is None
        record = run(table, out, Stopper(), layout=layout)
    assert record is not None
    assert (record.status, record.resumed) == ("done", 1 if killed else 0), record.error
    (out / "results.csv").write_text(csv_text(load_results(out)), encoding="utf-8")
    return out


def row_of(folder: Path) -> dict[str, str]:
    with (folder / "results.csv").open(encoding="utf-8", newline="") as file:
        (row,) = csv.DictReader(file)
    return row


def recomputed(folder: Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-I", str(SCRIPT), str(folder)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_every_figure_comes_out_again(folder: Path) -> None:
    spec = importlib.util.spec_from_file_location("recompute", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(sys.modules, "recompute", script)  # for its dataclasses
        spec.loader.exec_module(script)
        found, _ = script.compared(folder)
    assert [str(one) for one in found if not one.agrees] == []
    assert {one.column for one in found if one.ours is not None} >= SCORED_FROM_STEPS


def test_the_window_of_the_record_is_that_of_the_lines(folder: Path) -> None:
    (trial,) = (folder / "trials").iterdir()
    record = read_record(trial)
    assert record is not None
    for phase in record.phases:
        measured = measured_steps(read_steps(trial), phase.phase)
        assert sum(window_times_s(measured)) == pytest.approx(phase.measured_duration_s or 0.0)
        assert sum(step.samples for step in measured) == (phase.measured_samples or 0)
        assert all(step.opens_segment for step in measured[:1])


def test_power_is_energy_per_sample_times_samples_per_second_exactly(folder: Path) -> None:
    row = row_of(folder)
    for stage in ("train", "inference"):
        power_w, energy_j, rate = (
            float(row[f"{stage}_{name}"]) for name in ("power_w", "energy_per_sample_j", "samples_per_s")
        )
        assert power_w == pytest.approx(energy_j * rate, rel=1e-12)
        assert power_w == pytest.approx(30.0, rel=1e-12)


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
    tree = ast.parse(SCRIPT.read_text(encoding="utf-8"))
    names = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    names |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert {name.partition(".")[0] for name in names if name} <= sys.stdlib_module_names
