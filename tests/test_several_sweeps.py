"""Several sweeps in one report: what is compared between them, what is not and why, and where the files go."""

import json
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_recommend import sweep as scored_sweep
from test_report import trial_of
from test_rows import DATA, ENVIRONMENT, write_trial

from howlow import cli
from howlow.analysis import compare, load_results
from howlow.analysis.columns import column_named
from howlow.analysis.one_table import named_sweeps
from howlow.errors import UserError
from howlow.records import LooksRecord, write_looks
from howlow.reporting import Report, write_report
from howlow.reporting.answer import answers
from howlow.reporting.asked import asked_facts
from howlow.reporting.figure import context_lines
from howlow.reporting.measured import environment_facts
from howlow.reporting.sweeps import apart_lines

H100 = ENVIRONMENT.model_copy(update={"device_name": "NVIDIA H100", "device_uuid": "GPU-9"})


def sweep_of(folder: Path, ranks: tuple[int, ...], **fields: Any) -> Path:
    trial_of(folder, None, 0.5, 0.2, kind="base", **fields)
    for rank in ranks:
        trial_of(folder, rank, 1.0 + rank / 10, 0.5 + rank / 1000, **fields)
    return folder


def run(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr("sys.argv", ["howlow", *arguments])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    return int(caught.value.code or 0)


def test_sweeps_measured_alike_are_one_curve_and_every_row_says_which_it_is_from(tmp_path: Path) -> None:
    folders = sweep_of(tmp_path / "small", (1, 4)), sweep_of(tmp_path / "large", (16, 64))
    results = load_results(*folders)
    assert results.apart == ()
    assert [(row["trial"], row["sweep"]) for row in results.rows] == [
        ("base-s0", "small"),
        ("r0001-s0", "small"),
        ("r0004-s0", "small"),
        ("r0016-s0", "large"),
        ("r0064-s0", "large"),
    ]
    comparison = compare(results)
    assert [reference.rank for reference in comparison.references] == [64]
    assert comparison.relative(results.rows[1], column_named("train_samples_per_s")) == pytest.approx(7.4 / 1.1)
    text = Report(comparison).table_text(200)
    assert "sweep" in text
    assert [line.split()[2] for line in text.splitlines() if line.strip()[:2].strip() in ("1", "16")] == [
        "small",
        "large",
    ]


def test_on_other_devices_quality_stands_together_and_costs_stay_within_each_sweep(tmp_path: Path) -> None:
    folders = sweep_of(tmp_path / "a100", (1, 16)), sweep_of(tmp_path / "h100", (1, 16), environment=H100)
    results = load_results(*folders)
    (line,) = apart_lines(results)
    assert line == (
        "Costs of h100 are not divided by those of a100: environment.device_name is 'NVIDIA H100' in h100/base-s0 and "
        "'NVIDIA A100-SXM4-80GB' in a100/base-s0 (also: environment.device_uuid)"
    )
    comparison = compare(results)
    assert [(group.rank, group.axes["sweep"]) for group in comparison.groups] == [
        (rank, sweep) for rank in (None, 1, 16) for sweep in ("a100", "h100")
    ]
    for row in results.rows:
        reference = comparison.reference_for(row)
        assert reference is not None
        assert {trial.row["sweep"] for trial in reference.group.trials} == {row["sweep"]}
    assert " ".join(line.split()) in " ".join(Report(comparison).table_text(120).split())


def test_sweeps_of_other_settings_are_two_curves(tmp_path: Path) -> None:
    faster = sweep_of(tmp_path / "faster", (1, 4), settings={"training.learning_rate": 1e-3})
    (line,) = apart_lines(load_results(sweep_of(tmp_path / "slow", (1, 4)), faster))
    assert line.startswith("Quality and costs of faster are not divided by those of slow: training.learning_rate is ")


def test_a_third_sweep_joins_the_one_that_it_can_be_compared_with(tmp_path: Path) -> None:
    sweep_of(tmp_path / "a", (1,)), sweep_of(tmp_path / "b", (1,), environment=H100), sweep_of(tmp_path / "c", (16,))
    results = load_results(tmp_path / "a", tmp_path / "b", tmp_path / "c")
    assert {(row["trial"], row["sweep"]) for row in results.rows if row["rank"]} == {
        ("a/r0001-s0", "a + c"),
        ("b/r0001-s0", "b"),
        ("c/r0016-s0", "a + c"),
    }
    assert {reference.axes["sweep"]: reference.rank for reference in compare(results).references} == {
        "a + c": 16,
        "b": 1,
    }
    assert [(one.sweep, one.other) for one in results.apart] == [("b", "a")]


def test_a_larger_rank_that_another_sweep_asked_for_is_not_missed(tmp_path: Path) -> None:
    sweep_of(tmp_path / "a", (1, 4)), sweep_of(tmp_path / "b", (1, 64), environment=H100)
    references = compare(load_results(tmp_path / "a", tmp_path / "b")).references
    assert [reference.requested_rank_missing for reference in references] == [(), ()]


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"data": DATA.model_copy(update={"test_sha256": "c" * 64})}, "data.test_sha256"),
        ({"data": DATA.model_copy(update={"train_sha256": "c" * 64})}, "data.train_sha256"),
        ({"settings": {"model": "other"}}, "model"),
    ],
)
def test_sweeps_of_other_data_or_another_model_are_refused_in_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    change: dict[str, Any],
    key: str,
) -> None:
    folders = [str(sweep_of(tmp_path / "a", (1,))), str(sweep_of(tmp_path / "b", (4,), **change))]
    assert run(["report", *folders], monkeypatch) == 2
    shown = capsys.readouterr()
    assert (shown.out, shown.err.count("\n")) == ("", 1)
    assert f"records differ in {key}: a/" in shown.err
    assert f"--accept-different {key} shows them together" in shown.err
    assert run(["report", *folders, "--json", "--accept-different", key], monkeypatch) == 0
    assert "quality_not_comparable" in capsys.readouterr().out


