"""Generation's token steps, recorded once for a few shapes of batch and then replayed.

On a GPU a token step of thousands of small kernels waits for Python to start them. A CUDA graph is a recording of them
that starts at once. It repeats the same kernels on the same addresses, so everything has a place that stays: each
prompt has a row of slots, and the key and value at position p of a prompt are in slot p of its row.

The prompts of a batch are read in one row, as in `howlow.engine.tree_generation`, and each layer copies their keys and
values into the slots; a prefix that several prompts share is computed once and copied for each. A recorded step then
gives every row one token more. It also chooses the token and keeps it, so nothing returns to the host. The host reads
the tokens of several steps together, and finds there where a text ends, as without a recording. While many texts go
on, the device runs the next steps meanwhile. A row whose text has ended is computed on, and what it writes is dropped.

What records is given (`howlow.engine.step_graphs.Recorder`), so that the structure is tested without a GPU.
"""

from collections import deque
from collections.abc import Callable, Collection, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from howlow.engine import buckets
from howlow.engine.attention import sdpa
from howlow.engine.attention_context import Kind, Limits, note_kinds
from howlow.engine.compiled_layers import LayersOverCache
from howlow.engine.execution import Running
from howlow.engine.loss import head_logits
from howlow.engine.prefix_tree import added_mask, within_limits
from howlow.engine.sampling import most_likely
from howlow.engine.step_graphs import Recorder
from howlow.engine.tree_generation import PromptRow, UnmaskedLayer, hidden_states, read_row

LOOK_EVERY = 4
"""Steps whose tokens the host reads together."""
_MANY = 8  # texts that go on; reading the tokens of more takes the host long enough to let the device go on meanwhile


class DecodeShape(NamedTuple):
    """The size of a recorded step: rows, and the slots of each row."""

    rows: int
    length: int


def decode_shapes(batches: Sequence[Sequence[Sequence[int]]], max_new_tokens: int) -> tuple[DecodeShape, ...]:
    """The shapes that hold these batches of prompts with all their new tokens: few lengths, and all rows."""
    rows = max(map(len, batches))
    sizes = [buckets.Size(rows, max(map(len, batch)) + max_new_tokens, 0) for batch in batches]
    return tuple(DecodeShape(one.rows, one.tokens) for one in buckets.choose_shapes(sizes, fills_rows=True).shapes)


