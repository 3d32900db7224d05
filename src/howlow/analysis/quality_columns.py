"""The columns of quality: scores of the test, of its parts, of a general text, and of the validation examples."""

import math
from collections.abc import Mapping

from howlow.analysis.column import Column, Panel, TablePlace
from howlow.analysis.cost_columns import of

_QUALITY, _ANSWERS, _EXPONENTIAL = of("quality"), of("quality", "answers"), of("quality", "exponential")


def _at(order: int) -> TablePlace:
    return TablePlace("quality", order, in_terminal=True)


LOSS = Column(
    "loss",
    "test loss",
    "nats",
    "negative log-likelihood per target token of the test",
    "lower",
    subjects=_QUALITY,
    table=_at(10),
    heading="loss",
    panel=Panel(7, unless="perplexity"),
)
SCORES = (
    LOSS,
    Column(
        "perplexity",
        "perplexity",
        "number",
        "exp(loss)",
        "lower",
        subjects=_EXPONENTIAL,
        table=_at(7),
        panel=Panel(6),
    ),
    Column(
        "word_perplexity",
        "word perplexity",
        "number",
        "exp(negative log-likelihood per word)",
        "lower",
        subjects=_EXPONENTIAL,
        table=_at(8),
    ),
    Column(
        "bits_per_byte",
        "bits/byte",
        "number",
        "negative log-likelihood in bits per byte of text",
        "lower",
        subjects=_QUALITY,
        table=_at(9),
    ),
    Column(
        "exact_match",
        "exact match",
        "fraction",
        "answers that equal a reference after normalisation",
        "higher",
        subjects=_ANSWERS,
        table=_at(2),
        panel=Panel(2),
    ),
    Column(
        "f1",
        "F1",
        "fraction",
        "overlap of words with the best reference",
        "higher",
        subjects=_ANSWERS,
        table=_at(1),
        panel=Panel(1),
    ),
    Column(
        "rouge1",
        "ROUGE-1",
        "fraction",
        "F-measure of the words shared with the reference, stemmed (rouge-score)",
        "higher",
        subjects=_ANSWERS,
        table=_at(4),
        panel=Panel(3),
    ),
    Column(
        "rouge2",
        "ROUGE-2",
        "fraction",
        "F-measure of the pairs of words shared with the reference, stemmed (rouge-score)",
        "higher",
        subjects=_ANSWERS,
        table=_at(5),
        panel=Panel(4),
    ),
    Column(
        "rougeL",
        "ROUGE-L",
        "fraction",
        "F-measure of the longest common subsequence with the reference, stemmed (rouge-score's rougeL)",
        "higher",
        subjects=_ANSWERS,
        table=_at(6),
        panel=Panel(5),
    ),
)

SCORES_OF_PARTS = (
    Column(
        "has_answer_exact_match",
        "exact match, with answer",
        "fraction",
        "exact_match of the questions that have an answer; absent where all have one",
        "higher",
        subjects=_ANSWERS,
        table=TablePlace("quality", 12),
    ),
    Column(
        "has_answer_f1",
        "F1, with answer",
        "fraction",
        "f1 of the questions that have an answer; absent where all have one",
        "higher",
        subjects=_ANSWERS,
        table=_at(11),
    ),
    Column(
        "no_answer_exact_match",
        "exact match, no answer",
        "fraction",
        "share of the questions without an answer to which none was given; absent where all have one",
        "higher",
        subjects=_ANSWERS,
        table=TablePlace("quality", 14),
    ),
    Column(
        "no_answer_f1",
        "F1, no answer",
        "fraction",
        "f1 of the questions without an answer, which is their exact_match; absent where all have one",
        "higher",
        subjects=_ANSWERS,
        table=_at(13),
    ),
)
GENERAL_LOSSES = (
    Column(
        "general_loss_before",
        "general loss before",
        "nats",
        "negative log-likelihood per token of task.general_text, of the base model",
        table=_at(15),
        is_relative=False,
        is_optional=True,
    ),
    Column(
        "general_loss_after",
        "general loss after",
        "nats",
        "the same of the model that was trained (or cut); what it is above the loss before was forgotten",
        "lower",
        subjects=of("quality", "forgetting"),
        table=_at(16),
        panel=Panel(8),
    ),
)


def _on_validation(column: Column) -> Column:
    meaning = f"{column.meaning}; of the validation examples, by which the settings of a rank are chosen"
    label, subjects = f"validation {column.label.removeprefix('test ')}", column.subjects
    return Column(
        f"validation_{column.name}",
        label,
        column.unit,
        meaning.replace(" of the test;", ";"),
        column.better,
        subjects=subjects,
        is_relative=False,
        is_optional=True,
    )


VALIDATION: Mapping[str, Column] = {column.name: _on_validation(column) for column in SCORES}
"""A score of the test -> the column of the same score of the validation examples."""

UNMATCHABLE_REFERENCES = Column(
    "unmatchable_references",
    "unmatchable answers",
    "count",
    "accepted answers that no generation can match as they stand: too long, or with stop text or special tokens",
    table=_at(3),
    is_relative=False,
    is_optional=True,
    shows_zero=False,
)

TEXT_WEIGHTS: Mapping[str, tuple[str, float]] = {
    "loss": ("tokens", 1.0),
    "perplexity": ("tokens", 1.0),
    "word_perplexity": ("words", 1.0),
    "bits_per_byte": ("bytes", math.log(2)),
}
"""What a metric divides the summed log-likelihood of texts by: a number of each line, times a factor."""
