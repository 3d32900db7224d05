"""Rows, means over seeds, the reference rank and the two distances; `write_trial` makes synthetic run directories."""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from howlow.analysis import columns_of, compare, distances, rows, statistic
from howlow.analysis.columns import column_named as named
from howlow.errors import UserError
from howlow.records import (
    DataRecord,
    EnergySource,
    EnergyWindow,
    Environment,
    ModelRecord,
    PhaseRecord,
    Reading,
    Record,
    RecordWarning,
    Resolved,
    Scores,
    Step,
    write_record,
)
from howlow.settings import Settings

NO_ENERGY = EnergySource(name=None, detail="no sensor: this CPU has no readable energy counter")
COUNTER = EnergySource(name="nvml counter", detail="total energy consumption of GPU-1234")
ASSUMED = EnergySource(name="assumed", detail="65 W given in meters.assumed_power_w, not measured")

ENVIRONMENT = Environment(
    device="cuda:0",
    device_name="NVIDIA A100-SXM4-80GB",
    device_uuid="GPU-1234",
    driver="560.35",
    device_memory_bytes=85_899_345_920,
    cpu="AMD EPYC 7763",
    cores=16,
    threads=16,
    memory_bytes=137_438_953_472,
    platform="Linux-6.1",
    python="3.11.9",
    versions={"howlow": "0.1.0", "torch": "2.8.0", "transformers": "5.0.0", "peft": "0.18.0", "tokenizers": "0.22"},
)

DATA = DataRecord(
    train_sha256="a" * 64,
    test_sha256="b" * 64,
    train_examples=800,
    train_groups=160,
    test_examples=40,
    test_groups=8,
    train_tokens=120_000,
    test_tokens=6_000,
    longest_tokens=402,
    overlap_left_out=3,
    dropped=0,
    cut=0,
)


def settings_of(task: str, rank: int | None, seed: int, **changes: Any) -> Settings:
    table: dict[str, Any] = {
        "model": "smollm2-135m",
        "seed": seed,
        "task": {"name": task, "train": "train.json", "test": "test.json"},
        "training": {"layout": "padded", "batch_size": 8},
        "lora": {"rank": rank or 8},
    }
    for key, value in changes.items():
        *tables, name = key.split(".")
        target = table
        for part in tables:
            target = target.setdefault(part, {})
        target[name] = value
    return Settings.model_validate(table)


def steps_of(phase: str, durations_s: Iterable[float], start_s: float = 0.0, **fields: Any) -> list[Step]:
    """Steps one after another, the first of them burn-in; loss falls as 2 + 2 / (step + 1) in training."""
    steps, now = [], start_s
    for index, duration_s in enumerate(durations_s):
        common = {
            "micro_batches": 1,
            "samples": 8,
            "tokens": 1000,
            "target_tokens": 80,
            "computed_tokens": 4096,
            "loss": None if phase == "generate" else 2 + 2 / (index + 1),
        }
        part = "burn_in" if index == 0 else "measured"
        step = {"phase": phase, "part": part, "step": index, "start_s": now, "duration_s": duration_s}
        steps.append(Step(**(step | common | fields)))
        now += duration_s
    return steps


def phase_of(phase: str, samples: int = 16, time_s: float = 2.0, energy_j: float | None = None, **fields: Any) -> Any:
    values: dict[str, Any] = {"phase": phase, "start_s": 0.0, "duration_s": 10.0, "peak_memory_bytes": 2_000_000_000}
    windows = fields.pop("windows", ())
    if energy_j is not None:
        windows = (EnergyWindow(part="measured", energy_j=energy_j, duration_s=time_s, samples=samples), *windows)
    return PhaseRecord(windows=windows, **(values | fields))


