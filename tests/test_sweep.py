"""A sweep as a whole, in real processes on a tiny real model: results, resuming, statuses, locks, full disks."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import howlow
from howlow import load_settings as load
from howlow.jobs import SweepEvent, TrialStarted
from howlow.outcomes import DiskFullError
from howlow.records import read_lines, read_record, read_records
from howlow.settings import merge
from howlow.sweeping.sweep import SweepResult

pytestmark = pytest.mark.slow

RUNNER = """
import json, sys
import howlow
if __name__ == "__main__":
    settings = howlow.load_settings(None, [json.loads(sys.argv[1])])
    def tell(event):
        print(event.event, getattr(event, "trial", ""), flush=True)
    howlow.sweep(settings, sys.argv[2], on_event=tell)
"""


def run_here(table: dict[str, Any], out: Path, **options: Any) -> SweepResult:
    return howlow.sweep(load(None, [table]), out, **options)


@pytest.fixture(scope="module")
def long_table(tiny_table: dict[str, Any]) -> dict[str, Any]:
    """Long enough to be killed in the middle: 60 steps, a checkpoint every few of them, and dropout."""
    changes = {"training": {"epochs": 10, "checkpoint_every_s": 0.05}, "lora": {"dropout": 0.1}}
    return merge(tiny_table, changes)


@pytest.fixture(scope="module")
def unbroken(long_table: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("unbroken") / "out"
    run_here(long_table, out)
    return out


@pytest.fixture
def runner(tmp_path: Path) -> Path:
    script = tmp_path / "runner.py"
    script.write_text(RUNNER, encoding="utf-8")
    return script


@contextmanager
def started(runner: Path, table: dict[str, Any], out: Path) -> Iterator[subprocess.Popen[str]]:
    """A sweep in a process group of its own, with its events on stdout."""
    command = [sys.executable, str(runner), json.dumps(table), str(out)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def wait_for(process: subprocess.Popen[str], *words: str) -> None:
    """Read events until one has all the words."""
    assert process.stdout is not None
    for line in process.stdout:
        if all(word in line for word in words):
            return
    raise AssertionError(f"the sweep ended without {words}")


def what_counts(out: Path) -> dict[str, Any]:
    """Everything that must not depend on interruptions: losses, answers, scores, adapters."""
    found = {}
    for record in read_records(out):
        folder = out / "trials" / record.trial
        steps = [(s["phase"], s["step"], s.get("loss"), s["samples"]) for s in read_lines(folder / "steps.jsonl")]
        adapter = folder / "adapter" / "adapter_model.safetensors"
        weights = adapter.read_bytes() if adapter.exists() else None
        found[record.trial] = (steps, list(read_lines(folder / "predictions.jsonl")), record.scores, weights)
    return found


def test_a_sweep_leaves_a_record_a_trial_and_adapters_that_peft_loads(unbroken: Path, tiny_model: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    records = {record.trial: record for record in read_records(unbroken)}
    assert set(records) == {"base-s0", "r0001-s0", "r0004-s0"}
    assert all(record.status == "done" for record in records.values())
    trained = records["r0004-s0"]
    assert [phase.phase for phase in trained.phases] == ["load", "train", "evaluate", "generate"]
    assert trained.model is not None
    assert trained.model.trainable_parameters == 4 * 2 * ((32 + 32) * 2 + (32 + 16) * 2)
    steps = [line for line in read_lines(unbroken / "trials/r0004-s0/steps.jsonl") if line["phase"] == "train"]
    assert [step["part"] for step in steps[:3]] == ["burn_in", "burn_in", "measured"]
    assert steps[-1]["loss"] < steps[0]["loss"]

    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    ids = torch.tensor([[10, 20, 30]])
    before = base(ids).logits
    loaded = PeftModel.from_pretrained(base, unbroken / "trials/r0004-s0/adapter")
    assert not torch.equal(before, loaded(ids).logits)


def test_burn_in_that_ends_by_itself_is_a_run_of_first_steps(tiny_table: dict[str, Any], tmp_path: Path) -> None:
    changes = {
        "training": {"epochs": 5},
        "meters": {"burn_in_steps": "auto"},
        "grid": {"lora.rank": [1]},
        "baselines": [],
    }
    run_here(merge(tiny_table, changes), tmp_path / "out")
    steps = [line for line in read_lines(tmp_path / "out/trials/r0001-s0/steps.jsonl") if line["phase"] == "train"]
    parts = [step["part"] for step in steps]
    burn_in = parts.count("burn_in")
    assert 6 <= burn_in <= len(parts) // 2
    assert parts == ["burn_in"] * burn_in + ["measured"] * (len(parts) - burn_in)


def test_the_zero_shot_baseline_trains_nothing(unbroken: Path) -> None:
    record = read_record(unbroken / "trials" / "base-s0")
    assert record is not None
    assert record.rank is None
    assert not (unbroken / "trials/base-s0/adapter").exists()
    assert {line["phase"] for line in read_lines(unbroken / "trials/base-s0/steps.jsonl")} == {"evaluate", "generate"}


@pytest.mark.parametrize("whole_group", [True, False], ids=["group", "parent only"])
def test_killed_in_the_second_trial_it_ends_as_if_never_killed(
    whole_group: bool, runner: Path, long_table: dict[str, Any], unbroken: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    second = "r0001-s0"
    with started(runner, long_table, out) as process:
        wait_for(process, "trial_progress", second)
        time.sleep(0.2)
        if whole_group:
            os.killpg(process.pid, signal.SIGKILL)
        else:
            os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert read_record(out / "trials" / "base-s0") is not None
    run_here(long_table, out)
    assert what_counts(out) == what_counts(unbroken)
    resumed = read_record(out / "trials" / second)
    assert resumed is not None
    if resumed.resumed:
        assert "resumed" in {warning.kind for warning in resumed.warnings}


def test_whatever_a_sweep_has_started_ends_with_it(runner: Path, long_table: dict[str, Any], tmp_path: Path) -> None:
    import psutil

    hours = {"training": {"epochs": 100_000, "checkpoint_every_s": 1e6}, "grid": {"lora.rank": [1]}, "baselines": []}
    with started(runner, merge(long_table, hours), tmp_path / "out") as process:
        wait_for(process, "trial_progress", "r0001-s0")
        children = psutil.Process(process.pid).children(recursive=True)
        assert len(children) >= 3, "multiprocessing's tracker, the fork server, the trial"
        os.kill(process.pid, signal.SIGKILL)
        _, left = psutil.wait_procs(children, timeout=60)
        # Nobody may be there to collect an orphan's exit status; a zombie has ended.
        assert [child for child in left if child.status() != psutil.STATUS_ZOMBIE] == []


def test_interrupt_keeps_a_checkpoint_and_the_same_command_goes_on(
    runner: Path, long_table: dict[str, Any], unbroken: Path, tmp_path: Path
) -> None:
    patient = merge(long_table, {"training": {"checkpoint_every_s": 1000.0}})
    out = tmp_path / "out"
    with started(runner, patient, out) as process:
        wait_for(process, "trial_progress", "r0001-s0")
        os.killpg(process.pid, signal.SIGINT)
        process.wait(20)
    assert read_record(out / "trials" / "r0001-s0") is None
    assert (out / "trials" / "r0001-s0" / "checkpoint" / "state.json").exists()
    result = run_here(patient, out)
    assert {record.trial: record.resumed for record in result.records}["r0001-s0"] == 1
    ours = {name: counted[:3] for name, counted in what_counts(out).items()}
    assert ours == {name: counted[:3] for name, counted in what_counts(unbroken).items()}


def test_a_finished_sweep_runs_nothing_and_values_may_be_added(tiny_table: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "out"
    few = merge(tiny_table, {"grid": {"lora.rank": [1]}})
    run_here(few, out)
    events: list[SweepEvent] = []
    run_here(tiny_table, out, on_event=events.append)
    assert [event.trial for event in events if isinstance(event, TrialStarted)] == ["r0004-s0"]
    assert load(str(out / "sweep.toml")).grid["lora.rank"] == [1, 4]


def test_another_sweep_in_the_folder_is_refused_with_the_first_difference(
    tiny_table: dict[str, Any], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run_here(merge(tiny_table, {"grid": {"lora.rank": [1]}, "baselines": []}), out)
    with pytest.raises(howlow.UserError, match=r"training\.learning_rate is 0\.001 there and 0\.1 now"):
        run_here(merge(tiny_table, {"training": {"learning_rate": 0.1}}), out)


def test_changed_data_is_refused(tiny_table: dict[str, Any], tmp_path: Path) -> None:
    data = tmp_path / "train.json"
    data.write_text(Path(tiny_table["task"]["train"]).read_text())
    table = merge(tiny_table, {"task": {"train": str(data)}, "grid": {"lora.rank": [1]}, "baselines": []})
    run_here(table, tmp_path / "out")
    data.write_text(data.read_text().replace("red", "pink"))
    with pytest.raises(howlow.UserError, match=r"data has changed since r0001-s0"):
        run_here(merge(table, {"grid": {"lora.rank": [1, 2]}}), tmp_path / "out")


def test_a_second_sweep_on_the_folder_is_refused_and_named(
    runner: Path, long_table: dict[str, Any], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with started(runner, long_table, out) as process:
        wait_for(process, "prepared")
        with pytest.raises(howlow.UserError, match=f"process {process.pid} is running a sweep there"):
            run_here(long_table, out)


def test_divergence_is_a_status_and_the_others_go_on(tiny_table: dict[str, Any], tmp_path: Path) -> None:
    changes = {"grid": {"lora.rank": [1], "training.learning_rate": [1e30, 1e-3]}, "baselines": []}
    result = run_here(merge(tiny_table, changes), tmp_path / "out")
    assert {record.axes["training.learning_rate"]: record.status for record in result.records} == {
        1e30: "diverged",
        1e-3: "done",
    }
    assert len(result.failed) == 1
    assert all(record.meters is not None for record in result.records)


def test_out_of_memory_is_a_status_and_the_others_go_on(tiny_table: dict[str, Any], tmp_path: Path) -> None:
    changes = {
        "grid": {"lora.rank": [1], "training.batch_size": [1, 2048]},
        "baselines": [],
        "training": {"sequence_length": 512, "head": "all", "layout": "padded"},
        "task": {"train": str(_many(tmp_path, 2048))},
        "run": {"memory_limit_bytes": 1_500_000_000},
    }
    result = run_here(merge(merge(tiny_table, changes), {"training": {"max_steps": 1}}), tmp_path / "out")
    assert {record.axes["training.batch_size"]: record.status for record in result.records} == {
        1: "done",
        2048: "out_of_memory",
    }
    short = next(record.shortage for record in result.records if record.status == "out_of_memory")
    assert short is not None
    assert (short.phase, short.limit_bytes) == ("train", 1_500_000_000)
    assert short.peak_memory_bytes is not None
    assert 100e6 < short.peak_memory_bytes < 1.5e9
    for record in result.records:
        assert record.meters is not None, "how the meters did is known of a trial that failed, too"
        assert record.meters.readings > 0


def _many(folder: Path, examples: int) -> Path:
    from conftest import squad_document

    path = folder / "many.json"
    path.write_text(json.dumps(squad_document(-(-examples // 3), name="many")), encoding="utf-8")
    return path


def test_a_trial_killed_from_outside_has_failed_and_retry_keeps_the_old_record(
    runner: Path, long_table: dict[str, Any], tmp_path: Path
) -> None:
    import psutil

    out = tmp_path / "out"
    with started(runner, long_table, out) as process:
        wait_for(process, "trial_progress", "r0001-s0")
        for child in psutil.Process(process.pid).children(recursive=True):
            if child.memory_info().rss > 100e6 and child.children() == [] and _is_trial(child, out):
                child.kill()
        process.wait(60)
    record = read_record(out / "trials" / "r0001-s0")
    assert record is not None
    assert record.status == "failed"
    assert "signal 9" in (record.error or "")
    assert read_record(out / "trials" / "r0004-s0") is not None
    assert len(howlow.load(out).records) == 3, "what a dead trial did not decide keeps nothing out of a table"
    result = run_here(long_table, out, retry=["failed"])
    assert result.failed == ()
    kept = read_record(out / "trials" / "r0001-s0" / "attempts" / "1")
    assert kept is not None
    assert kept.status == "failed"


def _is_trial(process: Any, out: Path) -> bool:
    """The process whose output goes to the trial's log."""
    return any(str(out / "trials") in str(Path(f"/proc/{process.pid}/fd/{fd}").readlink()) for fd in (1, 2))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MB of its own."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting a small file system is not allowed here")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_full_disk_before_the_first_trial_is_the_users_error(tiny_table: dict[str, Any], small_disk: Path) -> None:
    (small_disk / "filler").write_bytes(b"x" * 7_500_000)
    with pytest.raises(howlow.UserError, match=r"disk is full|are free on that disk"):
        run_here(tiny_table, small_disk / "out")


