"""Records -> runs of an experiment tracker, each sent through the tracker's own client.

A trial is a run: its settings are parameters, the numbers of its row are metrics, its training losses are a metric with
steps, and its record, results.csv and the page are artifacts. The hash of its record tells whether it was sent
already, so a second call sends only what is new. A run that was not sent to its end is sent again, except to Trackio,
where a run is found by its name alone: delete one that was interrupted there.
Where a tracker stores what it is sent is its own client's to say (`MLFLOW_TRACKING_URI`, `WANDB_DIR`, `TRACKIO_DIR`);
Weights & Biases runs offline unless `WANDB_MODE` says otherwise.
"""

import sys
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal, get_args

from howlow.errors import UserError, raised_by, reason
from howlow.reporting import Report
from howlow.tracking.mlflow_runs import send_to_mlflow
from howlow.tracking.trackio_runs import send_to_trackio
from howlow.tracking.trial_runs import TrialRun, trial_runs
from howlow.tracking.wandb_runs import send_to_wandb

__all__ = ["Sent", "Tracker", "checked_tracker", "send"]

Tracker = Literal["mlflow", "wandb", "trackio"]
_SENDERS: Mapping[Tracker, Callable[[TrialRun, str], bool]] = {
    "mlflow": send_to_mlflow,
    "wandb": send_to_wandb,
    "trackio": send_to_trackio,
}


@dataclass(frozen=True)
class Sent:
    """How many trials were sent, and how many the tracker had already."""

    new: int
    old: int


def checked_tracker(name: str) -> Tracker:
    """The tracker of that name.

    Raises:
        UserError: there is no such tracker, or its client is not installed.
    """
    found = next((tracker for tracker in get_args(Tracker) if tracker == name), None)
    if found is None:
        raise UserError(f"--track {name}: one of {', '.join(get_args(Tracker))} is expected")
    if find_spec(found) is None:
        raise UserError(
            f"--track {name}: its client is not installed; pip install {name}, or 'howlow[track]' for all three"
        )
    tracker: Tracker = found
    return tracker


def send(report: Report, tracker: Tracker, project: str) -> Sent:
    """Send the trials of a report that was written; `project` is MLflow's experiment, the others' project.

    Raises:
        UserError: the tracker refused, or cannot be reached.
    """
    outcomes = [_sent(run, tracker, project) for run in trial_runs(report)]
    return Sent(sum(outcomes), len(outcomes) - sum(outcomes))


def _sent(run: TrialRun, tracker: Tracker, project: str) -> bool:
    try:
        with redirect_stdout(sys.stderr):  # what a client says is talk, and stdout is the result
            return _SENDERS[tracker](run, project)
    except Exception as error:  # a client raises what its server, its files or the network refuse
        if raised_by(error) == "howlow":
            raise
        again = "the same command sends what is missing"
        raise UserError(f"--track {tracker}: {run.name} was not sent: {reason(error)}; {again}") from error