def write_trial(
    folder: Path,
    rank: int | None = 8,
    *,
    kind: str = "lora",
    seed: int = 0,
    repeat: int = 1,
    task: str = "question_answering",
    axes: dict[str, Any] | None = None,
    steps: Iterable[Step] = (),
    readings: Iterable[Reading] = (),
    settings: dict[str, Any] | None = None,
    **fields: Any,
) -> Record:
    """One trial's folder with record.json, steps.jsonl and timeline.jsonl, as a trial leaves them."""
    axes = axes or {}
    stem = f"r{rank:04d}" if rank is not None and kind in ("lora", "shrunk") else kind
    parts = axes | ({"repeat": repeat} if repeat > 1 else {})
    cut = ["shrunk"] if kind == "shrunk" else []
    name = "-".join([f"{stem}-s{seed}", *cut, *(f"{axis}={value}" for axis, value in parts.items())])
    home = folder / "trials" / name
    home.mkdir(parents=True)
    is_lora = kind == "lora"
    model = ModelRecord(
        reference="smollm2-135m",
        architecture="LlamaForCausalLM",
        total_parameters=134_515_008,
        trainable_parameters=(rank or 0) * 57_600,
        scaling_factor=2.0 if is_lora else None,
        alpha=2.0 * rank if is_lora and rank else None,
        adapter_bytes=(rank or 0) * 230_400 + 15_000 if is_lora else None,
        tokenizer="smollm2-135m",
        weights="pretrained",
    )
    values: dict[str, Any] = {
        "trial": name,
        "kind": kind,
        "rank": rank if is_lora or kind == "shrunk" else None,
        "seed": seed,
        "repeat": repeat,
        "axes": axes,
        "status": "done",
        "settings": settings_of(task, rank, seed, **(axes | (settings or {}))),
        "resolved": Resolved(precision="fp32" if fields.get("model", model) else None),
        "environment": ENVIRONMENT,
        "model": model,
        "data": DATA,
        "energy": NO_ENERGY,
    }
    record = Record(**(values | fields))
    lines = [step.model_dump_json(exclude_none=True) for step in steps]
    (home / "steps.jsonl").write_text("".join(f"{line}\n" for line in lines))
    lines = [reading.model_dump_json(exclude_none=True) for reading in readings]
    (home / "timeline.jsonl").write_text("".join(f"{line}\n" for line in lines))
    write_record(home, record)
    return record


def costly_trial(folder: Path, rank: int, seconds: float, **fields: Any) -> Record:
    """A trial whose measured training and generation steps take `seconds` each."""
    steps = steps_of("train", [9.0, seconds, seconds]) + steps_of("generate", [9.0, seconds], 40.0)
    return write_trial(folder, rank, steps=steps, phases=(phase_of("train"), phase_of("generate")), **fields)


def only_row(folder: Path) -> dict[str, Any]:
    (row,) = rows([folder]).rows
    return row


# -- rows -----------------------------------------------------------------------------------------------------------


def test_throughput_is_the_sum_of_samples_over_the_sum_of_time_of_measured_steps(tmp_path: Path) -> None:
    # Measured: 8 samples in 1 s and 8 samples in 3 s: 16 / 4 = 4 samples/s (a mean of rates would say 5.33).
    steps = steps_of("train", [100.0, 1.0, 3.0]) + steps_of("generate", [50.0, 0.5, 1.5], 200.0)
    write_trial(tmp_path, steps=steps, phases=(phase_of("train"), phase_of("generate")))
    row = only_row(tmp_path)
    assert row["train_samples_per_s"] == 4.0
    assert row["train_tokens_per_s"] == 500.0
    assert row["train_time_per_sample_s"] == 0.25
    assert row["inference_samples_per_s"] == 8.0
    assert row["inference_new_tokens_per_sample"] == 10.0
    assert row["train_final_loss"] == pytest.approx(2 + 2 / 3)


def test_skipped_steps_cost(tmp_path: Path) -> None:
    steps = [
        *steps_of("train", [100.0, 1.0]),
        *(step.model_copy(update={"part": "measured"}) for step in steps_of("train", [3.0], 101.0, skipped=True)),
    ]
    write_trial(tmp_path, steps=steps, phases=(phase_of("train"),))
    assert only_row(tmp_path)["train_samples_per_s"] == 4.0


