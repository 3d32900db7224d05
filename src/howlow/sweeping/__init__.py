"""The grid of trials: its order, resuming it, and what is prepared once.

`sweep` runs or resumes a sweep, `setup` prepares what all trials share.
"""

from howlow.sweeping.rehearsal import DryRun
from howlow.sweeping.sweep import RETRYABLE, SweepResult, dry_run, sweep

__all__ = ["RETRYABLE", "DryRun", "SweepResult", "dry_run", "sweep"]
