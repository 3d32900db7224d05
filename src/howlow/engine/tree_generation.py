"""Greedy generation from prompts that share a row: a common prefix's keys and values are computed once.

The prompts form a prefix tree, as in the layouts `packed` and `shared` (`howlow.engine.prefix_tree`). One forward pass
computes the whole row and keeps every layer's keys and values. Then each step continues the prompts that have not ended
by a token each, all in one row. The prompts that share a root have a *region* of the cache: their tokens, then one slot
a prompt for every new token. So they attend to one slice of the cache, under a mask that says which of its slots are on
a prompt's own path.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers.cache_utils import Cache, CacheLayerMixin

from howlow.engine.attention import sdpa
from howlow.engine.attention_context import AttentionContext, Limits
from howlow.engine.execution import Running
from howlow.engine.loss import head_logits
from howlow.engine.model import decoder_of
from howlow.engine.prefix_tree import PrefixTree, added_mask, build_prefix_tree, within_limits


class Writer(Protocol):
    """Chooses tokens, and knows which prompts are done."""

    def write(self, prompts: Sequence[int], logits: Tensor) -> Tensor:
        """The next token of each of these prompts, (prompts,) int64, from its logits (prompts, vocabulary)."""

    def is_done(self, prompt: int) -> bool:
        """Whether this prompt's continuation has ended."""


@dataclass(frozen=True)
class Region:
    """The prompts that share a root: which they are, where their tokens are in the row, where their slots begin.

    lengths: (prompts,), each prompt's tokens. seen: (prompts, slots) bool, which slots are on each prompt's own path.
    positions: the same shape, the positions of those slots.
    """

    prompts: tuple[int, ...]
    start: int
    end: int
    first_slot: int
    lengths: Tensor
    seen: Tensor
    positions: Tensor

    def new_slots(self, rows: Tensor, step: int) -> Tensor:
        """The slots that keep these prompts' tokens of a step."""
        return rows + (self.first_slot + self.end - self.start + step * len(self.prompts))

    def to(self, device: torch.device) -> "Region":
        """The same region on a device."""
        moved = {name: getattr(self, name).to(device) for name in ("lengths", "seen", "positions")}
        return replace(self, **moved)


@dataclass(frozen=True)
class PromptRow:
    """Prompts laid out in one row, with the slots of their keys and values.

    ids: (length,) int64. slots: (length,) int64, the slot of each token. order: the prompts, region by region.
    last: (prompts,) int64, the place of each one's last token, in that order. ends: the same places, each once.
    paths: (prompts, longest) int64, the places of each one's tokens, in that order, filled up with anything; None where
        they are not kept.
    """

    tree: PrefixTree
    ids: Tensor
    slots: Tensor
    last: Tensor
    ends: Tensor
    regions: tuple[Region, ...]
    paths: Tensor | None = None

    @property
    def length(self) -> int:
        """Tokens of the row."""
        return self.ids.numel()

    @property
    def order(self) -> tuple[int, ...]:
        """The prompts, region by region."""
        return tuple(prompt for region in self.regions for prompt in region.prompts)

    @property
    def lengths(self) -> Tensor:
        """(prompts,) int64, each one's tokens, in the row's order."""
        return torch.cat([region.lengths for region in self.regions])

    @property
    def slot_count(self) -> int:
        """Slots of all regions."""
        return self.regions[-1].first_slot + self.regions[-1].seen.shape[1]

    def to(self, device: torch.device) -> "PromptRow":
        """The same row on a device."""
        moved = {name: getattr(self, name).to(device) for name in ("tree", "ids", "slots", "last", "ends")}
        paths = None if self.paths is None else self.paths.to(device)
        return replace(self, **moved, regions=tuple(region.to(device) for region in self.regions), paths=paths)


