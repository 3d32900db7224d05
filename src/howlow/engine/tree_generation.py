"""Greedy generation from prompts that begin alike: a common prefix's keys and values are computed once.

The prompts lie in one row as in the layouts `packed` and `shared` (`howlow.engine.prefix_tree`). One forward pass
computes all of it and keeps every layer's keys and values; then each prompt is continued by a token at a time, all of
them in one row of as many tokens as prompts are still going on. Each tree of prompts has a region of the cache: its
tokens, then one slot a prompt for every new token. So the prompts of a tree attend to one slice of the cache, behind a
mask that says which of its tokens are on a prompt's own path.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from howlow.engine.attention import Company, Kernel, Limits, among, company, sdpa
from howlow.engine.last_layer import reading
from howlow.engine.loss import head_logits
from howlow.engine.model import decoder_of
from howlow.engine.prefix_tree import Forest, plant


@dataclass(frozen=True)
class Tree:
    """Prompts that share a root: which they are, where their tokens lie in the row, where their region begins.

    lengths: (prompts,), each prompt's tokens. seen: (prompts, region) bool, which slots are on each prompt's own path.
    positions: the same shape, the positions of those slots.
    """

    prompts: tuple[int, ...]
    start: int
    end: int
    region: int
    lengths: Tensor
    seen: Tensor
    positions: Tensor

    def new_slots(self, rows: Tensor, step: int) -> Tensor:
        """Where these prompts' tokens of a step are kept."""
        return rows + (self.region + self.end - self.start + step * len(self.prompts))

    def to(self, device: torch.device) -> "Tree":
        """The same on a device."""
        moved = {name: getattr(self, name).to(device) for name in ("lengths", "seen", "positions")}
        return replace(self, **moved)


class _Layer(CacheLayerMixin):  # type: ignore[misc]
    """One layer's keys and values: (1, key heads, slots, dimension)."""

    def __init__(self, cache: "_Slots") -> None:
        super().__init__()
        self._cache = cache

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Take the room for all slots when the first layer's shapes are seen."""
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

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Not asked: no mask is made for our attention."""
        return query_length, 0

    def get_seq_length(self) -> int:
        """Positions are always given, so that nothing follows from this."""
        return 0

    def get_max_length(self) -> int:
        """No limit of its own."""
        return -1


class _Slots:
    """Where the tokens of the next forward pass are kept."""

    def __init__(self, size: int, where: Tensor) -> None:
        self.size, self.where, self.is_reading_prompts = size, where, True


class _Continuing:
    """The newest token of every prompt that goes on, attending to its own path (`howlow.engine.attention.Company`)."""

    def __init__(self, parts: Sequence["_Part"], step: int) -> None:
        self._parts, self._step = parts, step
        self._masks: dict[tuple[int, int | None, int | None], Tensor] = {}

    def attend(self, query: Tensor, key: Tensor, value: Tensor, limits: Limits) -> Tensor:
        """One masked attention a tree."""
        queries = torch.split(query, [part.rows.numel() for part in self._parts], dim=2)
        found = []
        for number, part in enumerate(self._parts):
            mask = self._mask(number, query.dtype, limits)
            found.append(sdpa(queries[number], key[:, :, part.slots], value[:, :, part.slots], mask, limits))
        return torch.cat(found, dim=2)

    def _mask(self, number: int, dtype: torch.dtype, limits: Limits) -> Tensor:
        key = (number, limits.window, limits.chunk)
        if key not in self._masks:
            tree, rows, used = self._parts[number].tree, self._parts[number].rows, self._parts[number].used
            seen, there = tree.seen[rows, :used], tree.positions[rows, :used]
            here = tree.lengths[rows, None] + self._step
            if limits.window is not None:
                seen = seen & (here - there < limits.window)
            if limits.chunk is not None:
                seen = seen & (here // limits.chunk == there // limits.chunk)
            blank = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
            self._masks[key] = blank.masked_fill_(~seen, -torch.inf)
        return self._masks[key]


@dataclass(frozen=True)
class _Part:
    """The prompts of a tree that go on (`rows`, numbers within the tree), and how much of its region is in use."""

    tree: Tree
    rows: Tensor
    used: int

    @property
    def slots(self) -> slice:
        """The part of the region in use."""
        return slice(self.tree.region, self.tree.region + self.used)


class Writer(Protocol):
    """Chooses tokens, and knows which prompts are done."""

    def write(self, prompts: Sequence[int], logits: Tensor) -> Tensor:
        """The next token of each of these prompts, (prompts,) int64, from its logits (prompts, vocabulary)."""

    def is_done(self, prompt: int) -> bool:
        """Whether this prompt's continuation has ended."""


