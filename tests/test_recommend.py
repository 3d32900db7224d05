"""`howlow recommend`: the verdict, the limits, the bill and the JSON document, from records alone; and bad input."""

import json
import math
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_cli import Command, howlow, refused
from test_rows import DATA, phase_of, steps_of, write_trial

import howlow as api
from howlow.analysis.constraints import CostLimits
from howlow.analysis.recommendation import Recommendation
from howlow.analysis.settling import Plan
from howlow.records import ShrunkRecord
from howlow.reporting.recommendation import headline, headlines, reasons
from howlow.reporting.settling import _command
from howlow.tasks.documents import with_documents
from howlow.tasks.examples import Example
from howlow.tasks.squad_score import with_part

__all__ = ["howlow"]
EXAMPLES, CLUSTERS = 400, 80
CUT = ShrunkRecord(start="/adapter", start_rank=16, start_sha256="d" * 64, energy_kept=0.9, continued_steps=0)
CURVE = {None: 0.1, 1: 0.45, 4: 0.6, 16: 0.6, 64: 0.61}


def scored_trial(folder: Path, rank: int | None, seed: int, quality: float, noise: float, **fields: Any) -> None:
    """A trial whose F1 is of that quality, with questions that are as hard for all ranks."""
    hard = np.random.default_rng(0).normal(0, 0.2, EXAMPLES)
    own = np.random.default_rng([rank or 0, seed]).normal(0, noise, EXAMPLES) if noise else 0
    f1 = np.clip(quality + 0.5 * hard + own, 0, 1)
    seconds = (1 + (rank or 0) / 100) * (1 + seed / 200)
    train = [] if rank is None else steps_of("train", [9.0, *[seconds, seconds * 1.01] * 4])
    trial = {
        "kind": "lora" if rank else "base",
        "steps": [*train, *steps_of("generate", [3.0, seconds, seconds], 100.0)],
        "phases": (
            *((phase_of("train", energy_j=200 * 8 * seconds, time_s=8 * seconds, samples=64),) if rank else ()),
            phase_of("generate", energy_j=100.0),
        ),
        "data": DATA.model_copy(update={"test_examples": EXAMPLES}),
        "scores": api_scores(f1),
    }
    record = write_trial(folder, rank, seed=seed, **(trial | fields))
    lines = [
        json.dumps({"id": f"q{index}", "cluster": f"p{index % CLUSTERS}", "scores": {"f1": value, "exact_match": 0.0}})
        for index, value in enumerate(f1.tolist())
    ]
    (folder / "trials" / record.trial / "predictions.jsonl").write_text("".join(f"{line}\n" for line in lines))


def api_scores(f1: Any) -> Any:
    from howlow.records import Scores

    return Scores(f1=float(f1.mean()), exact_match=0.0, loss=1.0)


def sweep(
    folder: Path, curve: dict[int | None, float] = CURVE, seeds: int = 3, noise: float = 0.02, **all_: Any
) -> Path:
    """The trials of a sweep; the base model has one."""
    for rank, quality in curve.items():
        for seed in range(seeds if rank else 1):
            scored_trial(folder, rank, seed, quality, noise, **all_)
    return folder


def verdict(found: Recommendation) -> tuple[str, int | None]:
    return found.verdict, found.rank


# -- verdicts -------------------------------------------------------------------------------------------------------


def test_the_smallest_rank_within_the_margin_is_recommended(tmp_path: Path) -> None:
    found = api.recommend(sweep(tmp_path), metric="f1", margin=0.03)
    assert verdict(found) == ("recommended", 4)
    told = " ".join(reasons(found))
    assert "Rank 1 has F1 44.7 %" in told
    assert "too low" in told
    assert "rank 64, the reference" in told
    assert headline(found).startswith("Recommended: rank 4. Rank 4 is at most ")
    assert "margin 3.0 points, 95.0 % confidence, 3 seeds, 400 test examples" in headline(found)


def test_the_default_margin_is_stated(tmp_path: Path) -> None:
    found = api.recommend(sweep(tmp_path))
    assert found.terms.margin == 0.02
    assert "margin 2.0 points" in headline(found)