class DecodeGraphs:
    """Recorded token steps, and the one batch of prompts that they continue.

    To be made and used within inference mode and one context of `Running.autocast`: another one would be compiled anew.

    compiles: whether the decoder's layers run compiled: in steps and, where attention can be traced, over prompts.
    """

    def __init__(
        self, running: Running, shapes: Sequence[DecodeShape], max_new_tokens: int, *, compiles: bool = False
    ) -> None:
        self.device = device = running.execution.device
        rows = max(shape.rows for shape in shapes)
        self.shapes = tuple(sorted(shapes, key=lambda shape: shape.rows * shape.length))
        self._running = running
        self._steps: dict[DecodeShape, Callable[[], Tensor]] = {}
        self._shape = self.shapes[-1]
        self._slots = _Slots(self._shape)
        self._cache = Cache(layer_class_to_replicate=partial(_Layer, self._slots))
        self._kinds: Collection[Kind] = note_kinds(running.model) if compiles else ()
        self._layers: LayersOverCache | None = None
        whole: dict[str, Any] = {"dtype": torch.int64, "device": device}
        self._newest, self._positions = torch.zeros(rows, **whole), torch.zeros(rows, **whole)
        self._column = torch.zeros(1, **whole)
        self._tokens = torch.zeros((max_new_tokens, rows), **whole)
        self._margins = torch.zeros((max_new_tokens, rows), device=device)

    def record(self, recorder: Recorder) -> None:
        """Record a step of each shape, the largest first."""
        self._step(self._shape, None)  # each layer takes the memory for its slots outside of a recording
        if self._kinds:
            self._layers = LayersOverCache(self._running.model, self._cache, self._cache.layers)
        for shape in reversed(self.shapes):
            recorder.warm_up(partial(self._step, shape, self._layers))
        for shape in reversed(self.shapes):
            self._steps[shape] = recorder.record(partial(self._step, shape, self._layers))

    def record_uncompiled(self, recorder: Recorder) -> Callable[[], Tensor]:
        """Record a step of the shape in use without compiled layers, to be timed beside `step`."""
        work = partial(self._step, self._shape, None)
        recorder.warm_up(work)
        return recorder.record(work)

    def _shape_for(self, row: PromptRow) -> DecodeShape | None:
        if row.paths is None:
            return None
        prompts, needed = row.paths.shape[0], row.paths.shape[1] + self._tokens.shape[0]
        return next((shape for shape in self.shapes if shape.rows >= prompts and shape.length >= needed), None)

    def holds(self, row: PromptRow) -> bool:
        """Whether there are slots for these prompts and their new tokens."""
        return self._shape_for(row) is not None

    @property
    def is_compiled(self) -> bool:
        """Whether layers run compiled."""
        return self._layers is not None

    @property
    def rows(self) -> int:
        """The rows that a step continues, those without a prompt included."""
        return self._shape.rows

    @property
    def newest(self) -> Tensor:
        """The token that each row wrote last, (rows,) int64, until the next step."""
        return self._newest[: self.rows]

    def read_prompts(self, row: PromptRow) -> Tensor:
        """Read a batch's prompts, on the device, and write one token each; gives its logits, (prompts, vocabulary)."""
        shape = self._shape_for(row)
        assert shape is not None, "the caller has looked whether these prompts have slots"
        assert row.paths is not None, "a row with slots has paths"
        self._shape, device = shape, row.ids.device
        # Rows without a prompt repeat the last one, and slots behind a prompt its last token: all values are finite.
        prompts = torch.arange(shape.rows, device=device).clamp_(max=row.paths.shape[0] - 1)
        lengths = row.lengths[prompts]
        places = torch.minimum(torch.arange(shape.length, device=device), lengths[:, None] - 1)
        self._open(shape)
        self._slots.sources = row.paths[prompts].gather(1, places)
        layers = self._layers if self._running.execution.attention == "flex" else None  # others cannot be traced
        with nullcontext() if layers is None else layers.compiled(last=False):
            logits = read_row(self._running, row, self._cache)
        self._slots.sources = None
        self._positions[: shape.rows].copy_(lengths)
        self._column.zero_()
        self._keep(logits[prompts])
        return logits

    def step(self) -> Tensor:
        """Write one token more in every row; gives its logits, (rows, vocabulary), until the next step."""
        return self._steps[self._shape]()

    def _step(self, shape: DecodeShape, layers: LayersOverCache | None) -> Tensor:
        """What is recorded, through compiled layers where they are given.

        Positions stop at the last slot, so that steps behind the end do no harm.
        """
        positions = self._positions[: shape.rows]
        self._open(shape)
        self._slots.rows, self._slots.positions = torch.arange(shape.rows, device=self.device), positions
        kinds: Collection[Kind] = () if layers is None else self._kinds
        context = _OwnSlots(positions, shape.length, kinds, self._slots.dtype)
        with nullcontext() if layers is None else layers.compiled(last=True):
            hidden = hidden_states(self._running, self._cache, self._newest[: shape.rows], positions, context)
        logits = head_logits(self._running.model, hidden)
        self._keep(logits)
        positions.add_(1).clamp_(max=shape.length - 1)
        return logits

    def _open(self, shape: DecodeShape) -> None:
        """Lay the slots out for a shape."""
        self._slots.shape = shape
        for layer in self._cache.layers:
            layer.open()
            if self._layers is not None:
                self._layers.fix_sizes((layer.keys, layer.values), _HEADS)

    def _keep(self, logits: Tensor) -> None:
        """Choose a token for each row, as the input of the next step and as written."""
        rows = logits.shape[0]
        chosen, margins = most_likely(logits)
        self._newest[:rows].copy_(chosen)
        self._tokens[:, :rows].index_copy_(0, self._column, chosen[None])
        self._margins[:, :rows].index_copy_(0, self._column, margins[None])
        self._column.add_(1).clamp_(max=self._tokens.shape[0] - 1)

    def written(self, first: int, end: int) -> "Written":
        """What each row wrote as its new tokens first, ..., end - 1, which have been computed or are on their way."""
        tokens, margins = self._tokens[first:end, : self.rows], self._margins[first:end, : self.rows]
        return Written(torch.stack([tokens.to(margins), margins], dim=1))


class Written:
    """Tokens and their margins on their way to the host: (steps, 2, rows) float32."""

    def __init__(self, written: Tensor) -> None:
        self._found = written.to("cpu", non_blocking=True)  # into pinned memory
        self._arrived = torch.cuda.Event() if written.is_cuda else None  # type: ignore[no-untyped-call]
        if self._arrived is not None:
            self._arrived.record(torch.cuda.current_stream(written.device))

    def read(self) -> list[list[list[float]]]:
        """Wait for them: for each step its tokens and their margins."""
        if self._arrived is not None:
            self._arrived.synchronize()
        found: list[list[list[float]]] = self._found.tolist()
        return found


class Taker(Protocol):
    """Takes the tokens of prompts, and knows which prompts are done."""

    def take(self, rows: Sequence[int], tokens: Sequence[float], margins: Sequence[float]) -> None:
        """Add a token to each of these prompts, with its margin."""

    def is_done(self, row: int) -> bool:
        """Whether this prompt's continuation has ended."""


