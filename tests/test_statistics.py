"""Errors of figures and of ratios: what they rest on, when they are paired, and that they cover what they state."""

import json
import math
import re
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_rows import ASSUMED, COUNTER, ENVIRONMENT, costly_trial, phase_of, steps_of, write_trial

from howlow.analysis import compare, rows, statistic
from howlow.analysis.columns import COLUMNS
from howlow.analysis.columns import column_named as named
from howlow.analysis.ratios import Ratio
from howlow.analysis.statistics import (
    FEWEST_BLOCKS,
    MOST_BLOCKS,
    Interval,
    LogVariance,
    NoError,
    Sample,
    between,
    interval_around,
    mean,
    of_processes,
    of_steps,
    quantile,
    summed,
)
from howlow.records import EnergySource, EnergyWindow, Reading, Scores, WarningKind
from howlow.reporting import formatting, read_report
from howlow.reporting.charts import figures
from howlow.reporting.panels import _bars
from howlow.reporting.points import ChartPoint
from howlow.reporting.words import sentences

THROUGHPUT, TIME, ENERGY = map(named, ("train_samples_per_s", "train_time_per_sample_s", "train_energy_per_sample_j"))
POWER, MEMORY = named("train_power_w"), named("train_peak_memory_bytes")

positive = st.floats(1e-6, 1e6)


# -- means and spreads ----------------------------------------------------------------------------------------------


@given(st.floats(-1e9, 1e9), st.integers(2, 30))
def test_equal_values_have_a_spread_of_exactly_zero_and_their_own_mean(value: float, count: int) -> None:
    found = statistic([value] * count)
    assert found is not None
    assert (found.mean, found.deviation) == (value, 0.0)


@given(positive, st.integers(FEWEST_BLOCKS, 30))
def test_equal_processes_and_equal_steps_have_an_error_of_exactly_zero(value: float, count: int) -> None:
    processes = of_processes(dict.fromkeys(range(count), value))
    assert processes is not None
    assert processes.spread.variance == 0.0
    if count <= MOST_BLOCKS:
        steps = of_steps([value] * count, [3.0] * count, "work")
        assert steps is not None
        assert steps.spread.variance == 0.0


@given(st.lists(positive, min_size=2, max_size=20))
def test_processes_have_the_textbook_error_of_a_mean(values: list[float]) -> None:
    found = of_processes(dict(enumerate(values)))
    assert found is not None
    expected = statistics.variance(values) / len(values) / mean(values) ** 2
    assert found.spread.variance == pytest.approx(expected, rel=1e-6, abs=1e-18)
    assert found.spread.degrees == len(values) - 1


def test_a_ratio_of_sums_has_the_error_of_the_ratio_estimator() -> None:
    # 15 s / 20 samples. Residuals t - R n: -0.5, 0.5, 0.5, -0.5 and 0.
    found = of_steps([1.0, 5.0, 2.0, 4.0, 3.0], [2.0, 6.0, 2.0, 6.0, 4.0], "work")
    assert found is not None
    assert found.moves == pytest.approx((-0.5 / 15, 0.5 / 15, 0.5 / 15, -0.5 / 15, 0))
    independent = replace(found, in_order=False)
    assert independent.spread.variance == pytest.approx(5 / 4 * 4 * (0.5 / 15) ** 2)


@given(st.lists(st.tuples(positive, positive), min_size=FEWEST_BLOCKS, max_size=200))
def test_a_ratio_and_its_inverse_have_the_same_error_and_blocks_are_few(steps: list[tuple[float, float]]) -> None:
    above, below = [a for a, _ in steps], [b for _, b in steps]
    one, other = of_steps(above, below, "w"), of_steps(below, above, "w")
    assert one is not None
    assert other is not None
    assert one.spread.variance == pytest.approx(other.spread.variance, rel=1e-9, abs=1e-18)
    assert 1 <= one.spread.degrees <= len(one.moves) - 1 <= MOST_BLOCKS - 1
    assert math.fsum(one.moves) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("steps", [0, 1, 2, 3, 4])