def test_no_adapter_is_needed_where_the_base_model_is_as_good(tmp_path: Path) -> None:
    found = api.recommend(sweep(tmp_path, {None: 0.6, 1: 0.6, 8: 0.595}), margin=0.03)
    assert verdict(found) == ("no_adapter", None)
    assert headline(found).startswith("No adapter is needed. The base model is at most ")
    assert "It saves the fine-tuning." in " ".join(reasons(found))


def test_no_adapter_is_needed_where_the_base_model_is_better_than_every_rank(tmp_path: Path) -> None:
    """Ranks that are all bad, each in its own way, do not hide that."""
    found = api.recommend(sweep(tmp_path, {None: 0.7, 1: 0.4, 8: 0.5, 64: 0.45}))
    assert verdict(found) == ("no_adapter", None)
    assert "The base model is at most 0 points worse than the best rank" in headline(found)


def test_high_ranks_that_collapse_unevenly_do_not_hide_the_best_one(tmp_path: Path) -> None:
    found = api.recommend(sweep(tmp_path, {None: 0.1, 4: 0.4, 16: 0.6, 64: 0.2, 256: 0.3}))
    assert verdict(found) == ("recommended", 16)


def test_without_a_base_model_nobody_knows_whether_an_adapter_is_needed(tmp_path: Path) -> None:
    found = api.recommend(sweep(tmp_path, {1: 0.6, 8: 0.6}), margin=0.03)
    assert verdict(found) == ("recommended", 1)
    assert "nobody knows whether an adapter is needed" in " ".join(reasons(found))


def test_one_seed_is_recommended_for_this_seed_at_most(tmp_path: Path) -> None:
    found = api.recommend(sweep(tmp_path, seeds=1), margin=0.03)
    assert verdict(found) == ("recommended", 4)
    assert headline(found).startswith("Recommended, for this seed: rank 4.")
    assert "leave out other seeds" in " ".join(reasons(found))


def test_noise_is_not_enough_evidence_and_the_command_that_settles_it_is_given(tmp_path: Path, howlow: Command) -> None:
    folder = sweep(tmp_path / "a sweep", {None: 0.1, 1: 0.6, 8: 0.6}, noise=0.3)
    code, out, _ = howlow("recommend", folder, "--margin", "0.03", "--json")
    found = json.loads(out)
    assert (code, found["verdict"], found["rank"]) == (0, "not_enough_evidence", None)
    plans = [plan for plan in (found["settle"][name] for name in ("more_seeds", "more_examples", "both")) if plan]
    assert plans
    for plan in plans:
        assert plan["seeds"] > 3 or plan["test_examples"] > EXAMPLES
        command = shlex.split(plan["command"])
        assert command[:3] == ["howlow", "sweep", f"{folder}/sweep.toml"]
        assert plan["seeds"] == 3 or f"{plan['seeds'] - 1}" in command[command.index("--seeds") + 1].split(",")
    assert any("chance of 80 %" in reason for reason in found["reasons"])


def test_the_json_document_is_stable(tmp_path: Path, howlow: Command) -> None:
    code, out, err = howlow("recommend", sweep(tmp_path), "--metric", "f1", "--margin", "0.03", "--json")
    found = json.loads(out)
    assert (code, err) == (0, "")
    contract = ["metric", "margin", "confidence", "verdict", "rank", "reasons", "candidates"]
    assert list(found)[: len(contract)] == contract
    assert found["metric"] == "f1"
    assert (found["margin"], found["confidence"], found["verdict"], found["rank"]) == (0.03, 0.95, "recommended", 4)
    assert [one["rank"] for one in found["candidates"]] == [None, 1, 4, 16, 64]
    for one in found["candidates"]:
        assert set(one) >= {"rank", "difference", "low", "high", "non_inferior"}
        assert one["low"] <= one["difference"] <= one["high"] <= 0
        assert one["non_inferior"] == (one["rank"] in (4, 16, 64))
    assert {item["column"] for item in found["bill"]} >= {
        "train_time_per_sample_s",
        "train_energy_per_sample_j",
        "train_peak_memory_bytes",
        "adapter_bytes",
        "train_batch_size",
    }
    assert found["settle"] is None


