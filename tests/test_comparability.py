"""What must be equal before figures are compared: for quality, and for costs."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from test_records import ENVIRONMENT, record, refusal

from howlow import cli
from howlow.errors import UserError
from howlow.records import (
    EnergySource,
    Environment,
    Provenance,
    Record,
    Resolved,
    WarningKind,
    other_cards,
    refuse_other_machine,
    refuse_to_mix,
    write_record,
)
from howlow.records.comparability import refuse_changed

COUNTER = EnergySource(name="nvml counter", detail="GPU-1", devices=("GPU-1",))
WHOLE = {
    "device_uuid": "GPU-1",
    "driver": "560.1",
    "power_limit_w": 400.0,
    "governor": "performance",
    "variables": {},
    "switches": {"matmul_tf32": "False"},
    "code_sha256": "a" * 64,
}
DECIDED = Resolved(layout="shared", generation_layout="shared", attention_kernel="sdpa", precision="fp32", heap="kept")


def trial(name: str = "a", *, resolved: dict[str, Any] | None = None, **changes: Any) -> Record:
    """A trial of which everything is known."""
    environment = WHOLE | changes.pop("environment", {})
    decided = DECIDED.model_copy(update=resolved or {})
    data = {"answers_sha256": "ee", "model_sha256": "ff"} | changes.pop("data", {})
    return record(name, environment=environment, data=data, resolved=decided, **({"energy": COUNTER} | changes))


OF_QUALITY = [
    ({"data": {"train_sha256": "cc"}}, "data.train_sha256", "'aa'", "'cc'"),
    ({"data": {"test_sha256": "cc"}}, "data.test_sha256", "'bb'", "'cc'"),
    ({"data": {"answers_sha256": "cc"}}, "data.answers_sha256", "'ee'", "'cc'"),
    ({"data": {"model_sha256": "cc"}}, "data.model_sha256", "'ff'", "'cc'"),
    ({"model": {"weights": "random"}}, "model.weights", "'pretrained'", "'random'"),
    ({"resolved": {"precision": "bf16"}}, "resolved.precision", "'fp32'", "'bf16'"),
    ({"settings": {"training": {"learning_rate": 0.1}}}, "training.learning_rate", "5e-05", "0.1"),
    ({"settings": {"training": {"sequence_length": 64}}}, "training.sequence_length", "512", "64"),
    ({"settings": {"inference": {"max_new_tokens": 4}}}, "inference.max_new_tokens", "32", "4"),
]
OF_COSTS = [
    ({"resolved": {"heap": "bounded"}}, "resolved.heap", "'kept'", "'bounded'"),
    ({"resolved": {"layout": "padded"}}, "resolved.layout", "'shared'", "'padded'"),
    ({"resolved": {"attention_kernel": "flex"}}, "resolved.attention_kernel", "'sdpa'", "'flex'"),
    ({"energy": COUNTER.model_copy(update={"name": "nvidia-smi"})}, "energy.source", "'nvml counter'", "'nvidia-smi'"),
    ({"energy": COUNTER.model_copy(update={"devices": ("GPU-1", "GPU-2")})}, "energy.devices", "('GPU-1',)", ""),
    ({"environment": {"device_name": "H100"}}, "environment.device_name", "'A100'", "'H100'"),
    ({"environment": {"device_uuid": "GPU-2"}}, "environment.device_uuid", "'GPU-1'", "'GPU-2'"),
    ({"environment": {"driver": "570.2"}}, "environment.driver", "'560.1'", "'570.2'"),
    ({"environment": {"platform": "Linux-7"}}, "environment.platform", "'Linux'", "'Linux-7'"),
    ({"environment": {"power_limit_w": 250.0}}, "environment.power_limit_w", "400.0", "250.0"),
    ({"environment": {"governor": "powersave"}}, "environment.governor", "'performance'", "'powersave'"),
    ({"environment": {"cores": 4}}, "environment.cores", "2", "4"),
    ({"environment": {"versions": {"torch": "2.7"}}}, "environment.versions.torch", "'2.6'", "'2.7'"),
    ({"environment": {"variables": {"MKL_CBWR": "1"}}}, "environment.variables.MKL_CBWR", "None", "'1'"),
    ({"environment": {"switches": {"matmul_tf32": "True"}}}, "environment.switches.matmul_tf32", "'False'", "'True'"),
    ({"environment": {"code_sha256": "b" * 64}}, "environment.code_sha256", "a" * 12, "b" * 12),
    ({"environment": {"code_sha256": None}}, "environment.code_sha256", "a" * 12, "None"),
    ({"settings": {"run": {"cooldown_s": 9.0}}}, "run.cooldown_s", "0.0", "9.0"),
    ({"settings": {"run": {"memory_limit_bytes": 9}}}, "run.memory_limit_bytes", "None", "9"),
    ({"settings": {"meters": {"rate_hz": 9.0}}}, "meters.rate_hz", "4.0", "9.0"),
]


@pytest.mark.parametrize(("change", "key", "ours", "theirs"), OF_QUALITY, ids=[row[1] for row in OF_QUALITY])
def test_trials_that_differ_in_what_quality_depends_on_are_refused(
    change: dict[str, Any], key: str, ours: str, theirs: str
) -> None:
    trials = [trial("a"), trial("b"), trial("c", **change)]
    assert refusal(refuse_to_mix, trials) == (
        f"records differ in {key}: a has {ours}, c has {theirs}; figures measured differently are not compared; "
        f"--accept-different {key} compares them anyway, and marks the figures"
    )
    assert refusal(refuse_to_mix, trials, ["costs"]) == refusal(refuse_to_mix, trials)
    kinds = {warning.kind for difference in refuse_to_mix(trials, [key]) for warning in difference.warnings}
    assert WarningKind.QUALITY_NOT_COMPARABLE in kinds


@pytest.mark.parametrize(("change", "key", "ours", "theirs"), OF_COSTS, ids=[row[1] for row in OF_COSTS])
@pytest.mark.parametrize("kind", ["lora", "base"])
def test_trials_that_differ_in_what_costs_depend_on_are_refused_and_their_quality_may_be_compared(
    kind: str, change: dict[str, Any], key: str, ours: str, theirs: str
) -> None:
    trials = [trial("a"), trial("b"), trial("c", kind=kind, **change)]
    message = refusal(refuse_to_mix, trials)
    assert message.startswith(f"records differ in {key}: a has {ours}, c has {theirs}")
    assert message.endswith(
        "; costs measured differently are not compared; "
        "--accept-different costs compares their quality alone, and marks the costs"
    )
    for accepted in ("costs", key, key.rpartition(".")[0]):
        (difference,) = refuse_to_mix(trials, [accepted])
        assert (difference.key, difference.trial, difference.other) == (key, "c", "a")
        assert [warning.kind for warning in difference.warnings] == [WarningKind.COSTS_NOT_COMPARABLE]


def on_card(name: str, card: str, cards: tuple[str, ...] | None, number: int = 0) -> Record:
    """A trial that a card of a machine with these cards ran."""
    where = {"device": f"cuda:{number}", "device_uuid": card, "cards": cards}
    energy = COUNTER.model_copy(update={"devices": (f"cuda:{number}",)})
    return trial(name, environment=where, energy=energy)


def test_in_one_sweep_the_cards_of_one_machine_stand_in_one_table_and_are_named() -> None:
    both = ("GPU-1", "GPU-2")
    trials = [on_card("a", "GPU-1", both), on_card("b", "GPU-2", both, 1), on_card("c", "GPU-1", both)]
    assert refuse_to_mix(trials, is_one_sweep=True) == []
    ((name, warning),) = other_cards(trials)
    assert (name, warning.kind) == ("b", WarningKind.ANOTHER_CARD)
    assert warning.detail == "measured on GPU-2, most trials on GPU-1"
    assert other_cards(trials[::2]) == []
    message = refusal(refuse_to_mix, trials)
    assert message.startswith("records differ in environment.device_uuid: a has 'GPU-1', b has 'GPU-2'")
    first, second = (one.environment for one in trials[:2])
    assert first is not None
    assert second is not None
    refuse_other_machine(first, second, (), "out")
    refuse_changed(trials[0], Provenance.of(trials[1], trial="a"), (), "out")


@pytest.mark.parametrize("cards", [None, (), ("GPU-2",), ("GPU-2", "GPU-3")])
def test_cards_that_are_not_known_to_be_in_one_machine_are_refused(cards: tuple[str, ...] | None) -> None:
    trials = [on_card("a", "GPU-1", ("GPU-1",)), on_card("b", "GPU-2", cards)]
    assert "records differ in environment.device_uuid" in refusal(partial(refuse_to_mix, is_one_sweep=True), trials)
    first, second = (one.environment for one in trials)
    assert first is not None
    assert second is not None
    with pytest.raises(UserError, match=r"environment.device_uuid is 'GPU-2' here, 'GPU-1' in the sweep"):
        refuse_other_machine(first, second, (), "out")


def test_another_kind_of_card_in_the_same_machine_is_refused() -> None:
    both = ("GPU-1", "GPU-2")
    other = on_card("b", "GPU-2", both, 1)
    assert other.environment is not None
    unlike = other.model_copy(update={"environment": other.environment.model_copy(update={"device_name": "H100"})})
    message = refusal(partial(refuse_to_mix, is_one_sweep=True), [on_card("a", "GPU-1", both), unlike])
    assert message.startswith("records differ in environment.device_name: a has 'A100', b has 'H100'")


def test_a_difference_in_answers_is_none_of_the_costs() -> None:
    (difference,) = refuse_to_mix([trial("a"), trial("b", data={"answers_sha256": "cc"})], ["data.answers_sha256"])
    assert difference.figures == {"quality"}


def test_trials_measured_alike_are_compared() -> None:
    refuse_to_mix([])
    assert refuse_to_mix([trial("a"), trial("b", rank=4, seed=1, settings={"lora": {"rank": 4}, "seed": 1})]) == []
    refuse_to_mix([trial("a"), record("b", status="failed").model_copy(update={"environment": None, "data": None})])
    refuse_to_mix([record("a"), record("b")])


def test_what_affects_nothing_and_what_facts_tell_may_differ() -> None:
    changes = {"run": {"order_seed": 7, "device": "cuda:0"}, "training": {"checkpoint_every_s": 5.0}}
    refuse_to_mix([trial("a"), trial("b", settings=changes | {"task": {"train": "elsewhere"}})])


def test_what_was_asked_may_differ_where_the_same_was_decided() -> None:
    refuse_to_mix([trial("a"), trial("b", settings={"training": {"layout": "shared", "precision": "fp32"}})])


def test_the_zero_shot_baseline_is_free_of_what_only_training_depends_on() -> None:
    refuse_to_mix([trial("a"), trial("b", kind="base", settings={"training": {"learning_rate": 0.1, "epochs": 3}})])
    message = refusal(refuse_to_mix, [trial("a"), trial("b", kind="base", settings={"training": {"head": "all"}})])
    assert message.startswith("records differ in training.head: a has 'targets', b has 'all'")
    message = refusal(
        refuse_to_mix, [trial("a"), trial("b", kind="base", settings={"training": {"sequence_length": 64}})]
    )
    assert message.startswith("records differ in training.sequence_length: a has 512, b has 64")


@pytest.mark.parametrize(
    ("axis", "values", "change"),
    [
        ("training.sequence_length", (512, 64), {"data": {"test_sha256": "cc"}}),
        ("training.precision", ("fp32", "bf16"), {"resolved": {"precision": "bf16"}}),
        ("training.layout", ("shared", "padded"), {"resolved": {"layout": "padded", "attention_kernel": "own"}}),
        ("lora.dropout", (0.0, 0.1), {"resolved": {"layout": "packed"}}),
        ("model", ("m", "n"), {"model": {"reference": "n", "total_parameters": 3}, "data": {"model_sha256": "cc"}}),
        ("task.train_examples", (5, 6), {"data": {"train_sha256": "cc", "answers_sha256": "cc"}}),
        ("tokenizer", ("m", "n"), {"model": {"tokenizer": "n"}, "data": {"train_sha256": "cc"}}),
    ],
)
def test_what_follows_from_a_grid_axis_may_differ_and_nothing_else(
    axis: str, values: tuple[Any, Any], change: dict[str, Any]
) -> None:
    first, second = trial("a", axes={axis: values[0]}), trial("b", axes={axis: values[1]}, **change)
    assert refuse_to_mix([first, second]) == []
    elsewhere = trial("b", axes={axis: values[1]}, environment={"device_name": "H100"}, **change)
    assert "environment.device_name" in refusal(refuse_to_mix, [first, elsewhere])
    heap = trial("b", axes={axis: values[1]}, **change)
    heap = heap.model_copy(update={"resolved": heap.resolved.model_copy(update={"heap": "bounded"})})
    assert "resolved.heap" in refusal(refuse_to_mix, [first, heap])


def test_an_axis_excuses_only_what_follows_from_it() -> None:
    first = trial("a", axes={"training.learning_rate": 0.1})
    second = trial("b", axes={"training.learning_rate": 0.2}, data={"train_sha256": "cc"})
    assert "data.train_sha256" in refusal(refuse_to_mix, [first, second])
    first = trial("a", axes={"task.train_examples": 1})
    second = trial("b", axes={"task.train_examples": 2}, data={"model_sha256": "cc"})
    assert "data.model_sha256" in refusal(refuse_to_mix, [first, second])


def test_a_failed_record_in_front_hides_no_difference_behind_it() -> None:
    failed = record("a", status="failed").model_copy(update={"environment": None, "model": None, "data": None})
    message = refusal(refuse_to_mix, [failed, trial("b"), trial("c", environment={"device_name": "H100"})])
    assert message.startswith("records differ in environment.device_name: b has 'A100', c has 'H100'")


def test_the_trials_that_differ_from_most_are_the_ones_that_are_marked() -> None:
    trials = [trial("a", environment={"driver": "1"}), trial("b"), trial("c")]
    assert [(one.trial, one.value) for one in refuse_to_mix(trials, ["costs"])] == [("a", "1")]


def test_several_differences_are_named_with_all_the_flags_that_accept_them() -> None:
    other = trial("b", environment={"driver": "1", "cores": 9}, settings={"training": {"epochs": 2}})
    message = refusal(refuse_to_mix, [trial("a"), other])
    assert (
        "records differ in training.epochs: a has 1, b has 2 (also: environment.driver, environment.cores)" in message
    )
    assert "--accept-different training.epochs --accept-different costs compares them" in message
    refuse_to_mix([trial("a"), other], ["training.epochs", "costs"])


def test_an_unknown_key_lists_the_keys_that_differ() -> None:
    trials = [trial("a"), trial("b", environment={"driver": "1"})]
    assert refusal(refuse_to_mix, trials, ["environment.drvier"]) == (
        "--accept-different environment.drvier: there is no such key; the keys that differ are environment.driver"
    )
    message = refusal(refuse_to_mix, trials[:1], ["environment.drvier"])
    assert message.endswith("there is no such key; did you mean environment.driver?")
    assert refuse_to_mix(trials[:1], ["environment.driver", "environment.variables.X", "run", "costs"]) == []


def test_a_machine_joins_where_costs_can_be_compared() -> None:
    there = Environment(**ENVIRONMENT | WHOLE)
    refuse_other_machine(there, there, (), "DIR")
    here = there.model_copy(update={"driver": "1", "variables": {"OMP_NUM_THREADS": "1"}})
    assert refusal(refuse_other_machine, there, here, (), "DIR").startswith(
        "DIR: this machine cannot join: environment.driver is '1' here, '560.1' in the sweep "
        "(also: environment.variables.OMP_NUM_THREADS)"
    )
    refuse_other_machine(there, here, ["costs"], "DIR")


def test_the_command_line_compares_costs_of_two_sweeps_only_where_the_flag_says_so_and_marks_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for rank, driver in ((1, "560.1"), (2, "570.2")):
        folder = tmp_path / str(rank) / "trials" / f"r000{rank}-s0"
        folder.mkdir(parents=True)
        changes = {"settings": {"lora": {"rank": rank}}, "environment": {"driver": driver}}
        write_record(folder, trial(f"r000{rank}-s0", rank=rank, **changes))
    command = ["howlow", "report", str(tmp_path / "1"), str(tmp_path / "2"), "--json"]
    monkeypatch.setattr("sys.argv", command)
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert not caught.value.code
    document = json.loads(capsys.readouterr().out)
    (apart,) = document["apart"]
    assert (apart["sweep"], apart["other"]) == ("2", "1")
    assert [(one["key"], one["value"], one["other_value"]) for one in apart["differences"]] == [
        ("environment.driver", "570.2", "560.1")
    ]
    assert [group["reference"] for group in document["groups"]] == [["1/r0001-s0"], ["2/r0002-s0"]]
    monkeypatch.setattr("sys.argv", [*command, "--accept-different", "environment.driver"])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert not caught.value.code
    assert "costs_not_comparable" in capsys.readouterr().out


def test_an_axis_excuses_what_follows_from_it_only_between_its_values() -> None:
    def at(name: str, tokens: int, sha256: str) -> Record:
        axes, settings = {"inference.max_new_tokens": tokens}, {"inference": {"max_new_tokens": tokens}}
        return trial(name, axes=axes, settings=settings, data={"test_sha256": sha256})

    refuse_to_mix([at("a", 2, "cc"), at("b", 4, "dd")])
    with pytest.raises(UserError, match=r"records differ in data\.test_sha256"):
        refuse_to_mix([at("a", 2, "cc"), at("b", 2, "dd")])


def test_auto_that_no_fact_stands_for_is_a_value() -> None:
    with pytest.raises(UserError, match=r"records differ in meters\.burn_in_steps"):
        refuse_to_mix([trial("a"), trial("b", settings={"meters": {"burn_in_steps": "auto"}})])


def test_a_model_in_another_folder_is_the_same_where_its_weights_are() -> None:
    refuse_to_mix([trial("a"), trial("b", settings={"model": "/elsewhere"}, model={"reference": "/elsewhere"})])
