"""Language modelling: plain text, no prompt, and the loss of the text itself as the result.

With the unit `paragraph` each line that is not empty is an example of its own, without the white space around it (as
the paper treats WikiText-2). With the unit `window` a file is one example that holds the whole text; it is cut into
windows where the tokenizer is at hand. On the hub a split is one text with a line a row.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from howlow.errors import UserError
from howlow.settings import TaskSettings
from howlow.tasks.examples import Example, Purpose, TaskScores
from howlow.tasks.sources import is_folder, is_local, read_hub, read_text, text_files

generates = False


def load(source: str, settings: TaskSettings, purpose: Purpose) -> list[Example]:
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


def prediction(generated: str) -> str:
    """The text as it is: nothing is generated in this task."""
    return generated


def score(examples: Sequence[Example], predictions: Mapping[str, str]) -> TaskScores:
    """Nothing: this task's result is its loss."""
    return TaskScores()


def _example(identity: str, text: str) -> Example:
    return Example(identity, identity, before="", context="", after="", completion=text, overlap_keys=(text,))


def _local_texts(path: Path) -> Iterator[tuple[str, str]]:
    """Name and text of the file, or of each file of the folder; line ends become those of Unix, as `open` has it."""
    if is_folder(path):
        files = [(file.relative_to(path).as_posix(), file) for file in text_files(path)]
    else:
        files = [(path.name, path)]
    for name, file in files:
        text = read_text(file)
        if "\0" in text:
            position = len(text[: text.index("\0")].encode())
            raise UserError(f"{file}: holds a NUL at byte {position}, so it is no text; give plain text as UTF-8")
        yield name, text.replace("\r\n", "\n").replace("\r", "\n")


def _hub_text(source: str, purpose: Purpose) -> tuple[str, str]:
    """The split's name and its text, a line a row; rows of WikiText end in a line end of their own."""
    rows = read_hub(source, purpose, ("text",))
    text = "\n".join(row.text("text").removesuffix("\n") for row in rows)
    if not text.strip():
        raise UserError(f"hub data {source}: holds no text in its {len(rows)} rows; give data with text in it")
    return rows[0].name.rpartition(":")[0], text