@torch.inference_mode()
def continue_prompts(
    model: Any,
    prompts: Sequence[Sequence[int]],
    writer: Writer,
    *,
    share: bool,
    kernel: Kernel,
    max_new_tokens: int,
    on_prompts_read: Callable[[int], None] = lambda _: None,
) -> int:
    """Continue prompts for as long as any goes on; returns the tokens that the model ran on.

    share: whether common beginnings are computed once. on_prompts_read: called with the tokens computed so far when
    the prompts are read and a token each is written.
    """
    device = model.device
    forest, ids, places = plant(prompts, share=share)
    trees = _trees(forest, places, max_new_tokens, device)
    going = [prompt for tree in trees for prompt in tree.prompts]
    where = torch.cat([torch.arange(tree.region, tree.region + tree.end - tree.start) for tree in trees])
    slots = _Slots(trees[-1].region + trees[-1].seen.shape[1], where.to(device))
    cache = Cache(layer_class_to_replicate=lambda: _Layer(slots))

    def run(ids: Tensor, positions: Tensor, together: Company) -> Tensor:
        with among(model, together):
            inputs = {"input_ids": ids[None].to(device), "position_ids": positions[None].to(device)}
            hidden: Tensor = decoder_of(model)(**inputs, past_key_values=cache, use_cache=True).last_hidden_state[0]
        return hidden

    last = torch.stack([places[prompt][-1] for prompt in going]).to(device)
    with reading(model, torch.unique(last)):
        hidden = run(ids, forest.positions, company(forest.to(device), kernel))
    chosen, computed = writer.write(going, head_logits(model, hidden[last])), ids.numel()
    on_prompts_read(computed)
    slots.is_reading_prompts = False
    for step in range(max_new_tokens - 1):
        kept = [index for index, prompt in enumerate(going) if not writer.is_done(prompt)]
        if not kept:
            break
        going, chosen = [going[index] for index in kept], chosen[kept]
        parts = _parts(trees, set(going), step)
        slots.where = torch.cat([part.tree.new_slots(part.rows, step) for part in parts])
        positions = torch.cat([part.tree.lengths[part.rows] for part in parts]) + step
        hidden = run(chosen, positions, _Continuing(parts, step))
        chosen = writer.write(going, head_logits(model, hidden))
        computed += len(going)
    return computed


def _parts(trees: Sequence[Tree], going: set[int], step: int) -> list[_Part]:
    """The trees with prompts that go on."""
    found = []
    for tree in trees:
        rows = [row for row, prompt in enumerate(tree.prompts) if prompt in going]
        if rows:
            used = tree.end - tree.start + (step + 1) * len(tree.prompts)
            found.append(_Part(tree, torch.tensor(rows, device=tree.seen.device), used))
    return found


def _trees(forest: Forest, places: Sequence[Tensor], max_new_tokens: int, device: torch.device) -> list[Tree]:
    """The row's trees with their prompts, from left to right."""
    members: dict[int, list[int]] = {}
    for prompt, place in enumerate(places):
        members.setdefault(int(place[0]), []).append(prompt)
    starts = sorted(members)
    ends = [*starts[1:], forest.positions.numel()]
    found, region = [], 0
    for start, end in zip(starts, ends, strict=True):
        tree = _tree(forest, places, members[start], (start, end), region, max_new_tokens)
        found.append(tree.to(device))
        region += tree.seen.shape[1]
    return found


def _tree(
    forest: Forest,
    places: Sequence[Tensor],
    prompts: Sequence[int],
    span: tuple[int, int],
    region: int,
    max_new_tokens: int,
) -> Tree:
    (start, end), count = span, len(prompts)
    lengths = torch.tensor([places[prompt].numel() for prompt in prompts])
    new = torch.arange(count * max_new_tokens)
    on_path = torch.zeros((count, end - start), dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        on_path[row, places[prompt] - start] = True
    own = new[None] % count == torch.arange(count)[:, None]
    there = forest.positions[start:end].expand(count, -1)
    return Tree(
        prompts=tuple(prompts),
        start=start,
        end=end,
        region=region,
        lengths=lengths,
        seen=torch.cat([on_path, own], dim=1),
        positions=torch.cat([there, lengths[:, None] + new[None] // count], dim=1),
    )
