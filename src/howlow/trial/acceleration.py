"""How a trial's steps run on a GPU: the few shapes of its batches, and what is checked before it trusts them.

Adapters without casts, compiled layers and recorded steps (CUDA graphs) are checked on the loaded model and the device
itself, against the plain step on the longest batch of the trial's own schedule. What does not hold is left out, with a
warning.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import nn

from howlow.engine import buckets, layouts
from howlow.engine.alone import ids_of
from howlow.engine.buckets import Bucket, Buckets, Size
from howlow.engine.compiled_layers import Compiled
from howlow.engine.cuda.graphs import CudaGraphs, drop_unused
from howlow.engine.execution import Execution, Running
from howlow.engine.layouts import Batch
from howlow.engine.shares import SplitBatch, split_batch
from howlow.engine.step_check import RECORDED, UNTRACED, evaluation_problem, failed, trusted
from howlow.engine.tokens import TokenizedExample
from howlow.engine.training import BeginStep, Optimization, Trainer
from howlow.records import WarningKind
from howlow.trial.state import TrialState


@dataclass(frozen=True)
class Filling:
    """How the batches of a training are laid out: in its layout, filled up to the schedule's few shapes, if it has any.

    pad_id: fills rows; it is masked, so any token does.
    """

    state: TrialState
    pad_id: int
    shapes: Buckets | None = None

    def batch(self, examples: Sequence[TokenizedExample]) -> Batch:
        """Examples as a training batch."""
        training = self.state.settings.training
        batch = layouts.lay_out(
            examples, self.state.choice.layout, training.sequence_length, self.pad_id, training.loss_on
        )
        bucket = self.shapes.of(buckets.size_of_batch(batch)) if self.shapes else None
        return batch if bucket is None else buckets.fill(batch, bucket, self.pad_id).pinned()

    def split(self, examples: Sequence[TokenizedExample]) -> Batch | SplitBatch:
        """Examples as a training batch over the trial's devices."""
        keeps_groups = self.state.choice.layout == "shared"
        return split_batch(examples, self.state.followers.count, self.batch, keeps_groups=keeps_groups)


def ready(
    state: TrialState,
    model: nn.Module,
    execution: Execution,
    pad_id: int,
    micro_batches: Sequence[Sequence[TokenizedExample]],
    *,
    has_to_pay: bool = True,
) -> tuple[Execution, Filling, list[Batch]]:
    """How a training runs whose schedule has these micro-batches, once it is checked; the shapes go into the record.

    has_to_pay: see `howlow.engine.step_check.trusted`.

    Returns:
        The execution, or the next plainer one that computes what the plain step does; how batches are laid out; and a
        batch of each shape that is to be recorded, the largest first.
    """
    if not execution.fills_shapes:
        return execution, Filling(state, pad_id), []
    layout, training = state.choice.layout, state.settings.training
    sizes = [buckets.size_of(part, layout, training.sequence_length, training.loss_on) for part in micro_batches]
    filling = filling_of(state, execution, pad_id, sizes)
    assert filling.shapes is not None, "the execution fills shapes"
    batches = _first_and_last(filling, filling.shapes, sizes, micro_batches)
    first, last = batches[0]
    found, problems = trusted(
        model, execution, first, last, lambda: CudaGraphs(execution.device), has_to_pay=has_to_pay
    )
    for problem in problems:
        state.warn(WarningKind.PLAINER_STEPS, problem, "train")
    state.resolve(joined_adapters=found.joined_adapters, compiled=found.compiled, graphed=found.graphed)
    return found, filling, [first for first, _ in batches] if found.graphed else []


def note_untraced(state: TrialState, execution: Execution) -> None:
    """After steps of a training whose layers were to run compiled but for which nothing was checked: did they?"""
    if execution.compiled and not execution.fills_shapes and Compiled.so_far().regions == 0:
        state.warn(WarningKind.PLAINER_STEPS, UNTRACED, "train")
        state.resolve(compiled=False)


def ready_to_infer(
    state: TrialState, model: nn.Module, execution: Execution, examples: Sequence[TokenizedExample]
) -> Execution:
    """How a model runs in inference that the trial has not trained: joined adapters are checked on one of the texts."""
    if not execution.for_evaluation().joined_adapters:
        return execution
    longest = max(examples, key=lambda example: example.length)
    problem = evaluation_problem(model, execution, ids_of(longest))
    if problem is not None:
        state.warn(WarningKind.PLAINER_STEPS, problem, "evaluate")
    state.resolve(joined_adapters=problem is None)
    return replace(execution, joined_adapters=problem is None)


def filling_of(state: TrialState, execution: Execution, pad_id: int, sizes: Sequence[Size]) -> Filling:
    """How batches of these sizes are laid out; their shapes go into the record."""
    if not execution.fills_shapes:
        return Filling(state, pad_id)
    shapes = buckets.choose_shapes(sizes, fills_rows=state.choice.layout != "padded")
    state.resolve(row_lengths=tuple(shape.tokens for shape in shapes.shapes), row_padding=shapes.padding)
    return Filling(state, pad_id, shapes)


def _first_and_last(
    filling: Filling, shapes: Buckets, sizes: Sequence[Size], micro_batches: Sequence[Sequence[TokenizedExample]]
) -> list[tuple[Batch, Batch]]:
    """The first and the last batch of each shape, on the host, the largest shape first."""
    found: dict[Bucket, list[Sequence[TokenizedExample]]] = {}
    for size, part in zip(sizes, micro_batches, strict=True):
        if (shape := shapes.of(size)) is not None:
            found.setdefault(shape, []).append(part)
    largest_first = sorted(found, key=lambda shape: (shape.rows * shape.tokens, shape.targets), reverse=True)
    return [(filling.batch(found[shape][0]), filling.batch(found[shape][-1])) for shape in largest_first]


def new_trainer(
    run: Running, optimization: Optimization, recorded: Sequence[Batch], begin: BeginStep | None = None
) -> Trainer:
    """A trainer, whose steps are recorded where there are batches for it; begin: see `Trainer`."""
    trainer = Trainer(run, optimization, begin)
    if recorded:
        trainer.record(CudaGraphs(run.execution.device), recorded)
    return trainer


def trainer_of(state: TrialState, run: Running, optimization: Optimization, recorded: Sequence[Batch]) -> Trainer:
    """The same for a trial: a recording that fails after all, where the check's own held, leaves steps as they are."""
    try:
        return new_trainer(run, optimization, recorded, state.followers.begin_step)
    except Exception as error:  # whatever a driver raises, the steps still run
        if not recorded:
            raise
        state.warn(WarningKind.PLAINER_STEPS, failed(RECORDED, error), "train")
    state.resolve(graphed=False)
    run.model.zero_grad(set_to_none=True)
    drop_unused(run.execution.device)
    return Trainer(run, optimization, state.followers.begin_step)
