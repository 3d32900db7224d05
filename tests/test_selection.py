"""Limits and the promise that nothing of the test is trained on."""

import re
from itertools import groupby

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from howlow.errors import UserError
from howlow.settings import TaskSettings
from howlow.tasks import Example, select


def settings(**values):
    return TaskSettings(name="completion", train="a.jsonl", test="b.jsonl", **values)


def example(identity, group, key=None):
    return Example(str(identity), str(group), "", "", f"p{group}", "c", ("c",), (str(group) if key is None else key,))


def examples(groups, side=""):
    return [example(f"{side}{number}", group) for number, group in enumerate(groups)]


def ids(chosen):
    return [one.id for one in chosen]


def keys(chosen):
    return {" ".join(key.split()) for one in chosen for key in one.overlap_keys}


groups = st.lists(st.integers(0, 12), min_size=1, max_size=40)
limits = st.none() | st.integers(1, 50)


@given(groups, groups, limits, limits, st.integers(0, 5))
def test_nothing_of_the_test_data_is_trained_on(train_groups, test_groups, train_limit, test_limit, seed):
    train, test = examples(train_groups, "a"), examples(test_groups, "b")
    remaining = [one for one in train if not keys([one]) & keys(test)]
    assume(remaining)
    task = settings(train_examples=train_limit, test_examples=test_limit, seed=seed)
    selection = select(train, test, task)
    assert not keys(selection.train) & keys(test)
    assert len(selection.train) == min(len(remaining), train_limit or len(remaining))
    assert len(selection.test) == min(len(test), test_limit or len(test))
    assert selection.overlap_left_out == len(train) - len(remaining)
    assert selection.overlap_groups == len(set(train_groups) & set(test_groups))
    assert select(train, test, task) == selection
    assert select(train, test, settings(train_examples=train_limit, seed=seed)).train == selection.train


@given(groups, limits, st.integers(1, 20), st.integers(0, 5))
def test_the_same_data_on_both_sides_is_divided(numbers, train_limit, test_limit, seed):
    data = examples(numbers)
    task = settings(train_examples=train_limit, test_examples=test_limit, seed=seed)
    tested = select(data, data, task.model_copy(update={"overlap": "keep"})).test
    if {one.group for one in tested} == {one.group for one in data}:
        with pytest.raises(UserError, match="leaves none of the"):
            select(data, data, task)
        return
    selection = select(data, data, task)
    assert selection.test == tested
    assert not keys(selection.train) & keys(selection.test)
    assert len(selection.test) == min(test_limit, len(data))
    test_groups = {one.group for one in selection.test}
    assert selection.overlap_groups == len(test_groups)
    assert selection.overlap_left_out == sum(one.group in test_groups for one in data)


@given(groups, st.integers(1, 30))
def test_a_limit_takes_whole_groups_and_cuts_only_the_last(numbers, limit):
    train = examples(numbers)
    everything = select(train, [example("t", "other")], settings()).train
    assert select(train, [example("t", "other")], settings(train_examples=limit)).train == everything[:limit]
    order = [group for group, _ in groupby(one.group for one in everything)]
    assert len(order) == len(set(numbers))
    for group in order:
        inside = [one.id for one in everything if one.group == group]
        assert inside == [one.id for one in train if one.group == group]


def test_the_seed_orders_the_groups():
    train, test = examples(range(30)), [example("t", "other")]
    orders = {tuple(ids(select(train, test, settings(seed=seed)).train)) for seed in range(4)}
    assert len(orders) == 4
    assert ids(select(train, test, settings(seed=0)).train)[:6] == GOLDEN


# The order is part of what makes sweeps comparable: a change here is a change of every user's data.
GOLDEN = ["5", "28", "18", "0", "6", "10"]


def test_white_space_does_not_hide_an_overlap():
    train = [example("a", 1, key="The  fox\njumps. "), example("b", 2)]
    selection = select(train, [example("t", 3, key="The fox jumps.")], settings())
    assert (ids(selection.train), selection.overlap_left_out, selection.overlap_groups) == (["b"], 1, 1)


def test_a_group_that_shares_a_key_with_a_selected_test_group_is_not_trained_on():
    data = [example(number, number, key="same" if number < 5 else None) for number in range(6)]
    for seed in range(6):
        selection = select(data, data, settings(test_examples=1, seed=seed))
        assert not keys(selection.train) & keys(selection.test)


def test_overlap_can_be_kept():
    data = examples([1, 1, 2])
    selection = select(data, data, settings(overlap="keep"))
    assert (len(selection.train), len(selection.test)) == (3, 3)
    assert (selection.overlap_left_out, selection.overlap_groups) == (0, 0)


@pytest.mark.parametrize(
    ("train", "test", "values", "message"),
    [
        ([], [1], {}, "there is no training example in a.jsonl"),
        ([1], [], {}, "there is no test example in b.jsonl"),
        ([1, 2, 2], [2, 1], {}, "all 2 training groups of a.jsonl occur in the test data b.jsonl"),
        ([1, 2, 2], [1, 2, 2], {}, 'give task.test_examples to divide it, or task.overlap = "keep"'),
        ([1, 2, 2], [1, 2, 2], {"test_examples": 3}, "of which task.test_examples = 3 leaves none of the 2 groups"),
    ],
)
def test_an_empty_side_is_refused(train, test, values, message):
    with pytest.raises(UserError, match=re.escape(message)):
        select(examples(train), examples(test), settings(**values))


@given(groups, groups, limits, st.integers(1, 15), st.integers(0, 5))
def test_validation_is_set_aside_from_training_by_whole_groups(train_groups, test_groups, train_limit, number, seed):
    train, test = examples(train_groups, "a"), examples(test_groups, "b")
    left = [one for one in train if not keys([one]) & keys(test)]
    assume(left)
    everything = select(train, test, settings(seed=seed)).train
    task = settings(train_examples=train_limit, validation_examples=number, seed=seed)
    # The groups come from the end of the order, and training has to keep one.
    if number > len(left) - len([one for one in left if one.group == everything[0].group]):
        with pytest.raises(UserError, match=f"task.validation_examples = {number}: whole groups"):
            select(train, test, task)
        return
    selection = select(train, test, task)
    assert len(selection.validation) == number
    assert set(selection.validation) <= set(everything)
    assert not keys(selection.validation) & (keys(selection.train) | keys(test))
    assert selection.test == select(train, test, settings(seed=seed)).test
    aside = {one.group for one in selection.validation}
    others = [one for one in everything if one.group not in aside]  # in the order that they have without validation
    assert list(selection.train) == others[:train_limit]


def test_what_shares_a_text_with_validation_is_not_trained_on():
    train = [example("a", "1", key="same"), example("b", "2"), example("c", "3", key="same")]
    selection = select(train, [example("t", "9")], settings(validation_examples=1))
    assert len(selection.validation) == 1
    assert not keys(selection.validation) & keys(selection.train)
