"""Language modelling: plain text without prompts; the loss over the test text is the result.

With the unit `paragraph` each line that is not empty is an example of its own, without the white space around it (as
the paper treats WikiText-2). With the unit `window` a file is one example that holds the whole text; it is cut into
windows later, where texts become tokens. On the hub a split is one text, whose lines are the rows.
"""

from collections.abc import Iterator
from pathlib import Path

from howlow.errors import UserError
from howlow.settings import TaskRules, TaskSettings
from howlow.tasks.examples import Example, Purpose
from howlow.tasks.sources import is_folder, is_local, read_hub, read_text, text_files
from howlow.tasks.task import Task


def _load(source: str, settings: TaskSettings, purpose: Purpose) -> list[Example]:
    """The paragraphs of all texts, or with the unit `window` one example a text.

    Raises:
        UserError: there is no text, or it cannot be read.
    """
    texts = list(_local_texts(Path(source)) if is_local(source) else [_hub_text(source, purpose)])
    if settings.unit == "window":
        return [_example(name, text) for name, text in texts]
    return [
        _example(f"{name}:{number}", line.strip())
        for name, text in texts
        for number, line in enumerate(text.split("\n"), start=1)
        if line.strip()
    ]


def _example(identity: str, text: str) -> Example:
    return Example(identity, identity, before="", context="", after="", completion=text, overlap_keys=(text,))


def _local_texts(path: Path) -> Iterator[tuple[str, str]]:
    """Name and text of the file, or of each file in the folder; line ends become those of Unix, as in `open`."""
    if is_folder(path):
        files = [(file.relative_to(path).as_posix(), file) for file in text_files(path)]
    else:
        files = [(path.name, path)]
    for name, file in files:
        text = read_text(file)
        if "\0" in text:
            position = len(text[: text.index("\0")].encode())
            raise UserError(f"{file}: holds a NUL at byte {position}, so it is not text; give plain text as UTF-8")
        yield name, text.replace("\r\n", "\n").replace("\r", "\n")


def _hub_text(source: str, purpose: Purpose) -> tuple[str, str]:
    """The split's name and its text, one line for each row; rows of WikiText bring a line end of their own."""
    rows = read_hub(source, purpose, ("text",))
    text = "\n".join(row.text("text").removesuffix("\n") for row in rows)
    if not text.strip():
        raise UserError(f"hub data {source}: holds no text in its {len(rows)} rows; give data with text in it")
    return rows[0].name.rpartition(":")[0], text


TASK = Task(
    about="plain text: a file, a folder of .txt files or hub data; the result is the loss over it",
    metrics=("perplexity", "loss"),
    rules=TaskRules(takes=("unit",), defaults={"unit": "paragraph"}),
    load=_load,
    generates=False,
)
