"""The order of training: every example once an epoch, full steps, groups kept together, seeds."""

from collections import Counter
from itertools import chain, groupby
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from howlow.engine.order import epoch_order, steps

Shuffle = Literal["groups", "examples"]
GROUPS = st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=40)
SHUFFLES = st.sampled_from(["groups", "examples"])


@given(GROUPS, SHUFFLES, st.integers(0, 99), st.integers(1, 4), st.integers(1, 9))
def test_every_example_once_an_epoch_and_every_step_full_but_its_last(
    groups: list[str], shuffle: Shuffle, seed: int, epochs: int, batch_size: int
):
    found = steps(groups, shuffle, seed, epochs, batch_size)
    an_epoch = -(-len(groups) // batch_size)
    assert len(found) == epochs * an_epoch
    for epoch in range(epochs):
        own = found[epoch * an_epoch : (epoch + 1) * an_epoch]
        assert sorted(chain.from_iterable(own)) == list(range(len(groups)))
        assert {len(step) for step in own[:-1]} <= {batch_size}
        assert len(own[-1]) == len(groups) - batch_size * (an_epoch - 1)


@given(GROUPS, st.integers(0, 99), st.integers(0, 3))
def test_groups_stay_together_and_their_examples_in_order(groups: list[str], seed: int, epoch: int):
    order = epoch_order(groups, "groups", seed, epoch)
    runs = [(group, list(run)) for group, run in groupby(order, key=lambda index: groups[index])]
    assert len(runs) == len(set(groups))
    assert all(run == sorted(run) for _, run in runs)


@given(GROUPS, SHUFFLES, st.integers(0, 99), st.integers(1, 9), st.integers(1, 30))
def test_max_steps_cuts_the_same_schedule(
    groups: list[str], shuffle: Shuffle, seed: int, batch_size: int, max_steps: int
):
    whole = steps(groups, shuffle, seed, 3, batch_size)
    assert steps(groups, shuffle, seed, 3, batch_size, max_steps) == whole[:max_steps]


@given(GROUPS, st.integers(0, 99))
def test_examples_without_company_are_ordered_the_same_in_both_ways(groups: list[str], seed: int):
    alone = [str(index) for index in range(len(groups))]
    assert epoch_order(alone, "groups", seed, 0) == epoch_order(alone, "examples", seed, 0)


@pytest.mark.parametrize("shuffle", ["groups", "examples"])
def test_the_order_is_seeded_and_new_in_every_epoch(shuffle: Shuffle):
    groups = [str(index // 2) for index in range(40)]
    orders = {(seed, epoch): epoch_order(groups, shuffle, seed, epoch) for seed in range(3) for epoch in range(3)}
    assert Counter(map(tuple, orders.values())).most_common(1)[0][1] == 1
    assert orders[2, 1] == epoch_order(groups, shuffle, 2, 1)
    first_two = steps(groups, shuffle, 2, 2, 40)
    assert first_two == [orders[2, 0], orders[2, 1]]


def test_the_order_stays_what_it_was():
    """Checked values: a change would make old sweeps impossible to go on with."""
    groups = [str(index // 2) for index in range(10)]
    assert epoch_order(groups, "groups", 0, 0) == [0, 1, 8, 9, 6, 7, 2, 3, 4, 5]
    assert epoch_order(groups, "examples", 0, 0) == [9, 6, 4, 0, 1, 7, 2, 3, 8, 5]
