"""A trial over several devices ends as a whole: one of its processes is killed, none is left, and a record says so."""

from pathlib import Path
from typing import Any

import psutil
import pytest
from test_several_devices import table_of

import howlow
from howlow import load_settings as load
from howlow.jobs import SweepEvent, TrialProgress

pytestmark = pytest.mark.slow


def followers() -> list[psutil.Process]:
    """The processes that a trial's process has started: it is itself a child of the fork server."""
    trials = [trial for server in psutil.Process().children() for trial in server.children()]
    return [follower for trial in trials for follower in trial.children()]


def test_a_killed_process_of_a_device_ends_the_trial_and_all_its_processes(
    tiny_table: dict[str, Any], tmp_path: Path
) -> None:
    found: list[psutil.Process] = []

    def tell(event: SweepEvent) -> None:
        if not found and isinstance(event, TrialProgress) and event.progress.phase == "train":
            found.extend(followers())
            found[0].kill()

    settings = load(None, [table_of(tiny_table, 2, training={"epochs": 40}, baselines=[])])
    (record,) = howlow.sweep(settings, tmp_path, on_event=tell).records
    assert len(found) == 1
    assert record.status == "failed"
    assert record.error is not None
    assert "killed by signal 9" in record.error
    assert "device 2 ended (signal 9)" in (tmp_path / "trials" / record.trial / "log.txt").read_text()
    assert not found[0].is_running()
    assert not followers()
