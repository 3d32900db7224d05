r"""SQuAD's scores, as the official scripts compute them (`evaluate-v1.1.py` and `evaluate-v2.0.py`).

An answer is normalised: lower case, without ASCII punctuation, without the articles `a`, `an`, `the`, white space
collapsed, in this order. With the tokens of prediction P and reference R,

    exact_match = [P = R]        precision = |P & R| / |P|     recall = |P & R| / |R|     f1 = 2 p r / (p + r)

where & is the intersection of multisets. The best reference counts, for each score separately.

The two scripts differ in one thing. Version 2.0 drops references that normalise to nothing. Where none is left, no
answer is right: both scores are 1 for a prediction that normalises to nothing, else 0. Version 1.1 keeps such
references, and its f1 is 0 for a prediction without tokens, even one that equals the reference exactly. Dropping the
references first (`counted_references`) lets one formula serve both.

A question without a prediction counts as wrong, as in version 1.1. (Version 2.0 leaves it out of the mean, or stops.)
Otherwise leaving out hard questions would raise a score.
"""

import re
import string
from collections import Counter
from collections.abc import Iterable, Mapping

from howlow.tasks.examples import PredictionScores, mean_scores
from howlow.tasks.predictions import predictions_for
from howlow.tasks.squad_document import SquadDocument, SquadQuestion, read_squad

_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")
WRONG = {"exact_match": 0.0, "f1": 0.0}
_PARTS = {True: "has_answer", False: "no_answer"}
"""Whether a question has an answer -> what the names of its part's scores begin with."""


def normalize_answer(text: str) -> str:
    """The text as it is compared."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_WITHOUT_PUNCTUATION)).split())


def counted_references(answers: Iterable[str], version: int) -> tuple[str, ...]:
    """The answers that count in a version (1 or 2) of the data; empty: giving no answer is right."""
    return tuple(answer for answer in answers if version == 1 or normalize_answer(answer))


def answer_scores(prediction: str, references: tuple[str, ...]) -> dict[str, float]:
    """`exact_match` and `f1` of one prediction, against its best reference."""
    given = normalize_answer(prediction)
    if not references:
        right = float(not given)
        return {"exact_match": right, "f1": right}
    accepted = [normalize_answer(reference) for reference in references]
    return {"exact_match": float(given in accepted), "f1": max(_f1(given, reference) for reference in accepted)}


def _f1(prediction: str, reference: str) -> float:
    prediction_tokens, reference_tokens = prediction.split(), reference.split()
    common = (Counter(prediction_tokens) & Counter(reference_tokens)).total()
    if common == 0:
        return 0.0
    precision, recall = common / len(prediction_tokens), common / len(reference_tokens)
    return 2 * precision * recall / (precision + recall)


# -- predictions made elsewhere -------------------------------------------------------------------------------------


def score_squad_file(data: str, predictions: str) -> PredictionScores:
    """Score a file of predictions, `{id: text}` in JSON, on all questions of a SQuAD file.

    Returns:
        counts (`examples`, `has_answer_examples`, `no_answer_examples`, `missing_predictions`, `extra_predictions`),
        `exact_match` and `f1` as fractions 0..1 of all questions and, under `has_answer_` and `no_answer_`, of those
        with and without an answer (None where there is no such question).

    Raises:
        UserError: a file is missing or not what it should be.
    """
    document = read_squad(data)
    found = predictions_for(data, predictions, [question.id for question in document.questions])
    scores = {question.id: _question_scores(question, document, found.texts) for question in document.questions}
    answered = sum(bool(question.answers) for question in document.questions)
    counts = {
        "examples": len(scores),
        "has_answer_examples": answered,
        "no_answer_examples": len(scores) - answered,
    }
    means = mean_scores(scores).overall
    names = [*WRONG, *(f"{part}_{name}" for part in _PARTS.values() for name in WRONG)]
    figures = {**counts, **{name: means.get(name) for name in names}, **found.counts}
    return PredictionScores(figures, found.warnings)


def with_part(scores: Mapping[str, float], has_answer: bool) -> dict[str, float]:
    """A question's scores, and the same as scores of its part: of the questions that have an answer, or of the others.

    Where an example stands for a part, statistics over examples know that part's metric, too.
    """
    return {**scores, **{f"{_PARTS[has_answer]}_{name}": value for name, value in scores.items()}}


def _question_scores(question: SquadQuestion, document: SquadDocument, given: Mapping[str, str]) -> dict[str, float]:
    scores = WRONG
    if question.id in given:
        scores = answer_scores(given[question.id], counted_references(question.answers, document.version))
    return with_part(scores, bool(question.answers))
