"""What a trial does, like the method section of a paper.

The model is loaded, an adapter attached and fine-tuned on the training examples, and the adapter saved. There the
process ends. A fresh one loads the model and the trained weights, and scores the test data: its loss, and for tasks
with answers, greedy generation. So no figure of inference depends on what training left behind: the peaks of memory,
the allocator's cache and the heap are those of a process that never trained. Where that second process fits into the
trial is in `howlow.trial.checkpointing`. The zero-shot `base` does not train, and has one process.

A shrunk trial's adapter is the update of a saved one, cut to its rank (`howlow.trial.starting`). Where it is not
continued, it does not train either; everything after the training is the same.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from howlow.engine import model as models
from howlow.engine.adapter import merge_adapter
from howlow.engine.training import DivergedError
from howlow.memory.heap import release
from howlow.meters.session import Session
from howlow.records import Scores, WarningKind
from howlow.settings import adapts
from howlow.trial.acceleration import ready_to_infer
from howlow.trial.checkpointing import save_trained, save_untrained
from howlow.trial.fine_tuning import fine_tune
from howlow.trial.forgetting import general_losses
from howlow.trial.loading import load_trial_model
from howlow.trial.metering import conclude_fine_tuning, energy_source, measured, meter_report
from howlow.trial.saved_batches import SavedBatches
from howlow.trial.saving import save_trained_adapter, with_adapter_bytes
from howlow.trial.scoring import Scorer
from howlow.trial.setup import Setup, set_up
from howlow.trial.starting import save_spectra, start_from_saved
from howlow.trial.state import TrialState
from howlow.trial.validation import validation_scores


@dataclass(frozen=True)
class Loaded:
    """A model with its adapter, its tokenizer, the tokens that end a generation, and one that pads."""

    model: Any
    tokenizer: Any
    eos: frozenset[int]

    @property
    def pad_id(self) -> int:
        """Any id does: the mask tells padding from tokens."""
        return min(self.eos, default=0)


def run_method(state: TrialState) -> Scores | None:
    """Run the trial's part that is this process's; None where a fresh process goes on with inference."""
    setup = set_up(state)
    with measured(state, setup.device, setup.meters, setup.begins_s, setup.phase_of_findings(state)) as session:
        loaded = _load(state, setup, session)
        if state.kind == "shrunk" and not setup.has_weights(state):
            start_from_saved(state, loaded.model)
        if state.trains and not setup.is_trained:
            _fine_tune(state, setup, session, loaded)
            return None
        scores = _infer(state, setup, session, loaded)
        state.found.energy = energy_source(setup.meters, session)
        state.found.meters = meter_report(state, session)
    return Scores() if state.settings.random_weights else scores


def _load(state: TrialState, setup: Setup, session: Session) -> Loaded:
    """Load the model, and the trained weights where there are any. Another load after an interruption is no figure."""
    found, saved = state.found, setup.saved
    with session.phase("load") as meter:
        loaded = Loaded(*load_trial_model(state, setup.execution, setup.prepared.tokenizer_name))
        if saved is not None and setup.has_weights(state):
            found.model = with_adapter_bytes(found.model, saved.document["adapter_bytes"])
            saved.restore_weights(models.trainable(loaded.model))
            found.second_load = found.second_load or meter.end()
        elif not found.phases:
            found.phases.append(meter.end())
    if session.peak_problem and setup.device.type == "cpu":
        state.warn(WarningKind.PEAK_MEMORY_ABSENT, session.peak_problem)
    return loaded


def _fine_tune(state: TrialState, setup: Setup, session: Session, loaded: Loaded) -> None:
    """Train, and save what a fresh process needs for inference, so that a finished training is never repeated."""
    fine_tune(
        state,
        session,
        loaded.model,
        setup.prepared,
        execution=setup.execution,
        pad_id=loaded.pad_id,
        saved=setup.saved,
    )
    save_trained_adapter(state, loaded.model)
    if adapts(state.kind):
        save_spectra(state, loaded.model)
    state.found.energy = energy_source(setup.meters, session)
    conclude_fine_tuning(state, session)
    save_trained(state, session, models.trainable(loaded.model))


def _infer(state: TrialState, setup: Setup, session: Session, loaded: Loaded) -> Scores:
    """Score the test, measured."""
    if state.kind == "shrunk" and not state.trains:
        save_trained_adapter(state, loaded.model)
    if setup.saved is None:
        save_untrained(state, session)
    release(setup.device)
    loaded.model.eval()
    if not state.trains:
        setup = replace(setup, execution=ready_to_infer(state, loaded.model, setup.execution, setup.prepared.test))
    scorer = Scorer(
        state,
        session,
        loaded.model,
        loaded.tokenizer,
        setup.prepared,
        setup.execution,
        loaded.pad_id,
        loaded.eos,
        setup.saved,
    )
    unmeasured = partial(_score_unmeasured, state, setup, loaded, scorer)
    further: Scores | None = None
    if state.settings.inference.adapter == "merged" and adapts(state.kind):
        attached = SavedBatches(state.folder / "attached.jsonl")
        scorer.save_unmeasured(attached)
        further = unmeasured()  # of the attached adapter, as all scores are
        scorer = replace(scorer, model=merge_adapter(loaded.model), attached=attached)
    scores = scorer.score()
    if state.kind != "base" and scores.loss is None:
        raise DivergedError("after the training the loss of the test data is not finite")
    further = further or unmeasured()
    return scores.model_copy(update=further.model_dump(exclude_none=True))


def _score_unmeasured(state: TrialState, setup: Setup, loaded: Loaded, scorer: Scorer) -> Scores:
    """What is scored beside the test: the validation examples (into the draft), and the general text."""
    state.found.validation = validation_scores(scorer)
    return general_losses(state, loaded.model, setup.execution, setup.prepared.general, loaded.pad_id)
