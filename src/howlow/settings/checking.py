"""A merged table becomes `Settings`, or one line that says what is wrong."""

import difflib
import re
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from howlow.errors import UserError
from howlow.settings.keys import axis_keys, setting_keys
from howlow.settings.schema import Settings

RANK_AXIS = "lora.rank"
SEED_AXIS = "seed"


def flat(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """A nested table as dotted key and value."""
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def check_axis(axis: str, values: Any) -> None:
    """Refuse an axis that is no setting, may not vary within a sweep, or has no values."""
    if axis not in setting_keys():
        raise _unknown_setting(axis)
    if axis not in axis_keys():
        raise UserError(f"grid axis {axis}: this setting is the same for a whole sweep and cannot be an axis")
    if not isinstance(values, list) or not values:
        raise UserError(f"grid.{axis} = {values!r}: a list with at least one value is expected")


def validated(table: Mapping[str, Any]) -> Settings:
    """A table as `Settings`, or a `UserError` naming the first setting that is wrong."""
    for key, value in flat({name: value for name, value in table.items() if name != "grid"}):
        if key in _tables():
            raise UserError(f"{key} = {value!r}: a table of settings is expected, e.g. [{key}] in a TOML file")
        if key not in setting_keys():
            raise _unknown_setting(key)
    try:
        return Settings.model_validate(dict(table))
    except ValidationError as error:
        raise UserError(_first_problem(error)) from None


def _first_problem(error: ValidationError) -> str:
    problem = error.errors()[0]
    parts = [str(part) for part in problem["loc"]]
    key = next((".".join(parts[:n]) for n in (2, 1) if ".".join(parts[:n]) in setting_keys()), ".".join(parts))
    if problem["type"] == "missing" and key == ".".join(parts):
        flag = {"model": "--model", "task": "--task", "task.name": "--task", "task.train": "--train"}
        flag["task.test"] = "--test"
        return f"{key} is missing; give {flag.get(key, key)} or a settings file that has it"
    if problem["type"] == "value_error":
        return str(problem["ctx"]["error"])
    if problem["type"] in _ABOUT_THE_WHOLE and key in _EXPECTED:
        return f"{key} = {problem['input']!r}: {_EXPECTED[key]} expected ({setting_keys()[key]})"
    rule = problem["msg"][0].lower() + problem["msg"][1:]
    return f"{key} = {problem['input']!r}: {rule} ({setting_keys().get(key, 'a table of settings')})"


# Rules about a whole value are explained in the user's words, not in a validator's.
_ABOUT_THE_WHOLE = (
    "missing",
    "too_short",
    "too_long",
    "string_too_short",
    "string_pattern_mismatch",
    "tuple_type",
    "int_type",
)
_EXPECTED = {
    "model": "a name is",
    "tokenizer": "a name is",
    "task.train": "a name is",
    "task.test": "a name is",
    "baselines": "a list of base and full is",
    "lora.target_modules": "a list with at least one name is",
    "training.betas": "two numbers are",
    "training.batch_size": 'a whole number or "max" is',
    "inference.batch_size": 'a whole number or "max" is',
    "meters.devices": "a list with at least one name is",
    "run.device": "auto, cpu, mps, cuda, cuda:N or a GPU's UUID is",
}


def located(source: str) -> str:
    """An existing path made absolute; anything else (hub data, a missing file) as it is."""
    try:
        path = Path(source).expanduser()
        return str(path.resolve()) if source and path.exists() else source
    except (OSError, RuntimeError):  # a folder without permission, an unknown ~user: the reader says so
        return source


def located_model(reference: str) -> str:
    """An existing path made absolute; a plain word keeps its meaning as a name even where such a folder exists."""
    is_name = re.fullmatch(r"[\w.-]+", reference) and (reference == "smollm2-135m" or reference in known_configs())
    return reference if is_name else located(reference)


@cache
def known_configs() -> tuple[str, ...]:
    """The names of the model configs that come with the package."""
    folder = resources.files("howlow") / "model_configs"
    return tuple(sorted(entry.name.removesuffix(".json") for entry in folder.iterdir() if entry.name.endswith(".json")))


def _tables() -> set[str]:
    return {known.split(".")[0] for known in setting_keys() if "." in known}


def _unknown_setting(key: str) -> UserError:
    tables = _tables()
    near = difflib.get_close_matches(key, [*setting_keys(), *tables], n=1, cutoff=0.5)
    if not near:  # `rank` for `lora.rank`: the right word without its table
        near = [known for known in setting_keys() if known.rpartition(".")[2] == key.rpartition(".")[2]]
    hint = f"; did you mean {near[0]}?" if near else f"; the tables are {', '.join(sorted(tables))}"
    return UserError(f"unknown setting {key}{hint}")
