"""Settings: defaults as the design gives them, one clear line for each mistake, and the way to TOML and back."""

import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from howlow import load_settings
from howlow import settings as asked
from howlow.engine.adapter import matched_layers
from howlow.errors import UserError
from howlow.records.comparability import differing_settings
from howlow.tasks import task_rules

SMALL: dict[str, Any] = {"model": "m", "task": {"name": "question_answering", "train": "a/b", "test": "c/d"}}


def load(**changes: Any) -> asked.Settings:
    return load_settings(None, [asked.merge(SMALL, changes)])


def test_a_digest_is_that_of_the_settings_it_names_and_of_what_is_beside_them() -> None:
    keys = ("task", "lora.rank")
    one = load().digest(keys)
    assert (len(one), one) == (16, load(training={"batch_size": 3}).digest(keys))
    changed = [load(lora={"rank": 3}).digest(keys), load(task={"train": "other"}).digest(keys)]
    beside = [load().digest(keys, seed=1), load().digest(keys, seed=2), load().digest(keys, beside={"seed": 1})]
    assert len({one, *changed, *beside}) == 6


def test_the_defaults_are_those_of_the_paper_and_the_design() -> None:
    found = load()
    assert found.lora.target_modules == ("q_proj", "k_proj", "v_proj", "o_proj")
    assert (found.lora.alpha, found.lora.alpha_value, found.lora.scaling_factor) == (32, 32, 4)
    assert found.training.learning_rate == 5e-5
    assert found.training.sequence_length == 512
    assert found.training.betas == (0.9, 0.999)
    assert found.training.shuffle == "groups"
    assert found.inference.max_new_tokens == 32
    assert found.meters.rate_hz == 4
    assert found.baselines == ("base",)
    assert (found.task.stop, found.task.answerable_only, found.task.overlap) == ("\n", True, "exclude")
    assert found.grid == {"lora.rank": [8], "seed": [0]}