def test_a_sweep_that_mixes_what_quality_depends_on_is_refused_beside_another_one_too(tmp_path: Path) -> None:
    write_trial(tmp_path / "mixed", 1)
    write_trial(tmp_path / "mixed", 4, data=DATA.model_copy(update={"train_sha256": "c" * 64}))
    write_trial(tmp_path / "other", 16)
    with pytest.raises(UserError, match=r"records differ in data\.train_sha256: mixed/r0001-s0 has"):
        load_results(tmp_path / "other", tmp_path / "mixed")


def test_a_sweep_of_several_kinds_of_machine_is_one_table_beside_another_one_too(tmp_path: Path) -> None:
    write_trial(tmp_path / "mixed", 1)
    write_trial(tmp_path / "mixed", 4, environment=H100)
    write_trial(tmp_path / "other", 16)
    results = load_results(tmp_path / "other", tmp_path / "mixed")
    comparison, column = compare(results), column_named("train_samples_per_s")
    (row,) = [row for row in results.rows if row["rank"] == 4]
    assert comparison.relative(row, column) in (None, 1.0), "nothing of another kind of machine divides its costs"


# -- where files go -------------------------------------------------------------------------------------------------


def test_the_report_of_several_sweeps_goes_into_none_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [sweep_of(tmp_path / "a", (1,)), sweep_of(tmp_path / "b", (4,))]
    before = sorted(tmp_path.rglob("*"))
    assert run(["report", *map(str, folders), "--json"], monkeypatch) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["sweeps"] == {"a": str(folders[0]), "b": str(folders[1])}
    assert "add --out DIR" in shown.err
    with pytest.raises(UserError, match="needs a folder of its own"):
        write_report(folders)
    assert run(["report", *map(str, folders), "--export", "latex"], monkeypatch) == 2
    assert "--export latex: " in capsys.readouterr().err
    with pytest.raises(UserError, match="and this is one of them"):
        write_report(folders, folders[1] / ".." / "b")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_report_never_goes_into_the_folder_of_another_sweep(tmp_path: Path) -> None:
    sweep_of(tmp_path / "a", (1,)), sweep_of(tmp_path / "c", (4,))
    with pytest.raises(UserError, match="is the run directory of another sweep"):
        write_report([tmp_path / "a"], tmp_path / "c")
    assert not (tmp_path / "c" / "results.csv").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["a", "a/."], "is given twice"),
        (["a", "no_sweep"], "not a run directory"),
        (["a", "nothing"], "no such folder"),
        (["a", "file"], "no such folder"),
        (["a", "--out", "file"], "the report cannot be written"),
        (["a", "--out", " "], "--out is empty"),
        (["a", "--export", "pdf"], "--export pdf: one or more of csv, parquet, latex, markdown"),
    ],
)
def test_bad_input_is_one_clear_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    words: str,
) -> None:
    write_trial(tmp_path / "a", 1)
    (tmp_path / "no_sweep").mkdir()
    (tmp_path / "file").write_text("")
    monkeypatch.chdir(tmp_path)
    assert run(["report", *arguments], monkeypatch) == 2
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1
    assert words in shown


