"""Taking trials: a worker claims one that nobody runs, measures it, and takes the next.

Several workers share a run directory in this way without a coordinator (`howlow.claims`). A trial whose worker died is
taken over, and resumes from its checkpoint.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from howlow.claims import Claim, Claims
from howlow.jobs import TrialJob
from howlow.outcomes import ClaimLostError, DiskFullError, StoppedError, is_disk_full
from howlow.places import full_disk
from howlow.records import has_record, lists_record
from howlow.worker.measuring import Worker

_LOOK_EVERY_S = 0.5


def take_trials(worker: Worker, jobs: Callable[[], Sequence[TrialJob]], *, waits: bool) -> None:
    """Take and measure trials until all have a record.

    jobs: the trials of the sweep, which may grow.
    waits: whether to wait until the trials that other workers hold have ended. Without it, wait only until it is
        known of each whether its worker is alive, and return when no trial is left to take.

    Raises:
        StoppedError: the worker was asked to stop.
        Exception: as `Worker.measure`, except for a lost claim, after which the worker takes another trial.
    """
    while True:
        if worker.runner.is_stopping:
            raise StoppedError
        left = [job for job in jobs() if not has_record(worker.run_directory, job.name)]
        if not left:
            return
        taken = _first_free(worker.claims, worker.run_directory, left)
        if taken is not None:
            _measure(worker, *taken)
        elif waits or any(worker.claims.may_be_dead(job.name) for job in left):
            worker.runner.rest(_LOOK_EVERY_S)
        else:
            return


def _first_free(claims: Claims, run_directory: Path, jobs: Sequence[TrialJob]) -> tuple[TrialJob, Claim] | None:
    for job in jobs:
        try:
            claim = claims.take(job.name)
        except OSError as error:
            if is_disk_full(error):
                raise DiskFullError(full_disk(error, run_directory)) from None
            raise
        if claim is None:
            continue
        if not lists_record(run_directory, job.name):  # the last holder writes it before the claim is free
            return job, claim
        claims.release(claim, unused=True)
    return None


def _measure(worker: Worker, job: TrialJob, claim: Claim) -> None:
    try:
        worker.measure(job, claim)
    except ClaimLostError:
        pass  # another worker has it now
    finally:
        worker.claims.release(claim)
