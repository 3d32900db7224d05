"""SQuAD's format: articles hold paragraphs, a paragraph holds its context and questions, a question its answers.

    {"version": "v2.0", "data": [{"paragraphs": [{"context": "...", "qas": [
        {"id": "...", "question": "...", "is_impossible": false, "answers": [{"text": "..."}]}]}]}]}

Version 1.1 (Rajpurkar et al., 2016) answers every question; version 2.0 (Rajpurkar et al., 2018) marks those that the
paragraph does not answer with `is_impossible` and an empty list. As in its script, an empty list alone says so, too.
The hub's `squad` and `squad_v2` hold the same, one question a row; rows of JSONL, Parquet and Arrow have their columns
`id`, `context`, `question`, `answers`. `title`, `answer_start` and `plausible_answers` are ignored.

An error names the path inside the document: `data[3].paragraphs[0].qas[2].answers[0].text is missing`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from howlow.errors import UserError
from howlow.tasks.examples import Purpose
from howlow.tasks.rows import DataRow, kind_of, whole_text
from howlow.tasks.sources import files_of, missing_hint, read_rows
from howlow.tasks.text_files import read_json

_COLUMNS = ("id", "context", "question", "answers")


@dataclass(frozen=True)
class SquadQuestion:
    """One question on one paragraph."""

    id: str
    context: str
    question: str
    answers: tuple[str, ...]
    """the accepted answers as written; empty: the paragraph does not answer it"""
    place: str
    """for messages: the file and the path inside it"""


@dataclass(frozen=True)
class SquadDocument:
    """All questions of a file or of a split on the hub, ids unique."""

    questions: tuple[SquadQuestion, ...]
    version: int
    """1 or 2: which official script scores it"""


def read_squad(source: str, purpose: Purpose = "test") -> SquadDocument:
    """The questions of a file in the official JSON format, or of rows with the columns of `squad` and `squad_v2`.

    Raises:
        UserError: it cannot be read, or is not this format; names the path inside the document, or the row.
    """
    found = files_of(source, purpose).format
    if found == "csv":
        raise UserError(f"{source}: CSV cannot hold lists of answers; give SQuAD's JSON, or JSONL or Parquet")
    return _of_json(source) if found in ("json", "text", "folder") else _of_rows(source, purpose)


def _of_json(path: str) -> SquadDocument:
    document = read_json(path, missing_hint(path))
    if not isinstance(document, dict):
        raise UserError(f"{path}: SQuAD's JSON is an object with a list 'data', not {kind_of(document)}")
    # Without a version the stricter rule: every question has an answer or says that it has none.
    version = 2 if str(document.get("version")).lower().removeprefix("v").startswith("2") else 1
    return _checked(path, tuple(_questions(_list(document, "data", f"{path}: "), version)), version)


def _of_rows(source: str, purpose: Purpose) -> SquadDocument:
    questions = []
    for row in read_rows(source, purpose, _COLUMNS):
        answers = _answers_of_row(row)
        questions.append(SquadQuestion(row.text("id"), row.text("context"), row.text("question"), answers, row.place))
    # The columns carry no version; only version 2.0 has questions without an answer.
    return _checked(source, tuple(questions), 1 if all(question.answers for question in questions) else 2)


def _answers_of_row(row: DataRow) -> tuple[str, ...]:
    found = row.values.get("answers")
    texts = found.get("text") if isinstance(found, dict) else None
    if not isinstance(texts, list):
        raise UserError(f"{row.place}: 'answers' must hold a list 'text', as in squad; it is {kind_of(found)}")
    return tuple(whole_text(text, f"{row.place}: answers.text") for text in texts)


def _checked(source: str, questions: tuple[SquadQuestion, ...], version: int) -> SquadDocument:
    if not questions:
        raise UserError(f"{source}: holds no question; give SQuAD data with at least one")
    seen: dict[str, str] = {}
    for question in questions:
        if question.id in seen:
            raise UserError(f"{question.place}: the id {question.id!r} occurs twice; each question needs its own")
        seen[question.id] = question.place
    return SquadDocument(questions, version)


# -- walking the document -------------------------------------------------------------------------------------------


def _questions(articles: Iterator[tuple[str, dict[str, Any]]], version: int) -> Iterator[SquadQuestion]:
    for article_place, article in articles:
        for paragraph_place, paragraph in _list(article, "paragraphs", f"{article_place}."):
            context = _text(paragraph, "context", f"{paragraph_place}.")
            for place, entry in _list(paragraph, "qas", f"{paragraph_place}."):
                identity, question = _text(entry, "id", f"{place}."), _text(entry, "question", f"{place}.")
                yield SquadQuestion(identity, context, question, _answers(entry, f"{place}.", version), place)


def _answers(entry: dict[str, Any], prefix: str, version: int) -> tuple[str, ...]:
    answers = tuple(_text(answer, "text", f"{place}.") for place, answer in _list(entry, "answers", prefix))
    impossible = entry.get("is_impossible", False)
    if not isinstance(impossible, bool):
        raise UserError(f"{prefix}is_impossible must be true or false, not {kind_of(impossible)}")
    if impossible and answers:
        raise UserError(f"{prefix}answers must be empty where is_impossible is true; it holds {len(answers)}")
    if not answers and not impossible and version == 1:
        raise UserError(f"{prefix}answers is empty; give an answer, or is_impossible = true as in SQuAD v2.0")
    return answers


def _field(owner: dict[str, Any], name: str, prefix: str) -> Any:
    if name not in owner:
        raise UserError(f"{prefix}{name} is missing; SQuAD's JSON format is expected")
    return owner[name]


def _text(owner: dict[str, Any], name: str, prefix: str) -> str:
    return whole_text(_field(owner, name, prefix), f"{prefix}{name}")


def _list(owner: dict[str, Any], name: str, prefix: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a list, each with its place."""
    values = _field(owner, name, prefix)
    if not isinstance(values, list):
        raise UserError(f"{prefix}{name} must be a list, not {kind_of(values)}")
    for index, value in enumerate(values):
        if not isinstance(value, dict):
            raise UserError(f"{prefix}{name}[{index}] must be an object, not {kind_of(value)}")
        yield f"{prefix}{name}[{index}]", value