def test_all_linear_is_one_value_however_it_is_written() -> None:
    for written in ("all-linear", ["all-linear"]):
        found = load_settings(None, [asked.merge(SMALL, {"lora": {"target_modules": written}})])
        assert found.lora.target_modules == ("all-linear",)
        again = asked.resolve(tomllib.loads(asked.to_toml(found)), None)
        assert again == found
    axis = {"grid": {"lora.target_modules": ["all-linear", ["q_proj"]]}}
    plans = asked.expand(load_settings(None, [asked.merge(SMALL, axis)]))
    assert [plan.settings.lora.target_modules for plan in plans if plan.kind == "lora"] == [
        ("all-linear",),
        ("q_proj",),
    ]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"lora": {"alpha": "r2"}}, ["lora.alpha 'r2'", "2r"]),
        ({"lora": {"alpha": -1.0}}, ["greater than 0"]),
        ({"lora": {"rank": True}}, ["lora.rank = True", "integer"]),
        ({"training": {"betas": [0.9, 1.0]}}, ["training.betas"]),
        (
            {"lora": {"target_modules": "q_proj"}},
            ["lora.target_modules = 'q_proj'", "at least one name is expected (the ends", 'or "all-linear"'],
        ),
        ({"lora": {"target_modules": ["all-linear", "q_proj"]}}, ['"all-linear" already takes q_proj; give it alone']),
        ({"training": {"batch_size": "most"}}, ["training.batch_size = 'most'", 'a whole number or "max" is expected']),
        ({"inference": {"batch_size": 1.5}}, ["inference.batch_size = 1.5", 'a whole number or "max" is expected']),
        ({"training": {"layout": "shared"}, "lora": {"dropout": 0.1}}, ["lora.dropout", "packed"]),
        ({"training": {"layout": "rolled"}}, ["training.layout = 'rolled'", "padded"]),
        ({"training": {"learning_rate": float("nan")}}, ["training.learning_rate"]),
        ({"task": {"unit": "window"}}, ["task.unit", "language_modeling"]),
        ({"task": {"unit": "window"}}, ["task.unit belongs to the task language_modeling, not to question_answering"]),
        ({"task": {"template": "no places"}}, ["task.template", "{context}"]),
        (
            {"task": {"template": "{context}{question}{question}"}},
            ["task.template must hold {question} exactly once"],
        ),
        (
            {"task": {"name": "translation"}},
            ["task.name = 'translation'", "the tasks are: completion, language_modeling, question_answering"],
        ),
        (
            {"task": {"name": "language_modeling", "stop": "x"}},
            [
                "task.stop belongs to the task completion, question_answering and summarization, not to "
                "language_modeling"
            ],
        ),
        ({"task": {"name": ""}}, ["task.name"]),
        ({"grid": {"task.name": ["completion"]}}, ["grid axis task.name: a sweep has one task"]),
        ({"grid": {"task.unit": ["window"]}}, ["task.unit", "leave it out"]),
        ({"task": {"train_examples": 0}}, ["task.train_examples = 0"]),
        ({"meters": {"energy": "assumed"}}, ["meters.assumed_power_w"]),
        ({"meters": {"rate_hz": 100.0}}, ["meters.rate_hz = 100.0", "50"]),
        ({"run": {"device": "tpu"}}, ["run.device = 'tpu'"]),
        ({"run": {"device": "cuda:99999999999999999999"}}, ["run.device = 'cuda:99999999999999999999'"]),
        (
            {"run": {"memory_limit_bytes": 2**63}},
            ["run.memory_limit_bytes = 9223372036854775808", "9223372036854775807"],
        ),
        ({"rank": 3}, ["unknown setting rank", "lora.rank"]),
        ({"trainig": {"epochs": 3}}, ["unknown setting trainig", "training"]),
        ({"lora": 3}, ["lora"]),
        ({"grid": {"lora.rnk": [1]}}, ["unknown setting lora.rnk", "lora.rank"]),
        ({"grid": {"lora.rank": []}}, ["lora.rank = []", "at least one"]),
        ({"grid": {"lora.rank": [0]}}, ["lora.rank = 0"]),
        ({"grid": {"run.device": ["cpu"]}}, ["run.device", "cannot be an axis"]),
        ({"grid": 3}, ["grid = 3"]),
    ],
)
def test_a_wrong_value_is_one_line_with_the_setting_and_the_rule(changes: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        load(**changes)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_ranks_are_powers_of_two_between_or_a_list() -> None:
    assert asked.parse_ranks("1..2048") == [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048]
    assert asked.parse_ranks("3..9") == [4, 8]
    assert asked.parse_ranks("1, 8,64") == [1, 8, 64]


@pytest.mark.parametrize("text", ["0", "-1", "1..0", "0..4", "5..7", "x", "1.5", "", "1,,2"])
def test_other_ranks_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="--ranks"):
        asked.parse_ranks(text)


def test_assignments_are_toml_and_a_bare_word_is_a_string() -> None:
    assert asked.parse_assignment("lora.alpha=2r") == {"lora": {"alpha": "2r"}}
    assert asked.parse_assignment("training.epochs=3") == {"training": {"epochs": 3}}
    assert asked.parse_assignment('grid."training.batch_size"=["max",1]') == {
        "grid": {"training.batch_size": ["max", 1]}
    }
    for wrong in ("x", "=3", "a=[1", 'a="b', "a b=3"):
        with pytest.raises(UserError, match="--set"):
            asked.parse_assignment(wrong)


def test_later_sources_win_and_a_plain_value_replaces_an_axis(tmp_path: Path) -> None:
    path = tmp_path / "s.toml"
    path.write_text('model="m"\n[grid]\n"lora.rank"=[1,2]\n[task]\nname="completion"\ntrain="a/b"\ntest="c/d"\n')
    assert load_settings(str(path)).grid["lora.rank"] == [1, 2]
    found = load_settings(str(path), [{"lora": {"rank": 5}}, {"model": "n"}])
    assert found.grid["lora.rank"] == [5]
    assert found.model == "n"


@given(
    st.lists(st.integers(1, 4096), min_size=1, max_size=4),
    st.floats(1e-9, 1.0),
    st.text(max_size=8),
    st.sampled_from(["2r", "0.5r", 16.0]),
)
def test_written_settings_give_the_same_sweep(ranks: list[int], rate: float, stop: str, alpha: Any) -> None:
    changes = {
        "grid": {"lora.rank": ranks, "training.batch_size": [1, 2]},
        "training": {"learning_rate": rate},
        "task": {"stop": stop},
        "lora": {"alpha": alpha},
    }
    found = load(**changes)
    assert asked.resolve(tomllib.loads(asked.to_toml(found)), task_rules()) == found


