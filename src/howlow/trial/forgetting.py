"""Forgetting: the loss on a general text (`task.general_text`) before and after training.

The text is cut into windows of the sequence length, without overlap, as in language modelling. Its loss is the mean
negative log-likelihood of their tokens. "Before" is the loss of the base model itself, with the adapter switched off;
"after" is that of the model which was trained, and of a shrunk adapter that of the adapter as the trial tests it: cut,
and continued where that was asked for. Neither is measured: they are taken when the figures of inference have been,
one window at a time. A fully trained model has no adapter to switch off, and PiSSA changes the base's weights, so
there the base is loaded beside it once more.
"""

from collections.abc import Sequence
from math import fsum, isfinite
from random import Random
from typing import Any

from howlow.engine import evaluation, layouts, tokens
from howlow.engine.execution import Execution, running
from howlow.engine.tokens import TokenizedExample
from howlow.errors import UserError, about
from howlow.memory.heap import release
from howlow.records import RecordWarning, Scores, WarningKind
from howlow.settings import Settings, adapts
from howlow.tasks import Example, whole_texts
from howlow.trial.loading import load_base
from howlow.trial.state import TrialState

# -- the text -------------------------------------------------------------------------------------------------------


def general_windows(settings: Settings, tokenizer: Any) -> list[tuple[Example, TokenizedExample]]:
    """The windows of the general text, in an order seeded by `task.seed` where only some are taken; none without it.

    Raises:
        UserError: the text cannot be read, or the tokenizer makes no token of it.
    """
    source, length = settings.task.general_text, settings.training.sequence_length
    if source is None:
        return []
    with about(f"task.general_text {source}"):
        texts = whole_texts(source, "general_text")
        pairs = [pair for text in texts for pair in tokens.windows(tokenizer, text, length) if pair[1].completion]
    if not pairs:
        raise UserError(f"task.general_text {source}: the tokenizer makes no token of it; give another text")
    most = settings.task.general_windows
    if most is None or most >= len(pairs):
        return pairs
    Random(f"{settings.task.seed}-general").shuffle(pairs)
    return pairs[:most]


def general_facts(windows: Sequence[TokenizedExample]) -> dict[str, Any]:
    """What the record of the data says of the general text's windows; nothing without them."""
    if not windows:
        return {}
    return {
        "general_sha256": tokens.fingerprint(windows),
        "general_windows": len(windows),
        "general_tokens": sum(len(window.completion) for window in windows),
    }


def warning_of_leak(general: Sequence[Example], train: Sequence[Example]) -> RecordWarning | None:
    """A warning where lines of the general text are training examples, too."""
    seen = {" ".join(key.split()) for example in train for key in example.overlap_keys}
    count = sum(any(" ".join(key.split()) in seen for key in window.overlap_keys) for window in general)
    if not count:
        return None
    detail = f"{count} of {len(general)} windows of the general text hold a text that is trained on"
    return RecordWarning(kind=WarningKind.GENERAL_TEXT_IN_TRAINING, detail=detail)


# -- its loss -------------------------------------------------------------------------------------------------------


def general_losses(
    state: TrialState, model: Any, execution: Execution, windows: Sequence[TokenizedExample], pad_id: int
) -> Scores:
    """The general text's loss of the base model and, where the trial has another one, of the model that it tests.

    Nothing without a general text, or where random weights have nothing to forget.
    """
    if not windows or state.settings.random_weights:
        return Scores()
    release(execution.device)
    own = _loss(state, model, execution, windows, pad_id)
    if state.kind == "base":
        return Scores(general_loss_before=own)
    if adapts(state.kind) and state.settings.lora.variant != "pissa":
        with model.disable_adapter():
            before = _loss(state, model, execution, windows, pad_id)
    else:
        commit = state.found.data.model_commit if state.found.data else None
        before = _loss(state, load_base(state.settings, execution, commit=commit), execution, windows, pad_id)
    return Scores(general_loss_before=before, general_loss_after=own)


def _loss(
    state: TrialState, model: Any, execution: Execution, windows: Sequence[TokenizedExample], pad_id: int
) -> float | None:
    """Nats per token; None where it is not finite."""
    layout, length, sums = state.choice.layout, state.settings.training.sequence_length, []
    with running(model, execution.for_evaluation()) as run:
        for index, window in enumerate(windows, start=1):
            sums += evaluation.evaluate(run, layouts.lay_out([window], layout, length, pad_id, "completion"))
            state.report_progress("evaluate", index, len(windows))
            state.stop_if_asked()
    mean = fsum(sums) / sum(len(window.completion) for window in windows)
    return mean if isfinite(mean) else None
