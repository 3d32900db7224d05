"""The padded layout: padding told by its place, targets and the tokens that predict them, left padding."""

from collections.abc import Sequence
from typing import Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from howlow.engine.layouts import Batch, Layout, count_targets, lay_out, left_padded, padded
from howlow.engine.tokens import TokenizedExample

LossOn = Literal["completion", "all"]
PAD = 7
TOKEN = st.integers(0, 9)  # the padding's id among them
EXAMPLES = st.lists(
    st.tuples(st.lists(TOKEN, min_size=1, max_size=6), st.lists(TOKEN, max_size=6)),  # some without a target
    min_size=1,
    max_size=5,
).map(
    lambda pairs: [
        TokenizedExample(str(index), "g", tuple(prompt), tuple(completion))
        for index, (prompt, completion) in enumerate(pairs)
    ]
)


def targets_of(batch: Batch, row: int) -> list[tuple[int, int]]:
    """A row's targets: the column that each is predicted from, and its id."""
    length = batch.input_ids.shape[1]
    return [
        (int(place) - row * length, int(target))
        for place, target, owner in zip(batch.predictors, batch.targets, batch.owners, strict=True)
        if owner == row
    ]


def expected(example: TokenizedExample, loss_on: LossOn) -> list[tuple[int, int]]:
    """Every target's place, written out one by one."""
    ids = example.prompt + example.completion
    first = 1 if loss_on == "all" else len(example.prompt)
    return [(column - 1, ids[column]) for column in range(first, len(ids))]


@given(EXAMPLES, st.sampled_from(["completion", "all"]), st.integers(12, 20))
def test_each_target_is_predicted_by_the_token_before_it_in_its_own_row(
    examples: Sequence[TokenizedExample], loss_on: LossOn, length: int
):
    batch = padded(examples, length, PAD, loss_on)
    assert batch.input_ids.shape == (len(examples), length)
    for row, example in enumerate(examples):
        ids = example.prompt + example.completion
        assert batch.input_ids[row].tolist() == [*ids, *[PAD] * (length - len(ids))]
        assert targets_of(batch, row) == expected(example, loss_on)
        assert count_targets(example, loss_on) == len(expected(example, loss_on))


@given(EXAMPLES, st.sampled_from(["completion", "all"]))
def test_the_counts_are_those_of_the_examples(examples: Sequence[TokenizedExample], loss_on: LossOn):
    batch = padded(examples, 16, PAD, loss_on)
    assert batch.samples == len(examples)
    assert batch.tokens == sum(example.length for example in examples)
    assert batch.target_tokens == sum(count_targets(example, loss_on) for example in examples)
    assert batch.computed_tokens == 16 * len(examples)
    assert {tensor.dtype for tensor in (batch.input_ids, batch.predictors, batch.targets, batch.owners)} == {
        torch.int64
    }


@given(EXAMPLES, st.sampled_from(["completion", "all"]), st.integers(0, 9))
def test_the_id_of_the_padding_changes_no_target(examples: Sequence[TokenizedExample], loss_on: LossOn, pad_id: int):
    ours, theirs = (padded(examples, 12, pad, loss_on) for pad in (pad_id, 1234))
    for name in ("predictors", "targets", "owners"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name))


def test_an_eos_that_is_the_padding_is_still_a_target():
    eos = PAD
    batch = padded([TokenizedExample("a", "g", (1, 2), (3, eos))], 8, eos, "completion")
    assert batch.input_ids.tolist() == [[1, 2, 3, eos, eos, eos, eos, eos]]
    assert targets_of(batch, 0) == [(1, 3), (2, eos)]


def test_loss_on_all_adds_the_prompt_but_its_first_token():
    example = TokenizedExample("a", "g", (1, 2, 3), (4, 5))
    assert targets_of(padded([example], 8, 0, "completion"), 0) == [(2, 4), (3, 5)]
    assert targets_of(padded([example], 8, 0, "all"), 0) == [(0, 2), (1, 3), (2, 4), (3, 5)]
    assert (count_targets(example, "completion"), count_targets(example, "all")) == (2, 4)


def test_a_row_that_is_full_has_no_padding():
    batch = padded([TokenizedExample("a", "g", (1, 2), (3, 4))], 4, 0, "completion")
    assert batch.input_ids.tolist() == [[1, 2, 3, 4]]
    assert targets_of(batch, 0) == [(1, 3), (2, 4)]


@pytest.mark.parametrize("layout", ["padded", "packed", "shared"])
@given(examples=EXAMPLES, loss_on=st.sampled_from(["completion", "all"]))
def test_an_example_has_its_own_targets_whatever_stands_beside_it(
    layout: Layout, examples: Sequence[TokenizedExample], loss_on: LossOn
):
    """An example without a target once had every token of its row as one, and shifted all that followed."""
    batch = lay_out(examples, layout, 16, PAD, loss_on)
    predicted = batch.input_ids.flatten()[batch.predictors[batch.sources]].tolist()
    pairs = list(zip(batch.owners.tolist(), predicted, batch.targets.tolist(), strict=True))
    for owner, example in enumerate(examples):
        ids = example.prompt + example.completion
        wanted = [(ids[before], target) for before, target in expected(example, loss_on)]
        assert sorted(pair[1:] for pair in pairs if pair[0] == owner) == sorted(wanted)
    assert (
        batch.targets_of.sum()
        == batch.target_tokens
        == sum(chunk.targets.stop - chunk.targets.start for chunk in batch.chunks)
    )


def test_a_prompt_without_a_token_is_our_mistake():
    with pytest.raises(AssertionError, match="token before it"):
        padded([TokenizedExample("a", "g", (), (3, 4))], 3, 0, "completion")


def test_what_does_not_fit_is_our_mistake():
    with pytest.raises(AssertionError, match="cut or dropped"):
        padded([TokenizedExample("a", "g", (1, 2), (3, 4))], 3, 0, "completion")


def test_a_batch_on_a_device_is_the_same():
    batch = padded([TokenizedExample("a", "g", (1, 2), (3, 4))], 6, 0, "all")
    moved = batch.to(torch.device("cpu"))
    assert torch.equal(moved.input_ids, batch.input_ids)
    assert (moved.samples, moved.tokens, moved.target_tokens) == (1, 4, 3)


@given(st.lists(st.lists(TOKEN, min_size=1, max_size=6), min_size=1, max_size=5), st.integers(6, 9))
def test_prompts_for_generation_end_in_the_last_column(prompts: list[list[int]], length: int):
    ids, mask = left_padded(prompts, length, PAD)
    assert ids.shape == mask.shape == (len(prompts), length)
    for row, prompt in enumerate(prompts):
        padding = length - len(prompt)
        assert ids[row].tolist() == [PAD] * padding + prompt
        assert mask[row].tolist() == [0] * padding + [1] * len(prompt)