def test_energy_and_power_are_those_of_the_measured_part(tmp_path: Path) -> None:
    whole = EnergyWindow(part="phase", energy_j=9000.0)
    phase = phase_of("train", samples=16, time_s=4.0, energy_j=800.0, windows=(whole,))
    write_trial(tmp_path, steps=steps_of("train", [9.0, 2.0, 2.0]), phases=(phase,), energy=COUNTER)
    row = only_row(tmp_path)
    assert (row["train_energy_per_sample_j"], row["train_power_w"]) == (50.0, 200.0)
    assert row["energy_source"] == "nvml counter"
    assert row["train_cpu_energy_per_sample_j"] is None


def test_utilization_is_the_mean_of_the_readings_inside_the_measured_steps(tmp_path: Path) -> None:
    # Burn-in 0..1, measured 1..3; then a resumed part: burn-in 3..4, measured 4..5.
    steps = [*steps_of("train", [1.0, 1.0, 1.0]), *steps_of("train", [1.0, 1.0], 3.0)]
    at = [(0.5, 0.0), (1.5, 0.6), (2.5, 0.8), (3.5, 0.0), (4.5, 1.0), (5.5, 0.0)]
    readings = [Reading(time_s=time, device="cuda:0", utilization=value, phase="train") for time, value in at]
    readings.append(Reading(time_s=1.5, device="cuda:0", utilization=0.0, phase="evaluate"))
    readings.append(Reading(time_s=1.6, device="cuda:0", phase="train"))
    write_trial(tmp_path, steps=steps, readings=readings, phases=(phase_of("train"),))
    assert only_row(tmp_path)["train_utilization"] == pytest.approx(0.8)


def test_absent_is_none_everywhere(tmp_path: Path) -> None:
    write_trial(tmp_path, status="failed", error="boom", environment=None, model=None, data=None, energy=None)
    row = only_row(tmp_path)
    asked = {"trial", "kind", "rank", "seed", "repeat", "layout", "devices", "train_batch_size", "inference_batch_size"}
    assert {name for name, value in row.items() if value is not None} == asked | {"status"}


def test_without_measured_steps_there_is_no_throughput(tmp_path: Path) -> None:
    write_trial(tmp_path, steps=steps_of("train", [1.0]), phases=(phase_of("train"),))
    row = only_row(tmp_path)
    assert row["train_samples_per_s"] is None
    assert row["train_time_per_sample_s"] is None
    assert row["train_utilization"] is None


def test_prefill_and_decode_are_told_apart(tmp_path: Path) -> None:
    # Two measured steps of 2 and 3 s, 0.5 s of each for 920 tokens of prompts (4,000 computed, padding included); 80 of
    # a step's 1000 tokens are new, 8 of them prefill's.
    steps = steps_of("generate", [9.0, 2.0, 3.0], prefill_s=0.5, prefill_tokens=4000)
    energies = EnergyWindow(part="prefill", energy_j=30.0), EnergyWindow(part="decode", energy_j=120.0)
    parted = phase_of("generate", windows=energies)
    write_trial(tmp_path / "a", steps=steps, phases=(parted,))
    write_trial(tmp_path / "b", steps=steps, phases=(phase_of("generate"),))
    row = only_row(tmp_path / "a")
    assert row["inference_prefill_time_per_sample_s"] == 1.0 / 16
    assert row["inference_decode_time_per_sample_s"] == 4.0 / 16
    assert row["inference_prefill_tokens_per_s"] == 2 * 920 / 1.0
    assert row["inference_decode_tokens_per_s"] == (160 - 16) / 4.0
    assert row["inference_prefill_energy_per_token_j"] == pytest.approx(30.0 / 1840)
    assert row["inference_decode_energy_per_token_j"] == pytest.approx(30.0 * 4.0 / 144)
    row = only_row(tmp_path / "b")
    assert row["inference_decode_tokens_per_s"] == 36.0
    assert row["inference_prefill_energy_per_token_j"] is None
    assert row["inference_decode_energy_per_token_j"] is None


