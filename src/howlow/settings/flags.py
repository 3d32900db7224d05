"""Flags that are aliases of settings, as a table."""

import re
from collections.abc import Mapping
from typing import Any

from howlow.settings.checking import RANK_AXIS, SEED_AXIS
from howlow.settings.sources import merge, parse_integers, parse_ranks


def table_of_flags(
    flags: Mapping[str, str | int | None], *, ranks: str | None = None, seeds: str | None = None
) -> dict[str, Any]:
    """The table of the flags that were given.

    flags: dotted setting -> its flag's text; None where the flag was not given.

    Raises:
        UserError: `ranks` or `seeds` is no list of whole numbers.
    """
    table: dict[str, Any] = {}
    for key, value in flags.items():
        if value is not None:
            table = merge(table, _nested(key, _read(key, value)))
    if ranks is not None:
        table = merge(table, {"grid": {RANK_AXIS: parse_ranks(ranks)}})
    if seeds is not None:
        table = merge(table, {"grid": {SEED_AXIS: parse_integers("--seeds", seeds)}})
    return table


def _read(key: str, value: str | int) -> Any:
    """A list of baselines, and a batch size that is a number, from a flag's text."""
    if key == "baselines":
        return [name.strip() for name in str(value).split(",") if name.strip() not in ("", "none")]
    is_batch_number = key == "training.batch_size" and re.fullmatch("-?[0-9]{1,18}", str(value))
    return int(value) if is_batch_number else value


def _nested(key: str, value: Any) -> dict[str, Any]:
    table, _, name = key.rpartition(".")
    return {table: {name: value}} if table else {name: value}