def test_a_disk_that_fills_up_stops_cleanly_and_the_sweep_goes_on(
    long_table: dict[str, Any], unbroken: Path, small_disk: Path
) -> None:
    def fill(event: SweepEvent) -> None:
        if isinstance(event, TrialStarted) and event.trial == "r0004-s0":
            with (small_disk / "filler").open("wb", buffering=0) as file:
                try:
                    while True:
                        file.write(b"x" * 4096)
                except OSError:
                    pass

    with pytest.raises(DiskFullError):
        run_here(long_table, small_disk / "out", on_event=fill)
    (small_disk / "filler").unlink()
    run_here(long_table, small_disk / "out")
    assert what_counts(small_disk / "out") == what_counts(unbroken)


def test_random_weights_have_costs_and_no_quality(tiny_model: Path, tiny_table: dict[str, Any], tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / "config.json").write_text((tiny_model / "config.json").read_text())
    changes = {"model": str(alone), "tokenizer": str(tiny_model), "random_weights": True, "grid": {"lora.rank": [1]}}
    result = run_here(merge(tiny_table, changes), tmp_path / "out")
    trained = next(record for record in result.records if record.kind == "lora")
    assert trained.status == "done"
    assert trained.scores.loss is None
    assert trained.scores.f1 is None
    assert trained.model is not None
    assert trained.model.weights == "random"


