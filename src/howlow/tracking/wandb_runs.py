"""Trials as runs of Weights & Biases: offline unless WANDB_MODE says otherwise; `wandb sync` sends them later.

Where a run was sent to its end, its folder holds a file that says so.
"""

import os
from pathlib import Path
from typing import Any

from howlow.tracking.trial_runs import TrialRun

_COMPLETE = "howlow-complete"


def send_to_wandb(run: TrialRun, project: str) -> bool:
    """Send a trial to the project of that name; False where its folder is there already."""
    import wandb

    home = Path(os.environ.get("WANDB_DIR", "."))
    if any((folder / _COMPLETE).exists() for folder in (home / "wandb").glob(f"*run-*-{run.key}")):
        return False
    mode: Any = os.environ.get("WANDB_MODE", "offline")  # wandb itself refuses a word that it does not know
    there = wandb.init(
        project=project,
        id=run.key,
        name=run.name,
        group=run.sweep,
        dir=home,
        config=dict(run.parameters) | dict(run.tags),
        mode=mode,
        resume="allow" if mode == "online" else None,
        settings=wandb.Settings(silent=True, console="off", x_disable_stats=True),
    )
    for step, loss, _ in run.losses:
        there.log({"train_loss": loss}, step=step)
    there.summary.update(dict(run.metrics))
    artifact = wandb.Artifact(f"trial-{run.key}", type="howlow")
    for path in run.artifacts:
        artifact.add_file(str(path))
    there.log_artifact(artifact)
    folder = Path(there.dir).parent
    there.finish(exit_code=0 if run.is_done else 1)
    (folder / _COMPLETE).touch()
    return True
