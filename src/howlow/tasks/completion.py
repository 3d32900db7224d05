"""Prompts and completions of one's own: JSONL objects, CSV rows or hub data with `prompt` and `completion`.

The texts are taken exactly as they are given: where the completion should begin with a space, it must hold one. An
optional `id` names an example; without it the id is the file's name and the line that the example begins on. Examples
with equal prompts are a group. A prediction is right where it equals the completion, white space around both aside.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from howlow.errors import UserError
from howlow.settings import TaskSettings
from howlow.tasks.examples import Example, Purpose, TaskScores, mean_scores
from howlow.tasks.sources import Row, is_local, kind_of, read_csv, read_hub, read_jsonl, whole_text

COLUMNS = ("prompt", "completion")
DEFAULT_TEMPLATE = "{prompt}"

generates = True


def load(source: str, settings: TaskSettings, purpose: Purpose) -> list[Example]:
    """One example a row, in the data's order.

    Raises:
        UserError: the data cannot be read, or a row is not a prompt and its completion; names the line.
    """
    # The chat template is laid around the default text where the tokenizer is at hand.
    template = settings.template if settings.template and settings.template != "chat" else DEFAULT_TEMPLATE
    examples: dict[str, Example] = {}
    for row in _rows(source, purpose):
        example = _example(row, template)
        if example.id in examples:
            raise UserError(f"{row.place}: the id {example.id!r} occurs twice; each example needs its own")
        examples[example.id] = example
    if not examples:
        raise UserError(f"{source}: holds no example; give at least one row with a prompt and a completion")
    return list(examples.values())


def prediction(generated: str) -> str:
    """The generated text without the white space around it."""
    return generated.strip()


def score(examples: Sequence[Example], predictions: Mapping[str, str]) -> TaskScores:
    """`exact_match`; an example without a prediction counts as wrong."""
    given = {identity: text.strip() for identity, text in predictions.items()}
    return mean_scores(
        {example.id: {"exact_match": float(given.get(example.id) in example.references)} for example in examples}
    )


def _rows(source: str, purpose: Purpose) -> list[Row]:
    if not is_local(source):
        return read_hub(source, purpose, COLUMNS, optional=("id",))
    return read_csv(source, COLUMNS) if Path(source).suffix.lower() == ".csv" else read_jsonl(source)


def _example(row: Row, template: str) -> Example:
    prompt, completion = (row.text(column) for column in COLUMNS)
    if not completion.strip():
        raise UserError(f"{row.place}: 'completion' is empty; give the text that should follow the prompt")
    return Example(
        id=_identity(row),
        group=prompt,
        before="",
        context="",
        after=template.replace("{prompt}", prompt),
        completion=completion,
        references=(completion.strip(),),
        overlap_keys=(prompt,),
    )


def _identity(row: Row) -> str:
    given = row.values.get("id")
    if given is None or given == "":
        return row.name
    if isinstance(given, int) and not isinstance(given, bool):
        return str(given)
    if not isinstance(given, str):
        raise UserError(f"{row.place}: 'id' must be a string or a whole number, not {kind_of(given)}")
    return whole_text(given, f"{row.place}: 'id'")
