"""Errors are told by what failed: who raised them, which folder they are about, and what the door makes of them."""

import errno
import json
from pathlib import Path

import pytest
import torch

from howlow import errors, places
from howlow.errors import UserError, about, naming, raised_by, refused, subject_of
from howlow.jobs import EnvironmentJob, JobFailedError, value_of
from howlow.outcomes import DiskFullError, Ending, Unfinished, is_disk_full


def raised(work: object) -> Exception:
    try:
        work()  # type: ignore[operator]
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


@pytest.fixture(autouse=True)
def _caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, folder in {"XDG_CACHE_HOME": "cache", "HF_HOME": "cache/hf", "HF_DATASETS_CACHE": "data"}.items():
        monkeypatch.setenv(name, str(tmp_path / folder))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)


@pytest.mark.parametrize(
    ("inside", "variable"),
    [
        ("cache/howlow/models", "XDG_CACHE_HOME"),
        ("cache/hf/modules/x.py", "HF_HOME"),
        ("cache/hf/hub/models--a", "HF_HUB_CACHE"),
        ("data/parquet/x.arrow", "HF_DATASETS_CACHE"),
    ],
)
@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ENOSPC])
def test_a_path_in_a_cache_is_told_with_the_variable_that_names_it(
    tmp_path: Path, inside: str, variable: str, number: int
) -> None:
    path = str(tmp_path / inside)
    error = OSError(number, "no", path)
    assert places.told(error) == f"{path}: no; set {variable} to another folder, with room, that you may write to"
    assert variable not in places.told(OSError(number, "no", str(tmp_path / "out/x")))


def test_the_cause_that_a_library_wraps_is_what_failed(tmp_path: Path) -> None:
    def work() -> None:
        try:
            raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "x"))
        except OSError as error:
            raise OSError("Check cache directory permissions") from error

    found = raised(work)
    assert places.told(found).startswith(f"{tmp_path / 'x'}: Permission denied")
    assert raised_by(found) == errors.SYSTEM


def test_without_a_name_the_fullest_disk_is_blamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = {tmp_path / "data": 0.0}
    monkeypatch.setattr(places, "_free_bytes", lambda folder: free.get(folder, 1e9))
    full = OSError(errno.ENOSPC, "No space left on device")
    assert places.full_disk(full, tmp_path / "out").startswith(
        f"{tmp_path / 'data'}: No space left on device; set HF_D"
    )
    free[tmp_path / "out"] = 0.0
    assert places.full_disk(full, tmp_path / "out") == f"{tmp_path / 'out'}: No space left on device"


def test_a_file_is_named_where_the_system_does_not(tmp_path: Path) -> None:
    def work() -> None:
        with naming(tmp_path / "x"):
            raise OSError(errno.ENOSPC, "No space left on device")

    error = raised(work)
    assert places.told(error) == f"{tmp_path / 'x'}: No space left on device"


def test_who_raised_an_error_is_seen_from_the_code_that_did() -> None:
    assert raised_by(raised(lambda: torch.ones(2) @ torch.ones(3))) == "test_places"
    assert raised_by(raised(lambda: json.loads("{"))) == "test_places"
    assert raised_by(raised(lambda: __import__("tomlkit").parse("a = "))) == "tomlkit"
    assert raised_by(raised(lambda: UserError(3))) == errors.OURS  # type: ignore[arg-type]
    assert refused(OSError("no number")) is None


def test_the_innermost_subject_counts() -> None:
    def work() -> None:
        with about("model m"), about("task.train f"):
            raise KeyError("x")

    assert subject_of(raised(work)) == "task.train f"
    assert subject_of(KeyError()) is None


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_quota_and_a_limit_are_full_disks(number: int) -> None:
    assert is_disk_full(OSError(number, "full"))
    assert is_disk_full(RuntimeError("I/O error: File too large (os error 27)"))
    assert not is_disk_full(OSError(errno.EACCES, "no"))


@pytest.mark.parametrize(
    ("outcome", "raised_by", "problem", "kind", "words"),
    [
        ("user_error", "howlow", "give a folder", UserError, "give a folder"),
        ("disk_full", "howlow", "/d: full", DiskFullError, "/d: full"),
        ("crashed", errors.SYSTEM, "/f: gone", UserError, "/f: gone; the traceback is in L"),
        ("crashed", "jinja2", "E: x", UserError, "model m cannot be used: jinja2 raised E: x; the traceback is in L"),
        ("crashed", "howlow", "KeyError: 'x'", JobFailedError, "a defect in howlow: KeyError: 'x'; please report it"),
        ("crashed", "howlow", "MemoryError", JobFailedError, "model m: out of memory: MemoryError"),
    ],
)
def test_how_a_job_ended_is_one_line(
    outcome: Ending, raised_by: str, problem: str, kind: type[Exception], words: str
) -> None:
    ended = Unfinished(outcome, problem, raised_by=raised_by, subject="model m")
    with pytest.raises(kind) as told:
        value_of(ended, EnvironmentJob(device="cpu"), Path("L"))
    assert str(told.value).startswith(words) or words in str(told.value)


def test_a_killed_process_is_told_by_its_signal() -> None:
    with pytest.raises(JobFailedError, match=r"this machine: .* ended by signal 9; its output is in L"):
        value_of(Unfinished("died", "exit code -9", exit_signal=9), EnvironmentJob(device="cpu"), Path("L"))
