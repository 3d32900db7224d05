"""`howlow sweep --until-decided`: what is run next, when it ends and why, and going on after a kill; and bad input."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from test_cli import Command, howlow, refused
from test_recommend import scored_trial

import howlow as api
from howlow import deciding
from howlow.analysis import compare, rows
from howlow.analysis.decision_inputs import decision_inputs
from howlow.analysis.recommendation import recommend_from
from howlow.deciding import DecidedSweep, SweepBudget, planned_settings, sweep_until_decided
from howlow.errors import UserError
from howlow.records import LooksRecord, read_looks, read_records, write_looks
from howlow.reporting.answer import answers
from howlow.settings import expand, merge
from howlow.sweeping import SweepResult

__all__ = ["howlow"]
CURVE = {None: 0.1, 1: 0.3, 4: 0.6, 16: 0.6, 64: 0.6}


class SimulatedSweep:
    """Stands for `howlow.sweep`: writes the records of the trials of each round; may stop after some of them."""

    def __init__(self, curve: dict[int | None, float], noise: float, **fields: Any) -> None:
        self.curve, self.noise, self.fields = curve, noise, fields
        self.most = 1000
        self.ran: list[str] = []

    def __call__(self, settings: Any, out: Path, *, rounds: Any, **_: Any) -> SweepResult:
        plans = expand(settings)
        (Path(out) / "trials").mkdir(parents=True, exist_ok=True)
        for names in rounds(plans):
            for plan in [plan for plan in plans if plan.name in names]:
                if len(self.ran) >= self.most:
                    raise KeyboardInterrupt
                self._run(Path(out), plan)
        return SweepResult(Path(out), tuple(read_records(Path(out))))

    def _run(self, out: Path, plan: Any) -> None:
        scored_trial(out, plan.rank, plan.seed, self.curve[plan.rank], self.noise, **self.fields)
        self.ran.append(plan.name)


def settings_of(ranks: Iterable[int | None] = CURVE, seeds: Iterable[int] = (0,), **changes: Any) -> Any:
    grid = {"lora.rank": [rank for rank in ranks if rank], "seed": list(seeds)}
    return api.load_settings("demo", [{"grid": grid}, changes])


def decide(monkeypatch: Any, out: Path, curve: Any = CURVE, noise: float = 0.02, **options: Any) -> DecidedSweep:
    simulated = options.pop("simulated", None) or SimulatedSweep(curve, noise)
    monkeypatch.setattr(deciding, "sweep", simulated)
    settings = options.pop("settings", None) or settings_of(curve)
    found = sweep_until_decided(settings, out, **({"metric": "f1", "margin": 0.03} | options))
    assert read_looks(out) == found.looks
    return found


# -- deciding -------------------------------------------------------------------------------------------------------


def test_it_decides_stops_and_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[tuple[int, list[str]]] = []
    found = decide(monkeypatch, tmp_path, on_look=lambda looks, names: seen.append((len(looks.looks), list(names))))
    assert found.looks.ended == "decided"
    assert found.looks.looks[-1].rank == 4
    assert [one.rank for one in found.looks.stopped or ()] == [1]
    assert found.planned == 1 + 4 * 5
    assert len(found.result.records) < found.planned
    names = [record.trial for record in found.result.records]
    assert "r0001-s0" in names
    assert "r0001-s1" not in names, "a hopeless rank stops after its first seed"
    assert [number for number, _ in seen] == list(range(1, len(seen) + 1))
    assert seen[-1][1] == []
    recommended = api.recommend(tmp_path, metric="f1", margin=0.03)
    assert (recommended.verdict, recommended.rank) == ("recommended", 4)


def test_only_ranks_whose_comparison_is_open_get_further_seeds(monkeypatch: Any, tmp_path: Path) -> None:
    found = decide(monkeypatch, tmp_path, {None: 0.1, 1: 0.54, 4: 0.6, 16: 0.6, 64: 0.6}, noise=0.09, margin=0.025)
    seeds = {rank: sum(record.rank == rank for record in found.result.records) for rank in (1, 4, 16, 64)}
    assert len(set(seeds.values())) > 1, seeds
    assert max(seeds.values()) > 2


def test_where_no_seed_would_settle_it_the_sweep_ends(monkeypatch: Any, tmp_path: Path) -> None:
    found = decide(monkeypatch, tmp_path, noise=0.4, margin=0.0005)
    assert found.looks.ended == "hopeless"
    assert len(found.looks.looks) == 1
    assert found.looks.looks[0].verdict == "not_enough_evidence"


def test_the_budget_of_trials_is_kept(monkeypatch: Any, tmp_path: Path) -> None:
    for most in (1, 3, 8):
        found = decide(monkeypatch, tmp_path / str(most), budget=SweepBudget(max_trials=most))
        assert (found.looks.ended, len(found.result.records)) == ("max_trials", most)


def test_the_budget_of_time_is_kept(monkeypatch: Any, tmp_path: Path) -> None:
    simulated = SimulatedSweep(CURVE, 0.02, total_s=10.0)
    found = decide(monkeypatch, tmp_path, simulated=simulated, budget=SweepBudget(max_time_s=35))
    assert (found.looks.ended, len(found.result.records)) == ("max_time", 4), "the trial that runs is ended"


def test_more_budget_goes_on_where_it_ended(monkeypatch: Any, tmp_path: Path) -> None:
    decide(monkeypatch, tmp_path, budget=SweepBudget(max_trials=7))
    assert decide(monkeypatch, tmp_path).looks == decide(monkeypatch, tmp_path / "at once").looks


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> DecidedSweep:
    """A sweep of two looks that was never killed."""
    with pytest.MonkeyPatch.context() as patch:
        return decide(patch, tmp_path_factory.mktemp("unbroken"), noise=0.06)


@pytest.mark.parametrize("most", [0, 3, 5, 6, 8, 9, 10])
def test_killed_anywhere_it_ends_as_if_never_killed(
    monkeypatch: Any, tmp_path: Path, unbroken: DecidedSweep, most: int
) -> None:
    simulated = SimulatedSweep(CURVE, 0.06)
    simulated.most = most
    with pytest.raises(KeyboardInterrupt):
        decide(monkeypatch, tmp_path, simulated=simulated)
    looks = read_looks(tmp_path)
    assert looks is not None
    assert looks.ended is None
    again = decide(monkeypatch, tmp_path, noise=0.06)
    assert again.looks == unbroken.looks
    assert len(again.looks.looks) == 2
    assert {r.trial for r in again.result.records} == {r.trial for r in unbroken.result.records}


def test_a_finished_sweep_is_not_looked_at_twice(monkeypatch: Any, tmp_path: Path) -> None:
    first = decide(monkeypatch, tmp_path)
    again = decide(monkeypatch, tmp_path)
    assert again.looks == first.looks
    assert len(again.result.records) == len(first.result.records)


def test_ranks_that_fail_leave_the_others_to_decide(monkeypatch: Any, tmp_path: Path) -> None:
    class Failing(SimulatedSweep):
        def _run(self, out: Path, plan: Any) -> None:
            if plan.rank == 64:
                scored_trial(out, 64, plan.seed, 0.6, 0.02, status="out_of_memory", error="out of memory")
                self.ran.append(plan.name)
            else:
                super()._run(out, plan)

    simulated = Failing(CURVE, 0.02)
    found = decide(monkeypatch, tmp_path, simulated=simulated)
    assert found.looks.ended == "decided"
    assert [name for name in simulated.ran if name.startswith("r0064")] == ["r0064-s0"]


def test_with_fewer_than_two_ranks_there_is_nothing_to_compare(monkeypatch: Any, tmp_path: Path) -> None:
    failing = SimulatedSweep(CURVE, 0.02, status="failed", error="a driver")
    found = decide(monkeypatch, tmp_path, simulated=failing)
    assert found.looks.ended == "nothing_to_compare"
    assert len(found.result.records) == 5


# -- what is said afterwards ----------------------------------------------------------------------------------------


def test_recommend_keeps_the_levels_of_the_looks(monkeypatch: Any, tmp_path: Path, howlow: Command) -> None:
    decide(monkeypatch, tmp_path)
    code, out, _ = howlow("recommend", tmp_path, "--margin", "0.03", "--json")
    found = json.loads(out)
    assert code == 0
    assert found["looks"]["ended"] == "decided"
    assert found["looks"]["stopped"] == [1]
    assert list(found["looks"]["confidence_at"]) == ["2", "3", "4", "5"]
    assert min(found["looks"]["confidence_at"].values()) > 0.95
    told = " ".join(found["reasons"])
    assert "The sweep was looked at" in told
    assert "Rank 1 was stopped after its first seed" in told
    assert 1 not in [one["rank"] for one in found["candidates"]]
    bounds = {one["rank"]: one["low"] for one in found["candidates"]}
    (tmp_path / "looks.json").unlink()
    _, out, _ = howlow("recommend", tmp_path, "--margin", "0.03", "--json")
    naive = {one["rank"]: one["low"] for one in json.loads(out)["candidates"]}
    assert bounds[16] < naive[16], "looking has its price"


def test_recommend_and_page_ask_as_it_was_planned(monkeypatch: Any, tmp_path: Path, howlow: Command) -> None:
    decide(monkeypatch, tmp_path, noise=0.2, margin=0.08, confidence=0.9)
    _, out, _ = howlow("recommend", tmp_path, "--json")
    found = json.loads(out)
    assert (found["metric"], found["margin"], found["confidence"]) == ("f1", 0.08, 0.9)
    _, out, _ = howlow("recommend", tmp_path, "--margin", "0.01", "--json")
    assert (json.loads(out)["margin"], json.loads(out)["confidence"]) == (0.01, 0.9)
    (first, *_) = answers(compare(rows([tmp_path]))).found
    assert first.headline == found["headline"]


def test_the_pages_inputs_have_the_levels_of_the_looks(monkeypatch: Any, tmp_path: Path) -> None:
    decide(monkeypatch, tmp_path)
    found = recommend_from(rows([tmp_path]))
    for (one, other), pair in decision_inputs(found).pairs.items():
        assert pair.half_width is not None
        assert pair.value - pair.half_width == found.pairs.low(one, other, found.terms.confidence)


def test_a_damaged_file_of_looks_is_named(monkeypatch: Any, tmp_path: Path, howlow: Command) -> None:
    decide(monkeypatch, tmp_path)
    (tmp_path / "looks.json").write_text("{")
    refused(howlow("recommend", tmp_path), "looks.json", "damaged")


# -- bad input ------------------------------------------------------------------------------------------------------


def test_one_seed_means_five_are_planned() -> None:
    assert planned_settings(settings_of()).grid["seed"] == [0, 1, 2, 3, 4]
    assert planned_settings(settings_of(seeds=(7,))).grid["seed"] == [7, 8, 9, 10, 11]
    assert planned_settings(settings_of(seeds=(0, 1, 2))).grid["seed"] == [0, 1, 2]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--ranks", "8"], ["--until-decided", "rank 8 is the only one", "at least two"]),
        (["--metric", "rouge1"], ["--metric rouge1", "question_answering", "f1", "exact_match"]),
        (["--margin", "-0.1"], ["--margin -0.1", "at least 0"]),
        (["--margin", "nan"], ["--margin nan"]),
        (["--confidence", "2"], ["--confidence 2"]),
        (["--max-trials", "0"], ["--max-trials 0", "at least 1"]),
        (["--max-time", "-5"], ["--max-time -5", "above 0"]),
        (["--max-time", "inf"], ["--max-time inf"]),
        (["--set", 'grid."training.batch_size"=[1,2]'], ["further axis training.batch_size"]),
        (["--set", "random_weights=true"], ["random_weights", "no scores"]),
    ],
)
def test_bad_input_is_one_line(howlow: Command, tmp_path: Path, arguments: list[str], words: list[str]) -> None:
    refused(howlow("sweep", "demo", "--until-decided", "--out", tmp_path / "out", *arguments), *words)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "option", [["--max-trials", "3"], ["--margin", "0.1"], ["--metric", "f1"], ["--max-time", "9"]]
)
def test_its_options_alone_are_refused(howlow: Command, tmp_path: Path, option: list[str]) -> None:
    refused(howlow("sweep", "demo", "--out", tmp_path / "out", *option), option[0], "--until-decided")


def test_other_terms_after_a_look_are_refused(monkeypatch: Any, tmp_path: Path) -> None:
    decide(monkeypatch, tmp_path)
    with pytest.raises(UserError, match=r"planned with margin 0\.03, and it is 0\.05 now"):
        decide(monkeypatch, tmp_path, margin=0.05)
    with pytest.raises(UserError, match="planned with seeds 0,1,2,3,4, and it is 0,1 now"):
        decide(monkeypatch, tmp_path, settings=settings_of(seeds=(0, 1)))


# -- a real sweep ---------------------------------------------------------------------------------------------------

TERMS = ["--until-decided", "--margin", "0.9"]


def written(table: dict[str, Any], folder: Path, **changes: Any) -> Path:
    """The settings as a file."""
    from howlow.settings import to_toml

    place = folder / "settings.toml"
    place.write_text(to_toml(api.load_settings(None, [merge(table, changes)])), encoding="utf-8")
    return place


@pytest.mark.slow
def test_a_real_sweep_decides(tiny_table: dict[str, Any], tmp_path: Path, howlow: Command) -> None:
    out = tmp_path / "out"
    place = written(tiny_table, tmp_path)
    code, told, err = howlow("sweep", place, *TERMS, "--out", out)
    assert code == 0, err
    looks = read_looks(out)
    assert looks is not None
    assert looks.ended == "decided"
    assert "look 1, 5 trials: no adapter would be needed" in err
    assert "Ended after 5 of at most 11 trials and 1 look: the recommendation holds." in told.splitlines()[-1]
    code, again, _ = howlow("sweep", place, *TERMS, "--out", out)
    assert (code, again.splitlines()[-1]) == (0, told.splitlines()[-1])
    assert read_looks(out) == looks


@pytest.mark.slow
def test_a_real_sweep_that_is_killed_goes_on(tiny_table: dict[str, Any], tmp_path: Path, howlow: Command) -> None:
    out = tmp_path / "out"
    place = written(tiny_table, tmp_path)
    command = [sys.executable, "-m", "howlow", "sweep", str(place), *TERMS, "--out", str(out)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("[4/"):
                break
        os.killpg(process.pid, signal.SIGKILL)
    before = read_looks(out)
    assert before is not None
    assert before.looks == ()
    assert len(read_records(out)) == 3
    code, told, err = howlow("sweep", place, *TERMS, "--out", out)
    assert code == 0, err
    assert told.splitlines()[-1].startswith("Ended after 5 of at most 11 trials and 1 look")


@pytest.mark.slow
def test_a_real_budget_is_spent(tiny_table: dict[str, Any], tmp_path: Path, howlow: Command) -> None:
    out = tmp_path / "out"
    code, told, err = howlow("sweep", written(tiny_table, tmp_path), *TERMS, "--max-trials", "2", "--out", out)
    assert code == 0, err
    assert told.splitlines()[-1] == "Ended after 2 of at most 11 trials and 0 looks: --max-trials is spent."


def test_looks_survive_a_round_trip(tmp_path: Path) -> None:
    looks = LooksRecord(metric="f1", margin=0.02, confidence=0.95, seeds=(0, 1), information=(1 / 3, 1.0))
    write_looks(tmp_path, looks)
    assert read_looks(tmp_path) == looks
    assert read_looks(tmp_path / "elsewhere") is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"information": [0.9, 0.5, 1.0]},
        {"information": [0.0, 1.0]},
        {"information": [0.5, 0.9]},
        {"margin": -1},
        {"confidence": 1.0},
        {"seeds": []},
    ],
)
def test_looks_that_no_sweep_could_have_written_are_refused(tmp_path: Path, wrong: dict[str, Any]) -> None:
    fine = LooksRecord(metric="f1", margin=0.02, confidence=0.95, seeds=(0, 1), information=(0.5, 1.0))
    (tmp_path / "looks.json").write_text(json.dumps(json.loads(fine.model_dump_json()) | wrong))
    with pytest.raises(UserError, match=r"looks\.json: cannot be read as the looks of a sweep"):
        read_looks(tmp_path)