def test_perplexity_has_a_relative_margin(tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    tokens = generator.integers(10, 200, 300)
    for rank, loss in ((1, 3.02), (8, 3.0), (64, 3.0)):
        for seed in range(3):
            nll = tokens * loss + np.random.default_rng([rank, seed]).normal(0, 0.1, 300)
            mean = float(nll.sum() / tokens.sum())
            from howlow.records import Scores

            scores = Scores(loss=mean, perplexity=math.exp(mean))
            record = write_trial(tmp_path, rank, seed=seed, task="language_modeling", scores=scores)
            lines = [
                json.dumps({"id": f"t:{i}", "cluster": f"{i // 5}", "log_likelihood": -value, "tokens": int(count)})
                for i, (value, count) in enumerate(zip(nll.tolist(), tokens, strict=True))
            ]
            (tmp_path / "trials" / record.trial / "predictions.jsonl").write_text("\n".join(lines) + "\n")
    found = api.recommend(tmp_path)
    assert (found.terms.metric.name, found.terms.margin) == ("perplexity", 0.01)
    assert verdict(found) == ("recommended", 8)  # rank 1 is 2 % worse
    assert verdict(api.recommend(tmp_path, margin=0.03)) == ("recommended", 1)
    assert verdict(api.recommend(tmp_path, metric="loss", margin=0.03)) == ("recommended", 1)
    told = " ".join(reasons(found))
    assert "Rank 1 has perplexity 20.49, 2.0 % worse than the best" in told
    assert "margin 1.0 %" in headline(found)


# -- seeds that are missing -------------------------------------------------------------------------------------------


def with_missing_seeds(folder: Path, seeds: dict[int, set[int]], noise: float = 0.02) -> Path:
    """Three seeds of each rank, of which those that are not named failed."""
    for rank, there in seeds.items():
        for seed in range(3):
            ended = {} if seed in there else {"status": "failed", "error": "broke", "scores": api_scores(np.zeros(1))}
            scored_trial(folder, rank, seed, 0.6, noise, **ended)
    return folder


def test_ranks_with_one_seed_in_common_are_judged_for_this_seed(tmp_path: Path, howlow: Command) -> None:
    """Each has two seeds, but what both are compared on says nothing about other seeds."""
    found = api.recommend(with_missing_seeds(tmp_path, {1: {0, 1}, 8: {1, 2}}))
    assert found.seeds == 1
    assert headline(found).startswith("Recommended, for this seed: rank 1.")
    assert "Some ranks have one seed in common" in " ".join(reasons(found))
    _, out, _ = howlow("recommend", tmp_path, "--json")
    assert (json.loads(out)["for_this_seed_only"], json.loads(out)["seeds"]) == (True, 1)


def test_ranks_without_a_common_seed_are_told_with_the_command_that_runs_it(tmp_path: Path) -> None:
    found = api.recommend(with_missing_seeds(tmp_path, {1: {0, 1}, 8: {2}}))
    assert found.verdict == "not_enough_evidence"
    told = " ".join(reasons(found))
    assert "Rank 1 and rank 8 have no seed in common, so they cannot be compared." in told
    assert f"howlow sweep {tmp_path}/sweep.toml --seeds 0,1,2 --retry failed --out {tmp_path}" in told
    assert "not expected to settle it" not in told


def test_a_test_of_one_paragraph_says_nothing_about_others(tmp_path: Path) -> None:
    folder = sweep(tmp_path, {1: 0.6, 8: 0.6})
    for path in folder.glob("trials/*/predictions.jsonl"):
        lines = [json.loads(line) | {"cluster": "the only one"} for line in path.read_text().splitlines()]
        path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    found = api.recommend(folder)
    assert found.verdict == "not_enough_evidence"
    told = " ".join(reasons(found))
    assert "All test examples belong together" in told
    assert "Test on examples of several paragraphs or documents" in told
    assert "not expected to settle it" not in told


# -- limits ---------------------------------------------------------------------------------------------------------


def test_limits_leave_out_ranks_by_the_upper_end_of_their_costs(tmp_path: Path) -> None:
    folder = sweep(tmp_path)
    (rank_4, rank_16) = (row for row in api.load(folder).rows if row["seed"] == 0 and row["rank"] in (4, 16))
    samples = 9 * 8
    between = samples * (rank_4["train_time_per_sample_s"] + rank_16["train_time_per_sample_s"]) / 2
    found = api.recommend(folder, margin=0.03, limits=CostLimits(max_time_s=between))
    assert verdict(found) == ("recommended", 4)
    assert list(found.excluded) == [16, 64]
    assert "more than --max-time" in " ".join(reasons(found))
    just = samples * rank_4["train_time_per_sample_s"] * 1.0051  # its mean keeps it, the end of its interval does not
    assert 4 in api.recommend(folder, margin=0.03, limits=CostLimits(max_time_s=just)).excluded


def test_with_a_margin_of_0_only_what_is_shown_to_be_worse_is_too_low(tmp_path: Path) -> None:
    told = {one.partition(" has ")[0]: one for one in reasons(api.recommend(sweep(tmp_path, noise=0.1), margin=0.0))}
    assert "the best" in told["Rank 64"]
    assert not any("at least 0 points" in one for one in told.values())
    assert "too low" in told["The base model"]


@pytest.mark.parametrize(
    ("margin", "confidence", "words"),
    [
        (0.105, 0.95, "margin 10.5 points, 95.0 % confidence"),
        (0.125, 0.9999, "margin 12.5 points, 99.99 % confidence"),
        (0.0825, 0.9999999, "margin 8.25 points, 99.99999 % confidence"),
    ],
)
def test_what_was_asked_is_printed_as_it_was_asked(
    tmp_path: Path, margin: float, confidence: float, words: str
) -> None:
    assert words in headline(api.recommend(sweep(tmp_path), margin=margin, confidence=confidence))


def test_ranks_with_other_numbers_of_seeds_say_how_many_they_have(tmp_path: Path) -> None:
    with_missing_seeds(tmp_path, {4: {0, 1, 2}, 16: {1, 2}})
    told = reasons(api.recommend(tmp_path, margin=0.03))
    assert "(3 seeds)" in next(one for one in told if one.startswith("Rank 4 has"))
    assert any(one.startswith("Ranks have different numbers of seeds.") for one in told)
    assert not any("numbers of seeds" in one for one in reasons(api.recommend(sweep(tmp_path / "equal"))))


@pytest.mark.parametrize(("asked", "is_all"), [(None, True), (1000, True), (EXAMPLES, False)])
def test_more_test_examples_than_the_data_hold_are_asked_of_larger_data(
    tmp_path: Path, asked: int | None, is_all: bool
) -> None:
    """Of fewer examples than were asked for, these are all that there are."""
    given = {} if asked is None else {"settings": {"task.test_examples": asked}}
    found = api.recommend(sweep(tmp_path, {1: 0.59, 4: 0.6}, noise=0.3, **given))
    command = _command(found, Plan(found.seeds, 9999))
    assert ("LARGER_TEST_DATA" in command) == is_all
    assert ("task.test_examples=9999" in command) != is_all


def test_the_best_is_the_best_of_those_that_may_be_used(tmp_path: Path) -> None:
    folder = sweep(tmp_path, {None: 0.1, 1: 0.5, 4: 0.5, 64: 0.7})
    assert verdict(api.recommend(folder, margin=0.03)) == ("recommended", 64)
    slow = api.recommend(folder, margin=0.03, limits=CostLimits(min_throughput_per_s=8 / 1.3))
    assert (verdict(slow), list(slow.excluded)) == (("recommended", 1), [64])


def test_limits_that_nothing_keeps_are_a_verdict_that_names_the_nearest(tmp_path: Path, howlow: Command) -> None:
    code, out, _ = howlow("recommend", sweep(tmp_path), "--max-memory", "1000")
    assert code == 0
    assert out.startswith("No rank is shown to keep the limits; rank 1 is the nearest.")
    assert "its peak memory may be 1.86 GiB, more than --max-memory 1.00 kB" in out
    code, out, _ = howlow("recommend", tmp_path, "--max-energy", "1", "--max-time", "1", "--json")
    found = json.loads(out)
    assert (code, found["verdict"], found["rank"], found["nearest"]) == (0, "constraints_not_met", None, 1)
    assert [one["rank"] for one in found["excluded"]] == [1, 4, 16, 64]


def test_a_cost_without_an_interval_keeps_no_limit_and_that_is_said(tmp_path: Path) -> None:
    """Four steps show no error of a time."""
    folder = sweep(tmp_path, {1: 0.6, 8: 0.6}, seeds=1, steps=steps_of("train", [9.0, 1.0, 1.0, 1.0]))
    found = api.recommend(folder, limits=CostLimits(max_time_s=1e6))
    assert found.verdict == "constraints_not_met"
    assert headline(found).startswith("No rank is shown to keep the limits; as measured, rank 1 is the nearest.")
    assert "has no interval" in " ".join(reasons(found))


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_a_limit_is_a_number_above_0_from_python_too(value: float) -> None:
    with pytest.raises(api.UserError, match=r"--max-energy .* a number above 0 is expected"):
        CostLimits(max_energy_j=value)


# -- who takes part -------------------------------------------------------------------------------------------------


def test_a_rank_of_which_a_seed_diverged_is_no_candidate(tmp_path: Path) -> None:
    folder = sweep(tmp_path, {None: 0.1, 1: 0.6, 8: 0.6})
    scored_trial(folder, 1, 3, 0.0, 0.02, status="diverged", error="the loss is nan")
    found = api.recommend(sweep(folder, {4: 0.6}), margin=0.03)
    assert verdict(found) == ("recommended", 4)
    assert "Rank 1 is no candidate: 1 diverged." in reasons(found)


def test_a_rank_that_did_not_fit_is_told(tmp_path: Path) -> None:
    folder = sweep(tmp_path)
    scored_trial(folder, 256, 0, 0.0, 0.02, status="out_of_memory", error="did not fit", scores=api_scores(np.zeros(1)))
    assert "Rank 256 is no candidate: 1 out_of_memory." in reasons(api.recommend(folder))


def test_a_further_axis_needs_a_choice_and_a_sweep_ends_with_one_answer_for_each(
    tmp_path: Path, howlow: Command
) -> None:
    for batch in (1, 8):
        sweep(tmp_path, {1: 0.6, 8: 0.6 + 0.2 * (batch == 8)}, axes={"training.batch_size": batch})
    sweep(tmp_path, {None: 0.1})
    refused(howlow("recommend", tmp_path), "training.batch_size is 1 or 8", "--where training.batch_size=1")
    code, out, _ = howlow("recommend", tmp_path, "--where", "training.batch_size=8", "--json")
    assert (code, json.loads(out)["rank"]) == (0, 8)
    first, second = headlines(tmp_path)
    assert first.startswith("With training.batch_size = 1: Recommended: rank 1.")
    assert second.startswith("With training.batch_size = 8: Recommended: rank 8.")


def test_cut_ranks_are_no_candidates_beside_trained_ones(tmp_path: Path) -> None:
    expected = api.recommend(sweep(tmp_path, {1: 0.45, 4: 0.6, 16: 0.6}))
    scored_trial(tmp_path, 1, 0, 0.9, 0.0, kind="shrunk", steps=(), phases=(), shrunk=CUT)
    found = api.recommend(tmp_path)
    assert verdict(found) == verdict(expected) == ("recommended", 4)
    assert [one.group.kind for one in found.candidates] == ["lora"] * 3
    assert [one.judged for one in found.candidates] == [one.judged for one in expected.candidates]


def test_questions_without_an_answer_may_decide(tmp_path: Path, howlow: Command) -> None:
    from howlow.records import Scores

    scores = Scores(f1=0.5, exact_match=0.0, loss=1.0, has_answer_f1=0.5, no_answer_f1=0.5)
    sweep(tmp_path, {1: 0.5, 8: 0.5}, scores=scores)
    for path in tmp_path.glob("trials/*/predictions.jsonl"):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        for index, line in enumerate(lines):
            line["scores"] = with_part(line["scores"], index % 2 == 0)
        path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    code, out, _ = howlow("recommend", tmp_path, "--metric", "no_answer_f1", "--json")
    found = json.loads(out)
    assert (code, found["verdict"], found["rank"]) == (0, "recommended", 1)
    assert (found["test_examples"], found["all_test_examples"]) == (EXAMPLES // 2, EXAMPLES)
    assert f"{EXAMPLES // 2} of {EXAMPLES} test examples" in found["headline"]


@pytest.mark.parametrize("every", [2, 5])
def test_a_part_of_the_test_names_its_own_examples_and_the_command_the_whole_test(
    tmp_path: Path, howlow: Command, every: int
) -> None:
    from howlow.records import Scores

    scores = Scores(f1=0.5, exact_match=0.0, loss=1.0, has_answer_f1=0.5, no_answer_f1=0.5)
    sweep(tmp_path, {1: 0.5, 8: 0.51}, noise=0.3, scores=scores)
    for path in tmp_path.glob("trials/*/predictions.jsonl"):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        for index, line in enumerate(lines):
            line["scores"] = with_part(line["scores"], index % every == 0)
        path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    _, out, _ = howlow("recommend", tmp_path, "--metric", "has_answer_f1", "--margin", "0.02", "--json")
    found = json.loads(out)
    assert found["verdict"] == "not_enough_evidence"
    assert f"{EXAMPLES // every} of {EXAMPLES} test examples" in found["headline"]
    plan = found["settle"]["more_examples"] or found["settle"]["both"]
    assert plan["test_examples"] > EXAMPLES, "a test of so many examples, of which the part is a share"


def tuned_sweep(folder: Path, curve: dict[tuple[int, float], tuple[float, float]], **all_: Any) -> Path:
    """Three seeds of each (rank, learning rate), whose F1 on the test and on the validation examples are given."""
    from howlow.records import Scores

    for (rank, rate), (tested, validated) in curve.items():
        for seed in range(3):
            axes = {"training.learning_rate": rate, **all_.get("axes", {})}
            scored_trial(folder, rank, seed, tested, 0.01, validation=Scores(f1=validated), **(all_ | {"axes": axes}))
    return folder


def test_each_rank_is_judged_by_the_settings_that_validate_best(tmp_path: Path, howlow: Command) -> None:
    """Rank 1 has its best test score where it validates worse: that one must not be taken."""
    curve = {(1, 1e-3): (0.7, 0.4), (1, 1e-4): (0.5, 0.5), (8, 1e-3): (0.4, 0.3), (8, 1e-4): (0.68, 0.7)}
    folder = tuned_sweep(tmp_path, curve)
    found = api.recommend(folder, metric="f1")
    assert verdict(found) == ("recommended", 8)
    rates = {rank: choice.axes["training.learning_rate"] for rank, choice in found.contest.choices.items()}
    assert rates == {1: 1e-4, 8: 1e-4}
    assert any("rank 8 training.learning_rate = 0.0001" in reason for reason in reasons(found))
    assert verdict(api.recommend(folder, metric="f1", where={"training.learning_rate": 1e-3})) == ("recommended", 1)
    code, out, _ = howlow("recommend", folder, "--metric", "f1", "--json")
    candidates = {one["rank"]: one["settings"] for one in json.loads(out)["candidates"]}
    assert (code, candidates[8]) == (0, {"training.learning_rate": 1e-4})


def test_the_bill_is_against_the_reference_at_its_own_settings(tmp_path: Path) -> None:
    curve = {(1, 1e-3): (0.6, 0.6), (1, 1e-4): (0.5, 0.5), (8, 1e-3): (0.4, 0.3), (8, 1e-4): (0.6, 0.7)}
    found = api.recommend(tuned_sweep(tmp_path, curve), metric="f1")
    assert verdict(found) == ("recommended", 1)
    assert found.contest.reference.axes == {"training.learning_rate": 1e-4}
    (told,) = [reason for reason in reasons(found) if reason.startswith("Against rank 8, the reference, rank 1 has")]
    assert "training time" in told
    assert "not significant" not in told


def test_a_setting_of_which_a_seed_diverged_is_not_chosen(tmp_path: Path) -> None:
    curve = {(1, 1e-3): (0.6, 0.9), (1, 1e-4): (0.5, 0.5), (8, 1e-3): (0.7, 0.7), (8, 1e-4): (0.6, 0.6)}
    folder = tuned_sweep(tmp_path, curve)
    diverged = {"status": "diverged", "error": "loss is not finite", "axes": {"training.learning_rate": 1e-3}}
    scored_trial(folder, 1, 3, 0.0, 0.02, scores=api_scores(np.zeros(1)), **diverged)
    found = api.recommend(folder, metric="f1")
    assert found.contest.choices[1].axes == {"training.learning_rate": 1e-4}


def test_settings_without_validation_or_with_other_costs_stay_a_choice(tmp_path: Path, howlow: Command) -> None:
    for rate in (1e-3, 1e-4):
        sweep(tmp_path / "plain", {1: 0.6, 8: 0.6}, axes={"training.learning_rate": rate})
    told = "or set task.validation_examples, by which each rank is given its best one"
    refused(howlow("recommend", tmp_path / "plain"), "--where training.learning_rate=0.0001", told)
    curve = {(1, 1e-3): (0.6, 0.6), (1, 1e-4): (0.5, 0.5), (8, 1e-3): (0.4, 0.3), (8, 1e-4): (0.6, 0.7)}
    for batch in (1, 8):
        tuned_sweep(tmp_path / "legs", curve, axes={"training.batch_size": batch})
    code, _, err = howlow("recommend", tmp_path / "legs")
    assert (code, "validation" in err) == (2, False), err
    code, _, _ = howlow("recommend", tmp_path / "legs", "--where", "training.batch_size=1")
    assert code == 0


@pytest.mark.parametrize("written", ["1e-3", "0.001", "1.0e-3", 1e-3])
def test_a_value_of_an_axis_may_be_written_in_any_way(tmp_path: Path, howlow: Command, written: Any) -> None:
    for rate, quality in ((1e-3, 0.7), (1e-4, 0.5)):
        sweep(tmp_path, {1: 0.5, 8: quality}, axes={"training.learning_rate": rate})
    code, out, err = howlow("recommend", tmp_path, "--where", f"training.learning_rate={written}", "--json")
    assert code == 0, err
    assert json.loads(out)["rank"] == 8
    assert api.recommend(tmp_path, where={"training.learning_rate": written}).rank == 8


def test_whether_the_verdict_changes_between_scalings_is_said(tmp_path: Path) -> None:
    for alpha, curve in (("2r", {1: 0.7, 8: 0.5}), (32.0, {1: 0.5, 8: 0.7})):
        values = {(rank, rate): (f1 - rate, f1 - rate) for rank, f1 in curve.items() for rate in (1e-3, 1e-2)}
        tuned_sweep(tmp_path, values, axes={"lora.alpha": alpha})
    overall, *each, changes = headlines(tmp_path)
    assert overall.startswith("Each rank at its best settings: ")
    assert sorted(one.split(". ")[0] for one in each) == [
        "With lora.alpha = 2r: Recommended: rank 1",
        "With lora.alpha = 32: Recommended: rank 8",
    ]
    assert changes == "The verdict changes with the scaling."


def test_records_of_older_versions_say_that_clusters_are_not_known(tmp_path: Path) -> None:
    folder = sweep(tmp_path)
    for path in folder.glob("trials/*/predictions.jsonl"):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        path.write_text("".join(f"{json.dumps({k: v for k, v in line.items() if k != 'cluster'})}\n" for line in lines))
    assert any("older version" in reason for reason in reasons(api.recommend(folder)))


# -- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--margin", "-0.1"], "--margin -0.1: a number of at least 0"),
        (["--margin", "nan"], "--margin nan: a number of at least 0"),
        (["--margin", "inf"], "--margin inf: a number of at least 0"),
        (["--margin", "few"], "--margin"),
        (["--margin", "3"], "give points as hundredths"),
        (["--metric", "rouge1"], "those of its task question_answering are: f1, exact_match, loss"),
        (["--metric", ""], "has no such score"),
        (["--confidence", "95"], "--confidence 95: a number between 0.5 and 1"),
        (["--confidence", "0"], "--confidence 0: a number between 0.5 and 1"),
        (["--max-memory", "0"], "--max-memory 0: a number above 0"),
        (["--max-time", "-1"], "--max-time -1: a number above 0"),
        (["--min-throughput", "nan"], "--min-throughput nan: a number above 0"),
        (["--where", "seed"], "KEY=VALUE is expected"),
        (["--where", "lora.alpha=3"], "has no such grid axis"),
    ],
)
def test_a_wrong_argument_is_one_line(tmp_path: Path, howlow: Command, arguments: list[str], words: str) -> None:
    refused(howlow("recommend", sweep(tmp_path, {1: 0.5, 8: 0.5}, seeds=1), *arguments), words)