def test_full_fine_tuning_trains_every_weight(tiny_table: dict[str, Any], tmp_path: Path) -> None:
    changes = {"baselines": ["full"], "grid": {"lora.rank": [1]}}
    result = run_here(merge(tiny_table, changes), tmp_path / "out")
    full = next(record for record in result.records if record.kind == "full")
    assert full.status == "done"
    assert full.model is not None
    assert full.model.trainable_parameters == full.model.total_parameters


def test_inference_peak_memory_does_not_depend_on_the_training_batch(
    tiny_table: dict[str, Any], tmp_path: Path
) -> None:
    changes = {
        "task": {"train": str(_many(tmp_path, 512))},
        "grid": {"lora.rank": [1], "training.batch_size": [1, 512]},
        "baselines": [],
        "training": {"max_steps": 1, "sequence_length": 512, "head": "all", "layout": "padded"},
    }
    result = run_here(merge(tiny_table, changes), tmp_path / "out")
    small, large = sorted(result.records, key=lambda record: record.axes["training.batch_size"])
    peaks = {}
    for name, record in (("small", small), ("large", large)):
        train, generate = record.phase("train"), record.phase("generate")
        assert train is not None
        assert generate is not None
        peaks[name] = (train.peak_memory_bytes or 0, generate.peak_memory_bytes or 0)
    assert peaks["large"][0] > peaks["small"][0] + 500e6
    assert abs(peaks["large"][1] - peaks["small"][1]) < 15e6, "its process never trained"


def test_what_is_accepted_where_nothing_is_left_to_run_does_not_change_what_the_folder_says(
    tiny_table: dict[str, Any], tmp_path: Path
) -> None:
    table = merge(tiny_table, {"grid": {"lora.rank": [1]}, "baselines": [], "training": {"max_steps": 1}})
    run_here(table, tmp_path)
    before = (tmp_path / "sweep.toml").read_text(encoding="utf-8")
    other = merge(table, {"training": {"learning_rate": 0.5}})
    run_here(other, tmp_path, accept_different=["training.learning_rate"])
    assert (tmp_path / "sweep.toml").read_text(encoding="utf-8") == before
    assert [record.status for record in run_here(table, tmp_path).records] == ["done"]
