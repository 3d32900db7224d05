"""What a probe runs: the heaviest parts of a trial's fine-tuning, or of its inference, as the trial runs them.

For fine-tuning it is the heaviest micro-batch of the trial's own seeded schedule: the one with the most computed
tokens, and the one with the most targets if that is another. For inference it is the heaviest batch of each phase,
with all the new tokens that the settings allow. The adapter is attached, and then merged if the trial merges it.
Inference has a process of its own, so nothing is trained before it.

On CUDA a probe may be *plain*: its steps are not compiled or recorded, and nothing is merged. A trial runs the plain
step as well, to check the other ones against it (`howlow.trial.acceleration`), and a merged model has no adapter to
compute, so a batch that does not fit plainly does not fit. Batches are filled up to the trial's shapes in both ways.

The first probe of a process on CUDA runs its heaviest part again after a lighter one: what the allocator keeps of one
step has to do for steps of other sizes, which a trial has many of.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

import torch

from howlow.batch_search.row_tokens import RowTokens
from howlow.engine import buckets, evaluation, layouts
from howlow.engine import model as models
from howlow.engine.adapter import merge_adapter
from howlow.engine.cuda.attention import BLOCK
from howlow.engine.execution import Execution, running
from howlow.engine.layouts import Batch
from howlow.engine.tokens import TokenizedExample
from howlow.engine.training import MAX_SKIPPED_STEPS, DivergedError
from howlow.jobs import MemoryLine, RankMemory
from howlow.memory import heap
from howlow.meters.session import Session
from howlow.outcomes import names_lack_of_memory
from howlow.records import WarningKind
from howlow.settings import adapts
from howlow.trial.acceleration import Filling, filling_of, new_trainer, ready
from howlow.trial.fine_tuning import optimization_of, schedule_of, set_to_training
from howlow.trial.prepared import Prepared
from howlow.trial.scoring import Scorer
from howlow.trial.state import RecordDraft, TrialState, split

_SHAPES = 8
"""How many shapes of light steps fill the cache of compiled kernels (`heap.bound_heap`)."""
_ROWS = 12
"""How many row counts fill it in evaluation, each with half a dozen shapes of products."""


@dataclass(frozen=True)
class Scope:
    """How much of a trial's work a probe runs.

    is_whole: also what the trial does once. again: the heaviest part a second time, after a lighter one.
    """

    is_whole: bool = True
    again: bool = False


@dataclass(frozen=True)
class Bench:
    """A loaded model, how it runs, and the meters of a trial.

    held_bytes: what the process held before its first probe; None where it has no second one.
    """

    state: TrialState
    device: torch.device
    prepared: Prepared
    session: Session
    model: Any
    tokenizer: Any
    execution: Execution
    pad_id: int
    held_bytes: int | None = None

    def known(self, setting: str) -> RankMemory:
        """The memory that a rank surely takes: its weights (with gradients and two moments) and its activations."""
        trained = models.trainable(self.model)
        size = 4 * sum(parameter.numel() for parameter in trained.values())
        rank = self.state.settings.lora.rank if adapts(self.state.kind) else 0
        if setting == "inference.batch_size":
            return RankMemory(rank, MemoryLine(size, 0))
        places = sum(".lora_A." in name for name in trained)
        return RankMemory(rank, MemoryLine(4 * size, places * rank * (4 if self.execution.precision == "fp32" else 2)))


class Work(Protocol):
    """The part of a trial whose largest batch is searched for."""

    @property
    def largest(self) -> int:
        """The largest batch worth trying."""

    @property
    def examples(self) -> int:
        """Examples in the whole schedule, whose tokens are counted to find a batch's load."""

    @property
    def merges(self) -> bool:
        """Whether a whole probe merges the adapter, after which the process cannot probe again."""

    def has_plain(self, execution: Execution) -> bool:
        """Whether a plain probe leaves anything out where the model runs like this."""

    def load(self, batch: int) -> int:
        """The computed tokens of the heaviest part of the schedule."""

    def run(self, bench: Bench, batch: int, scope: Scope) -> None:
        """Run the heaviest parts."""


