"""How low can the LoRA rank go for this model, this data and this hardware? Measured, not guessed.

settings = howlow.load_settings("demo", [{"grid": {"lora.rank": [1, 8]}}])
howlow.sweep(settings, "runs/demo")
howlow.report(["runs/demo"])
"""

from howlow.errors import UserError
from howlow.report import write_report as report
from howlow.settings import Settings
from howlow.settings import load as load_settings
from howlow.sweep import dry_run, sweep

__all__ = ["Settings", "UserError", "dry_run", "load_settings", "report", "sweep"]
__version__ = "0.1.0"
