"""How low can the LoRA rank go for this model, this data and this hardware? Measured, not guessed.

    settings = howlow.load_settings("demo", [{"grid": {"lora.rank": [1, 8]}}])
    howlow.sweep(settings, "runs/demo")
    results = howlow.load("runs/demo")    # results.rows, results.records, results.warnings
    howlow.report(["runs/demo"])
    howlow.recommend("runs/demo", metric="f1", margin=0.03).rank
    shrunk = howlow.shrink_settings("runs/demo/trials/r0008-s0/adapter", [1, 2, 4])
    howlow.sweep(shrunk, "runs/shrunk")

Each name is imported when it is first used, so that nobody waits for what is not needed.
"""

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from howlow.analysis import load_results as load
    from howlow.analysis.recommendation import recommend
    from howlow.deciding import sweep_until_decided
    from howlow.errors import UserError
    from howlow.reporting import write_report as report
    from howlow.settings import Settings
    from howlow.sweeping import dry_run, sweep

__all__ = [
    "Settings",
    "UserError",
    "dry_run",
    "load",
    "load_settings",
    "recommend",
    "report",
    "shrink_settings",
    "sweep",
    "sweep_until_decided",
]
__version__ = "0.1.0"

_HOMES = {
    "Settings": ("howlow.settings", "Settings"),
    "UserError": ("howlow.errors", "UserError"),
    "dry_run": ("howlow.sweeping", "dry_run"),
    "load": ("howlow.analysis", "load_results"),
    "recommend": ("howlow.analysis.recommendation", "recommend"),
    "report": ("howlow.reporting", "write_report"),
    "sweep": ("howlow.sweeping", "sweep"),
    "sweep_until_decided": ("howlow.deciding", "sweep_until_decided"),
}


def load_settings(source: str | None, overrides: Sequence[Mapping[str, Any]] = ()) -> "Settings":
    """Settings from a preset or TOML file (or nothing), changed by each of the tables in turn, and checked.

    Raises:
        UserError: one line naming the first setting that is wrong, its value and its rule.
    """
    from howlow import settings, tasks

    return settings.load(source, overrides, tasks.task_rules())


def shrink_settings(
    adapter: "Path | str",
    ranks: Sequence[int],
    overrides: Sequence[Mapping[str, Any]] = (),
    *,
    continue_steps: int = 0,
) -> "Settings":
    """Settings of a sweep that cuts a trained adapter to smaller ranks and scores each; run it with `howlow.sweep`.

    Args:
        adapter: its folder; a record of its trial beside it says how it is scored, else `overrides` have to.
        ranks: each at most the adapter's own.
        continue_steps: optimizer steps of further training after the cut.

    Raises:
        UserError: the adapter cannot be cut, or a setting is wrong.
    """
    from howlow import settings, tasks
    from howlow.sweeping import shrinking

    shrinking.refuse_of_adapter(overrides)
    table = shrinking.settings_of_adapter(adapter, ranks, continue_steps)
    shrinking.refuse_missing(adapter, [table, *overrides])
    return settings.load(None, [table, *overrides], tasks.task_rules())


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'howlow' has no attribute {name!r}")
    home, inner = _HOMES[name]
    return getattr(import_module(home), inner)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