def lay_out_prompts(
    prompts: Sequence[Sequence[int]], *, share: bool, max_new_tokens: int, keeps_paths: bool = False
) -> PromptRow:
    """Lay out prompts, on the host.

    share: whether a common prefix is computed once. keeps_paths: whether `PromptRow.paths` is wanted.
    """
    assert all(prompts), "a prompt has a token at least"
    tree, ids, places = build_prefix_tree(prompts, share=share)
    regions = _regions(tree, places, max_new_tokens)
    order = [prompt for region in regions for prompt in region.prompts]
    last = torch.stack([places[prompt][-1] for prompt in order])
    slots = [torch.arange(one.first_slot, one.first_slot + one.end - one.start) for one in regions]
    paths = pad_sequence([places[prompt] for prompt in order], batch_first=True) if keeps_paths else None
    return PromptRow(tree, ids, torch.cat(slots), last, torch.unique(last), tuple(regions), paths)


def _regions(tree: PrefixTree, places: Sequence[Tensor], max_new_tokens: int) -> list[Region]:
    """The regions with their prompts, from left to right."""
    members: dict[int, list[int]] = {}
    for prompt, place in enumerate(places):
        members.setdefault(int(place[0]), []).append(prompt)
    starts = sorted(members)
    ends = [*starts[1:], tree.positions.numel()]
    found: list[Region] = []
    for start, end in zip(starts, ends, strict=True):
        first_slot = found[-1].first_slot + found[-1].seen.shape[1] if found else 0
        found.append(_region(tree, places, members[start], (start, end), first_slot, max_new_tokens))
    return found


