"""Attention written out as products: SDPA's values and gradients, and where it is not for a batch."""

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from howlow.engine import attention, written_out
from howlow.engine.attention import Limits, SdpaForest
from howlow.engine.forest import plant

pytestmark = pytest.mark.usefixtures("one_thread")

PLAIN = Limits(scale=0.3, window=None, chunk=None, softcap=None)


def forest(lengths: list[int], prefix: int, share: bool, seed: int = 0) -> SdpaForest:
    """A row of random sequences of these lengths behind a common prefix, and one without it."""
    chance = random.Random(seed)

    def tokens(count: int) -> list[int]:
        return [chance.randrange(9) for _ in range(count)]

    common = tokens(prefix)
    return SdpaForest(plant([*(common + tokens(length) for length in lengths), tokens(5)], share=share)[0])


def tensors(row: SdpaForest, heads: tuple[int, int], width: int = 8, seed: int = 0) -> list[Tensor]:
    """Query, key, value and the gradient of the result, laid out in memory as projections leave them."""
    chance, length = torch.Generator().manual_seed(seed), row.forest.positions.numel()
    counts = (heads[0] * heads[1], heads[1], heads[1], heads[0] * heads[1])
    return [torch.randn((1, length, count, width), generator=chance).transpose(1, 2) for count in counts]


def with_gradients(attend: Callable[..., Tensor], given: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    inputs = [part.detach().to(dtype).requires_grad_() for part in given[:3]]
    found = attend(*inputs)
    found.backward(given[3].to(dtype))
    return [found.detach(), *(part.grad for part in inputs if part.grad is not None)]


@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=5),
    prefix=st.sampled_from([0, 9, 60]),
    share=st.booleans(),
    heads=st.sampled_from([(1, 1), (3, 2), (1, 4), (4, 1)]),
    limit=st.sampled_from([(None, None), (7, None), (None, 16)]),
    longest_piece=st.sampled_from([16, 256]),
)
@settings(max_examples=30, deadline=None)
def test_values_and_gradients_are_those_of_sdpa(
    lengths: list[int],
    prefix: int,
    share: bool,
    heads: tuple[int, int],
    limit: tuple[int | None, int | None],
    longest_piece: int,
):
    limits = Limits(0.3, *limit, softcap=None)
    row = forest(lengths, prefix, share)
    given_ = tensors(row, heads)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(written_out, "_FLOPS_A_THREAD", 0)
        patch.setattr(written_out, "MOST_QUERIES", longest_piece)
        found = with_gradients(lambda *parts: row.attend(*parts, limits), given_, torch.float32)
    expected = with_gradients(lambda *parts: row._through_sdpa(*parts, limits), given_, torch.float64)
    assert len(found) == 4
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        assert float((one - other).norm()) <= 2e-6 * float(other.norm()) + 1e-6


def test_the_pieces_of_a_chain_see_every_pair_once_and_little_more():
    row = forest([300], 0, False)
    pieces = row._written_out(PLAIN)
    assert sorted(piece.end - piece.start for piece in pieces) == [5, 150, 150]
    unmasked = sum(int((piece.mask == 0).sum()) for piece in pieces)
    assert unmasked == 300 * 301 // 2 + 5 * 6 // 2
    assert sum(piece.mask.numel() for piece in pieces) < 0.8 * 300**2


def ways(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which way attention goes, call by call."""
    seen: list[str] = []

    def noting(name: str, own: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def attend(*args: Any, **options: Any) -> Tensor:
            seen.append(name)
            return own(*args, **options)

        return attend

    monkeypatch.setattr(written_out, "attend", noting("written out", written_out.attend))
    monkeypatch.setattr(SdpaForest, "_through_sdpa", noting("sdpa", SdpaForest._through_sdpa))
    return seen


def test_only_short_plain_fp32_blocks_with_enough_to_do_are_written_out(monkeypatch: pytest.MonkeyPatch):
    seen = ways(monkeypatch)
    row = forest([100, 90], 100, True)
    query, key, value, _ = tensors(row, (3, 2), 64)
    row.attend(query, key, value, PLAIN)
    row.attend(query.double(), key.double(), value.double(), PLAIN)
    row.attend(query, key, value, Limits(0.3, None, None, softcap=5.0))
    row.attend(query, key, value, Limits(0.3, None, None, None, dropout=0.1))
    assert seen == ["written out", "sdpa", "sdpa", "sdpa"]
    small = forest([3, 4], 10, True)
    small.attend(*tensors(small, (3, 2), 64)[:3], PLAIN)
    long = forest([written_out.LONGEST + 1], 0, False)
    long.attend(*tensors(long, (3, 2), 64)[:3], PLAIN)
    assert seen[4:] == ["sdpa", "sdpa"]


def test_rows_of_more_shapes_than_compiled_kernels_are_kept_go_through_sdpa(monkeypatch: pytest.MonkeyPatch):
    seen = ways(monkeypatch)
    row = forest([100, 90], 100, True)
    given_ = tensors(row, (3, 2), 64)[:3]
    shapes = len({piece.mask.shape for piece in row._written_out(PLAIN)})
    for capacity in (12 * shapes, 12 * shapes - 1):
        monkeypatch.setenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(capacity))
        row.attend(*given_, PLAIN)
    assert seen == ["written out", "sdpa"]


def test_masks_are_made_once_for_all_layers(monkeypatch: pytest.MonkeyPatch):
    made: list[Any] = []
    own = attention._pieces
    monkeypatch.setattr(attention, "_pieces", lambda *given_: made.append(given_) or own(*given_))
    row = forest([100, 90], 100, True)
    for _ in range(3):
        row.attend(*tensors(row, (3, 2), 64)[:3], PLAIN)
    assert len(made) == len(row.forest.blocks)
