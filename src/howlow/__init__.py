"""How low can the LoRA rank go for this model, this data and this hardware? Measured, not guessed.

settings = howlow.load_settings("demo", [{"grid": {"lora.rank": [1, 8]}}])
howlow.sweep(settings, "runs/demo")
found = howlow.load("runs/demo")    # found.rows, found.records, found.warnings
howlow.report(["runs/demo"])

Each name is imported when it is first used, so that nobody waits for what he does not need.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from howlow.analysis import load
    from howlow.errors import UserError
    from howlow.reporting import write_report as report
    from howlow.settings import Settings
    from howlow.settings import load as load_settings
    from howlow.sweeping import dry_run, sweep

__all__ = ["Settings", "UserError", "dry_run", "load", "load_settings", "report", "sweep"]
__version__ = "0.1.0"

_HOMES = {
    "Settings": ("howlow.settings", "Settings"),
    "UserError": ("howlow.errors", "UserError"),
    "dry_run": ("howlow.sweeping", "dry_run"),
    "load": ("howlow.analysis", "load"),
    "load_settings": ("howlow.settings", "load"),
    "report": ("howlow.reporting", "write_report"),
    "sweep": ("howlow.sweeping", "sweep"),
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'howlow' has no attribute {name!r}")
    home, inner = _HOMES[name]
    return getattr(import_module(home), inner)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


class _Package(ModuleType):
    """`howlow.sweep` and `howlow.report` are the functions, also once the rooms of these names are imported."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