def _region(
    tree: PrefixTree,
    places: Sequence[Tensor],
    prompts: Sequence[int],
    span: tuple[int, int],
    first_slot: int,
    max_new_tokens: int,
) -> Region:
    (start, end), count = span, len(prompts)
    lengths = torch.tensor([places[prompt].numel() for prompt in prompts])
    new = torch.arange(count * max_new_tokens)
    on_path = torch.zeros((count, end - start), dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        on_path[row, places[prompt] - start] = True
    own = new[None] % count == torch.arange(count)[:, None]
    there = tree.positions[start:end].expand(count, -1)
    return Region(
        prompts=tuple(prompts),
        start=start,
        end=end,
        first_slot=first_slot,
        lengths=lengths,
        seen=torch.cat([on_path, own], dim=1),
        positions=torch.cat([there, lengths[:, None] + new[None] // count], dim=1),
    )


# -- on the device ------------------------------------------------------------------------------------------------


def read_row(running: Running, row: PromptRow, cache: Cache) -> Tensor:
    """Logits behind every prompt of a row on the device, in its order: (prompts, vocabulary)."""
    context = running.attention(row.tree)
    hidden = hidden_states(running, cache, row.ids, row.tree.positions, context, row.ends)
    return head_logits(running.model, hidden[row.last])


def hidden_states(
    running: Running,
    cache: Cache,
    ids: Tensor,
    positions: Tensor,
    context: AttentionContext,
    used: Tensor | None = None,
) -> Tensor:
    """The decoder's hidden states for the tokens of one row, (tokens, width); used: see `Running.row`."""
    inputs: dict[str, Any] = {"input_ids": ids[None], "position_ids": positions[None], "use_cache": True}
    with running.row(context, used):
        output = decoder_of(running.model)(**inputs, past_key_values=cache)
    hidden: Tensor = output.last_hidden_state[0]
    return hidden


class Continuation:
    """Prompts on the device: read once, then continued a token at a time. Nothing here reads the device."""

    def __init__(self, running: Running, row: PromptRow) -> None:
        self._running, self._row, self._steps = running, row, 0
        self._slots = _Slots(row.slot_count, row.slots)
        self._cache = Cache(layer_class_to_replicate=lambda: _Layer(self._slots))

    def read_prompts(self) -> Tensor:
        """Logits behind every prompt, in the row's order: (prompts, vocabulary)."""
        logits = read_row(self._running, self._row, self._cache)
        self._slots.is_reading_prompts = False
        return logits

    def step(self, prompts: Sequence[int], tokens: Tensor) -> Tensor:
        """Logits behind the prompts that go on, (prompts, vocabulary), when each one's newest token is given.

        prompts: in the row's order. tokens: (prompts,) int64.
        """
        step, self._steps = self._steps, self._steps + 1
        active = self._active(set(prompts), step)
        self._slots.where = torch.cat([one.region.new_slots(one.rows, step) for one in active])
        positions = torch.cat([one.region.lengths[one.rows] for one in active]) + step
        hidden = hidden_states(self._running, self._cache, tokens, positions, _StepAttention(active, step))
        return head_logits(self._running.model, hidden)

    def _active(self, going: set[int], step: int) -> list["_ActiveRegion"]:
        found = []
        for region in self._row.regions:
            rows = [row for row, prompt in enumerate(region.prompts) if prompt in going]
            if rows:
                used = region.end - region.start + (step + 1) * len(region.prompts)
                found.append(_ActiveRegion(region, torch.tensor(rows, device=region.seen.device), used))
        return found


class _Slots:
    """The slots that keep the tokens of the next forward pass."""

    def __init__(self, size: int, where: Tensor) -> None:
        self.size, self.where, self.is_reading_prompts = size, where, True


class UnmaskedLayer(CacheLayerMixin):  # type: ignore[misc]
    """A layer of a cache for our attention, which is given positions and makes its masks itself."""

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Not used: no mask is made for our attention."""
        return query_length, 0

    def get_seq_length(self) -> int:
        """Not used: positions are always given."""
        return 0

    def get_max_length(self) -> int:
        """The cache has no limit of its own."""
        return -1


class _Layer(UnmaskedLayer):
    """One layer's keys and values: (1, key heads, slots, dimension)."""

    def __init__(self, cache: _Slots) -> None:
        super().__init__()
        self._cache = cache

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Take the memory for all slots when the first layer's shapes are known."""
        self.keys, self.values = (
            part.new_zeros((1, part.shape[1], self._cache.size, part.shape[3])) for part in (key_states, value_states)
        )
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Keep new keys and values; the prompts attend to their own, a continuation to everything kept."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None, "made above"
        assert self.values is not None, "made above"
        self.keys.index_copy_(2, self._cache.where, key_states)
        self.values.index_copy_(2, self._cache.where, value_states)
        return (key_states, value_states) if self._cache.is_reading_prompts else (self.keys, self.values)


@dataclass(frozen=True)
class _ActiveRegion:
    """A region's prompts that go on (`rows`, numbers within the region), and how many of its slots are in use."""

    region: Region
    rows: Tensor
    used: int

    @property
    def slots(self) -> slice:
        """The slots in use."""
        return slice(self.region.first_slot, self.region.first_slot + self.used)


class _StepAttention:
    """The newest token of every prompt that goes on, attending to its own path: an `AttentionContext`."""

    is_traceable = False

    def __init__(self, active: Sequence[_ActiveRegion], step: int) -> None:
        self._active, self._step = active, step
        self._masks: dict[tuple[int, int | None, int | None], Tensor] = {}

    def attend(self, query: Tensor, key: Tensor, value: Tensor, limits: Limits) -> Tensor:
        """One masked attention a region."""
        queries = torch.split(query, [one.rows.numel() for one in self._active], dim=2)
        found = []
        for number, one in enumerate(self._active):
            mask = self._mask(number, query.dtype, limits)
            found.append(sdpa(queries[number], key[:, :, one.slots], value[:, :, one.slots], mask, limits))
        return torch.cat(found, dim=2)

    def _mask(self, number: int, dtype: torch.dtype, limits: Limits) -> Tensor:
        key = (number, limits.window, limits.chunk)
        if key not in self._masks:
            active = self._active[number]
            region, rows, used = active.region, active.rows, active.used
            seen, there = region.seen[rows, :used], region.positions[rows, :used]
            here = region.lengths[rows, None] + self._step
            self._masks[key] = added_mask(within_limits(seen, here, there, limits.window, limits.chunk), dtype)
        return self._masks[key]
