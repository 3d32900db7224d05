"""Where settings come from: presets, TOML files, flags and `--set KEY=VALUE`; later sources win."""

import re
import tomllib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import tomlkit

from howlow.errors import UserError, reason
from howlow.settings.checking import flat
from howlow.settings.grid import resolve
from howlow.settings.schema import Settings
from howlow.settings.task_rules import TaskRules


def presets() -> list[str]:
    """The names of the packaged presets."""
    folder = resources.files("howlow") / "presets"
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def read_source(source: str) -> dict[str, Any]:
    """The table in a TOML file or of a preset, unchecked."""
    if source in presets() and not _is_file(source):
        return _preset(source)
    if not source.endswith(".toml") and not _is_file(source):
        raise UserError(f"no settings file or preset {source!r}; presets: {', '.join(presets())}; a file ends in .toml")
    try:
        return _parsed(Path(source).read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise UserError(f"settings file {source}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"settings file {source}: not UTF-8 at byte {error.start}; save it as UTF-8") from None
    except ValueError as error:  # a NUL in its name, or what TOML does not allow
        raise UserError(f"settings file {source}: not valid TOML: {reason(error)}") from None


def _preset(name: str) -> dict[str, Any]:
    folder = resources.files("howlow") / "presets"
    table = tomllib.loads((folder / f"{name}.toml").read_text(encoding="utf-8"))
    for key in ("train", "test"):
        value = table.get("task", {}).get(key, "")
        if value.startswith("preset:"):
            table["task"][key] = str(folder / value.removeprefix("preset:"))
    return table


def _is_file(source: str) -> bool:
    try:
        return Path(source).is_file()
    except OSError:  # there is something, and reading it says what is wrong
        return True


def _parsed(text: str) -> dict[str, Any]:
    """TOML's table.

    Raises:
        ValueError: it is no TOML, or numbers or nesting in it have no end.
    """
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def parse_ranks(text: str) -> list[int]:
    """`1..2048` -> the powers of two between, `1,8,64` -> that list."""
    span = re.fullmatch(r"\s*(-?\d{1,9})\s*\.\.\s*(-?\d{1,9})\s*", text)
    if span:
        low, high = int(span[1]), int(span[2])
        if low < 1:
            raise UserError(f"--ranks {text}: a rank is at least 1; write e.g. 1..{max(1, high)}")
        ranks = [1 << power for power in range(32) if low <= 1 << power <= high]
        if not ranks:
            raise UserError(f"--ranks {text}: no power of two between {low} and {high}; write e.g. 1..64 or 1,8,64")
        return ranks
    try:
        ranks = [int(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"--ranks {text}: whole numbers are expected, as 1,8,64 or 1..2048") from None
    if min(ranks) < 1:
        raise UserError(f"--ranks {text}: a rank is at least 1; leave {min(ranks)} out")
    return ranks


def parse_integers(flag: str, text: str) -> list[int]:
    """A list such as `0,1,2` given to a flag."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"{flag} {text}: whole numbers separated by commas are expected, as 0,1,2") from None


def parse_assignment(text: str) -> dict[str, Any]:
    """`KEY=VALUE` of `--set` as a nested table; the value is TOML, a bare word is a string."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise UserError(f"--set {text}: KEY=VALUE is expected, e.g. --set training.batch_size=4")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise UserError(f"--set {text!r}: holds a byte that is not UTF-8; write the value as UTF-8")
    for candidate in (f"{key} = {value}", f"{key} = {tomlkit.item(value.strip()).as_string()}"):
        try:
            return _parsed(candidate)
        except ValueError as error:
            problem = error
        if value.strip()[:1] in ('"', "'", "[", "{"):
            break
    raise UserError(f"--set {text}: not a valid TOML value: {reason(problem)}")


def merge(base: Mapping[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    """`base` updated by `top`, table by table."""
    merged = dict(base)
    for key, value in top.items():
        if isinstance(value, Mapping) and isinstance(merged.get(key), Mapping):
            merged[key] = merge(merged[key], value)
        else:
            merged[key] = value
    return merged


def load(source: str | None, overrides: Sequence[Mapping[str, Any]], tasks: Mapping[str, TaskRules] | None) -> Settings:
    """Settings from a preset or TOML file (or nothing), changed by each of the tables in turn.

    tasks: as for `resolve`.
    """
    table: Mapping[str, Any] = read_source(source) if source else {}
    for override in overrides:
        table = merge(table, _grid_flat(table, override))
    return resolve(table, tasks)


def _grid_flat(below: Mapping[str, Any], override: Mapping[str, Any]) -> dict[str, Any]:
    """An axis set plainly by a later source (`--set seed=3`) replaces the axis that an earlier one listed."""
    top = {**override}
    grid = dict(flat(top["grid"])) if isinstance(top.get("grid"), Mapping) else {}
    listed = dict(flat(below["grid"])) if isinstance(below.get("grid"), Mapping) else {}
    for key, value in flat({name: value for name, value in top.items() if name != "grid"}):
        if key in listed and key not in grid:
            grid[key] = [value]
    if grid:
        top["grid"] = grid
    return top