def test_every_setting_is_written_out_or_named_as_absent() -> None:
    text = asked.to_toml(load())
    for key in asked.setting_keys():
        name = key.rpartition(".")[2]
        assert name in text


def test_the_grid_expands_with_baselines_that_do_not_repeat() -> None:
    grid = {"lora.rank": [1, 8], "seed": [0, 1], "training.batch_size": [2, 4]}
    plans = asked.expand(load(grid=grid, baselines=["base", "full"]))
    names = [plan.name for plan in plans]
    assert len(set(names)) == len(names) == 1 + 4 + 8
    assert names[0] == "base-s0"
    assert "full-s1-training.batch_size=4" in names
    assert "r0008-s1-training.batch_size=2" in names
    plan = next(plan for plan in plans if plan.name == "r0008-s1-training.batch_size=2")
    assert (plan.settings.lora.rank, plan.settings.seed, plan.settings.training.batch_size) == (8, 1, 2)


def test_names_of_trials_are_safe_as_folders() -> None:
    long = ["/a/very/long/path/with spaces/and/more/than/forty/characters", "b/../c"]
    for plan in asked.expand(load(grid={"model": long})):
        assert "/" not in plan.name
        assert len(plan.name) < 120
    assert len({plan.name for plan in asked.expand(load(grid={"model": long}))}) == 4


def test_two_sweeps_differ_in_their_settings_and_grid_values_may_be_added() -> None:
    one, other = load(grid={"lora.rank": [1]}), load(grid={"lora.rank": [1, 2]})
    assert differing_settings(one, other, one.grid) == []
    assert asked.united(one, other).grid["lora.rank"] == [1, 2]
    (difference,) = differing_settings(one, load(seed=0, training={"epochs": 2}), one.grid)
    assert (difference.key, difference.other_value, difference.value) == ("training.epochs", 1, 2)


@pytest.mark.parametrize("name", ["demo", "paper-squad", "paper-wikitext2"])
def test_presets_load(name: str) -> None:
    found = load_settings(name)
    assert found.lora.target_modules == ("q_proj", "k_proj", "v_proj", "o_proj")
    if name.startswith("paper"):
        assert found.model == "meta-llama/Llama-3.1-8B"
        assert found.grid["lora.rank"] == [1 << power for power in range(12)]
        assert (found.training.precision, found.training.head, found.training.layout) == (
            "fp16-autocast",
            "all",
            "padded",
        )
    else:
        assert Path(found.task.train).is_file()


def test_the_papers_adapter_sizes() -> None:
    from howlow.engine import model as models
    from howlow.engine.references import locate

    reference = locate("llama-3.1-8b", random_weights=True)
    found = models.structure(models.load_config(reference, None, False), False)
    assert found.total_parameters == 8_030_261_248
    layers = matched_layers(found.linear_shapes, ["q_proj", "k_proj", "v_proj", "o_proj"])
    assert sum(sum(found.linear_shapes[name]) for name in layers) == 851_968


@pytest.mark.parametrize("name", ["llama-3.2-1b", "mistral-7b-v0.3", "qwen2.5-7b"])
def test_known_configs_build(name: str) -> None:
    from howlow.engine import model as models
    from howlow.engine.references import locate

    billions = {"llama-3.2-1b": 1.24, "mistral-7b-v0.3": 7.25, "qwen2.5-7b": 7.62}[name]
    found = models.structure(models.load_config(locate(name, random_weights=True), None, False), False)
    assert found.total_parameters / 1e9 == pytest.approx(billions, abs=0.01)


# -- what once went wrong -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "values"), [("model", ["m", "n"]), ("task.train", ["a/b", "a/c"]), ("lora.rank", [1, 2]), ("seed", [3])]
)
def test_a_setting_that_is_also_an_axis_is_read_back(key: str, values: list[Any]) -> None:
    found = load(grid={key: values}, lora={"rank": 16}, seed=5)
    assert asked.resolve(tomllib.loads(asked.to_toml(found)), task_rules()) == found