def test_too_few_steps_have_no_error(steps: int) -> None:
    assert of_steps([1.0] * steps, [1.0] * steps, "work") is None
    assert of_steps([1.0] * FEWEST_BLOCKS, [1.0] * FEWEST_BLOCKS, "work") is not None


@given(st.integers(2, 16), st.floats(0.001, 3.0), st.floats(0.05, 20))
def test_what_says_nothing_is_no_error(degrees: int, deviation: float, value: float) -> None:
    """An interval from below half to above twice the figure is not stated, but a difference that it shows is."""
    spread = LogVariance(deviation**2, degrees)
    ends = interval_around(value, spread)
    assert ends.low is not None
    assert ends.high is not None
    assert spread.is_too_wide == (ends.high > 2.0 * value)
    assert (ends.low < value / 2) == (ends.high > 2.0 * value)


def test_what_paired_parts_have_in_common_cancels() -> None:
    work = [1.0, 2.0, 8.0, 3.0, 4.0]
    ours, theirs = of_steps(work, [1.0] * 5, "same"), of_steps([2 * part for part in work], [1.0] * 5, "same")
    other = of_steps(work, [1.0] * 5, "other")
    assert ours is not None
    assert theirs is not None
    assert other is not None
    assert between(ours, theirs) == LogVariance(0.0, 4)
    assert between(ours, other).variance == pytest.approx(2 * ours.spread.variance)
    assert between(ours, other).degrees == pytest.approx(2 * ours.spread.degrees)


@given(st.lists(positive, min_size=FEWEST_BLOCKS, max_size=100))
def test_likeness_of_neighbours_never_makes_an_error_smaller(times: list[float]) -> None:
    found = of_steps(times, [1.0] * len(times), "work")
    assert found is not None
    blind = Sample(found.keys, found.moves, in_order=False).spread
    assert found.spread.variance >= blind.variance
    assert found.spread.half_width >= blind.half_width


@given(st.lists(st.tuples(st.floats(1e-6, 1), st.integers(1, 50)), min_size=1, max_size=5))
def test_summed_spreads_have_at_least_the_fewest_degrees_and_at_most_all(parts: list[tuple[float, int]]) -> None:
    found = summed([LogVariance(*part) for part in parts])
    degrees = [number for _, number in parts]
    assert min(degrees) * (1 - 1e-9) <= found.degrees <= sum(degrees) * (1 + 1e-9)


def test_the_quantile_is_students() -> None:
    assert [round(quantile(degrees), 3) for degrees in (1, 2, 7, math.inf)] == [12.706, 4.303, 2.365, 1.96]


@given(positive, st.floats(0, 0.5), st.floats(0, 0.5), st.floats(0, 0.9))
def test_an_interval_holds_its_value_and_every_ratio_that_the_bounds_allow(
    value: float, variance: float, bound: float, divided_by: float
) -> None:
    found = interval_around(value, LogVariance(variance, 7), bound, divided_by)
    assert found.low is not None
    assert found.high is not None
    for above in (1 - bound, 1 + bound):
        for below in (1 - divided_by, 1 + divided_by):
            assert found.low <= value * above / below * (1 + 1e-9)
            assert found.high >= value * above / below * (1 - 1e-9)


def test_a_reference_that_may_be_zero_bounds_nothing_above() -> None:
    assert interval_around(2.0, LogVariance(0.0, 7), 0.0, 1.0).high is None


# -- coverage -------------------------------------------------------------------------------------------------------


def claims(correlation: float, steps: int, work: str = "ab", pairs: int = 400, is_skewed: bool = False) -> float:
    """The share of pairs of equal trials whose ratio is significant; noise is correlated from step to step."""
    draw, found = np.random.default_rng(1), 0
    for _ in range(pairs):
        samples = []
        for side in work:
            noise = draw.normal(size=steps)
            for step in range(1, steps):
                noise[step] = correlation * noise[step - 1] + math.sqrt(1 - correlation**2) * noise[step]
            noise = np.exp(noise) / 2 if is_skewed else noise
            sizes = draw.integers(4, 9, steps).astype(float)
            samples.append((sizes, sizes * np.exp(0.05 * noise), side))
        ours, theirs = (of_steps(times.tolist(), sizes.tolist(), side) for sizes, times, side in samples)
        ratio = np.log(samples[0][1].sum() / samples[0][0].sum() * samples[1][0].sum() / samples[1][1].sum())
        found += ours is not None and abs(ratio) > between(ours, theirs).half_width  # type: ignore[arg-type]
    return found / pairs


