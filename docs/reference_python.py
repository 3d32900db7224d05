"""The reference page of the Python API, from signatures and docstrings."""

import dataclasses
import inspect
import re
from collections.abc import Iterator
from typing import Any

import docstring_parser

import howlow
from howlow.analysis import Results
from howlow.analysis.constraints import CostLimits
from howlow.analysis.recommendation import Candidate, Recommendation
from howlow.deciding import DecidedSweep, SweepBudget
from howlow.jobs import Tell
from howlow.records import Status
from howlow.reporting import Report
from howlow.sweeping import SweepResult
from howlow.sweeping.sweep import DryRun

RETURNED = (Results, Recommendation, Candidate, CostLimits, Report, SweepResult, DecidedSweep, SweepBudget, DryRun)
"""What the functions take or give back, in the order of the page."""
ALIASES = {"Tell": Tell, "Status": Status}
"""Types that are long when they are written out."""


def python_page() -> str:
    """Every public name of the package `howlow`, then what they give back."""
    lines = [
        "# Python API",
        "",
        "Written by `make docs` from the docstrings of `src/howlow/`. The command line calls the same functions.",
        "Each name is imported when it is first used, so `import howlow` is cheap, and only `sweep` needs torch.",
    ]
    for name in howlow.__all__:
        found = getattr(howlow, name)
        lines += of_class(found, f"howlow.{name}") if inspect.isclass(found) else of_function(found, f"howlow.{name}")
    lines += ["", "## What they take and give back"]
    for kind in RETURNED:
        lines += of_class(kind, kind.__name__, level="###")
    return "\n".join([*lines, ""])


def of_function(function: Any, name: str) -> list[str]:
    """A function: its signature, what it does, its arguments and errors."""
    return ["", f"## {name}", "", "```text", *signature_lines(function, name), "```", "", *of_docstring(function)]


def signature_lines(function: Any, name: str) -> list[str]:
    """A signature, one parameter a line where it is long."""
    signature = inspect.signature(function)
    told = short_types(f"{name}{signature}")
    if len(told) <= 100:
        return [told]
    parameters, gives = split_parameters(signature), short_types(f") -> {signature.return_annotation}")
    return [f"{name}(", *(f"    {one}," for one in parameters), gives.replace("<class '", "").replace("'>", "")]


def split_parameters(signature: inspect.Signature) -> Iterator[str]:
    """The parameters as text, with the star before those that are given by name."""
    has_star = False
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and not has_star:
            has_star = True
            yield "*"
        has_star = has_star or parameter.kind is parameter.VAR_POSITIONAL
        yield short_types(str(parameter))


def short_types(text: str) -> str:
    """Types by their own names, without the modules that they are from."""
    for name, kind in ALIASES.items():
        text = text.replace(inspect.formatannotation(kind), name)
    return re.sub(r"\b(?:[a-z_]\w*\.)+(?=[A-Z])", "", text).replace("'Settings'", "Settings")


def of_docstring(thing: Any) -> list[str]:
    """A docstring (Google style) as Markdown."""
    found = docstring_parser.parse(inspect.getdoc(thing) or "", style=docstring_parser.DocstringStyle.GOOGLE)
    paragraphs = [text for text in (found.short_description, found.long_description) if text]
    lines = "\n\n".join(paragraphs).splitlines()
    arguments = [f"* `{one.arg_name}`: {joined(one.description)}" for one in found.params]
    errors = [f"* Raises `{one.type_name}`: {joined(one.description)}" for one in found.raises]
    return [*lines, *([""] if arguments or errors else []), *arguments, *errors]


def joined(text: str | None) -> str:
    """A description on one line."""
    return " ".join((text or "").split())


def of_class(kind: Any, name: str, level: str = "##") -> list[str]:
    """A class: what it is for, and its public fields and properties."""
    further = ["", "Its fields are the [settings](../settings.md)."] if name == "howlow.Settings" else members(kind)
    return ["", f"{level} {name}", "", *of_docstring(kind), *further]


def members(kind: Any) -> list[str]:
    """Fields with their types; properties and methods with their first lines."""
    fields = dataclasses.fields(kind) if dataclasses.is_dataclass(kind) else ()
    lines = [f"* `{one.name}`: `{short_types(type_name(one.type))}`" for one in fields]
    lines += [f"* `{name}`: {first_line(value)}" for name, value in documented(kind)]
    return ["", *lines] if lines else []


def type_name(annotation: Any) -> str:
    """A field's type as it was written."""
    return annotation.__name__ if inspect.isclass(annotation) else str(annotation)


def documented(kind: Any) -> Iterator[tuple[str, Any]]:
    """The public properties and methods that a class of ours defines itself."""
    for name, value in vars(kind).items():
        inner = getattr(value, "func", getattr(value, "fget", value))
        if not name.startswith("_") and inspect.isfunction(inner) and inner.__doc__:
            yield (name if inner is not value else f"{name}()"), inner


def first_line(function: Any) -> str:
    """The first line of a docstring."""
    return (inspect.getdoc(function) or "").splitlines()[0]
