"""What the leading process of a trial asks of the processes of its other devices.

A command is run by every follower, in the order in which it was sent. It answers with a value, or with nothing.
"""

import pickle
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import nn

from howlow.engine import evaluation, generation, sharding
from howlow.engine.execution import Execution, Running, running
from howlow.engine.generation import Generated, LaidOut, Way
from howlow.engine.layouts import Batch
from howlow.engine.model import trainable
from howlow.engine.training import Optimization, Trainer
from howlow.engine.tree_generation import PromptRow
from howlow.memory.peaks import Peaks
from howlow.memory.phases import ProcessMemory


@dataclass
class Follower:
    """A process that helps: its model, with the adapter that the leading process sends, and how the model runs now."""

    index: int
    device: torch.device
    seed: int
    model: Any
    tokenizer: Any
    eos: frozenset[int]
    set_to_training: Callable[[nn.Module], None]
    memory: ProcessMemory
    _contexts: ExitStack = field(default_factory=ExitStack)
    _run: Running | None = None
    _trainer: Trainer | None = None

    @property
    def run(self) -> Running:
        """The context in which the model runs."""
        assert self._run is not None, "a phase has begun"
        return self._run

    @property
    def trainer(self) -> Trainer:
        """What accumulates gradients; the leading process has the optimizer."""
        self._trainer = self._trainer or Trainer(self.run, Optimization(learning_rate=0.0))
        return self._trainer

    def enter(self, execution: Execution, is_training: bool, has_adapter: bool) -> None:
        """Run the model as this execution says, until `leave`."""
        if is_training:
            self.set_to_training(self.model)
        else:
            self.model.eval()
        self._contexts.enter_context(nullcontext() if has_adapter else self.model.disable_adapter())
        sharding.broadcast([*trainable(self.model).values()])
        self._run = self._contexts.enter_context(running(self.model, replace(execution, device=self.device)))

    def leave(self) -> None:
        """End what `enter` began."""
        self._run = self._trainer = None
        self._contexts.close()


class Command(Protocol):
    """Something that a follower does."""

    def of(self, follower: Follower) -> object | None:
        """Do it; what is returned is sent back, unless it is None."""


@dataclass(frozen=True)
class Enter:
    """A phase begins: the model runs as the execution says, with the weights that the leading process has."""

    execution: Execution
    is_training: bool
    has_adapter: bool

    def of(self, follower: Follower) -> None:
        """Enter the phase."""
        follower.enter(self.execution, self.is_training, self.has_adapter)


@dataclass(frozen=True)
class Leave:
    """A phase has ended."""

    def of(self, follower: Follower) -> None:
        """Leave it."""
        follower.leave()


@dataclass(frozen=True)
class HelpStep:
    """Run a device's part of an optimizer step: a pickled `DevicePart` for each pass.

    Dropout draws from a generator that is seeded for each step, so that a resumed training draws the same.
    """

    step: int
    parts: tuple[bytes, ...]

    def of(self, follower: Follower) -> None:
        """Add this device's gradients to those of the leading process."""
        torch.manual_seed(hash((follower.seed, self.step, follower.index)) % 2**63)
        follower.trainer.help([pickle.loads(part) for part in self.parts])


@dataclass(frozen=True)
class Evaluate:
    """Evaluate a batch."""

    batch: Batch

    def of(self, follower: Follower) -> list[float]:
        """The summed loss of each of its examples."""
        return evaluation.evaluate(follower.run, self.batch)


@dataclass(frozen=True)
class Generate:
    """Continue prompts; the fields are the parameters of `howlow.engine.generation.generate`."""

    prompts: Sequence[Sequence[int]]
    layout: Way
    prompt_length: int
    pad_id: int
    max_new_tokens: int
    stop: str | None
    repeated: Sequence[str]
    laid_out: LaidOut

    @property
    def prompt_tokens(self) -> int:
        """The tokens that the model runs on to read the prompts."""
        if self.laid_out is None:
            return sum(map(len, self.prompts))
        return self.laid_out.length if isinstance(self.laid_out, PromptRow) else self.laid_out[0].numel()

    def of(self, follower: Follower) -> tuple[list[Generated], int]:
        """The rows, and the number of tokens that the model ran on."""
        return self.run(follower.run, follower.tokenizer, follower.eos)

    def run(self, run: Running, tokenizer: Any, eos: frozenset[int], **further: Any) -> tuple[list[Generated], int]:
        """The same in the leading process."""
        named = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "prompts"}
        return generation.generate(run, tokenizer, self.prompts, eos=eos, **named, **further)


@dataclass(frozen=True)
class BeginPhase:
    """Start new peaks of memory."""

    def of(self, follower: Follower) -> None:
        """Free what the last phase left, and reset the peaks."""
        follower.memory.begin()


@dataclass(frozen=True)
class ReadPeaks:
    """Say how much memory the phase took."""

    def of(self, follower: Follower) -> Peaks:
        """The peaks of this process since the phase began."""
        return follower.memory.peaks()
