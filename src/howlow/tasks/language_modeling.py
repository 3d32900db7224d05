"""Language modelling: plain text without prompts; the loss over the test text is the result.

With the unit `paragraph` each line that is not empty is an example of its own, without the white space around it (as
the paper treats WikiText-2). With the unit `window` a file is one example that holds the whole text; it is cut into
windows later, where texts become tokens. Rows with a column `text` (JSONL, CSV, Parquet, Arrow, hub data) are one text,
whose lines are the rows.
"""

from howlow.errors import UserError
from howlow.settings import TaskRules, TaskSettings
from howlow.tasks.documents import with_documents
from howlow.tasks.examples import Example, Purpose
from howlow.tasks.sources import files_of, read_rows, read_texts
from howlow.tasks.task import Task


def _load(source: str, settings: TaskSettings, purpose: Purpose) -> list[Example]:
    """The paragraphs of all texts, or with the unit `window` one example a text.

    Raises:
        UserError: there is no text, or it cannot be read.
    """
    texts = whole_texts(source, purpose)
    if settings.unit == "window":
        return texts
    paragraphs = [
        _example(f"{text.id}:{number}", line.strip())
        for text in texts
        for number, line in enumerate(text.completion.split("\n"), start=1)
        if line.strip()
    ]
    return with_documents(paragraphs)


def whole_texts(source: str, purpose: Purpose) -> list[Example]:
    """Each text of a source whole, as one example.

    Raises:
        UserError: there is no text, or it cannot be read.
    """
    found = files_of(source, purpose)
    is_plain = found.format in ("text", "folder")
    return [_example(*pair) for pair in (read_texts(found) if is_plain else [_text_of_rows(source, purpose)])]


def _example(identity: str, text: str) -> Example:
    return Example(identity, identity, before="", context="", after="", completion=text, overlap_keys=(text,))


def _text_of_rows(source: str, purpose: Purpose) -> tuple[str, str]:
    """The source's name and its text, one line for each row; rows of WikiText bring a line end of their own."""
    rows = read_rows(source, purpose, ("text",))
    text = "\n".join(row.text("text").removesuffix("\n") for row in rows)
    if not text.strip():
        raise UserError(f"{source}: holds no text in its {len(rows)} rows; give data with text in it")
    return rows[0].name.rpartition(":")[0], text


TASK = Task(
    about="plain text: a file, a folder of .txt files, or rows with a column `text`; the result is the loss over it",
    metrics=("perplexity", "loss"),
    rules=TaskRules(takes=("unit",), defaults={"unit": "paragraph"}),
    load=_load,
    generates=False,
)
