"""Attention as products: SDPA's values and gradients, and where it is not for a batch."""

import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from howlow.engine.attention import BlockTreeAttention, tree_attention
from howlow.engine.attention_context import Limits
from howlow.engine.cpu import attention as cpu_attention
from howlow.engine.cpu import gemm
from howlow.engine.cpu.gemm import GemmChoice, GemmLibrary, Gemms
from howlow.engine.cpu.linear import product
from howlow.engine.execution import decide
from howlow.engine.prefix_tree import build_prefix_tree

pytestmark = pytest.mark.usefixtures("one_thread")

PLAIN = Limits(scale=0.3, window=None, chunk=None, softcap=None)


def row_of(
    lengths: list[int], prefix: int, share: bool, seed: int = 0, kept: int = 1024, library: GemmLibrary = "onednn"
) -> BlockTreeAttention:
    """A row of random sequences of these lengths behind a common prefix, and one without it."""
    chance = random.Random(seed)

    def tokens(count: int) -> list[int]:
        return [chance.randrange(9) for _ in range(count)]

    common = tokens(prefix)
    return BlockTreeAttention(
        build_prefix_tree([*(common + tokens(length) for length in lengths), tokens(5)], share=share)[0], kept, library
    )


def tensors(
    row: BlockTreeAttention, heads: tuple[int, int], width: int = 8, value_width: int | None = None
) -> list[Tensor]:
    """Query, key, value and the gradient of the result, laid out in memory as projections leave them.

    heads: query heads of a key head, and key heads.
    """
    chance, length = torch.Generator().manual_seed(0), row.tree.positions.numel()
    group, count = heads
    value_width = value_width or width
    shapes = [(group * count, width), (count, width), (count, value_width), (group * count, value_width)]
    return [torch.randn((1, length, *shape), generator=chance).transpose(1, 2) for shape in shapes]


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
    value_width=st.sampled_from([8, 5]),
    library=st.sampled_from(["onednn", "blas"]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
@settings(max_examples=60)
def test_values_and_gradients_are_those_of_sdpa(
    lengths: list[int],
    prefix: int,
    share: bool,
    heads: tuple[int, int],
    limit: tuple[int | None, int | None],
    longest_piece: int,
    value_width: int,
    library: GemmLibrary,
    dtype: torch.dtype,
):
    limits = Limits(0.3, *limit, softcap=None)
    row = row_of(lengths, prefix, share, library=library)
    given_ = [part.to(dtype).float() for part in tensors(row, heads, 8, value_width)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu_attention, "_FLOPS_A_THREAD", 0)
        patch.setitem(cpu_attention.MOST_QUERIES, library, longest_piece)
        patch.setattr(row, "_through_sdpa", None)
        with torch.autocast("cpu", enabled=dtype == torch.bfloat16):  # as a trial in bf16 has it
            found = with_gradients(lambda *parts: row.attend(*parts, limits), given_, dtype)
    expected = with_gradients(lambda *parts: row._through_sdpa(*parts, limits), given_, torch.float64)
    assert len(found) == 4
    for one, other in zip(found, expected, strict=True):
        assert (one.shape, one.dtype) == (other.shape, dtype)
        rounding = 2e-6 if dtype == torch.float32 else 2**-8  # of results alone: all sums are in fp32
        assert float((one - other).norm()) <= rounding * float(other.norm()) + 1e-6


def test_the_pieces_of_a_chain_see_every_pair_once_and_little_more():
    row = row_of([300], 0, False)
    pieces = row._cut(PLAIN).every
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

    monkeypatch.setattr(cpu_attention, "attend", noting("products", cpu_attention.attend))
    monkeypatch.setattr(BlockTreeAttention, "_through_sdpa", noting("sdpa", BlockTreeAttention._through_sdpa))
    return seen


def test_only_short_plain_blocks_with_enough_to_do_run_as_products(monkeypatch: pytest.MonkeyPatch):
    seen = ways(monkeypatch)
    row = row_of([100, 90], 100, True)
    query, key, value, _ = tensors(row, (3, 2), 64)
    row.attend(query, key, value, PLAIN)
    row.attend(query.double(), key.double(), value.double(), PLAIN)
    row.attend(query, key, value, Limits(0.3, None, None, softcap=5.0))
    row.attend(query, key, value, Limits(0.3, None, None, None, dropout=0.1))
    assert seen == ["products", "sdpa", "sdpa", "sdpa"]
    row.attend(query, key, value.bfloat16().float(), PLAIN)
    with pytest.raises(RuntimeError):
        row.attend(query, key, value.bfloat16(), PLAIN)  # SDPA refuses it as well
    with torch.autocast("cpu", torch.bfloat16):  # SDPA rounds all of them
        assert row.attend(query, key, value.bfloat16(), PLAIN).dtype == torch.bfloat16
        assert row.attend(query, key, value, PLAIN).dtype == torch.bfloat16
        narrow = [part.bfloat16() for part in (query, key, value)]
        assert row.attend(*narrow, PLAIN).dtype == torch.bfloat16
    assert seen[4:] == ["products", "sdpa", "sdpa", "sdpa", "products"]
    seen.clear()
    small = row_of([3, 4], 10, True)
    small.attend(*tensors(small, (3, 2), 64)[:3], PLAIN)
    long = row_of([100], cpu_attention.MOST_KEYS, True)
    long.attend(*tensors(long, (3, 2), 64)[:3], PLAIN)
    assert seen == ["sdpa", "sdpa"]


def test_without_a_gradient_no_probabilities_are_kept(monkeypatch: pytest.MonkeyPatch):
    import gc
    import weakref

    made: list[Any] = []
    own = torch.softmax

    def softmax(*given_: Any) -> Tensor:
        gc.collect()
        assert sum(one() is not None for one in made) <= 1
        found = own(*given_)
        made.append(weakref.ref(found))
        return found

    row = row_of([100, 90, 80], 100, True)
    given_ = tensors(row, (3, 2), 64)[:3]
    expected = row._through_sdpa(*given_, PLAIN)
    monkeypatch.setattr(torch, "softmax", softmax)
    with torch.inference_mode():
        assert torch.allclose(row.attend(*given_, PLAIN), expected, atol=1e-5)
    assert len(made) > 2
    row.attend(*given_, PLAIN).mul_(2)  # a model may change it in place


def test_a_product_whose_weight_has_rows_that_lie_apart_is_no_slower_path():
    x, wide = torch.randn(300, 64), torch.randn(200, 192)
    assert torch.equal(product(x, wide[:, 64:128]), product(x, wide[:, 64:128].contiguous()))


def test_rows_of_more_shapes_than_compiled_kernels_are_kept_go_through_sdpa(monkeypatch: pytest.MonkeyPatch):
    seen = ways(monkeypatch)
    row = row_of([100, 90], 100, True)
    given_ = tensors(row, (3, 2), 64)[:3]
    shapes = row._cut(PLAIN).shapes
    for kept in (6 * shapes, 6 * shapes - 1):
        row_of([100, 90], 100, True, kept=kept).attend(*given_, PLAIN)
    assert seen == ["products", "sdpa"]
    row_of([100, 90], 100, True, kept=1, library="blas").attend(*given_, PLAIN)  # which compiles none
    assert seen[2:] == ["products"]


@pytest.mark.parametrize(("kept", "kernel"), [(cpu_attention.FEWEST_KEPT - 1, "sdpa"), (256, "products")])
def test_a_process_that_is_bounded_in_memory_has_one_form_for_all_batches(
    kept: int, kernel: str, monkeypatch: pytest.MonkeyPatch
):
    seen = ways(monkeypatch)
    execution = decide(device=torch.device("cpu"), precision="fp32", kernels_kept=kept)
    row = row_of([200], 0, False)
    attention = tree_attention(row.tree, execution.attention, execution.kernels_kept)
    attention.attend(*tensors(row, (3, 2), 64)[:3], PLAIN)
    assert (execution.attention, seen) == (kernel, [kernel])


def config(**changes: Any) -> Any:
    named = {"num_attention_heads": 9, "num_key_value_heads": 3, "hidden_size": 576} | changes
    return SimpleNamespace(**named)


@pytest.mark.parametrize(("blas_s", "library"), [(0.5, "blas"), (0.95, "onednn"), (2.0, "onednn")])
def test_the_library_of_attention_is_timed_and_runs(monkeypatch: pytest.MonkeyPatch, blas_s: float, library: str):
    monkeypatch.setattr(gemm, "_seconds", lambda *_: (1.0, blas_s))
    (found,) = cpu_attention.choose_attention(config())
    assert (found.of, found.in_features, found.rows, found.library) == ("attention", 64, 384, library)
    assert found.onednn_gflops == round(2e-9 * 8 * 3 * 384 * 256 * 64, 1)
    assert Gemms((GemmChoice("forward", 64, 256, 9, "blas"), found)).attention == library
    assert Gemms().attention == "onednn"


def test_a_library_of_attention_that_was_chosen_or_asked_for_is_not_timed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(gemm, "_seconds", None)
    known = GemmChoice("attention", 64, 256, 7, "blas", 1.0, 2.0)
    assert cpu_attention.choose_attention(config(), [known]) == (known,)
    (asked,) = cpu_attention.choose_attention(config(head_dim=64), [known], "onednn")
    assert (asked.library, asked.onednn_gflops) == ("onednn", None)


@pytest.mark.parametrize("changes", [{"head_dim": 2}, {"num_attention_heads": [9, 9]}, {"num_attention_heads": None}])
def test_small_or_unnamed_heads_have_no_library_of_their_own(monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]):
    monkeypatch.setattr(gemm, "_seconds", None)
    assert cpu_attention.choose_attention(config(**changes)) == ()


def test_timing_attention_takes_a_fraction_of_a_second():
    (found,) = cpu_attention.choose_attention(config(num_key_value_heads=None))
    assert found.rows == 128
    assert found.onednn_gflops
    assert found.blas_gflops


def test_masks_are_made_once_for_all_layers(monkeypatch: pytest.MonkeyPatch):
    made: list[Any] = []
    own = cpu_attention.cut
    monkeypatch.setattr(cpu_attention, "cut", lambda *given_: made.append(given_) or own(*given_))
    row = row_of([100, 90], 100, True)
    for _ in range(3):
        row.attend(*tensors(row, (3, 2), 64)[:3], PLAIN)
    assert len(made) == 1