def test_the_legs_of_the_largest_and_of_one_batch_have_references_of_their_own(tmp_path: Path) -> None:
    for rank, largest in ((1, 12), (64, 5)):
        for batch, number in (("max", largest), (1, 1)):
            found = {"training.batch_size": number}
            costly_trial(tmp_path, rank, rank * number, axes={"training.batch_size": batch}, settings=found)
    comparison = compare(rows([tmp_path]))
    assert {ref.axes["training.batch_size"]: ref.rank for ref in comparison.references} == {1: 64, "max": 64}
    by_trial = {row["trial"]: row for row in comparison.results.rows}
    largest_leg = by_trial["r0001-s0-training.batch_size=max"]
    assert largest_leg["train_batch_size"] == 12
    assert comparison.relative(largest_leg, named("train_samples_per_s")) == pytest.approx(64 * 5 / 12)
    assert comparison.relative(by_trial["r0001-s0-training.batch_size=1"], named("train_samples_per_s")) == 64.0


def test_a_base_trial_has_no_training_columns(tmp_path: Path) -> None:
    steps = steps_of("evaluate", [1.0, 2.0])
    write_trial(tmp_path, None, kind="base", task="language_modeling", steps=steps, phases=(phase_of("evaluate"),))
    row = only_row(tmp_path)
    assert all(value is None for name, value in row.items() if name.startswith("train_"))
    assert row["inference_samples_per_s"] == 4.0
    assert row["inference_new_tokens_per_sample"] is None


def test_a_phase_that_did_not_end_has_no_figures(tmp_path: Path) -> None:
    steps = steps_of("train", [1.0, 1.0]) + steps_of("evaluate", [1.0, 1.0]) + steps_of("generate", [1.0, 1.0])
    phases = (phase_of("train"), phase_of("evaluate"))
    write_trial(tmp_path, steps=steps, phases=phases, status="out_of_memory", error="out of memory")
    row = only_row(tmp_path)
    assert row["train_samples_per_s"] == 8.0
    assert row["inference_samples_per_s"] is None


def test_rows_have_the_designed_columns_in_order_and_further_axes_at_the_end(tmp_path: Path) -> None:
    write_trial(tmp_path, axes={"training.batch_size": 4})
    results = rows([tmp_path])
    names = [column.name for column in results.columns]
    assert list(results.rows[0]) == names
    assert names[:5] == ["trial", "kind", "rank", "seed", "status"]
    assert names.index("rougeL") + 1 == names.index("train_energy_error_per_sample_j")  # later ones stand behind
    assert names[-2:] == ["trials_beside", "training.batch_size"]
    assert len(set(names)) == len(names) == len(columns_of(results.axes))
    assert results.rows[0]["train_batch_size"] == 4


def test_warnings_carry_their_remedy(tmp_path: Path) -> None:
    write_trial(tmp_path, warnings=(RecordWarning(kind="energy_absent", detail="no sensor"),))
    (warning,) = rows([tmp_path]).warnings
    assert warning["trial"] == "r0008-s0"
    assert warning["kind"] == "energy_absent"
    assert "assumed_power_w" in warning["remedy"]


# -- several directories --------------------------------------------------------------------------------------------


def test_of_trials_that_two_directories_hold_both_stay_under_their_own_names(tmp_path: Path) -> None:
    write_trial(tmp_path / "one")
    write_trial(tmp_path / "two")
    results = rows([tmp_path / "one", tmp_path / "two"])
    assert [(row["trial"], row["sweep"]) for row in results.rows] == [("one/r0008-s0", "one"), ("two/r0008-s0", "two")]
    (apart,) = results.apart
    assert (apart.sweep, apart.other, apart.trials, apart.differences) == ("two", "one", ("r0008-s0",), ())
    assert len(compare(results).groups) == 2


def test_of_a_baseline_that_two_sweeps_measured_alike_the_first_counts(tmp_path: Path) -> None:
    for name, rank in (("one", 8), ("two", 16)):
        write_trial(tmp_path / name, None, kind="base", trial="base-s0")
        write_trial(tmp_path / name, rank)
    results = rows([tmp_path / "two", tmp_path / "one"])
    assert [row["trial"] for row in results.rows] == ["base-s0", "r0008-s0", "r0016-s0"]
    assert results.trials[0].folder.is_relative_to(tmp_path / "two")
    (warning,) = results.warnings
    assert (warning["trial"], warning["kind"]) == ("base-s0", "baseline_repeated")
    assert "one holds another measurement of base-s0" in warning["detail"]