@pytest.mark.parametrize("work", ["ab", "aa"])
@pytest.mark.parametrize(
    ("correlation", "steps", "is_skewed"),
    [
        *((0.6, 4, False), (0.6, 5, False), (0.9, 5, False), (0.6, 8, False), (0.9, 8, True), (0.9, 12, False)),
        *((0.0, 10, False), (0.5, 12, False), (0.6, 16, False), (0.6, 40, False), (0.9, 40, True), (0.8, 400, False)),
    ],
)
def test_equal_trials_are_claimed_to_differ_about_as_often_as_stated(
    correlation: float, steps: int, is_skewed: bool, work: str
) -> None:
    found = claims(correlation, steps, work, is_skewed=is_skewed)
    assert found <= 0.085  # 5 %, and three standard errors of 400 pairs


def test_without_the_correlation_of_neighbours_too_much_would_be_claimed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("howlow.analysis.statistics._STRONGEST", 0.0)
    assert claims(0.6, 12) > 0.15


# -- ratios ---------------------------------------------------------------------------------------------------------


def noisy(folder: Path, rank: int, factor: float, noise: float, **fields: Any) -> None:
    """A trial of 16 measured steps whose work varies by half, with noise of its own."""
    draw = np.random.default_rng(int(rank * 1000 + fields.get("repeat", 1) * 10 + fields.get("seed", 0)))
    durations = [factor * (1 + 0.5 * (step % 3)) * (1 + noise * draw.normal()) for step in range(16)]
    steps = steps_of("train", [9.0, *map(float, durations)])
    energy_j = 30.0 * sum(durations)
    phases = (phase_of("train", energy_j=energy_j, time_s=sum(durations), samples=128),)
    write_trial(folder, rank, steps=steps, phases=phases, **({"energy": ASSUMED} | fields))


def ratio_of(folder: Path, column: Any) -> Ratio:
    comparison = compare(rows([folder]))
    found = comparison.ratio(next(group for group in comparison.groups if group.rank == 1), column)
    assert found is not None
    return found


def test_steps_of_the_same_work_are_paired_so_a_small_difference_is_seen(tmp_path: Path) -> None:
    noisy(tmp_path, 1, 1.0, 0.001)
    noisy(tmp_path, 8, 1.05, 0.001)
    found = ratio_of(tmp_path, THROUGHPUT)
    assert found.basis == "one process"
    assert found.is_significant
    assert found.low is not None
    assert found.high is not None
    assert found.low < 1.05 < found.high
    assert found.error < 0.005
    inverse = ratio_of(tmp_path, TIME)
    assert (inverse.low, inverse.high) == pytest.approx((1 / found.high, 1 / found.low))


def test_assumed_energy_has_the_error_of_time_and_its_power_none(tmp_path: Path) -> None:
    noisy(tmp_path, 1, 1.0, 0.01)
    noisy(tmp_path, 8, 1.1, 0.01)
    time, energy = ratio_of(tmp_path, TIME), ratio_of(tmp_path, ENERGY)
    assert (energy.value, energy.low, energy.high) == pytest.approx((time.value, time.low, time.high))
    power = ratio_of(tmp_path, POWER)
    assert power.low == power.high == power.value == pytest.approx(1)