def continue_recorded(
    graphs: DecodeGraphs,
    row: PromptRow,
    taker: Taker,
    max_new_tokens: int,
    on_prompts_read: Callable[[int], None],
) -> int:
    """Continue prompts, laid out on the host, until all have ended; returns the number of tokens computed.

    on_prompts_read: see `howlow.engine.generation.write`.
    """
    prompts, looks = row.order, deque[Written]()
    graphs.read_prompts(row.to(graphs.device))
    going = _take(prompts, taker, graphs.written(0, 1))
    on_prompts_read(row.length)
    written = 1
    while going and written < max_new_tokens:
        end = min(written + LOOK_EVERY, max_new_tokens)
        for _ in range(written, end):
            graphs.step()
        looks.append(graphs.written(written, end))
        written = end
        while len(looks) > (1 if going > _MANY else 0):
            going = _take(prompts, taker, looks.popleft())
    for look in looks:
        _take(prompts, taker, look)
    return row.length + (written - 1) * graphs.rows


def _take(prompts: Sequence[int], taker: Taker, look: Written) -> int:
    """Hand what was written to the taker; gives the number of prompts that go on."""
    for tokens, margins in look.read():
        taker.take(prompts, tokens[: len(prompts)], margins[: len(prompts)])
    return sum(not taker.is_done(prompt) for prompt in prompts)


# -- slots --------------------------------------------------------------------------------------------------------


_HEADS = (2, 3)  # the dimensions of a layer's slots that are the model's own


class _Slots:
    """Which slots the next forward pass fills.

    size: of all slots. shape: how they are laid out now. dtype: of keys, once a layer has taken its memory.
    sources: (rows, slots) int64, while prompts are read: the place in their row from which each slot is filled.
    rows, positions: (rows,) int64 each, of a step: the number of each row, and its newest token's slot.
    """

    def __init__(self, shape: DecodeShape) -> None:
        self.size, self.shape, self.dtype = shape.rows * shape.length, shape, torch.float32
        self.sources: Tensor | None = None
        self.rows: Tensor | None = None
        self.positions: Tensor | None = None


class _Layer(UnmaskedLayer):
    """One layer's keys and values: (rows, slots, key heads, dimension)."""

    def __init__(self, slots: _Slots) -> None:
        super().__init__()
        self._slots = slots
        self._whole: tuple[Tensor, ...] = ()

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Take the memory for all slots when the first layer's shapes are known."""
        size = self._slots.size
        self._whole = tuple(part.new_zeros((size, part.shape[1], part.shape[3])) for part in (key_states, value_states))
        self.is_initialized, self._slots.dtype = True, key_states.dtype
        self.open()

    def open(self) -> None:
        """Lay the slots out as they are to be now."""
        rows, length = self._slots.shape
        self.keys, self.values = (part[: rows * length].view(rows, length, *part.shape[1:]) for part in self._whole)

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Keep new keys and values; the prompts attend to their own, a step to (rows, key heads, slots, dimension)."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        return self._kept(key_states, self.keys), self._kept(value_states, self.values)

    def _kept(self, new: Tensor, kept: Tensor) -> Tensor:
        slots, by_token = self._slots, new[0].transpose(0, 1)
        if slots.sources is not None:
            kept.copy_(by_token[slots.sources])
            return new
        assert slots.rows is not None, "a step says where its tokens are kept"
        assert slots.positions is not None, "a step says where its tokens are kept"
        kept.index_put_((slots.rows, slots.positions), by_token)
        return kept.transpose(1, 2)


class _OwnSlots:
    """The newest token of every row, attending to its row's slots up to its position: an `AttentionContext`.

    kinds: those whose masks are made at once, for scores of this dtype, so that torch's compiler finds them. With any,
        it can look into `attend`.
    """

    def __init__(self, positions: Tensor, length: int, kinds: Collection[Kind], dtype: torch.dtype) -> None:
        self._positions, self._length = positions, length
        self._masks = {kind: self._mask(kind, dtype) for kind in kinds}
        self.is_traceable = bool(kinds)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, limits: Limits) -> Tensor:
        """One masked attention of all rows; the query heads of one key head are its queries."""
        rows, key_heads = key.shape[:2]
        queries = query[0].transpose(0, 1).reshape(rows, key_heads, -1, query.shape[3])
        kind = (limits.window, limits.chunk)
        if kind not in self._masks:
            self._masks[kind] = self._mask(kind, query.dtype)
        mask = self._masks[kind].to(query.dtype).expand(-1, -1, queries.shape[2], -1)
        found = sdpa(queries, key, value, mask, limits)
        return found.reshape(rows, query.shape[1], -1).transpose(0, 1)[None]

    def _mask(self, kind: Kind, dtype: torch.dtype) -> Tensor:
        """0 or -inf, (rows, 1, 1, slots); made once for all layers with the same limits."""
        here, there = self._positions[:, None], torch.arange(self._length, device=self._positions.device)
        return added_mask(within_limits(there <= here, here, there, *kind), dtype)[:, None, None]
