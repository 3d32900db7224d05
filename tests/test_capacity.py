"""The capacity table before training: parameters of each rank against the completion tokens of the data."""

import io
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from howlow import load_settings as load
from howlow.analysis.capacity import capacity
from howlow.engine import model as models
from howlow.engine.adapter import matched_layers
from howlow.engine.references import locate
from howlow.jobs import AdapterSize, Sizes, SweepPrepared
from howlow.progress import Progress, size_lines
from howlow.settings import merge
from howlow.sweeping.sweep import dry_run

RANKS = st.lists(st.integers(1, 4096), min_size=1, max_size=6, unique=True)


@given(ranks=RANKS, a_rank=st.integers(1, 10**6), tokens=st.integers(1, 10**9))
def test_the_smallest_rank_that_has_a_parameter_for_each_token(ranks: list[int], a_rank: int, tokens: int) -> None:
    found = capacity(tokens, [(rank, rank * a_rank) for rank in ranks])
    enough = [rank for rank in sorted(ranks) if rank * a_rank >= tokens]
    assert found.sufficient_rank == (enough[0] if enough else None)
    least = found.smallest_rank
    assert least * a_rank >= tokens
    assert least == 1 or (least - 1) * a_rank < tokens


def lines_of(*sizes: tuple[int, int], tokens: int = 1000) -> list[str]:
    adapters = [AdapterSize(rank=rank, target_modules=("q_proj",), parameters=count) for rank, count in sizes]
    return list(size_lines(Sizes(completion_tokens=tokens, adapters=tuple(adapters))))


def test_the_table_says_that_it_is_a_rule_of_thumb() -> None:
    assert lines_of((1, 300), (16, 4800)) == [
        "capacity of adapters in q_proj, for 1,000 completion tokens of training data:",
        "  rank  1:   300 parameters, 0.300 a token",
        "  rank 16: 4,800 parameters, 4.80 a token",
        "  by a rule of thumb, one parameter a completion token: rank 16 suffices; lower ranks often do as well",
    ]
    assert "none of these ranks has one; rank 4 would" in lines_of((1, 300), (2, 600))[-1]


def test_each_choice_of_modules_has_its_table() -> None:
    adapters = [
        AdapterSize(rank=1, target_modules=names, parameters=count)
        for names, count in ((("q_proj",), 10), (("all-linear",), 90))
    ]
    lines = list(size_lines(Sizes(completion_tokens=50, adapters=tuple(adapters))))
    assert [line for line in lines if line.startswith("capacity")] == [
        "capacity of adapters in q_proj, for 50 completion tokens of training data:",
        "capacity of adapters in all-linear, for 50 completion tokens of training data:",
    ]


def test_it_is_shown_before_training() -> None:
    shown = io.StringIO()
    sizes = Sizes(completion_tokens=9, adapters=(AdapterSize(rank=2, target_modules=("q_proj",), parameters=18),))
    Progress(Console(file=shown, width=200)).on_event(SweepPrepared(total=1, done=0, sizes=(sizes,)))
    assert "rank 2: 18 parameters, 2.00 a token" in shown.getvalue()


@pytest.mark.slow
def test_a_dry_run_knows_the_sizes(tiny_table: dict[str, Any], tiny_model: Path, tmp_path: Path) -> None:
    changes = {"grid": {"lora.rank": [1, 4], "lora.target_modules": ["all-linear", ["q_proj"]]}}
    (found,) = dry_run(load(None, [merge(tiny_table, changes)])).preparations
    assert found.sizes is not None
    shapes = models.structure(models.load_config(locate(str(tiny_model)), None, False), False).linear_shapes
    for adapter in found.sizes.adapters:
        layers = matched_layers(shapes, adapter.target_modules)
        assert adapter.parameters == adapter.rank * sum(sum(shapes[name]) for name in layers)
    assert {adapter.target_modules for adapter in found.sizes.adapters} == {("all-linear",), ("q_proj",)}
    assert found.sizes.completion_tokens == found.report.data.train_completion_tokens