@dataclass(frozen=True)
class TrainingWork:
    """Steps of the fine-tuning."""

    state: TrialState
    prepared: Prepared
    device: torch.device

    @property
    def largest(self) -> int:
        """All examples, or the examples of an optimizer step."""
        examples = len(self.prepared.train)
        return min(examples, self.state.settings.training.effective_batch_size or examples)

    @property
    def examples(self) -> int:
        """The examples of all epochs, though a number of steps may end them sooner."""
        return len(self.prepared.train) * self.state.settings.training.epochs

    @property
    def merges(self) -> bool:
        """Never."""
        return False

    def has_plain(self, execution: Execution) -> bool:
        """Where steps are compiled or recorded."""
        return execution.fills_shapes

    def load(self, batch: int) -> int:
        """The computed tokens of the heaviest micro-batch."""
        return max(map(self._tokens.of, self._micro_batches(batch)))

    @cached_property
    def _tokens(self) -> RowTokens:
        length, remembers = self.state.settings.training.sequence_length, self.device.type != "cpu"
        return RowTokens(self.prepared.train, self.state.choice.layout, length, remembers=remembers)

    def _micro_batches(self, batch: int) -> list[list[int]]:
        """Which examples they hold."""
        schedule = schedule_of(self.state.settings, self.prepared.train, batch)
        return [part for step in schedule for part in split(step, batch)]

    def _examples(self, part: Sequence[int]) -> list[TokenizedExample]:
        return [self.prepared.train[index] for index in part]

    def _targets(self, part: Sequence[int]) -> int:
        loss_on = self.state.settings.training.loss_on
        return sum(layouts.count_targets(example, loss_on) for example in self._examples(part))

    def _heaviest(self, parts: Sequence[list[int]]) -> list[list[int]]:
        """The micro-batch with the most computed tokens, and the one with the most targets if that is another."""
        most = max(parts, key=lambda part: (self._tokens.of(part), self._targets(part)))
        most_targets = max(parts, key=lambda part: (self._targets(part), self._tokens.of(part)))
        return [most] if self._targets(most) == self._targets(most_targets) else [most, most_targets]

    def run(self, bench: Bench, batch: int, scope: Scope) -> None:
        """A step of each heaviest micro-batch, with moments, and with gradients where a step has several.

        No gradient is left, also where memory runs out, in a check as in a step.
        """
        try:
            self._run(bench, batch, scope)
        finally:
            bench.model.zero_grad(set_to_none=True)

    def _run(self, bench: Bench, batch: int, scope: Scope) -> None:
        state = replace(self.state, found=RecordDraft())  # whose warnings are those of this probe
        set_to_training(state.settings, bench.model)
        parts = self._micro_batches(batch)
        execution, filling, recorded = self._ready(state, bench, parts, scope)
        times = 2 if (state.settings.training.effective_batch_size or 0) > batch else 1
        chosen = self._heaviest(parts)
        if scope.again:
            chosen = [*chosen, min(parts, key=self._tokens.of), *chosen]
        steps = [[filling.batch(self._examples(part))] * times for part in chosen]
        light: list[Batch] = []  # recording a step makes the moments
        if not execution.fills_shapes:
            light = list(_light_batches(bench))
        elif not recorded:
            light = [filling.batch(self._examples(min(parts, key=self._tokens.of)))]
        _train(bench, execution, light, recorded, steps)

    def _ready(
        self, state: TrialState, bench: Bench, parts: Sequence[list[int]], scope: Scope
    ) -> tuple[Execution, Filling, list[Batch]]:
        """As the trial's steps run; plainly they are filled up to the same shapes.

        Raises:
            OutOfMemoryError: there is no room for compiled or recorded steps, which the trial would do without.
        """
        if not scope.is_whole:
            layout, loss_on = state.choice.layout, state.settings.training.loss_on
            sizes = [buckets.size_with(self._tokens.of(part), self._examples(part), layout, loss_on) for part in parts]
            return bench.execution.plainest(), filling_of(state, bench.execution, bench.pad_id, sizes), []
        examples = [self._examples(part) for part in parts]
        given = bench.model, bench.execution, bench.pad_id, examples
        execution, filling, recorded = ready(state, *given, has_to_pay=False)
        _refuse_lack_of_memory(state)
        return execution, filling, recorded


def _refuse_lack_of_memory(state: TrialState) -> None:
    """Raise the error that a check has turned into a warning: a trial goes on with plainer steps, a batch is too large.

    Raises:
        OutOfMemoryError: there is no room for compiled or recorded steps.
    """
    for warning in state.found.warnings:
        if warning.kind is WarningKind.PLAINER_STEPS and names_lack_of_memory(warning.detail, is_limited=False):
            raise torch.OutOfMemoryError(warning.detail)


def _train(
    bench: Bench,
    execution: Execution,
    light: Sequence[Batch],
    recorded: Sequence[Batch],
    steps: Sequence[Sequence[Batch]],
) -> None:
    """Run light steps, which make the optimizer's moments and the kernels, and then the given ones.

    The model is in training mode. The weights' values do not matter for the memory.

    recorded: a batch of each shape whose steps are recorded first (`howlow.trial.acceleration`).
    """
    optimization = replace(optimization_of(bench.state.settings, 1), learning_rate=0.0)
    # What matters is the memory that a step takes, not whether its loss is finite.
    with running(bench.model, execution) as run, bench.session.phase("train"), suppress(DivergedError):
        trainer = new_trainer(run, optimization, recorded)
        for batch in light:
            for _ in range(MAX_SKIPPED_STEPS):  # fp16 may skip the first
                if not trainer.outcome(trainer.step([batch])).skipped:
                    break
        for micro_batches in steps:
            trainer.outcome(trainer.step(micro_batches))