def test_an_energys_bound_is_in_its_ratio_and_in_that_of_its_power(tmp_path: Path) -> None:
    for rank, error_j in ((1, 12.0), (8, 20.0)):
        window = EnergyWindow(part="measured", energy_j=100.0 + rank, error_j=error_j, duration_s=4.0, samples=32)
        steps, phases = steps_of("train", [9.0, *[0.8] * 5]), (phase_of("train", windows=(window,)),)
        write_trial(tmp_path, rank, steps=steps, phases=phases, energy=COUNTER)
    for column in (ENERGY, POWER):
        found = ratio_of(tmp_path, column)
        assert found.low == pytest.approx((101 - 12) / (108 + 20))
        assert found.high == pytest.approx((101 + 12) / (108 - 20))
        assert not found.is_shown


def test_an_energy_without_a_bound_has_no_interval(tmp_path: Path) -> None:
    for rank in (1, 8):
        phases = (phase_of("train", energy_j=100.0 * rank),)
        write_trial(tmp_path, rank, steps=steps_of("train", [9.0, *[1.0] * 5]), phases=phases, energy=COUNTER)
    found = ratio_of(tmp_path, ENERGY)
    assert (found.basis, found.lack) == ("unknown", "bound")


def test_energy_polled_from_a_sensor_that_samples_by_itself_has_no_error(tmp_path: Path) -> None:
    for share, folder in ((0.25, tmp_path / "part"), (None, tmp_path / "always")):
        source = EnergySource(name="nvml power", detail="power of GPU-1", power_sampled_share=share)
        for rank in (1, 8):
            window = EnergyWindow(
                part="measured", energy_j=100.0 * rank, error_j=1.0, error_covers="edges", duration_s=4.0, samples=32
            )
            steps, phases = steps_of("train", [9.0, *[0.8] * 5]), (phase_of("train", windows=(window,)),)
            write_trial(folder, rank, steps=steps, phases=phases, energy=source)
    for column in (ENERGY, POWER):
        assert ratio_of(tmp_path / "part", column).lack == "sensor"
        assert ratio_of(tmp_path / "always", column).is_significant
    assert ratio_of(tmp_path / "part", THROUGHPUT).lack is None


def test_readings_of_power_are_in_the_error_of_energy(tmp_path: Path) -> None:
    for rank in (1, 8):
        window = EnergyWindow(part="measured", energy_j=100.0, error_j=0.0, duration_s=4.0, samples=32)
        readings = [
            Reading(time_s=9.0 + 0.5 * index, device="cuda:0", power_w=watts, phase="train")
            for index, watts in enumerate((20.0, 30.0, 20.0, 30.0, 25.0, 25.0, 31.0, 19.0))
        ]
        steps, phases = steps_of("train", [9.0, *[0.8] * 5]), (phase_of("train", windows=(window,)),)
        write_trial(tmp_path, rank, steps=steps, readings=readings, phases=phases, energy=COUNTER)
    assert ratio_of(tmp_path, THROUGHPUT).low == 1.0
    low = ratio_of(tmp_path, ENERGY).low
    assert low is not None
    assert 0.5 < low < 0.95
    assert ratio_of(tmp_path, POWER).low == pytest.approx(low)


def test_repeats_replace_the_error_of_steps_and_are_paired(tmp_path: Path) -> None:
    for repeat, drift in ((1, 1.0), (2, 1.3), (3, 1.6)):
        for rank, factor in ((1, 1.0), (8, 1.1)):
            noisy(tmp_path, rank, factor * drift, 0.002, repeat=repeat)
    found = ratio_of(tmp_path, THROUGHPUT)
    assert found.basis == "processes"
    assert found.is_significant
    assert found.error < 0.02  # the drift between repeats is common to both ranks
    group = compare(rows([tmp_path])).groups[0]
    assert (group.seeds, group.repeats) == (1, 3)
    ends = group.interval(THROUGHPUT)
    assert ends.low is not None
    assert ends.low < 0.7 * group.mean(THROUGHPUT)  # type: ignore[operator]


def test_a_trial_measured_once_is_as_uncertain_as_a_process_of_the_other_rank(tmp_path: Path) -> None:
    for repeat, drift in ((1, 1.0), (2, 1.2), (3, 1.4)):
        noisy(tmp_path, 8, drift, 0.001, repeat=repeat)
    noisy(tmp_path, 1, 1.2, 0.001)
    found = ratio_of(tmp_path, THROUGHPUT)
    assert found.basis == "processes"
    assert not found.is_significant
    assert found.high is not None
    assert found.high > 1.5