def test_of_baselines_that_differ_in_what_was_accepted_both_stay(tmp_path: Path) -> None:
    write_trial(tmp_path / "one", None, kind="base", trial="base-s0")
    other = ENVIRONMENT.model_copy(update={"driver": "570.1"})
    write_trial(tmp_path / "two", None, kind="base", trial="base-s0", environment=other)
    results = rows([tmp_path / "one", tmp_path / "two"], ["environment.driver"])
    assert [row["trial"] for row in results.rows] == ["one/base-s0", "two/base-s0"]
    assert [warning["kind"] for warning in results.warnings] == ["costs_not_comparable"]


def test_the_same_directory_given_twice_counts_once(tmp_path: Path) -> None:
    write_trial(tmp_path)
    assert len(rows([tmp_path, tmp_path / "." / ""]).rows) == 1


def test_directories_measured_on_other_devices_are_told_apart(tmp_path: Path) -> None:
    write_trial(tmp_path / "one", 4, status="failed", error="boom", model=None, environment=None, data=None)
    write_trial(tmp_path / "one", 8)
    write_trial(tmp_path / "two", 16, environment=ENVIRONMENT.model_copy(update={"device_name": "NVIDIA H100"}))
    results = rows([tmp_path / "one", tmp_path / "two"])
    (apart,) = results.apart
    (difference,) = apart.differences
    assert (difference.key, difference.is_of_costs_alone) == ("environment.device_name", True)
    assert (difference.value, difference.other_value) == ("NVIDIA H100", "NVIDIA A100-SXM4-80GB")
    assert {reference.rank for reference in compare(results).references} == {8, 16}


def test_costs_that_were_accepted_are_marked_at_the_trials_that_differ(tmp_path: Path) -> None:
    write_trial(tmp_path / "one", 4, phases=(phase_of("train"),), steps=steps_of("train", [1.0, 1.0]))
    write_trial(tmp_path / "one", 8)
    write_trial(tmp_path / "two", 16, environment=ENVIRONMENT.model_copy(update={"driver": "570.1"}))
    results = rows([tmp_path / "one", tmp_path / "two"], ["environment.driver"])
    (warning,) = results.warnings
    assert (warning["trial"], warning["kind"]) == ("r0016-s0", "costs_not_comparable")
    assert warning["detail"] == "environment.driver is '570.1', in one/r0004-s0 it is '560.35'"
    assert {"train_samples_per_s", "train_peak_memory_bytes"} <= set(warning["columns"])
    assert "f1" not in warning["columns"]


def test_quality_that_was_accepted_is_marked_at_the_trials_that_differ(tmp_path: Path) -> None:
    write_trial(tmp_path / "one", 4)
    write_trial(tmp_path / "two", 16, data=DATA.model_copy(update={"test_sha256": "c" * 64}))
    results = rows([tmp_path / "one", tmp_path / "two"], ["data"])
    assert [warning["kind"] for warning in results.warnings] == ["quality_not_comparable", "costs_not_comparable"]
    assert "f1" in results.warnings[0]["columns"]


def test_a_directory_without_records_is_refused(tmp_path: Path) -> None:
    (tmp_path / "trials").mkdir()
    with pytest.raises(UserError, match="no trial has ended yet"):
        rows([tmp_path])


def test_an_axis_of_one_directory_is_the_setting_of_the_other(tmp_path: Path) -> None:
    write_trial(tmp_path / "one", 4, axes={"training.batch_size": 4})
    write_trial(tmp_path / "two", 8)
    results = rows([tmp_path / "one", tmp_path / "two"])
    assert [row["training.batch_size"] for row in results.rows] == [4, 8]


# -- relations ------------------------------------------------------------------------------------------------------


