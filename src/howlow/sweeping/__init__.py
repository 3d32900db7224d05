"""The grid of trials: its order, resuming it, and what is prepared once.

`sweep` runs or continues a sweep, `setup` prepares what all trials share.
"""

from howlow.sweeping.sweep import RETRYABLE, DryRun, Event, SweepResult, dry_run, sweep

__all__ = ["RETRYABLE", "DryRun", "Event", "SweepResult", "dry_run", "sweep"]
