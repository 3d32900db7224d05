"""Summarization: write the highlights of an article, as rows with CNN/DailyMail's columns (See et al., 2017).

Each row has an `article` and its `highlights`; an optional `id` names it. The sources are those of `completion`: JSONL,
CSV, Parquet, Arrow or hub data (`abisee/cnn_dailymail:3.0.0`). In the prompt the article comes first, and only the
article is cut where a prompt is too long for the sequence length, in training as in the test; what is cut is counted.

Scores are the F-measures of ROUGE-1, ROUGE-2 and ROUGE-L (Lin, 2004) as the package `rouge-score` computes them, with
Porter's stemmer. Its words are runs of a-z and 0-9 in lower case. ROUGE-L is that of the whole summary as one sequence,
not `rougeLsum`, which compares line by line. The reference is always the whole text of the highlights.
"""

import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from howlow.errors import UserError
from howlow.settings import TaskRules, TaskSettings
from howlow.tasks.examples import Example, PredictionScores, Purpose, TaskScores, mean_scores
from howlow.tasks.predictions import predictions_for
from howlow.tasks.rows import DataRow
from howlow.tasks.sources import read_rows
from howlow.tasks.task import Task

_FIELDS = ("article", "highlights")
_DEFAULT_TEMPLATE = "{article}\n\nSummary:"
_ROUGE = ("rouge1", "rouge2", "rougeL")
_WORD = re.compile("[a-z0-9]")


def _load(source: str, settings: TaskSettings, purpose: Purpose) -> list[Example]:
    """One example a row, in the data's order.

    Raises:
        UserError: the data cannot be read, or a row is not an article with its highlights; names the row.
    """
    # A chat template needs the tokenizer: it is applied to the default text later, where texts become tokens.
    template = settings.template if settings.template and settings.template != "chat" else _DEFAULT_TEMPLATE
    examples: dict[str, Example] = {}
    for row in read_rows(source, purpose, _FIELDS, optional=("id",)):
        example = _example(row, template, purpose)
        if example.id in examples:
            raise UserError(f"{row.place}: the id {example.id!r} occurs twice; each article needs its own")
        examples[example.id] = example
    if not examples:
        raise UserError(f"{source}: holds no article; give at least one row with an article and its highlights")
    return list(examples.values())


def _example(row: DataRow, template: str, purpose: Purpose) -> Example:
    article, highlights = (row.text(column) for column in _FIELDS)
    highlights = highlights.strip()
    if not highlights:
        raise UserError(f"{row.place}: 'highlights' is empty; give the summary of the article")
    if purpose == "test" and not _WORD.search(highlights.lower()):
        raise UserError(
            f"{row.place}: 'highlights' has no word that ROUGE counts (a-z, 0-9), so nothing could match it; leave "
            "the row out, or use the task completion for other scripts"
        )
    # The template is split before the article is filled in, so that an article that holds "{article}" stays as it is.
    before, _, after = template.partition("{article}")
    identity, is_blank = row.identity, not article.strip()
    return Example(
        id=identity,
        group=identity if is_blank else article,
        before=before,
        context=article,
        after=after,
        completion=f" {highlights}",
        references=(highlights,),
        overlap_keys=(highlights if is_blank else article,),
    )


# -- scores ---------------------------------------------------------------------------------------------------------


def _score(examples: Sequence[Example], predictions: Mapping[str, str]) -> TaskScores:
    """`rouge1`, `rouge2` and `rougeL`; an example without a prediction scores 0."""
    return mean_scores({example.id: _rouge(example, predictions.get(example.id, "")) for example in examples})


def _rouge(example: Example, prediction: str) -> dict[str, float]:
    (reference,) = example.references
    found = _scorer().score(reference, prediction)
    return {name: float(found[name].fmeasure) for name in _ROUGE}


@cache
def _scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer  # it imports nltk, which takes a second

    return RougeScorer(list(_ROUGE), use_stemmer=True)


def _score_file(data: str, predictions: str) -> PredictionScores:
    """The scores of a file of predictions, `{id: text}` in JSON, on all articles of the data.

    Raises:
        UserError: a file is missing or not what it should be.
    """
    examples = _load(data, TaskSettings(name="summarization", train=data, test=data), "test")
    found = predictions_for(data, predictions, [example.id for example in examples])
    scores = _score(examples, found.texts).overall
    return PredictionScores({"examples": len(examples), **scores, **found.counts}, found.warnings)


TASK = Task(
    about="articles with highlights (CNN/DailyMail's columns): JSONL, CSV, Parquet, Arrow or hub data",
    metrics=("rougeL", "rouge1", "rouge2", "loss"),
    rules=TaskRules(
        takes=("template", "stop"),
        placeholders=("{article}",),
        other_defaults={"inference.max_new_tokens": 128},  # the highlights of CNN/DailyMail have 75 tokens on average
    ),
    load=_load,
    cuts_training=True,
    compares_whole_answers=True,  # published scores are those of the whole reference
    score=_score,
    score_file=_score_file,
)