def _light_batches(bench: Bench) -> Iterator[Batch]:
    """The lightest examples, a batch each.

    On a CPU they differ in shape, padded ones by having no padding, so that as many kernels are compiled as may be
    kept; in the course of a trial its micro-batches would compile them. torch's own compiler must see the trial's
    shapes only, or it compiles another graph. (On CUDA filled batches are what it sees.) On CUDA there is one batch, in
    a row of more than a block: FlexAttention is compiled once more for a row of one, which takes seconds.
    """
    by_length = {example.length: example for example in bench.prepared.train}
    lightest = [by_length[length] for length in sorted(by_length)]
    layout, training = bench.state.choice.layout, bench.state.settings.training
    if bench.device.type == "cuda":
        yield _more_than_a_block(bench, lightest)
        return
    is_varied = bench.device.type == "cpu" and (layout != "padded" or not bench.execution.compiled)
    for example in lightest[: _SHAPES if is_varied else 1]:
        length = example.length if is_varied else training.sequence_length
        yield layouts.lay_out([example], layout, length, bench.pad_id, training.loss_on)


def _more_than_a_block(bench: Bench, lightest: Sequence[TokenizedExample]) -> Batch:
    """As few of these examples as take more than a block of FlexAttention."""
    layout, training = bench.state.choice.layout, bench.state.settings.training
    sizes = (
        layouts.computed_tokens(lightest[:count], layout, training.sequence_length)
        for count in range(1, len(lightest) + 1)
    )
    count = next((count for count, size in enumerate(sizes, 1) if size > BLOCK), len(lightest))
    return layouts.lay_out(lightest[:count], layout, training.sequence_length, bench.pad_id, training.loss_on)


@dataclass(frozen=True)
class InferenceWork:
    """Batches of evaluation and, where the task has answers, of generation."""

    state: TrialState
    prepared: Prepared
    device: torch.device

    @property
    def largest(self) -> int:
        """All test examples."""
        return len(self.prepared.test)

    @property
    def examples(self) -> int:
        """The test examples."""
        return len(self.prepared.test)

    @property
    def merges(self) -> bool:
        """If the trial merges the adapter, after the test has run with it attached."""
        return adapts(self.state.kind) and self.state.settings.inference.adapter == "merged"

    def has_plain(self, execution: Execution) -> bool:
        """Where the adapter is merged, or token steps are recorded."""
        return self.merges or execution.for_generation().graphed

    def load(self, batch: int) -> int:
        """The computed tokens of the heaviest batch: prompts with all new tokens, or prompts with completions."""
        return max(max(self._read(part), self._written(part)) for part in self._parts(batch))

    def _parts(self, batch: int) -> list[list[TokenizedExample]]:
        test = self.prepared.test
        return [[test[index] for index in part] for part in split(range(len(test)), batch)]

    def _read(self, part: Sequence[TokenizedExample]) -> int:
        """The tokens that the model runs on to read these examples, as the trial lays them out."""
        return layouts.computed_tokens(part, self.state.choice.layout, self.state.settings.training.sequence_length)

    def _written(self, part: Sequence[TokenizedExample]) -> int:
        new = self.state.settings.inference.max_new_tokens
        prompts = [replace(example, completion=()) for example in part]
        length = self.state.settings.training.sequence_length - new
        return layouts.computed_tokens(prompts, self.state.choice.layout, length) + new * len(part)

    def run(self, bench: Bench, batch: int, scope: Scope) -> None:
        """The heaviest batch of each phase, with all of its new tokens."""
        settings = self.state.settings
        endless = settings.model_copy(update={"task": settings.task.model_copy(update={"stop": None})})
        state, parts = replace(self.state, settings=endless, found=RecordDraft()), self._parts(batch)
        bench.model.eval()
        given = (bench.tokenizer, self.prepared, bench.execution, bench.pad_id)
        scorer = Scorer(state, bench.session, bench.model, *given, eos=frozenset())
        if bench.device.type == "cpu":
            self._fill_kernels(scorer, bench)
        self._run_heaviest(scorer, parts, scope)
        if self.merges and scope.is_whole:
            self._run_heaviest(replace(scorer, model=merge_adapter(bench.model)), parts, scope)

    def _fill_kernels(self, scorer: Scorer, bench: Bench) -> None:
        """Let oneDNN compile as many kernels as it keeps, as in the course of a test, whose batches differ in shape."""
        lightest = min(self.prepared.train, key=lambda example: example.length)
        with scorer.running("evaluate") as run:
            for rows in range(1, _ROWS + 1):
                batch = layouts.lay_out([lightest] * rows, "padded", lightest.length, bench.pad_id, "completion")
                evaluation.evaluate(run, batch)
        heap.release(bench.device)

    def _run_heaviest(self, scorer: Scorer, parts: Sequence[list[TokenizedExample]], scope: Scope) -> None:
        for phase in scorer.phases:
            size: Callable[[Sequence[TokenizedExample]], int] = self._written if phase == "generate" else self._read
            heaviest = max(parts, key=size)
            chosen = [heaviest, min(parts, key=size), heaviest] if scope.again else [heaviest]
            with (
                scorer.running(phase) as run,
                scorer.recording(phase, run, parts) if scope.is_whole else nullcontext() as recorded,
                scorer.session.phase(phase),
            ):
                _refuse_lack_of_memory(scorer.state)
                prepare = replace(scorer, recorded=recorded).phases[phase]
                for part in chosen:
                    prepare(part)(run, lambda _: None)