def test_relative_figures_are_divided_by_the_largest_rank_that_is_done(tmp_path: Path) -> None:
    costly_trial(tmp_path, 1, 1.0)
    costly_trial(tmp_path, 16, 2.0)
    write_trial(tmp_path, 64, status="out_of_memory", error="out of memory")
    (tmp_path / "sweep.toml").write_text('[grid]\n"lora.rank" = [1, 16, 64, 128]\nseed = [0]\n')
    comparison = compare(rows([tmp_path]))
    (reference,) = comparison.references
    assert comparison.reference_rank == 16
    assert reference.requested_rank_missing == ((64, "out_of_memory"), (128, "not run yet"))
    first, second, third = comparison.results.rows
    assert comparison.relative(first, named("train_samples_per_s")) == 2.0
    assert comparison.relative(first, named("train_time_per_sample_s")) == 0.5
    assert comparison.relative(second, named("train_samples_per_s")) == 1.0
    assert comparison.relative(third, named("train_samples_per_s")) is None
    assert comparison.relative(first, named("train_power_w")) is None
    assert comparison.relative(first, named("trial")) is None


def test_with_several_seeds_the_reference_is_their_mean(tmp_path: Path) -> None:
    for seed, seconds in enumerate((1.0, 2.0)):  # 8 and 4 samples/s, mean 6
        costly_trial(tmp_path, 8, seconds, seed=seed)
    costly_trial(tmp_path, 1, 2.0 / 3.0)  # 12 samples/s
    comparison = compare(rows([tmp_path]))
    assert [comparison.relative(row, named("train_samples_per_s")) for row in comparison.results.rows] == pytest.approx(
        [2.0, 8 / 6, 4 / 6]
    )
    group = comparison.groups[-1]
    assert group.rank == 8
    found = group.statistic(named("train_samples_per_s"))
    assert found is not None
    assert (found.mean, found.n) == (6.0, 2)
    assert found.deviation == pytest.approx(math.sqrt(8.0))
    assert comparison.relative_mean(group, named("train_samples_per_s")) == 1.0


def test_every_set_of_axes_has_its_own_reference(tmp_path: Path) -> None:
    for batch_size, ranks in ((1, (1, 64)), (8, (1, 16))):
        for rank in ranks:
            costly_trial(tmp_path, rank, float(rank), axes={"training.batch_size": batch_size})
    write_trial(tmp_path, 64, axes={"training.batch_size": 8}, status="out_of_memory", error="out of memory")
    write_trial(tmp_path, None, kind="base", steps=steps_of("generate", [1.0, 1.0]), phases=(phase_of("generate"),))
    comparison = compare(rows([tmp_path]))
    assert {ref.axes["training.batch_size"]: ref.rank for ref in comparison.references} == {1: 64, 8: 16}
    assert comparison.reference_rank == 64
    by_trial = {row["trial"]: row for row in comparison.results.rows}
    assert comparison.relative(by_trial["r0001-s0-training.batch_size=1"], named("train_samples_per_s")) == 64.0
    assert comparison.relative(by_trial["r0001-s0-training.batch_size=8"], named("train_samples_per_s")) == 16.0
    assert (
        comparison.relative(by_trial["base-s0"], named("inference_samples_per_s")) is None
    )  # two references, none its own


def test_the_two_distances_of_the_paper(tmp_path: Path) -> None:
    write_trial(tmp_path, None, kind="base", scores=Scores(f1=0.201))
    for rank, f1 in ((1, 0.553), (16, 0.565), (64, 0.56)):
        write_trial(tmp_path, rank, scores=Scores(f1=f1, exact_match=0.1))
    (found,) = distances(compare(rows([tmp_path])))
    assert (found.metric.name, found.smallest_rank, found.best_rank) == ("f1", 1, 16)
    assert found.base_to_smallest == pytest.approx(0.352)
    assert found.smallest_to_best == pytest.approx(0.012)
    assert found.ratio == pytest.approx(0.352 / 0.012)
    assert found.test_examples == 40


def test_lower_perplexity_is_a_gain(tmp_path: Path) -> None:
    write_trial(tmp_path, None, kind="base", task="language_modeling", scores=Scores(perplexity=28.0))
    for rank, perplexity in ((1, 8.04), (128, 7.92)):
        write_trial(tmp_path, rank, task="language_modeling", scores=Scores(perplexity=perplexity))
    (found,) = distances(compare(rows([tmp_path])))
    assert found.base_to_smallest == pytest.approx(19.96)
    assert found.smallest_to_best == pytest.approx(0.12)


