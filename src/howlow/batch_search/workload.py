"""What a probe runs: the heaviest parts of a trial's fine-tuning, or of its inference, as the trial runs them.

Of the fine-tuning it is the heaviest micro-batch of the trial's own seeded schedule: the one with the most computed
tokens, and the one with the most targets where that is another. Of inference it is the heaviest batch of each phase,
generating all of the new tokens that the settings allow, with the adapter attached and then, where the trial merges
it, merged; before it the model trains a little, as what fine-tuning leaves in a process takes room beside inference.
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch

from howlow.engine import generation, layouts
from howlow.engine import model as models
from howlow.engine.layouts import Batch
from howlow.engine.model import Precision
from howlow.engine.tokens import TokenizedExample
from howlow.engine.training import MAX_SKIPPED_STEPS, DivergedError
from howlow.jobs import MemoryLine, RankMemory
from howlow.memory import heap
from howlow.meters.session import Session
from howlow.trial.fine_tuning import as_it_trains, lay_out, make_trainer, schedule_of
from howlow.trial.preparation import Prepared
from howlow.trial.scoring import Scorer
from howlow.trial.state import TrialState, split

_SHAPES = 8
"""Light steps of so many shapes fill the cache of compiled kernels (`heap.bound_heap`)."""
_ROWS = 12
"""Likewise light evaluations of so many numbers of rows, each with half a dozen shapes of products."""


@dataclass(frozen=True)
class Bench:
    """A loaded model, and the meters of a trial."""

    state: TrialState
    device: torch.device
    prepared: Prepared
    session: Session
    model: Any
    tokenizer: Any
    precision: Precision
    pad_id: int

    def known(self, setting: str) -> RankMemory:
        """What is certain of the rank: what its weights take (with gradients and two moments) and its activations."""
        trained = models.trainable(self.model)
        size = 4 * sum(parameter.numel() for parameter in trained.values())
        rank = self.state.settings.lora.rank if self.state.kind == "lora" else 0
        if setting == "inference.batch_size":
            return RankMemory(rank, MemoryLine(size, 0))
        places = sum(".lora_A." in name for name in trained)
        return RankMemory(rank, MemoryLine(4 * size, places * rank * (4 if self.precision == "fp32" else 2)))


def _read_tokens(state: TrialState, part: Sequence[TokenizedExample]) -> int:
    """The tokens that the model runs on to read these examples, as the trial lays them out."""
    return layouts.computed_tokens(part, state.choice.layout, state.settings.training.sequence_length)


class Work(Protocol):
    """What a batch is for."""

    @property
    def largest(self) -> int:
        """The largest batch that makes sense."""

    @property
    def examples(self) -> int:
        """Of the whole schedule, which is laid out in thought to know a batch's load."""

    @property
    def merges(self) -> bool:
        """Whether a probe merges the adapter, after which the process cannot probe again."""

    def load(self, batch: int) -> int:
        """The computed tokens of the heaviest part of the schedule."""

    def prepare(self, bench: Bench) -> None:
        """Run what a trial's process has behind it when this begins; its peak does not count."""

    def run(self, bench: Bench, batch: int) -> None:
        """Run the heaviest parts."""


@dataclass(frozen=True)
class TrainingWork:
    """Steps of the fine-tuning."""

    state: TrialState
    prepared: Prepared

    @property
    def largest(self) -> int:
        """All examples, or those of an optimizer step."""
        examples = len(self.prepared.train)
        return min(examples, self.state.settings.training.effective_batch_size or examples)

    @property
    def examples(self) -> int:
        """In all epochs, though a number of steps may end them sooner."""
        return len(self.prepared.train) * self.state.settings.training.epochs

    @property
    def merges(self) -> bool:
        """Never."""
        return False

    def load(self, batch: int) -> int:
        """Of the heaviest micro-batch."""
        return max(map(self._computed, self._micro_batches(batch)))

    def _micro_batches(self, batch: int) -> list[list[TokenizedExample]]:
        examples = self.prepared.train
        schedule = schedule_of(self.state.settings, examples, batch)
        return [[examples[index] for index in part] for step in schedule for part in split(step, batch)]

    def _computed(self, part: Sequence[TokenizedExample]) -> int:
        return _read_tokens(self.state, part)

    def _targets(self, part: Sequence[TokenizedExample]) -> int:
        return sum(layouts.count_targets(example, self.state.settings.training.loss_on) for example in part)

    def _heaviest(self, batch: int) -> list[list[TokenizedExample]]:
        """The micro-batch with the most computed tokens, and the one with the most targets where that is another."""
        parts = self._micro_batches(batch)
        most = max(parts, key=lambda part: (self._computed(part), self._targets(part)))
        most_targets = max(parts, key=lambda part: (self._targets(part), self._computed(part)))
        return [most] if self._targets(most) == self._targets(most_targets) else [most, most_targets]

    def prepare(self, bench: Bench) -> None:
        """Nothing: fine-tuning comes first."""

    def run(self, bench: Bench, batch: int) -> None:
        """A step of each heaviest micro-batch, with moments, and with gradients where a step has several."""
        chosen = self._heaviest(batch)
        times = 2 if (self.state.settings.training.effective_batch_size or 0) > batch else 1
        _train(bench, [[lay_out(self.state, part, bench.pad_id)] * times for part in chosen])


