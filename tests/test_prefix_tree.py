"""Prefix trees: every sequence can be read back, sees exactly what came before it, and common beginnings stand once."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from howlow.engine.prefix_tree import SMALLEST_SHARED, PrefixTree, build_prefix_tree, length_of

pytestmark = pytest.mark.usefixtures("one_thread")

TOKENS = st.integers(0, 3)
SEQUENCES = st.lists(st.lists(TOKENS, min_size=1, max_size=40), min_size=1, max_size=8)
STEMS = st.lists(TOKENS, min_size=SMALLEST_SHARED, max_size=20)


@st.composite
def nested(draw: st.DrawFn) -> list[list[int]]:
    """Sequences with common beginnings, some of which end where others go on."""
    stem, found = draw(STEMS), draw(SEQUENCES)
    inner = stem + draw(STEMS)
    begun = [draw(st.sampled_from([stem, inner, []])) + tail for tail in found]
    return begun + draw(st.sampled_from([[], [stem], [inner], [begun[0]]]))


def seen(tree: PrefixTree, place: int) -> set[int]:
    """The places that a token sees, from the blocks and their masks."""
    for index, block in enumerate(tree.blocks):
        if block.start <= place < block.end:
            parts = [tree.blocks[ancestor] for ancestor in block.ancestors] + [block]
            keys = [key for part in parts for key in range(part.start, part.end)]
            mask = tree.mask(index, torch.float32, None, None)
            if mask is None:
                return {key for key in keys if key <= place}
            return {key for key, added in zip(keys, mask[place - block.start].tolist(), strict=True) if added == 0}
    raise AssertionError("every place is in a block")


@given(nested(), st.booleans())
def test_every_sequence_is_read_back_and_sees_its_own_beginning_only(sequences: list[list[int]], share: bool):
    tree, ids, places = build_prefix_tree(sequences, share=share)
    for sequence, place in zip(sequences, places, strict=True):
        assert ids[place].tolist() == sequence
        assert tree.positions[place].tolist() == list(range(len(sequence)))
        for position, token in enumerate(place.tolist()):
            assert seen(tree, token) == set(place[: position + 1].tolist())


@given(nested())
def test_without_sharing_nothing_is_saved_and_nothing_padded(sequences: list[list[int]]):
    _, ids, _ = build_prefix_tree(sequences, share=False)
    assert len(ids) == sum(map(len, sequences))


@given(nested())
def test_sharing_never_costs_tokens_and_the_blocks_are_the_row(sequences: list[list[int]]):
    tree, ids, _ = build_prefix_tree(sequences, share=True)
    assert len(ids) <= sum(map(len, sequences))
    ends = [block.end for block in tree.blocks]
    assert [block.start for block in tree.blocks] == [0, *ends[:-1]]
    assert ends[-1] == len(ids)


def test_nested_prefixes_by_hand():
    instruction, one, two = list(range(10)), list(range(20, 32)), list(range(40, 50))
    sequences = [instruction + one + [60], instruction + two + [61], instruction + one + [62, 63], instruction + two]
    tree, ids, places = build_prefix_tree(sequences, share=True)
    assert ids.tolist() == [*instruction, *one, 60, 62, 63, *two, 61]
    assert places[2].tolist() == [*range(22), 23, 24]
    assert places[3].tolist() == [*range(10), *range(25, 35)]
    assert tree.visible_until.tolist() == [36] * 10 + [25] * 12 + [23] + [25] * 2 + [36] * 11


def test_prefixes_nest_deeper_than_python_recurses():
    """Every message of a long conversation continues the one before."""
    depth = 1100
    sequences = [list(range(8 * (turn + 1))) for turn in range(depth)]
    assert length_of(sequences, share=True) == 8 * depth
    tree, ids, places = build_prefix_tree(sequences[:: depth // 10] + sequences[-2:], share=True)
    assert ids.tolist() == list(range(8 * depth))
    assert places[-1].numel() == 8 * depth
    tree, _, _ = build_prefix_tree(sequences, share=True)
    assert len(tree.blocks) == depth
    assert tree.blocks[-1].ancestors == tuple(range(depth - 1))


def test_a_short_common_beginning_is_not_shared_but_what_follows_it_may_be():
    alike = list(range(30, 50))
    sequences: list[Sequence[int]] = [(1, *alike, 2), (1, *alike, 3), (1, 9, 9), (1, 8)]
    tree, ids, _ = build_prefix_tree(sequences, share=True)
    assert len(ids) == 21 + 2 + 3 + 2
    assert sum(block.ancestors == () for block in tree.blocks) == 3


@pytest.mark.parametrize(("window", "chunk"), [(3, None), (None, 4), (5, 2)])
@given(sequences=nested(), share=st.booleans())
def test_windows_and_chunks_count_positions(window: Any, chunk: Any, sequences: list[list[int]], share: bool):
    tree, _, places = build_prefix_tree(sequences, share=share)
    for index, block in enumerate(tree.blocks):
        mask = tree.mask(index, torch.float64, window, chunk)
        parts = [tree.blocks[ancestor] for ancestor in block.ancestors] + [block]
        keys = [key for part in parts for key in range(part.start, part.end)]
        for place in places:
            here = {token: position for position, token in enumerate(place.tolist())}
            for row, query in enumerate(range(block.start, block.end)):
                if query not in here:
                    continue
                expected = {
                    key
                    for key, position in here.items()
                    if position <= here[query]
                    and (window is None or here[query] - position < window)
                    and (chunk is None or position // chunk == here[query] // chunk)
                }
                found = keys if mask is None else [k for k, a in zip(keys, mask[row].tolist(), strict=True) if a == 0]
                assert {key for key in found if key <= query} == expected