def test_distances_are_absent_without_quality_or_base(tmp_path: Path) -> None:
    write_trial(tmp_path / "one", 4)
    assert distances(compare(rows([tmp_path / "one"]))) == ()
    write_trial(tmp_path / "two", 4, scores=Scores(f1=0.5))
    (found,) = distances(compare(rows([tmp_path / "two"])))
    assert (found.base, found.base_to_smallest, found.ratio) == (None, None, None)


values = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=20)


@given(values)
def test_a_mean_lies_between_its_values_and_one_value_has_no_deviation(numbers: list[float]) -> None:
    found = statistic([None, *numbers])
    assert found is not None
    assert min(numbers) - 1e-6 <= found.mean <= max(numbers) + 1e-6
    assert (found.deviation is None) == (len(numbers) == 1)
    assert found.n == len(numbers)
    assert statistic([None]) is None


@given(values, st.floats(-1e3, 1e3))
def test_a_deviation_does_not_move_with_the_values(numbers: list[float], shift: float) -> None:
    before, after = statistic(numbers), statistic([number + shift for number in numbers])
    assert before is not None
    assert after is not None
    assert (before.deviation or 0.0) == pytest.approx(after.deviation or 0.0, abs=1e-6, rel=1e-6)


def test_rows_are_plain_json(tmp_path: Path) -> None:
    costly_trial(tmp_path, 1, 1.0, scores=Scores(f1=0.5, perplexity=math.inf))
    text = json.dumps(rows([tmp_path]).rows, allow_nan=False)
    assert '"perplexity": null' in text


# -- the Python interface -------------------------------------------------------------------------------------------


def test_a_run_directory_is_loaded_as_records_and_rows(tmp_path: Path) -> None:
    import howlow

    for rank in (1, 8):
        write_trial(tmp_path / "one", rank, steps=steps_of("train", [3.0, 1.0]), phases=(phase_of("train"),))
    write_trial(tmp_path / "two", 16)
    found = howlow.load(tmp_path / "one")
    assert (
        [record.trial for record in found.records] == [row["trial"] for row in found.rows] == ["r0001-s0", "r0008-s0"]
    )
    assert found.rows[0]["train_samples_per_s"] == 8.0
    assert found.trials[0].losses == ((0, 4.0), (1, 3.0))
    assert [row["rank"] for row in howlow.load(str(tmp_path / "one"), tmp_path / "two").rows] == [1, 8, 16]
    with pytest.raises(UserError, match="no such folder"):
        howlow.load(tmp_path / "three")


def test_a_copied_trial_names_both_folders(tmp_path: Path) -> None:
    import shutil

    write_trial(tmp_path, 8)
    shutil.copytree(tmp_path / "trials/r0008-s0", tmp_path / "trials/r0008-s0 (copy)")
    with pytest.raises(UserError) as caught:
        rows([tmp_path])
    assert str(tmp_path / "trials/r0008-s0 (copy)") in str(caught.value)
    assert f"whose folder is {tmp_path / 'trials/r0008-s0'};" in str(caught.value)


def test_no_figure_is_divided_by_one_that_was_measured_differently(tmp_path: Path) -> None:
    steps = {"phases": (phase_of("train"),), "steps": steps_of("train", [1.0, 1.0, 1.0, 1.0])}
    slower = {"phases": (phase_of("train"),), "steps": steps_of("train", [2.0, 2.0, 2.0, 2.0])}
    write_trial(tmp_path / "one", 4, scores=Scores(f1=0.5), **steps)
    write_trial(tmp_path / "one", 8, scores=Scores(f1=0.5), **slower)
    other = ENVIRONMENT.model_copy(update={"driver": "570.1"})
    write_trial(tmp_path / "two", 16, scores=Scores(f1=0.4), environment=other, **steps)
    comparison = compare(rows([tmp_path / "one", tmp_path / "two"], ["costs"]))
    first, _, reference = comparison.results.rows
    throughput, f1 = named("train_samples_per_s"), named("f1")
    assert (first["train_samples_per_s"], reference["train_samples_per_s"]) == (8.0, 8.0)
    assert comparison.relative(first, throughput) == 2.0  # by rank 8, the largest under its own conditions
    assert comparison.relative(reference, throughput) == 1.0
    assert comparison.relative(first, f1) == 1.25