def test_records_that_say_too_little_are_one_line(tmp_path: Path, howlow: Command) -> None:
    refused(howlow("recommend", tmp_path / "missing"), "no such folder")
    (tmp_path / "empty" / "trials").mkdir(parents=True)
    refused(howlow("recommend", tmp_path / "empty"), "no trial has ended yet")
    refused(howlow("recommend", sweep(tmp_path / "one", {None: 0.1, 8: 0.5})), "rank 8 is the only one that is done")
    refused(howlow("recommend", sweep(tmp_path / "base", {None: 0.1})), "no adapter has been trained yet")
    failed = {"status": "failed", "error": "broke"}
    refused(howlow("recommend", sweep(tmp_path / "failed", {1: 0.1, 8: 0.5}, **failed)), "6 failed", "--retry")


def test_energy_that_nobody_measured_cannot_be_limited(tmp_path: Path, howlow: Command) -> None:
    folder = sweep(tmp_path, {1: 0.5, 8: 0.5}, phases=(phase_of("train"), phase_of("generate")))
    refused(howlow("recommend", folder, "--max-energy", "5"), "has train_energy_per_sample_j", "howlow env")


def test_other_data_or_other_examples_are_refused(tmp_path: Path, howlow: Command) -> None:
    folder = sweep(tmp_path / "data", {1: 0.5})
    sweep(folder, {8: 0.5}, data=DATA.model_copy(update={"test_sha256": "c" * 64}))
    refused(howlow("recommend", folder), "test_sha256")
    folder = sweep(tmp_path / "examples", {1: 0.5, 8: 0.5})
    path = folder / "trials/r0008-s1/predictions.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-3]))
    refused(howlow("recommend", folder), "r0008-s1", "397 examples that are not those of r0001-s0 (400)")
    path.unlink()
    refused(howlow("recommend", folder), "predictions.jsonl", "hold no example's f1")


