"""Trials as MLflow's runs, found again by a tag."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

from howlow.tracking.trial_runs import TrialRun

if TYPE_CHECKING:
    from mlflow import MlflowClient

T = TypeVar("T")
_COMPLETE = "howlow.complete"
_MOST_PARAMETERS, _MOST_METRICS = 100, 1000
"""What MLflow takes in one request."""
_LONGEST = 6000


def send_to_mlflow(run: TrialRun, project: str) -> bool:
    """Send a trial to the experiment of that name; False where it is there already."""
    from mlflow import MlflowClient

    client = MlflowClient()
    experiment = client.get_experiment_by_name(project)
    home = experiment.experiment_id if experiment is not None else client.create_experiment(project)
    found = client.search_runs([home], f"tags.`howlow.fingerprint` = '{run.fingerprint}'", max_results=1)
    if found and _COMPLETE in found[0].data.tags:
        return False
    there = found[0] if found else client.create_run(home, run.started_ms, dict(run.tags), run.name)
    _fill(client, there.info.run_id, run)
    return True


def _fill(client: "MlflowClient", run_id: str, run: TrialRun) -> None:
    """Everything of a run; what an interrupted call left there is written again with the same values."""
    from mlflow.entities import Metric, Param

    parameters = [Param(key, str(value)[:_LONGEST]) for key, value in run.parameters.items()]
    for some in _parts(parameters, _MOST_PARAMETERS):
        client.log_batch(run_id, params=some)
    metrics = [Metric(name, value, run.ended_ms, 0) for name, value in run.metrics.items()]
    metrics += [Metric("train_loss", loss, at, step) for step, loss, at in run.losses]
    for some in _parts(metrics, _MOST_METRICS):
        client.log_batch(run_id, metrics=some)
    for path in run.artifacts:
        client.log_artifact(run_id, str(path))
    client.set_terminated(run_id, "FINISHED" if run.is_done else "FAILED", run.ended_ms)
    client.set_tag(run_id, _COMPLETE, "true")


def _parts(items: Sequence[T], most: int) -> Iterator[Sequence[T]]:
    yield from (items[start : start + most] for start in range(0, len(items), most))
