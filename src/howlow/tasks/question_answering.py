"""Question answering on SQuAD: read a paragraph, answer a question about it in the paragraph's words.

In the prompt the paragraph comes first and the question after it, so the questions on one paragraph share a prefix:
they are a group. The completion is the first of the accepted answers. A question with a blank context shares nothing:
it is a group of its own, and stands for itself when training is kept apart from the test.

Version 2.0 also asks what the paragraph does not answer. With `task.answerable_only`, the default, such questions are
left out of training and test, and a warning counts them. With `task.answerable_only = false` they have the completion
` unanswerable`, and a prediction of this word counts as no answer. Beside the scores of all questions there are then,
as in the official script, those of the questions with an answer (`has_answer_`) and without one (`no_answer_`).

`squad_document` reads the format, `squad_score` computes the official scores.
"""

from collections.abc import Mapping, Sequence

from howlow.errors import UserError
from howlow.settings import TaskRules, TaskSettings
from howlow.tasks.examples import Example, Purpose, TaskScores, mean_scores
from howlow.tasks.squad_document import SquadQuestion, read_squad
from howlow.tasks.squad_score import WRONG, answer_scores, counted_references, score_squad_file, with_part
from howlow.tasks.task import Task

_DEFAULT_TEMPLATE = "{context}\n\nQuestion: {question}\nAnswer:"
_UNANSWERABLE = "unanswerable"
_NO_ANSWER = f" {_UNANSWERABLE}"


def _load(source: str, settings: TaskSettings, purpose: Purpose) -> list[Example]:
    """One example a question, in the data's order; without the unanswerable ones unless asked for.

    Raises:
        UserError: the data cannot be read, is no SQuAD data, or no question is left.
    """
    document = read_squad(source, purpose)
    questions = [question for question in document.questions if question.answers or not _answerable_only(settings)]
    if not questions:
        raise UserError(
            f"{source}: none of its {len(document.questions)} questions has an answer; "
            "set task.answerable_only = false to use them"
        )
    # A chat template needs the tokenizer: it is applied to the default text later, where texts become tokens.
    template = settings.template if settings.template and settings.template != "chat" else _DEFAULT_TEMPLATE
    return [_example(question, template, document.version) for question in questions]


def _answerable_only(settings: TaskSettings) -> bool:
    return settings.answerable_only is not False


def _left_out(source: str, settings: TaskSettings, purpose: Purpose) -> str | None:
    """How many questions are left out for having no answer."""
    if not _answerable_only(settings):
        return None
    questions = read_squad(source, purpose).questions
    count = sum(not question.answers for question in questions)
    return f"{count} of the {len(questions)} questions of {source} have no answer and are left out" if count else None


def _prediction(generated: str) -> str:
    """The answer given; empty where the model says that there is none."""
    answer = generated.strip()
    return "" if answer.lower() == _UNANSWERABLE else answer


def _score(examples: Sequence[Example], predictions: Mapping[str, str]) -> TaskScores:
    """The official `exact_match` and `f1`, of all questions and, where some have no answer, of both parts.

    An example without a prediction counts as wrong.
    """
    scored = mean_scores({example.id: _question_scores(example, predictions) for example in examples})
    if not all(map(_has_answer, examples)):
        return scored
    return TaskScores(scored.per_example, {name: scored.overall[name] for name in WRONG if name in scored.overall})


def _question_scores(example: Example, predictions: Mapping[str, str]) -> dict[str, float]:
    scores = WRONG
    if example.id in predictions:
        scores = answer_scores(predictions[example.id], example.references)
    return with_part(scores, _has_answer(example))


def _has_answer(example: Example) -> bool:
    """Whether the data hold an answer, even one that normalises to nothing."""
    return bool(example.references) or example.completion != _NO_ANSWER


def _example(question: SquadQuestion, template: str, version: int) -> Example:
    # The template is split before the question is filled in, so that a question that holds "{context}" stays as it is.
    before, _, after = template.partition("{context}")
    # Some annotators marked the space around an answer, too; it is no part of the answer.
    answer = question.answers[0].strip() if question.answers else _UNANSWERABLE
    if not answer:
        raise UserError(f"{question.place}: the first answer of {question.id!r} is empty; it needs text to train on")
    return Example(
        id=question.id,
        group=question.context if question.context.strip() else question.id,
        before=before.replace("{question}", question.question),
        context=question.context,
        after=after.replace("{question}", question.question),
        completion=f" {answer}" if question.answers else _NO_ANSWER,
        references=counted_references(question.answers, version),
        overlap_keys=(question.context if question.context.strip() else question.question,),
    )


TASK = Task(
    about="SQuAD (v1.1 or v2.0; JSON or rows): answer a question on a paragraph in its words",
    metrics=("f1", "exact_match", "loss", "has_answer_f1", "no_answer_f1"),
    rules=TaskRules(
        takes=("template", "stop", "answerable_only"),
        defaults={"stop": "\n", "answerable_only": True},
        placeholders=("{context}", "{question}"),
    ),
    load=_load,
    prediction=_prediction,
    left_out=_left_out,
    compares_whole_answers=True,  # the official scores, which give a part of a long answer its share of F1
    score=_score,
    score_file=score_squad_file,
)