def test_a_trial_that_is_too_short_for_an_error_does_not_get_that_of_the_other_ranks_repeats(tmp_path: Path) -> None:
    for repeat in (1, 2, 3):
        noisy(tmp_path, 8, 1.0, 0.001, repeat=repeat)
    steps = steps_of("train", [9.0, 0.2, 0.4, 0.3])
    write_trial(tmp_path, 1, steps=steps, phases=(phase_of("train"),), energy=ASSUMED)
    found = ratio_of(tmp_path, THROUGHPUT)
    assert (found.low, found.lack) == (None, "steps")


def test_an_a_a_run_is_not_significant_and_shows_the_spread_of_its_repeats(tmp_path: Path) -> None:
    for repeat in (1, 2, 3):
        for rank in (1, 8):
            noisy(tmp_path, rank, 1.0, 0.05, repeat=repeat)
    for column in (THROUGHPUT, TIME, ENERGY):
        assert not ratio_of(tmp_path, column).is_shown
    assert formatting.NOT_SIGNIFICANT in read_report([tmp_path]).table_text()


def test_peaks_of_one_process_are_exact_and_those_of_several_have_their_spread(tmp_path: Path) -> None:
    for repeat, more in ((1, 0), (2, 200_000_000), (3, 400_000_000)):
        for rank in (1, 8):
            extra = more if rank == 1 else 0
            phase = phase_of("train", peak_memory_bytes=2_000_000_000 + 10_000_000 * rank + extra)
            home = tmp_path / ("one" if repeat == 1 else "three")
            for place in {home, tmp_path / "three"}:
                write_trial(place, rank, steps=steps_of("train", [1.0, 1.0]), phases=(phase,), repeat=repeat)
    exact = ratio_of(tmp_path / "one", MEMORY)
    assert exact.basis == "exact"
    assert exact.low == exact.high == exact.value == pytest.approx(2.01 / 2.08)
    assert not ratio_of(tmp_path / "three", MEMORY).is_shown


def test_scores_of_one_seed_have_the_error_of_the_test_examples(tmp_path: Path) -> None:
    draw = np.random.default_rng(3)
    for rank, chance in ((1, 0.2), (8, 0.8)):
        scores = [float(draw.random() < chance) for _ in range(200)]
        write_trial(tmp_path, rank, scores=Scores(f1=sum(scores) / 200, exact_match=0.5))
        lines = [json.dumps({"id": str(index), "scores": {"f1": score}}) for index, score in enumerate(scores)]
        (tmp_path / f"trials/r{rank:04d}-s0/predictions.jsonl").write_text("".join(f"{line}\n" for line in lines))
    found = ratio_of(tmp_path, named("f1"))
    assert found.basis == "test examples"
    assert found.is_significant
    assert found.high is not None
    assert 0.2 < found.high < 0.5
    assert ratio_of(tmp_path, named("exact_match")).basis == "unknown"  # no line says it


def test_repeats_of_one_seed_say_nothing_about_quality_and_have_to_agree(tmp_path: Path) -> None:
    for repeat in (1, 2):
        for rank in (1, 8):
            costly_trial(tmp_path / "equal", rank, 1.0, repeat=repeat, scores=Scores(f1=0.5 + rank / 100))
            costly_trial(tmp_path / "differ", rank, 1.0, repeat=repeat, scores=Scores(f1=0.5 + repeat / 1e15))
    assert ratio_of(tmp_path / "equal", named("f1")).basis == "unknown"
    kind = WarningKind.REPEATS_DIFFER
    assert kind not in {warning.kind for warning in rows([tmp_path / "equal"]).trial_warnings}
    found = [warning for warning in rows([tmp_path / "differ"]).trial_warnings if warning.kind == kind]
    assert {warning.trial for warning in found} == {"r0001-s0-repeat=2", "r0008-s0-repeat=2"}
    assert {warning.kind for warning in found} == {WarningKind.REPEATS_DIFFER}
    assert "f1" in found[0].columns
    assert "r0001-s0, with the same seed and data" in found[0].detail


