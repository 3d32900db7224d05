"""Write docs/settings.md from the settings' own descriptions; a test holds that the file is up to date."""

from pathlib import Path

from pydantic_core import PydanticUndefined

from howlow.settings import EFFECTS, effects
from howlow.settings.schema import Section, Settings
from howlow.tasks import Task, tasks


def rows(section: type[Section], prefix: str = "") -> list[str]:
    """One table row a setting, sections after the plain ones."""
    plain, nested = [], []
    for name, field in section.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            nested += ["", f"## [{name}]", "", kind.__doc__ or "", "", *HEAD, *rows(kind, f"{name}.")]
            nested += task_rows() if name == "task" else []
            continue
        default = field.get_default(call_default_factory=True)
        shown = (
            "required" if default is PydanticUndefined else "absent" if default is None else f"`{plain_toml(default)}`"
        )
        affected = ", ".join(sorted(effects()[f"{prefix}{name}"], key=list(EFFECTS).index)) or "nothing"
        plain.append(f"| `{prefix}{name}` | {shown} | {affected} | {field.description} |".replace("\n", " "))
    return plain + nested


def task_rows() -> list[str]:
    """The tasks, and which of the settings above each of them takes."""
    return ["", *TASK_HEAD, *(task_row(name, task) for name, task in tasks().items())]


def task_row(name: str, task: Task) -> str:
    """One task: its data, its own settings with their defaults, its placeholders and its metrics."""
    defaults = task.rules.defaults or {}
    takes = [f"`{one}` = `{toml(defaults[one])}`" if one in defaults else f"`{one}`" for one in task.rules.takes]
    takes += [f"`{key}` = `{toml(value)}`" for key, value in (task.rules.other_defaults or {}).items()]
    cells = [f"`{name}`", task.about, ", ".join(takes), " ".join(task.rules.placeholders), ", ".join(task.metrics)]
    return f"| {' | '.join(cells)} |"


def toml(value: object) -> str:
    """A task's default as TOML writes it."""
    return plain_toml(value).replace("\n", "\\n")


def plain_toml(value: object) -> str:
    """A default as TOML writes it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple | list):
        return f"[{', '.join(plain_toml(item) for item in value)}]"
    return f'"{value}"' if isinstance(value, str) else "{}" if value == {} else f"{value:g}"


HEAD = ["| setting | default | affects | meaning |", "| --- | --- | --- | --- |"]
TASK_HEAD = [
    "| task | data | its own settings and defaults | placeholders | metrics |",
    "| --- | --- | --- | --- | --- |",
]


def document() -> str:
    """The whole page."""
    head = [
        "# Settings",
        "",
        "Written by `make docs` from `src/howlow/settings/schema.py`. Every setting is given in a TOML file under its",
        "table, or on the command line as `--set KEY=VALUE` with a TOML value (a bare word is a string). Relative",
        "paths are relative to the folder in which the command runs.",
        "",
        "The column *affects* says what changes with a setting. What is prepared once, what may differ when a sweep is",
        "continued, and which trials may be compared all follow from it:",
        "",
        *[f"* {effect}: {meaning}" for effect, meaning in EFFECTS.items()],
        "* nothing: no figure changes; such a setting may differ when a sweep is continued",
        "",
    ]
    return "\n".join([*head, *HEAD, *rows(Settings), ""])


if __name__ == "__main__":
    (Path(__file__).parent / "settings.md").write_text(document(), encoding="utf-8")