def _train(bench: Bench, steps: Sequence[Sequence[Batch]] = ()) -> None:
    """Light steps, which make the optimizer's moments and the kernels, and then these.

    What becomes of the weights does not matter for the memory; no gradient is left.
    """
    trainer = make_trainer(bench.state, bench.session, bench.model, bench.precision, 1)
    trainer.optimization = replace(trainer.optimization, learning_rate=0.0)
    # What matters is the memory that a step takes, not whether its loss is finite.
    with (
        as_it_trains(bench.state, bench.model, bench.precision),
        bench.session.phase("train"),
        suppress(DivergedError),
    ):
        for batch in _light_batches(bench):
            for _ in range(MAX_SKIPPED_STEPS):  # fp16 may skip the first
                if not trainer.step([batch]).skipped:
                    break
        for micro_batches in steps:
            trainer.step(micro_batches)
    bench.model.zero_grad(set_to_none=True)


def _light_batches(bench: Bench) -> Iterator[Batch]:
    """The lightest examples, a batch each.

    On a CPU they differ in shape, padded ones by being as short as they are: as many kernels are compiled as may be
    kept, which in the course of a trial its last micro-batches, or all of them, would add. torch's own compiler
    has to see the trial's shapes alone, or it compiles another graph.
    """
    by_length = {example.length: example for example in bench.prepared.train}
    lightest = [by_length[length] for length in sorted(by_length)]
    layout, training = bench.state.choice.layout, bench.state.settings.training
    is_varied = bench.device.type == "cpu" and (layout != "padded" or not training.compile)
    for example in lightest[: _SHAPES if is_varied else 1]:
        length = example.length if is_varied else training.sequence_length
        yield layouts.lay_out([example], layout, length, bench.pad_id, training.loss_on)


@dataclass(frozen=True)
class InferenceWork:
    """Batches of evaluation and, where the task has answers, of generation."""

    state: TrialState
    prepared: Prepared

    @property
    def largest(self) -> int:
        """All test examples."""
        return len(self.prepared.test)

    @property
    def examples(self) -> int:
        """The test's."""
        return len(self.prepared.test)

    @property
    def merges(self) -> bool:
        """As the trial does, when the test has run with the adapter attached."""
        return self.state.kind == "lora" and self.state.settings.inference.adapter == "merged"

    def load(self, batch: int) -> int:
        """Of the heaviest batch, prompts with all their new tokens or prompts with completions."""
        return max(max(self._read(part), self._written(part)) for part in self._parts(batch))

    def _parts(self, batch: int) -> list[list[TokenizedExample]]:
        test = self.prepared.test
        return [[test[index] for index in part] for part in split(range(len(test)), batch)]

    def _read(self, part: Sequence[TokenizedExample]) -> int:
        return _read_tokens(self.state, part)

    def _written(self, part: Sequence[TokenizedExample]) -> int:
        new = self.state.settings.inference.max_new_tokens
        prompts = [replace(example, completion=()) for example in part]
        length = self.state.settings.training.sequence_length - new
        return layouts.computed_tokens(prompts, self.state.choice.layout, length) + new * len(part)

    def prepare(self, bench: Bench) -> None:
        """A little fine-tuning: its kernels, and what it leaves in the heap, take room beside inference."""
        if self.state.kind != "base":
            _train(bench)
            heap.release(bench.device)

    def run(self, bench: Bench, batch: int) -> None:
        """The heaviest batch of each phase, to the last of its new tokens."""
        settings = self.state.settings
        endless = settings.model_copy(update={"task": settings.task.model_copy(update={"stop": None})})
        state, parts = replace(self.state, settings=endless), self._parts(batch)
        bench.model.eval()
        given = (bench.tokenizer, self.prepared, bench.precision, bench.pad_id)
        scorer = Scorer(state, bench.session, bench.model, *given, eos=frozenset())
        if bench.device.type == "cpu":
            self._fill_kernels(scorer, bench)
        self._run_heaviest(scorer, parts)
        if self.merges:
            self._run_heaviest(replace(scorer, model=models.merged(bench.model)), parts)

    def _fill_kernels(self, scorer: Scorer, bench: Bench) -> None:
        """Let oneDNN compile as many kernels as it keeps, as in the course of a test, whose batches differ in shape."""
        lightest, head = min(self.prepared.train, key=lambda example: example.length), self.state.settings.training.head
        with scorer.frozen_layers():
            for rows in range(1, _ROWS + 1):
                batch = layouts.lay_out([lightest] * rows, "padded", lightest.length, bench.pad_id, "completion")
                generation.evaluate(bench.model, batch, precision=bench.precision, head=head)
        heap.release(bench.device)

    def _run_heaviest(self, scorer: Scorer, parts: Sequence[list[TokenizedExample]]) -> None:
        for phase, prepare in scorer.phases.items():
            with scorer.frozen_layers(), scorer.session.phase(phase):
                prepare(max(parts, key=self._written if phase == "generate" else self._read))(lambda _: None)