def test_seeds_are_paired_in_quality(tmp_path: Path) -> None:
    for seed, luck in enumerate((0.0, 0.1, 0.2)):
        for rank, level in ((1, 0.4), (8, 0.5)):
            write_trial(tmp_path, rank, seed=seed, scores=Scores(f1=level * (1 + luck)))
    found = ratio_of(tmp_path, named("f1"))
    assert found.basis == "processes"
    assert found.error < 1e-9
    assert found.is_shown


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_an_error_needs_five_steps_and_its_absence_is_told_everywhere(steps: int, tmp_path: Path) -> None:
    for rank in (1, 8):
        durations = [9.0, *[float(rank)] * steps]
        write_trial(tmp_path, rank, steps=steps_of("train", durations), phases=(phase_of("train"),))
    found = ratio_of(tmp_path, THROUGHPUT)
    assert (found.low, found.high, found.basis, found.lack) == (None, None, "unknown", "steps")
    assert not found.is_shown
    assert not found.is_significant
    assert formatting.relative(found) == "no error"
    assert formatting.relative(found, with_ends=True) == "no error: fewer than 5 steps"
    report = read_report([tmp_path])
    table, sentence = report.table_text(), " ".join(sentences(report.comparison))
    assert "no error: fewer than 5 steps" in table
    assert formatting.NOT_SIGNIFICANT not in table
    assert "ratios without a known error in the training throughput" in sentence
    assert "(fewer than 5 steps)" in sentence
    (figure, *_) = figures(report.comparison)
    assert "hollow points: no error: fewer than 5 steps" in figure.description
    told = json.loads(report.json_text())["groups"][0]["figures"][THROUGHPUT.name]["relative"]
    assert (told["significant"], told["no_error_because"]) == (False, "fewer than 5 steps")


def test_a_difference_that_is_larger_than_a_wide_interval_is_still_shown(tmp_path: Path) -> None:
    for rank, factor in ((1, 40.0), (8, 1.0)):
        noisy(tmp_path / "apart", rank, factor, 0.9, seed=5)
        noisy(tmp_path / "near", rank, 1.1 if rank == 1 else 1.0, 0.9, seed=5)
    apart, near = (ratio_of(tmp_path / name, THROUGHPUT) for name in ("apart", "near"))
    assert apart.is_significant
    assert (near.low, near.high, near.lack) == (None, None, "wide")
    group = compare(rows([tmp_path / "near"])).groups[0]
    assert group.interval(THROUGHPUT) == Interval(None, None)
    assert group.trials[0].row["train_samples_per_s_low"] is None


def test_a_difference_that_is_no_figures_own_has_none(tmp_path: Path) -> None:
    other = ENVIRONMENT.model_copy(update={"driver": "570.1"})
    noisy(tmp_path / "one", 1, 1.0, 0.01)
    noisy(tmp_path / "two", 8, 1.0, 0.01, environment=other)
    comparison = compare(rows([tmp_path / "one", tmp_path / "two"], ["costs"]))
    assert [one.basis for group in comparison.groups if (one := comparison.ratio(group, THROUGHPUT))] == ["itself"] * 2


# -- documents ------------------------------------------------------------------------------------------------------


def test_rows_carry_the_ends_of_their_intervals(tmp_path: Path) -> None:
    noisy(tmp_path, 1, 1.0, 0.05)
    (row,) = rows([tmp_path]).rows
    shown = [column for column in COLUMNS if column.interval is not None and row[column.name] is not None]
    assert {column.name for column in shown} >= {THROUGHPUT.name, TIME.name, ENERGY.name, POWER.name}
    for column in shown:
        low, high = (row[name] for name in column.interval or ())
        assert low <= row[column.name] <= high
        assert (low < high) == (column is not POWER)