folder_names = st.lists(st.sampled_from("ab"), min_size=1, max_size=4).map(lambda parts: Path("/", *parts))


@given(st.lists(folder_names, min_size=1, max_size=6))
def test_sweeps_have_the_shortest_names_that_tell_them_apart(folders: list[Path]) -> None:
    found = named_sweeps(folders)
    assert set(found.values()) == {folder.resolve() for folder in folders}
    assert all(str(folder).endswith(name) for name, folder in found.items())
    longest = max(name.count("/") for name in found)
    shorter = {"/".join(folder.parts[1:][-longest:]) for folder in found.values()}
    assert longest == 0 or len(shorter) < len(found)


def test_the_page_names_what_every_sweep_ran_on(tmp_path: Path) -> None:
    small = sweep_of(tmp_path / "small", (1, 4))
    large = sweep_of(tmp_path / "large", (1, 64), environment=H100.model_copy(update={"driver": "999.1"}))
    comparison = compare(load_results(small, large))
    facts, environment = asked_facts(comparison), environment_facts(comparison)
    for device in (facts["device"], environment["device"]):
        assert f"{ENVIRONMENT.device_name} ({ENVIRONMENT.device}) (in small)" in device
        assert "NVIDIA H100 (cuda:0) (in large)" in device
    assert "999.1 (in large)" in environment["driver"]
    assert "in small" not in environment["Python"], "what is equal is said once"
    assert {ENVIRONMENT.device_name, "NVIDIA H100"} <= set(context_lines(comparison)[0].split(" · ")[-1].split(" and "))
    (alone,) = {asked_facts(compare(load_results(small)))["device"]}
    assert alone == f"{ENVIRONMENT.device_name} ({ENVIRONMENT.device})"


def test_a_setting_that_was_swept_has_all_its_values_on_the_page(tmp_path: Path) -> None:
    for rank, rate in product((1, 4), (1e-4, 5e-4)):
        trial_of(tmp_path, rank, 1.0, 0.5, axes={"training.learning_rate": rate})
    assert "learning rate 0.0001 or 0.0005" in asked_facts(compare(load_results(tmp_path)))["training"]


def test_the_answer_of_each_sweep_has_its_own_looks_and_commands(tmp_path: Path) -> None:
    """Of two sweeps that are compared apart, one was looked at; the other's bounds and commands are its own."""
    first, second = tmp_path / "first", tmp_path / "second"
    scored_sweep(first, {1: 0.5, 8: 0.51}, seeds=2, noise=0.3)
    scored_sweep(second, {1: 0.5, 8: 0.51}, seeds=2, noise=0.3, environment=H100)
    looks = LooksRecord(metric="f1", margin=0.02, confidence=0.95, seeds=(0, 1, 2), information=(0.6, 1.0))
    write_looks(first, looks)
    found = {one.setting: one for one in answers(compare(load_results(first, second))).found}
    assert found["sweep = first"].found.looks == looks
    assert found["sweep = second"].found.looks is None
    for name, folder in (("first", first), ("second", second)):
        commands = [one for one in found[f"sweep = {name}"].reasons if "howlow sweep" in one]
        assert commands
        assert all(str(folder) in one for one in commands)
