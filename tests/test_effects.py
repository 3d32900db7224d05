"""What each setting affects, and the keys that derive from it: a key changes with its effects and with nothing else."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from howlow import load_settings as load
from howlow.errors import UserError
from howlow.records import Provenance
from howlow.records.comparability import differing_settings
from howlow.records.identity import identity
from howlow.settings import (
    EFFECTS,
    Settings,
    batch_search_keys,
    concerns,
    effects,
    expand,
    keys_affecting,
    layout_key,
    merge,
    preparation_key,
    setting_keys,
)
from howlow.settings.checking import check_axis
from howlow.settings.fields import Section

SMALL: dict[str, Any] = {"model": "m", "task": {"name": "question_answering", "train": "a/b", "test": "c/d"}}
OTHER: dict[str, Any] = {
    "model": "n",
    "tokenizer": "t",
    "revision": "v1",
    "baselines": ("full",),
    "grid": {"seed": [5]},
    "task.name": "completion",
    "task.train": "e/f",
    "task.test": "e/f",
    "task.overlap": "keep",
    "task.unit": "window",
    "task.template": "chat",
    "task.stop": "END",
    "task.answerable_only": False,
    "task.general_text": "e/f",
    "lora.alpha": 3.0,
    "lora.scaling": "rank_stabilized",
    "lora.target_modules": ("v_proj",),
    "lora.dropout": 0.25,
    "lora.start": "/adapter",
    "training.layout": "padded",
    "training.shuffle": "examples",
    "training.betas": (0.5, 0.5),
    "training.lr_schedule": "cosine",
    "training.loss_on": "all",
    "training.head": "all",
    "training.precision": "bf16",
    "run.gemm_library": "blas",
    "inference.adapter": "merged",
    "meters.energy": "rapl",
    "meters.devices": ("package-0",),
    "run.device": "cuda",
    "run.executor": "elsewhere",
    "run.memory_margin": 0.5,
}
"""Another value of every setting that is no plain number or switch."""

KEYS = st.sampled_from(sorted(setting_keys()))


def changed(settings: Settings, key: str) -> Settings:
    """The settings with another value of one of them; what goes together is not checked."""
    value = settings.get(key)
    other = OTHER.get(
        key, not value if isinstance(value, bool) else (value if isinstance(value, int | float) else 0) + 7
    )
    table, _, name = key.rpartition(".")
    if not table:
        return settings.model_copy(update={name: other})
    return settings.model_copy(update={table: getattr(settings, table).model_copy(update={name: other})})


BEFORE = load(None, [SMALL])


def test_every_setting_says_what_it_affects_and_nothing_unknown() -> None:
    for declared in effects().values():
        assert declared <= set(EFFECTS)
    assert set(effects()) == set(setting_keys())


def test_a_field_without_effects_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    from howlow.settings import keys

    class Silent(Section):
        quiet: int = 1

    monkeypatch.setattr(keys, "Settings", Silent)
    effects.cache_clear()
    try:
        with pytest.raises(AssertionError, match="quiet declares no effects"):
            effects()
    finally:
        effects.cache_clear()


@given(KEYS)
def test_another_value_is_another_value(key: str) -> None:
    assert changed(BEFORE, key).get(key) != BEFORE.get(key)


def searched(setting: Any) -> Callable[[Settings], str]:
    return lambda settings: settings.digest(batch_search_keys(setting))


@pytest.mark.parametrize(
    ("derived", "affected"),
    [(preparation_key, {"data"}), (layout_key, {"data", "layout"})],
    ids=["preparation", "layout"],
)
@given(key=KEYS)
def test_a_key_changes_with_its_effects_and_with_nothing_else(
    derived: Callable[[Settings], str], affected: set[str], key: str
) -> None:
    assert (derived(changed(BEFORE, key)) != derived(BEFORE)) == bool(effects()[key] & affected)


@pytest.mark.parametrize("setting", ["training.batch_size", "inference.batch_size"])
@given(key=KEYS)
def test_a_search_depends_on_data_and_memory_but_not_on_rank_seed_and_batch(setting: Any, key: str) -> None:
    own = {"lora.rank", "seed", "training.batch_size", "inference.batch_size"}
    if setting == "training.batch_size":
        own |= {"inference.adapter"}
    depends = bool(effects()[key] & {"data", "memory"}) and key not in own
    assert (searched(setting)(changed(BEFORE, key)) != searched(setting)(BEFORE)) == depends


@given(KEYS, st.sampled_from(["lora", "full", "base", "shrunk"]))
def test_the_identity_changes_with_what_quality_and_costs_depend_on(key: str, kind: Any) -> None:
    # by hashes and the environment
    told = {"task.train", "task.test", "task.general_text", "run.device", "lora.start"}
    before, after = (
        identity(Provenance(trial="t", kind=kind, axes={}, settings=settings))
        for settings in (BEFORE, changed(BEFORE, key))
    )
    counts = concerns(kind, key) and key not in told
    assert (before.quality != after.quality) == (counts and bool(effects()[key] & {"data", "quality"}))
    costs = effects()[key] & {"data", "layout", "execution", "cost"}
    assert (before.costs != after.costs) == (counts and bool(costs))


@given(KEYS)
def test_a_sweep_is_another_one_where_a_setting_differs_that_affects_something(key: str) -> None:
    found = [difference.key for difference in differing_settings(BEFORE, changed(BEFORE, key))]
    told = {"task.train", "task.test", "run.device"}  # facts stand for a start, too, but not for there being none
    assert found == ([key] if effects()[key] and key not in told else [])


@given(KEYS)
def test_an_axis_affects_something_and_is_not_of_the_whole_sweep(key: str) -> None:
    may = bool(effects()[key]) and not key.startswith(("meters.", "run."))
    with nullcontext() if may else pytest.raises(UserError, match="cannot be an axis"):
        check_axis(key, [1])


@pytest.mark.parametrize(
    ("key", "of_base"),
    [
        ("training.learning_rate", False),
        ("lora.dropout", False),
        ("training.layout", True),
        ("training.sequence_length", True),
        ("training.precision", True),
        ("training.head", True),
        ("inference.max_new_tokens", True),
    ],
)
def test_the_baseline_runs_once_for_each_value_that_can_change_it(key: str, of_base: bool) -> None:
    values = {"training.layout": ["padded", "packed"], "training.precision": ["fp32", "bf16"]}
    values |= {"training.head": ["targets", "all"], "training.learning_rate": [0.1, 0.2], "lora.dropout": [0.0, 0.1]}
    settings = load(None, [merge(SMALL, {"grid": {key: values.get(key, [64, 128])}})])
    assert [plan.kind for plan in expand(settings)].count("base") == (2 if of_base else 1)


def test_keys_affecting_are_in_the_order_of_the_settings() -> None:
    order = list(setting_keys())
    found = keys_affecting("memory", "quality")
    assert list(found) == sorted(found, key=order.index)
