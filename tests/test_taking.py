"""A worker that takes trials of a folder that a network file system shows late."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from test_records import record

from howlow.claims import Claims
from howlow.records import write_record
from howlow.worker.taking import _first_free


def test_a_trial_that_has_ended_is_not_run_again_where_its_absent_record_is_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs, job = Claims(tmp_path), Claims(tmp_path), SimpleNamespace(name="r0008-s0")
    jobs: Any = [job]
    claim = theirs.take(job.name)
    assert claim is not None
    assert _first_free(ours, tmp_path, jobs) is None
    write_record(tmp_path / "trials" / job.name, record(job.name))
    theirs.release(claim)
    monkeypatch.setattr(Path, "exists", lambda path: False)  # what a network file system may answer for a minute
    assert _first_free(ours, tmp_path, jobs) is None
    assert ours.holder(job.name) is None, "the claim was given back"


def test_a_free_trial_without_a_record_is_taken(tmp_path: Path) -> None:
    jobs: Any = [SimpleNamespace(name="r0008-s0")]
    taken = _first_free(Claims(tmp_path), tmp_path, jobs)
    assert taken is not None
    assert taken[0] is jobs[0]
