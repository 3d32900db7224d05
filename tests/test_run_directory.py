"""A folder is continued by its own sweep alone, on the same data and machine; a refusal writes nothing."""

import json
from pathlib import Path
from typing import Any

import pytest

import howlow
from howlow import load_settings as load
from howlow.errors import UserError
from howlow.records import (
    DataRecord,
    Environment,
    Provenance,
    Record,
    Resolved,
    read_record,
    run_directory,
    write_record,
)
from howlow.settings import Settings, expand, merge, to_toml
from howlow.sweeping.sweep import DryRun

ENVIRONMENT = Environment(
    device="cpu",
    device_name="Chip",
    cpu="Chip",
    cores=2,
    threads=2,
    memory_bytes=8,
    platform="Linux",
    python="3.11",
    versions={"howlow": "0.1.0", "torch": "2.9"},
)
DATA = DataRecord(
    train_sha256="a" * 64,
    test_sha256="b" * 64,
    train_examples=1,
    train_groups=1,
    test_examples=1,
    test_groups=1,
    train_tokens=1,
    test_tokens=1,
    longest_tokens=1,
    overlap_left_out=0,
    dropped=0,
    cut=0,
)
KEPT = Resolved(heap="kept")


@pytest.fixture
def settings(tiny_table: dict[str, Any]) -> Settings:
    return load(None, [tiny_table])


def changed(table: dict[str, Any], **changes: Any) -> Settings:
    return load(None, [merge(table, changes)])


def leave(folder: Path, settings: Settings, how: str, status: str = "done") -> None:
    """A record or a checkpoint of every adapter's trial."""
    for plan in expand(settings):
        if plan.kind != "lora":
            continue
        trial = folder / "trials" / plan.name
        trial.mkdir(parents=True)
        plain = {"kind": plan.kind, "axes": plan.axes, "settings": plan.settings}
        if how == "record":
            given: dict[str, Any] = {"rank": plan.rank, "seed": plan.seed, "status": status, "model": None}
            write_record(
                trial, Record(trial=plan.name, environment=ENVIRONMENT, data=DATA, resolved=KEPT, **plain, **given)
            )
        else:
            (trial / how).mkdir()
            identity = Provenance(trial=plan.name, data=DATA, environment=ENVIRONMENT, resolved=KEPT, **plain)
            document = {"identity": identity.model_dump(mode="json")}
            (trial / how / "state.json").write_text(json.dumps(document))


def left_behind(folder: Path) -> list[Provenance]:
    records = [read_record(trial) for trial in sorted((folder / "trials").iterdir())]
    return run_directory.left_behind(folder, {record.trial: record for record in records if record is not None})


HOWS = pytest.mark.parametrize("how", ["record", "checkpoint", "checkpoint.old"])


@HOWS
def test_the_same_sweep_with_more_values_goes_on(
    how: str, settings: Settings, tiny_table: dict[str, Any], tmp_path: Path
) -> None:
    leave(tmp_path, settings, how)
    found = left_behind(tmp_path)
    assert {one.trial for one in found} == {"r0001-s0", "r0004-s0"}
    more = changed(tiny_table, grid={"lora.rank": [1, 2, 4]}, baselines=["base", "full"])
    run_directory.refuse_other_settings(tmp_path, found, more)
    run_directory.refuse_changed_conditions(found, run_directory.Conditions(DATA, ENVIRONMENT, "kept"))


@HOWS
@pytest.mark.parametrize(
    ("data", "environment", "words"),
    [
        ({"train_sha256": "c" * 64}, {}, "data.train_sha256 was aaaaaaaaaaaa and is now cccccccccccc"),
        ({"test_sha256": "c" * 64}, {}, "data.test_sha256 was bbbbbbbbbbbb and is now cccccccccccc"),
        ({}, {"device_name": "GPU"}, "environment.device_name was 'Chip' and is now 'GPU'"),
        ({}, {"threads": 1}, "environment.threads was 2 and is now 1"),
        (
            {},
            {"versions": {"howlow": "0.1.0", "torch": "3.0"}},
            "environment.versions.torch was '2.9' and is now '3.0'",
        ),
        ({}, {"code_sha256": "d" * 64}, "environment.code_sha256 was None and is now dddddddddddd"),
    ],
)
def test_other_data_and_another_machine_are_refused(
    how: str, settings: Settings, tmp_path: Path, data: dict[str, Any], environment: dict[str, Any], words: str
) -> None:
    leave(tmp_path, settings, how)
    conditions = run_directory.Conditions(
        DATA.model_copy(update=data), ENVIRONMENT.model_copy(update=environment), "kept"
    )
    with pytest.raises(UserError) as caught:
        run_directory.refuse_changed_conditions(left_behind(tmp_path), conditions)
    assert words in str(caught.value)
    key = words.split()[0]
    run_directory.refuse_changed_conditions(left_behind(tmp_path), conditions, [key])


