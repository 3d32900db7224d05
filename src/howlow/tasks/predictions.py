"""Predictions made elsewhere: one JSON object of example id -> text, matched with the ids of the data."""

from collections.abc import Collection
from dataclasses import dataclass

from howlow.errors import UserError
from howlow.tasks.rows import kind_of, whole_text
from howlow.tasks.text_files import read_json


@dataclass(frozen=True)
class Predictions:
    """The texts of a predictions file, and how they match the data."""

    texts: dict[str, str]
    """example id -> text, those of unknown ids included"""
    counts: dict[str, int]
    """`missing_predictions` and `extra_predictions`"""
    warnings: tuple[str, ...]


def predictions_for(data: str, predictions: str, ids: Collection[str]) -> Predictions:
    """The predictions for the examples of `data`, which have these ids.

    Raises:
        UserError: the file is missing, or is no object of id -> text.
    """
    texts, known = _read(predictions), set(ids)
    missing = [identity for identity in ids if identity not in texts]
    extra = [identity for identity in texts if identity not in known]
    counts = {"missing_predictions": len(missing), "extra_predictions": len(extra)}
    return Predictions(texts, counts, tuple(_warnings(data, predictions, missing, extra)))


def _read(path: str) -> dict[str, str]:
    table = read_json(path)
    if not isinstance(table, dict):
        raise UserError(f"{path}: predictions are one JSON object of example id -> text, not {kind_of(table)}")
    return {identity: whole_text(text, f"{path}: the prediction for {identity!r}") for identity, text in table.items()}


def _warnings(data: str, predictions: str, missing: list[str], extra: list[str]) -> list[str]:
    warnings = []
    if missing:
        warnings.append(
            f"{predictions}: no prediction for {len(missing)} of the examples in {data}, the first is {missing[0]!r}; "
            "they count as wrong"
        )
    if extra:
        warnings.append(
            f"{predictions}: {len(extra)} predictions for ids that are not in {data}, the first is {extra[0]!r}; "
            "they are ignored"
        )
    return warnings