def test_random_weights_have_no_quality(tmp_path: Path, howlow: Command) -> None:
    from howlow.records import Scores

    refused(howlow("recommend", sweep(tmp_path, {1: 0.5, 8: 0.5}, scores=Scores())), "random weights")


# -- documents ------------------------------------------------------------------------------------------------------


def _paragraph(name: str, text: str = "some words") -> Example:
    return Example(name, name, "", "", "", text)


def test_paragraphs_of_one_article_are_one_document() -> None:
    texts = ["= First =", "one", "= = Part = =", "two", "= Second =", "three"]
    found = with_documents([_paragraph(f"wiki.txt:{line}", text) for line, text in enumerate(texts, 1)])
    assert len({paragraph.document for paragraph in found[:4]}) == 1
    assert len({paragraph.document for paragraph in found}) == 2


def test_files_are_documents_and_one_text_without_headings_is_cut_into_blocks() -> None:
    found = with_documents([_paragraph(f"{name}:{line}") for name in ("a.txt", "b.txt") for line in range(1, 100)])
    assert len({paragraph.document for paragraph in found}) == 2
    found = with_documents([_paragraph(f"a.txt:{line}") for line in range(1, 501)])
    assert len({paragraph.document for paragraph in found}) == 50
    assert len({paragraph.document for paragraph in found[:10]}) == 1


# -- a sweep --------------------------------------------------------------------------------------------------------


def test_a_sweep_ends_with_the_answer_and_names_clusters(
    tiny_table: dict[str, Any], tmp_path: Path, howlow: Command
) -> None:
    from howlow import load_settings as load
    from howlow.settings import to_toml

    settings = tmp_path / "settings.toml"
    settings.write_text(to_toml(load(None, [tiny_table])), encoding="utf-8")
    code, out, err = howlow("sweep", settings, "--out", tmp_path / "out")
    assert code == 0
    assert "for this seed" in out or "Not enough evidence" in out
    assert f"howlow recommend {tmp_path / 'out'}" in err
    paths = sorted((tmp_path / "out").glob("trials/*/predictions.jsonl"))
    clusters = [[json.loads(line)["cluster"] for line in path.read_text().splitlines()] for path in paths]
    assert clusters[0] == clusters[1] == clusters[2]
    assert len(set(clusters[0])) < len(clusters[0])