def test_the_json_document_has_every_ratio_with_its_ends(tmp_path: Path) -> None:
    noisy(tmp_path, 1, 1.0, 0.01)
    noisy(tmp_path, 8, 1.5, 0.01)
    document = json.loads(read_report([tmp_path]).json_text())
    first, reference = document["groups"]
    found = first["figures"][THROUGHPUT.name]["relative"]
    assert found["significant"]
    assert found["low"] < found["value"] < found["high"]
    assert (first["reference"], document["level"]) == (["r0008-s0"], 0.95)
    itself = reference["figures"][THROUGHPUT.name]["relative"]
    assert (itself["value"], itself["low"], itself["high"], itself["significant"]) == (1.0, 1.0, 1.0, False)


@given(st.floats(0.01, 100), st.floats(1e-7, 0.9))
def test_a_ratio_is_shown_with_its_error_or_in_words(value: float, share: float) -> None:
    found = Ratio(value, value * (1 - share), value * (1 + share), "one process")
    for with_ends in (False, True):
        text = formatting.relative(found, with_ends=with_ends)
        assert (text == formatting.NOT_SIGNIFICANT) == (found.low <= 1 <= found.high)  # type: ignore[operator]
        assert text.startswith(formatting.NOT_SIGNIFICANT) or "x" in text
        numbers = [float(number.rstrip("x")) for number in re.findall(r"[\d.]+", text.replace(",", ""))]
        if len(numbers) == 3 and share > 1e-5:
            assert not numbers[1] <= 1 <= numbers[2]
        elif len(numbers) == 2 and share > 1e-5:
            assert not numbers[0] - numbers[1] <= 1 <= numbers[0] + numbers[1]


@pytest.mark.parametrize(
    ("low", "value", "high", "text"),
    [
        (1.09, 1.13, 1.17, "1.13x ±0.04"),
        (0.828, 0.84, 0.852, "0.840x ±0.012"),
        (1.0134, 1.014, 1.0146, "1.0140x ±0.0006"),
        (1.003, 1.06, 1.121, "1.060x (1.003 to 1.121)"),
        (0.04, 0.144, 0.585, "0.144x (0.040 to 0.585)"),
        (0.938, 0.938, 0.938, "0.938x"),
        (0.98, 1.01, 1.04, "not significant"),
    ],
)
def test_a_ratio_reads_as_its_interval_says(low: float | None, value: float, high: float | None, text: str) -> None:
    assert formatting.relative(Ratio(value, low, high, "one process")) == text


@pytest.mark.parametrize("lack", get_args(NoError))
def test_a_ratio_without_an_error_says_so_and_why(lack: NoError) -> None:
    found = Ratio(1.5, None, None, "unknown", lack)
    assert formatting.relative(found) == "no error"
    assert formatting.relative(found, with_ends=True) == f"no error: {formatting.NO_ERROR_BECAUSE[lack]}"
    assert "significant" not in formatting.relative(found, with_ends=True)


def test_a_sample_is_scaled_with_its_figures_logarithm() -> None:
    assert Sample((1, 2), (0.1, -0.1), in_order=True).scaled(2.0).moves == (0.2, -0.2)


def test_a_bar_that_reaches_far_beyond_the_axis_can_be_drawn() -> None:
    points = [ChartPoint(4, "", 1.0, "1.0", "r0004-s0", low=1e-9, high=1e9), ChartPoint(8, "", 1.2, "1.2", "r0008-s0")]
    (bar,) = _bars(points)
    assert 1e-9 <= bar["y"] <= 1.0 < 10 < bar["high"] < 100


def test_seeds_do_not_hide_that_the_test_examples_say_nothing(tmp_path: Path) -> None:
    lines = [json.dumps({"id": str(index), "scores": {"f1": float(index == 3)}}) for index in range(6)]
    for seed in (0, 1, 2):
        for rank, level in ((1, 0.16), (8, 0.17)):
            write_trial(tmp_path, rank, seed=seed, scores=Scores(f1=level))
            (tmp_path / f"trials/r{rank:04d}-s{seed}/predictions.jsonl").write_text(
                "".join(f"{one}\n" for one in lines)
            )
    group = compare(rows([tmp_path])).groups[0]
    assert group.interval(named("f1")) == Interval(None, None)
