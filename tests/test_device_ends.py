"""A trial over several devices ends as a whole: a killed process of one of them ends all, and the trial resumes."""

import multiprocessing
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from test_resuming import Stopper, measure_job, run, told_at_every_step  # noqa: F401  (a fixture)
from test_several_devices import CHOICES, adapter, losses, one_thread_a_process, table_of  # noqa: F401  (a fixture)

from howlow.executors.fork_server import ForkServer
from howlow.jobs import JobEvent, StepProgress
from howlow.outcomes import Unfinished

# A killed process leaves its files to the system.
pytestmark = [
    pytest.mark.filterwarnings("ignore:unclosed file"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture
def processes() -> ForkServer:
    """Runs a job in a fork of this process, which has all imports, rather than of a server that would make them."""
    server = ForkServer()
    server._context = multiprocessing.get_context("fork")
    return server


@pytest.mark.parametrize("who", ["follower", "leading"])
def test_a_killed_process_ends_the_trial_which_resumes(
    tiny_table: dict[str, Any], tmp_path: Path, processes: ForkServer, who: str
) -> None:
    table = table_of(tiny_table, 2, training={"checkpoint_every_s": 1e-9, "epochs": 5})
    ours, unbroken = tmp_path / "ours", tmp_path / "unbroken"
    job = measure_job(table, ours, layout=CHOICES[0])
    found: list[psutil.Process] = []

    def hear(event: JobEvent) -> None:
        if isinstance(event, StepProgress) and event.step == 3 and not found:
            leading = next(child for child in psutil.Process().children() if child.children())
            found.extend([leading, *leading.children()])
            found[1 if who == "follower" else 0].kill()

    log = ours / job.trial.folder / "log.txt"
    end = processes.run(job, log, hear)
    assert len(found) == 2
    assert isinstance(end, Unfinished)
    assert (end.outcome, end.exit_signal) == ("died", 9)
    assert (who == "follower") == ("device 2 ended (signal 9), and the trial with it" in log.read_text())
    _, left = psutil.wait_procs(found, timeout=60)
    assert not left
    record = run(table, ours, Stopper(), layout=CHOICES[0])
    assert record is not None
    assert (record.status, record.resumed) == ("done", 1)
    run(table, unbroken, Stopper(), layout=CHOICES[0])
    assert losses(ours, "train") == losses(unbroken, "train")
    assert all(torch.equal(part, adapter(unbroken)[name]) for name, part in adapter(ours).items())
