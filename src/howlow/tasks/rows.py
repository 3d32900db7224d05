"""Rows of data: one line of JSONL, one row of CSV or one row of a table, each with its place for messages."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from howlow.errors import UserError


@dataclass(frozen=True)
class DataRow:
    """One line of JSONL, one row of CSV or one row of a table."""

    place: str
    """for messages: `FILE line 3`"""
    name: str
    """for ids: `FILENAME:3`"""
    values: Mapping[str, Any]

    def text(self, field: str) -> str:
        """The string in a field.

        Raises:
            UserError: there is no such field, or no string in it.
        """
        if field not in self.values:
            fields = ", ".join(map(str, self.values)) or "nothing"
            raise UserError(f"{self.place}: {field!r} is missing; it has: {fields}")
        return whole_text(self.values[field], f"{self.place}: {field!r}")

    @property
    def identity(self) -> str:
        """The id in its field `id`, a whole number by its digits; without one, the row's name.

        Raises:
            UserError: the id is neither text nor a whole number.
        """
        given = self.values.get("id")
        if given is None or given == "":
            return self.name
        if isinstance(given, int) and not isinstance(given, bool):
            return str(given)
        if not isinstance(given, str):
            raise UserError(f"{self.place}: 'id' must be a string or a whole number, not {kind_of(given)}")
        return whole_text(given, f"{self.place}: 'id'")


def kind_of(value: Any) -> str:
    """A JSON value's type in words, for messages."""
    kinds = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number" if isinstance(value, int | float) else f"a {type(value).__name__}")


def whole_text(value: Any, place: str) -> str:
    r"""The value as a string that can be written again; one with half of a surrogate pair (`"\ud83d"`) cannot.

    Raises:
        UserError: it is no such string; `place` says where it is.
    """
    if not isinstance(value, str):
        raise UserError(f"{place} must be a string, not {kind_of(value)}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(f"{place} holds half of a surrogate pair at character {error.start}; write it whole") from None
    return value


def shown_name(path: str | Path) -> str:
    """A path as text that can be written again; bytes of a file name that are no UTF-8 become `\ufffd`."""
    return str(path).encode("utf-8", "surrogateescape").decode("utf-8", "replace")