@HOWS
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"training": {"learning_rate": 0.1}}, "training.learning_rate was 0.001 and is now 0.1"),
        ({"grid": {"training.batch_size": [4, 8]}}, "grid axis training.batch_size was None and is now [4, 8]"),
    ],
)
def test_what_another_sweep_left_is_refused_also_without_its_settings(
    how: str, settings: Settings, tiny_table: dict[str, Any], tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    leave(tmp_path, settings, how)
    with pytest.raises(UserError, match=r"its trial r0001-s0 belongs to another sweep") as caught:
        run_directory.refuse_other_settings(tmp_path, left_behind(tmp_path), changed(tiny_table, **changes))
    assert words in str(caught.value)


@pytest.mark.parametrize("how", ["checkpoint", "checkpoint.old"])
def test_a_half_done_trial_is_not_finished_with_other_settings_or_data_whatever_is_accepted(
    how: str, settings: Settings, tiny_table: dict[str, Any], tmp_path: Path
) -> None:
    leave(tmp_path, settings, how)
    left, other = left_behind(tmp_path), changed(tiny_table, training={"learning_rate": 0.1})
    told = "is half done, with training.learning_rate = 0.001, and cannot go on with 0.1, whatever is accepted"
    with pytest.raises(UserError, match=told):
        run_directory.refuse_other_settings(tmp_path, left, other, ["training.learning_rate"])
    run_directory.refuse_other_settings(tmp_path, left, changed(tiny_table, run={"cooldown_s": 3.0}), ["costs"])
    names = [one.trial for one in left]
    data = run_directory.Conditions(DATA.model_copy(update={"train_sha256": "c" * 64}), ENVIRONMENT, "kept")
    with pytest.raises(UserError, match=r"is half done, with data\.train_sha256 = "):
        run_directory.refuse_changed_conditions(left, data, ["data"], half_done=names)
    machine = run_directory.Conditions(DATA, ENVIRONMENT.model_copy(update={"device_name": "GPU"}), "kept")
    run_directory.refuse_changed_conditions(left, machine, ["costs"], half_done=names)


def test_a_trial_that_is_done_may_stand_beside_other_settings_that_were_accepted(
    settings: Settings, tiny_table: dict[str, Any], tmp_path: Path
) -> None:
    leave(tmp_path, settings, "record")
    other = changed(tiny_table, training={"learning_rate": 0.1})
    run_directory.refuse_other_settings(tmp_path, left_behind(tmp_path), other, ["training.learning_rate"])


@HOWS
def test_a_heap_that_has_become_bounded_is_refused_and_may_be_accepted(
    how: str, settings: Settings, tmp_path: Path
) -> None:
    leave(tmp_path, settings, how)
    bounded = run_directory.Conditions(DATA, ENVIRONMENT, "bounded")
    with pytest.raises(
        UserError, match=r"resolved.heap was 'kept' and is now 'bounded'; give another folder, or --accept-different"
    ):
        run_directory.refuse_changed_conditions(left_behind(tmp_path), bounded)
    run_directory.refuse_changed_conditions(left_behind(tmp_path), bounded, ["costs"])


@HOWS
def test_what_affects_nothing_may_change(
    how: str, settings: Settings, tiny_table: dict[str, Any], tmp_path: Path
) -> None:
    leave(tmp_path, settings, how)
    (tmp_path / "sweep.toml").write_text(to_toml(settings))
    other = changed(tiny_table, run={"order_seed": 3}, training={"checkpoint_every_s": 5.0})
    assert run_directory.joined(tmp_path, other) == other
    run_directory.refuse_other_settings(tmp_path, left_behind(tmp_path), other)


def test_what_an_older_howlow_left_is_not_continued(settings: Settings, tmp_path: Path) -> None:
    leave(tmp_path, settings, "checkpoint")
    place = tmp_path / "trials/r0001-s0/checkpoint/state.json"
    identity = json.loads(place.read_text())["identity"]
    kept = ("kind", "axes", "settings", "data", "environment")
    place.write_text(json.dumps({"identity": {"is_bounded": False} | {key: identity[key] for key in kept}}))
    with pytest.raises(UserError, match=r"r0001-s0 was written by an older howlow \(schema 1; this one writes 2\)"):
        left_behind(tmp_path)


def test_a_setting_may_be_accepted_by_its_key_and_an_unknown_key_lists_those_that_differ(
    settings: Settings, tiny_table: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "sweep.toml").write_text(to_toml(settings))
    other = changed(tiny_table, run={"cooldown_s": 3.0})
    with pytest.raises(UserError, match=r"run.cooldown_s is 0.0 there and 3.0 now; .*--accept-different costs"):
        run_directory.joined(tmp_path, other)
    assert run_directory.joined(tmp_path, other, ["run.cooldown_s"]) == other
    with pytest.raises(UserError, match=r"--accept-different run.cool: .*the keys that differ are run.cooldown_s"):
        run_directory.joined(tmp_path, other, ["run.cool"])


def test_what_was_asked_stays_in_the_settings(settings: Settings, tmp_path: Path) -> None:
    leave(tmp_path, settings, "record")
    run_directory.refuse_other_settings(tmp_path, left_behind(tmp_path), settings)


@pytest.mark.parametrize("text", ["{", "{}", '{"identity": {"kind": "lora"}}'])
def test_a_checkpoint_that_cannot_be_read_is_named(settings: Settings, tmp_path: Path, text: str) -> None:
    leave(tmp_path, settings, "checkpoint")
    place = tmp_path / "trials/r0004-s0/checkpoint/state.json"
    place.write_text(text)
    with pytest.raises(UserError, match=f"{place}: cannot be read as a checkpoint"):
        left_behind(tmp_path)


# -- the door -------------------------------------------------------------------------------------------------------


def listed(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize("run", [howlow.sweep, howlow.dry_run])
def test_a_foreign_folder_is_refused_and_stays_as_it_is(run: Any, settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    (tmp_path / ".notes.tmp").write_text("")
    with pytest.raises(UserError, match=r"holds other files \(.notes.tmp\) and no sweep"):
        run(settings, tmp_path)
    assert listed(tmp_path) == [".notes.tmp", "thesis.tex"]


def test_a_report_without_its_sweep_is_not_foreign(settings: Settings, tmp_path: Path) -> None:
    leave(tmp_path, settings, "record")
    (tmp_path / "results.csv").write_text("")
    run_directory.refuse_foreign(tmp_path)


@pytest.mark.parametrize("run", [howlow.sweep, howlow.dry_run])
def test_a_file_in_the_way_and_an_empty_name_are_refused(run: Any, settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="a file stands in the way"):
        run(settings, tmp_path / "file")
    with pytest.raises(UserError, match="--out is empty"):
        run(settings, "")


@pytest.mark.parametrize("run", [howlow.sweep, howlow.dry_run])
def test_a_folder_of_another_sweep_is_refused(
    run: Any, settings: Settings, tiny_table: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "sweep.toml").write_text(to_toml(settings))
    other = changed(tiny_table, training={"epochs": 3})
    with pytest.raises(UserError, match=r"training.epochs is 1 there and 3 now"):
        run(other, tmp_path)


def test_a_dry_run_tells_finished_trials_from_failed_ones_and_honours_retry(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(howlow.dry_run.__globals__, "prepare_all", lambda *_, **__: {})
    monkeypatch.setitem(howlow.dry_run.__globals__, "choose_layouts", lambda *_, **__: {})
    monkeypatch.setitem(howlow.dry_run.__globals__, "foretell", lambda *_, **__: ())
    leave(tmp_path, settings, "record", status="failed")
    before = listed(tmp_path)
    found: DryRun = howlow.dry_run(settings, tmp_path)
    assert found.ended == {"r0001-s0": "failed", "r0004-s0": "failed"}
    assert found.to_run == ("base-s0",)
    again = howlow.dry_run(settings, tmp_path, retry=["failed"])
    assert again.ended == {}
    assert set(again.to_run) == {"base-s0", "r0001-s0", "r0004-s0"}
    assert listed(tmp_path) == before


@pytest.mark.slow
@pytest.mark.parametrize("run", [howlow.sweep, howlow.dry_run])
def test_an_interrupted_trial_does_not_go_on_with_other_data(run: Any, settings: Settings, tmp_path: Path) -> None:
    leave(tmp_path, settings, "checkpoint")
    with pytest.raises(UserError, match=r"the data has changed since r0001-s0 was measured: data.train_sha256"):
        run(settings, tmp_path)
    assert not (tmp_path / "trials/r0001-s0/record.json").exists()