@given(st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs"))).map(lambda word: f"w{word}"))
def test_any_bare_word_is_a_string(word: str) -> None:
    assert asked.parse_assignment(f"task.train={word}") == {"task": {"train": word.strip()}}


@pytest.mark.parametrize("text", ["0..8", "-4..8"])
def test_a_span_of_ranks_below_one_says_that_a_rank_is_at_least_one(text: str) -> None:
    with pytest.raises(UserError, match="at least 1"):
        asked.parse_ranks(text)


@pytest.mark.parametrize(
    ("changes", "wrong"),
    [
        ({"training": {"betas": [0.9]}}, "is missing"),
        ({"lora": 3}, "did you mean lora?"),
        ({"task": 3}, "did you mean task?"),
    ],
)
def test_a_message_does_not_mislead(changes: dict[str, Any], wrong: str) -> None:
    with pytest.raises(UserError) as caught:
        load(**changes)
    assert wrong not in str(caught.value)


@pytest.mark.parametrize("key", ["model", "tokenizer", "task.train", "task.test"])
def test_an_empty_name_is_refused_and_not_the_current_folder(key: str) -> None:
    table, _, name = key.rpartition(".")
    with pytest.raises(UserError, match=f"{key} = '': a name is expected"):
        load(**({table: {name: ""}} if table else {name: ""}))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"training": {"betas": [0.9]}}, "training.betas = [0.9]: two numbers are expected"),
        ({"training": {"betas": [0.9, 0.9, 0.9]}}, "training.betas = [0.9, 0.9, 0.9]: two numbers are expected"),
        ({"training": {"betas": 0.9}}, "training.betas = 0.9: two numbers are expected"),
        ({"lora": {"target_modules": []}}, "lora.target_modules = []: a list with at least one name is expected"),
        ({"meters": {"devices": []}}, "meters.devices = []: a list with at least one name is expected"),
        ({"meters": {"devices": "GPU-1"}}, "meters.devices = 'GPU-1': a list with at least one name is expected"),
        ({"run": {"device": "tpu"}}, "run.device = 'tpu': auto, cpu, mps, cuda, cuda:N or a GPU's UUID is expected"),
    ],
)
def test_lengths_and_patterns_are_told_in_the_users_words(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as caught:
        load(**changes)
    assert str(caught.value).startswith(words)


@pytest.mark.parametrize("key", ["seed", "task.seed", "run.order_seed"])
def test_a_seed_is_one_that_torch_takes(key: str) -> None:
    import torch

    table, _, name = key.rpartition(".")
    largest = 2**63 - 1
    torch.manual_seed(largest)
    assert load(**({table: {name: largest}} if table else {name: largest})).get(key) == largest
    with pytest.raises(UserError, match=f"{key} = 9223372036854775808"):
        load(**({table: {name: largest + 1}} if table else {name: largest + 1}))


def test_the_values_of_an_axis_are_checked_before_equal_ones_are_dropped() -> None:
    with pytest.raises(UserError, match=r"lora\.rank = True"):
        load(grid={"lora.rank": [1, True]})
    assert load(grid={"training.learning_rate": [1, 1.0]}).grid["training.learning_rate"] == [1]
    with pytest.raises(UserError, match=r"grid\.seed = 3: a list with at least one value is expected"):
        load(grid={"seed": 3})


def test_a_step_is_never_smaller_than_a_batch() -> None:
    with pytest.raises(UserError, match=r"effective_batch_size = 4 is less than training\.batch_size = 8") as caught:
        load(training={"effective_batch_size": 4})
    assert "lower training.batch_size to 4" in str(caught.value)
    assert load(training={"effective_batch_size": 12}).training.effective_batch_size == 12
    few = {"training": {"effective_batch_size": 4}, "grid": {"training.batch_size": [1, 3]}}
    assert len(asked.expand(load(**few))) == 3, "the default batch, which no trial trains with, does not count"
    with pytest.raises(UserError, match=r"trial r0008-s0-training\.batch_size=8"):
        load(training={"effective_batch_size": 4}, grid={"training.batch_size": [1, 8]})


def test_the_largest_batch_is_asked_for_by_its_name_also_in_the_grid() -> None:
    found = load(training={"effective_batch_size": 4}, grid={"training.batch_size": ["max", 1]})
    names = [plan.name for plan in asked.expand(found) if plan.kind == "lora"]
    assert names == ["r0008-s0-training.batch_size=max", "r0008-s0-training.batch_size=1"]
    assert load(inference={"batch_size": "max"}).inference.batch_size == "max"
