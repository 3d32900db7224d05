"""Batches of few shapes: the shapes hold every batch of a schedule, and filling changes no loss and no gradient."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from executions import on_cpu
from hypothesis import given, settings
from hypothesis import strategies as st
from test_exact import FAST, LENGTH, adapted, example_sets

from howlow.engine import buckets, layouts
from howlow.engine import model as models
from howlow.engine.buckets import LARGEST_PADDING, MOST_LENGTHS, Bucket, Size
from howlow.engine.layouts import Batch, Layout, LossOn
from howlow.engine.loss import target_losses
from howlow.engine.tokens import TokenizedExample

pytestmark = pytest.mark.usefixtures("one_thread")

sizes = st.builds(Size, st.just(1), st.integers(1, 5000), st.integers(0, 900))


@given(st.lists(sizes, min_size=1, max_size=60))
def test_the_shapes_hold_every_batch_of_the_schedule(given_sizes: list[Size]):
    found = buckets.choose_shapes(given_sizes, fills_rows=True)
    assert 1 <= len(found.shapes) <= MOST_LENGTHS
    filled = [found.of(size) for size in given_sizes]
    assert all(bucket is not None and bucket.holds(size) for bucket, size in zip(filled, given_sizes, strict=True))
    computed = sum(bucket.tokens for bucket in filled if bucket is not None)
    assert found.padding == pytest.approx(1 - sum(size.tokens for size in given_sizes) / computed)


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=60))
def test_more_lengths_are_taken_only_where_fewer_would_fill_too_much(lengths: list[int]):
    found = buckets.choose_shapes([Size(1, length, 1) for length in lengths], fills_rows=True)
    rounded = {-(-length // 128) * 128 for length in lengths}
    if len(found.shapes) > 1:
        one_length = max(rounded) * len(lengths)
        assert sum(lengths) < (1 - LARGEST_PADDING) * one_length, "a single length would have done"
    if found.padding > LARGEST_PADDING:
        assert len(found.shapes) in (MOST_LENGTHS, len(rounded)), "no further length would help"


def test_the_lengths_are_those_with_the_least_padding():
    lengths = [1000] * 50 + [1010, 2000, 2010] * 4 + [4000]
    found = buckets.choose_shapes([Size(1, length, 1) for length in lengths], fills_rows=True)
    assert [shape.tokens for shape in found.shapes] == [1024, 2048, 4096]


def test_padded_rows_keep_their_length_and_each_number_of_rows_is_a_shape():
    found = buckets.choose_shapes([Size(8, 500, 30), Size(8, 500, 70), Size(3, 500, 10)], fills_rows=False)
    assert found.shapes == (Bucket(8, 500, 128), Bucket(3, 500, 64))
    assert found.padding == 0
    assert found.of(Size(5, 500, 1)) is None, "another number of rows was not in the schedule"


def filled(examples: Sequence[TokenizedExample], layout: Layout, loss_on: LossOn, spare: int) -> tuple[Batch, Batch]:
    batch = layouts.lay_out(examples, layout, LENGTH, 0, loss_on)
    size = buckets.size_of(examples, layout, LENGTH, loss_on)
    assert (size.rows, size.tokens) == batch.input_ids.shape
    bucket = Bucket(size.rows, size.tokens + (spare if layout != "padded" else 0), size.targets + spare)
    return batch, buckets.fill(batch, bucket, 0)


def computed(model: Any, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    with on_cpu(model) as run, run.batch(batch):
        losses, total = target_losses(model, batch, "targets", 1 / max(1, batch.target_tokens))
        if total.requires_grad:
            total.backward()
    gradients = {
        name: torch.zeros_like(one) if one.grad is None else one.grad.clone()
        for name, one in models.trainable(model).items()
    }
    model.zero_grad()  # the model is shared with the tests of layouts
    return losses.sum(), gradients


@pytest.mark.parametrize("name", ["llama", "sliding mistral", "gemma2", "neox"])
@given(
    examples=example_sets(),
    layout=st.sampled_from(["padded", "packed", "shared"]),
    loss_on=st.sampled_from(["completion", "all"]),
    spare=st.integers(0, 40),
)
@settings(max_examples=6, phases=FAST)
def test_losses_and_gradients_of_a_filled_batch_are_those_of_the_batch(
    name: str, examples: Any, layout: Any, loss_on: Any, spare: int
):
    model = adapted(name, torch.float64)
    batch, full = filled(examples, layout, loss_on, spare)
    assert full.target_tokens == batch.target_tokens
    assert float(full.weights.sum()) == batch.target_tokens  # type: ignore[union-attr]
    (loss, gradients), (expected_loss, expected) = computed(model, full), computed(model, batch)
    assert float(loss) == pytest.approx(float(expected_loss), rel=1e-10)
    norm = torch.stack([one.norm() for one in expected.values()]).norm()
    for key, gradient in gradients.items():
        assert float((gradient - expected[key]).norm()) <= 1e-10 * float(norm) + 1e-14, key
