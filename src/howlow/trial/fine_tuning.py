"""The fine-tuning phase: the schedule of steps, each timed and written down, with checkpoints between them."""

import math
from collections.abc import Sequence
from functools import partial

from torch import nn

from howlow.engine import order
from howlow.engine.execution import Execution, Running
from howlow.engine.layouts import Batch
from howlow.engine.shares import SplitBatch
from howlow.engine.tokens import TokenizedExample
from howlow.engine.training import Optimization, StepOutcome, Trainer
from howlow.meters.clock import now_s
from howlow.meters.phase import Timed
from howlow.meters.session import Session
from howlow.meters.totals import PhaseTotals
from howlow.records import Part, WarningKind
from howlow.settings import Settings, adapts
from howlow.trial import foretold
from howlow.trial.acceleration import Filling, note_untraced, ready, trainer_of
from howlow.trial.checkpointing import Saved, save_training
from howlow.trial.lines import StepLines
from howlow.trial.prefetch import prefetched, steps_ahead
from howlow.trial.prepared import Prepared
from howlow.trial.state import TrialState, split, step_line

_LARGE_BATCH = 32


def fine_tune(
    state: TrialState,
    session: Session,
    model: nn.Module,
    prepared: Prepared,
    *,
    execution: Execution,
    pad_id: int,
    saved: Saved | None,
) -> None:
    """Train on the whole schedule, or on the part of it that a checkpoint left."""
    set_to_training(state.settings, model)
    _warn_about_batch(state)
    schedule = schedule_of(state.settings, prepared.train, state.training_batch_size)
    parts = micro_batches_of(prepared.train, schedule, state.training_batch_size)
    execution, filling, recorded = ready(state, model, execution, pad_id, parts)
    with state.followers.running(model, execution) as run:
        _run_schedule(state, session, run, prepared, schedule, filling, recorded, saved)


def _run_schedule(
    state: TrialState,
    session: Session,
    run: Running,
    prepared: Prepared,
    schedule: Sequence[Sequence[int]],
    filling: Filling,
    recorded: Sequence[Batch],
    saved: Saved | None,
) -> None:
    training, examples = state.settings.training, prepared.train
    trainer = trainer_of(state, run, optimization_of(state.settings, len(schedule)), recorded)
    if saved is not None:
        saved.restore_training(trainer)
    first, skipped, saved_at_s = trainer.steps_done, state.skipped_steps(), now_s()
    parts = state.burn_in("train", [len(step) for step in schedule[first:]])
    totals = PhaseTotals(**saved.document["totals"]) if saved else None

    def laid_out(chosen: Sequence[int]) -> list[Batch | SplitBatch]:
        return [filling.split(part) for part in micro_batches_of(examples, [chosen], state.training_batch_size)]

    ahead = steps_ahead(max(map(len, schedule), default=1), training.sequence_length)
    with (
        session.phase("train", totals) as meter,
        StepLines(state.steps_path) as lines,
        prefetched(laid_out, schedule[first:], ahead) as laid_out_ahead,
    ):
        for index, micro_batches in enumerate(laid_out_ahead, first):
            state.note_first_step()
            part = parts.of_next
            with meter.step(part == "measured", len(schedule[index])) as timed:
                outcome = trainer.outcome(trainer.step(micro_batches))
            parts.ended(part, timed, sum(batch.computed_tokens for batch in micro_batches))
            skipped += outcome.skipped
            lines.append(partial(_line, timed, part, index, micro_batches, outcome))
            state.report_progress("train", index + 1, len(schedule), outcome.loss)
            is_due = now_s() - saved_at_s >= training.checkpoint_every_s or state.link.stop_requested
            if is_due and index + 1 < len(schedule):
                lines.flush()
                save_training(state, session, meter, trainer)
                saved_at_s = now_s()
                state.stop_if_asked()  # after the last step the trained weights are saved first
        state.found.phases.append(meter.end())
    if first < len(schedule):
        note_untraced(state, run.execution)
    trainer.refuse_if_not_finite()
    _warn_about_idle(state, trainer)
    if skipped:
        state.warn(WarningKind.STEPS_SKIPPED, f"{skipped} of {len(schedule)} steps skipped")


def _warn_about_batch(state: TrialState) -> None:
    """A warning where an adapter trains in large steps (LoRA Without Regret, Schulman et al., 2025)."""
    examples = state.settings.training.effective_batch_size or state.training_batch_size
    if adapts(state.kind) and examples > _LARGE_BATCH:
        state.warn(WarningKind.LARGE_EFFECTIVE_BATCH, f"{examples} examples in an optimizer step", "train")


def _warn_about_idle(state: TrialState, trainer: Trainer) -> None:
    """A warning where parameters never had a gradient, unless it was foretold: they have no influence on a loss."""
    idle = [name for name in trainer.idle() if not foretold.is_idle(name, state.choice)]
    if idle:
        detail = f"{len(idle)} of {len(trainer.parameters)} trained tensors never had a gradient: {', '.join(idle[:3])}"
        state.warn(WarningKind.LAYERS_LEFT_OUT, detail, "train")


def _line(
    timed: Timed, part: Part, step: int, micro_batches: Sequence[Batch | SplitBatch], outcome: StepOutcome
) -> str:
    return step_line(
        timed,
        phase="train",
        part=part,
        step=step,
        micro_batches=len(micro_batches),
        samples=sum(batch.samples for batch in micro_batches),
        tokens=sum(batch.tokens for batch in micro_batches),
        target_tokens=sum(batch.target_tokens for batch in micro_batches),
        computed_tokens=sum(batch.computed_tokens for batch in micro_batches),
        loss=outcome.loss,
        gradient_norm=outcome.gradient_norm,
        skipped=outcome.skipped,
    )


def schedule_of(settings: Settings, examples: Sequence[TokenizedExample], batch_size: int) -> list[list[int]]:
    """The examples of every optimizer step: of a shrunk adapter's further training, as many steps as were asked for."""
    training, continued = settings.training, settings.lora.continue_steps
    step = training.effective_batch_size or batch_size
    epochs = math.ceil(continued / math.ceil(len(examples) / step)) if continued else training.epochs
    return order.steps(
        [example.group for example in examples],
        training.shuffle,
        settings.seed,
        epochs,
        step,
        continued or training.max_steps,
    )


def micro_batches_of(
    examples: Sequence[TokenizedExample], schedule: Sequence[Sequence[int]], batch_size: int
) -> list[list[TokenizedExample]]:
    """The examples of every micro-batch of a schedule."""
    return [[examples[index] for index in part] for step in schedule for part in split(step, batch_size)]


def set_to_training(settings: Settings, model: nn.Module) -> None:
    """Set the model to training mode, recomputing activations where the settings ask for it."""
    model.train()
    if settings.training.gradient_checkpointing:
        # Without dropout nothing random is recomputed, and a recorded step must not read the generators.
        options = {"use_reentrant": False, "preserve_rng_state": settings.lora.dropout > 0}
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)  # type: ignore[operator]


def optimization_of(settings: Settings, total_steps: int) -> Optimization:
    """The optimizer's settings for a training of so many steps."""
    training = settings.training
    return Optimization(
        learning_rate=training.learning_rate,
        weight_decay=training.weight_decay,
        betas=training.betas,
        schedule=training.lr_schedule,
        warmup_steps=training.lr_warmup_steps,
        max_grad_norm=training.max_grad_norm,
        total_steps=total_steps,
    )
