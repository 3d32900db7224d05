"""Completion: the user's own prompts and completions, as rows of JSONL, CSV, Parquet, Arrow or hub data.

Each row has a `prompt` and a `completion`, used exactly as they are: a completion that should begin with a space must
hold it. An optional `id` names an example; without it the id is the file's name and the line on which the example
begins. Examples with equal prompts are a group. A prediction is right if it equals the completion, apart from white
space around both. Before they are compared, both are cut in the same way: at EOS, at `task.stop` and at
`inference.max_new_tokens`.
"""

from collections.abc import Mapping, Sequence

from howlow.errors import UserError
from howlow.settings import TaskRules, TaskSettings
from howlow.tasks.examples import Example, PredictionScores, Purpose, TaskScores, mean_scores
from howlow.tasks.predictions import predictions_for
from howlow.tasks.rows import DataRow
from howlow.tasks.sources import read_rows
from howlow.tasks.task import Task

_FIELDS = ("prompt", "completion")
_DEFAULT_TEMPLATE = "{prompt}"


def _load(source: str, settings: TaskSettings, purpose: Purpose) -> list[Example]:
    """One example a row, in the data's order.

    Raises:
        UserError: the data cannot be read, or a row is not a prompt and its completion; names the line.
    """
    # A chat template needs the tokenizer: it is applied to the default text later, where texts become tokens.
    template = settings.template if settings.template and settings.template != "chat" else _DEFAULT_TEMPLATE
    examples: dict[str, Example] = {}
    for row in read_rows(source, purpose, _FIELDS, optional=("id",)):
        example = _example(row, template)
        if example.id in examples:
            raise UserError(f"{row.place}: the id {example.id!r} occurs twice; each example needs its own")
        examples[example.id] = example
    if not examples:
        raise UserError(f"{source}: holds no example; give at least one row with a prompt and a completion")
    return list(examples.values())


def _score(examples: Sequence[Example], predictions: Mapping[str, str]) -> TaskScores:
    """`exact_match`; an example without a prediction counts as wrong."""
    given = {identity: text.strip() for identity, text in predictions.items()}
    return mean_scores(
        {example.id: {"exact_match": float(given.get(example.id) in example.references)} for example in examples}
    )


def _score_file(data: str, predictions: str) -> PredictionScores:
    """`exact_match` of a file of predictions, `{id: text}` in JSON, on all examples of the data.

    Raises:
        UserError: a file is missing or not what it should be.
    """
    examples = _load(data, TaskSettings(name="completion", train=data, test=data), "test")
    found = predictions_for(data, predictions, [example.id for example in examples])
    scores = _score(examples, found.texts).overall
    return PredictionScores({"examples": len(examples), **scores, **found.counts}, found.warnings)


def _example(row: DataRow, template: str) -> Example:
    prompt, completion = (row.text(column) for column in _FIELDS)
    if not completion.strip():
        raise UserError(f"{row.place}: 'completion' is empty; give the text that should follow the prompt")
    identity = row.identity
    return Example(
        id=identity,
        group=prompt if prompt.strip() else identity,
        before="",
        context="",
        after=template.replace("{prompt}", prompt),
        completion=completion,
        references=(completion.strip(),),
        overlap_keys=(prompt if prompt.strip() else completion,),
    )


TASK = Task(
    about="prompts and completions of one's own: JSONL, CSV, Parquet, Arrow or hub data",
    metrics=("exact_match", "loss"),
    rules=TaskRules(takes=("template", "stop"), placeholders=("{prompt}",)),
    load=_load,
    score=_score,
    score_file=_score_file,
)
