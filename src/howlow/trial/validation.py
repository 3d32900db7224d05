"""Validation: scores on training examples that were set aside, to choose between the settings of a rank.

The test says how good a choice was, so nothing may be chosen by it. `task.validation_examples` sets groups of examples
aside from training. They are scored as the test is, after inference was measured, and cost nothing in any figure.
"""

from dataclasses import replace

from howlow.records import Scores
from howlow.trial.saved_batches import SavedBatches
from howlow.trial.scoring import Scorer


def validation_scores(scorer: Scorer) -> Scores | None:
    """The scores of the model on the validation examples; None where none were set aside, or weights are random."""
    prepared, state = scorer.prepared, scorer.state
    if not prepared.validation or state.settings.random_weights:
        return None
    aside = replace(prepared, test=prepared.validation, test_examples=prepared.validation_examples)
    return replace(scorer, prepared=aside).score_unmeasured(SavedBatches(state.folder / "validation.jsonl"))
