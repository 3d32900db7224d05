"""Trials as Trackio's runs, which it stores on this machine; found again by their names."""

from howlow.tracking.trial_runs import TrialRun


def send_to_trackio(run: TrialRun, project: str) -> bool:
    """Send a trial to the project of that name; False where a run of its name is there already."""
    import trackio

    name = f"{run.name}-{run.key}"
    if name in _names(project):
        return False
    config = dict(run.parameters) | dict(run.tags)
    meters = {"auto_log_gpu": False, "auto_log_cpu": False}
    trackio.init(project=project, name=name, group=run.sweep, config=config, embed=False, **meters)
    try:
        for step, loss, _ in run.losses:
            trackio.log({"train_loss": loss}, step=step)
        trackio.log(dict(run.metrics), step=max((step for step, _, _ in run.losses), default=0) + 1)
        for path in run.artifacts:
            trackio.log_artifact(path, name=f"{run.key}-{path.name}", type="howlow")
    finally:
        trackio.finish()
    return True


def _names(project: str) -> set[str]:
    import trackio

    try:
        return {run.name for run in trackio.Api().runs(project)}
    except ValueError:  # there is no such project yet
        return set()
