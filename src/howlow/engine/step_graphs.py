"""A training step that is recorded once for each shape of batch and then replayed.

On a GPU a step of thousands of small kernels waits for Python to start them. A CUDA graph is a recording of them that
starts at once. It repeats the same kernels on the same addresses, so a batch is copied into buffers that stay, and
gradients, weights and moments stay where they are.

Two things are recorded: forward and backward of a micro-batch, once for each shape (`howlow.engine.buckets`), which
adds to the gradients; and the move of the optimizer, which ends with gradients of zero. What records is given
(`Recorder`), so that the structure is tested without a GPU. The blocks of a prefix tree are read on the host, so rows
that several examples share need FlexAttention, which makes its mask on the device.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

from howlow.engine.layouts import Batch

T = TypeVar("T")
Shape = tuple[int, int, int]
Pass = Callable[[Batch, Tensor], Tensor]
"""Forward and backward of a micro-batch on the device, its loss multiplied by a scale; gives the summed loss."""
Moved = tuple[Tensor, Tensor | None]
"""The gradient's norm, and whether the step was skipped."""


class Recorder(Protocol):
    """Records work on the device."""

    def warm_up(self, work: Callable[[], object]) -> None:
        """Run the work a few times, so that what is made once (kernels, moments) is not recorded with it.

        All passes are warmed up before the first is recorded: beside the memory of a recording, that of another pass
        would have to fit.
        """

    def record(self, work: Callable[[], T]) -> Callable[[], T]:
        """Record the work; returns what repeats it, on the same tensors.

        What the work returns is overwritten when anything recorded is repeated.
        """


@contextmanager
def kept_weights(parameters: Collection[nn.Parameter]) -> Iterator[None]:
    """At the end of this context, in which steps are tried, the parameters have the values of its beginning."""
    before = [parameter.detach().clone() for parameter in parameters]
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, value in zip(parameters, before, strict=True):
                parameter.copy_(value)


def shape_of(batch: Batch) -> Shape:
    """What must be equal for two batches to share a recording."""
    rows, tokens = batch.input_ids.shape
    return rows, tokens, batch.targets.numel()


def _tensors(batch: Batch) -> list[Tensor]:
    """The tensors of a batch on which its forward and backward pass depend."""
    found = [getattr(batch, field.name) for field in fields(batch)]
    tree = [batch.tree.positions, batch.tree.visible_until] if batch.tree is not None else []
    return [*(part for part in found if isinstance(part, Tensor) and part is not batch.owners), *tree]


@dataclass(frozen=True)
class _Pass:
    """One shape's buffers, and what runs its pass over them, or repeats it."""

    batch: Batch
    scale: Tensor
    run: Callable[[], Tensor]

    def __call__(self, batch: Batch, scale: Tensor) -> Tensor:
        for kept, given in zip(_tensors(self.batch), _tensors(batch), strict=True):
            kept.copy_(given, non_blocking=True)
        self.scale.copy_(scale)
        return self.run().clone()


class StepGraphs:
    """The recorded passes, by shape, and the recorded move.

    gradients: the trained parameters' gradients, which the passes add to and which stay in place.
    """

    def __init__(self, recorder: Recorder, device: torch.device, run: Pass, gradients: list[Tensor]) -> None:
        self._recorder, self._device, self._run = recorder, device, run
        self._gradients = gradients
        self._passes: dict[Shape, _Pass] = {}
        self._move: Callable[[], Moved] | None = None

    def record_passes(self, batches: Sequence[Batch]) -> None:
        """Record the pass over batches of each one's shape; the gradients are 0 afterwards."""
        passes = [self._buffered(batch) for batch in batches]
        for one in passes:
            self._recorder.warm_up(one.run)
        self._passes = {shape_of(one.batch): replace(one, run=self._recorder.record(one.run)) for one in passes}
        self.clear()

    def record_move(self, move: Callable[[], Moved]) -> None:
        """Record the optimizer's move; the caller puts back what its trial runs change."""

        def moved() -> Moved:
            norm, overflowed = move()
            self.clear()
            return norm, overflowed

        self._recorder.warm_up(moved)
        self._move = self._recorder.record(moved)

    def _buffered(self, batch: Batch) -> "_Pass":
        """The pass over buffers like this batch, which are its own and whose values change."""
        kept = batch.to(self._device).mapped(Tensor.clone)
        scale = torch.ones((), device=self._device)
        return _Pass(kept, scale, lambda: self._run(kept, scale))

    def clear(self) -> None:
        """Set the gradients to 0 where they are."""
        torch._foreach_zero_(self._gradients)

    def has(self, batch: Batch) -> bool:
        """Whether a pass is recorded for batches of this one's shape."""
        return shape_of(batch) in self._passes

    def accumulate(self, batch: Batch, scale: Tensor) -> Tensor:
        """Repeat the pass on a batch, which may be on the host; returns the summed loss."""
        return self._passes[shape_of(batch)](batch, scale)

    def move(self) -> Moved:
        """Repeat the move."""
        assert self._move is not None, "it was recorded"
        norm, overflowed = self._move()
        return norm.clone(), None if overflowed is None else overflowed.clone()
