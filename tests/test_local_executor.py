"""Ctrl-C and SIGTERM reach the whole process group and are the sweep's to handle: nobody else says a word."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from stand_ins import TellAfterStop, soon

from howlow import load_settings as load
from howlow.executors.fork_server import ForkServer
from howlow.jobs import JobEvent, StepProgress
from howlow.outcomes import Unfinished, ran_out_of_memory
from howlow.settings import to_toml

COMMAND = "import sys; from howlow.cli import main; sys.argv = ['howlow', *sys.argv[1:]]; main()"


@pytest.fixture
def started(tiny_table: dict[str, Any], tmp_path: Path) -> Callable[[], subprocess.Popen[str]]:
    """A sweep on the command line, in a process group of its own."""
    settings = tmp_path / "settings.toml"
    settings.write_text(to_toml(load(None, [tiny_table])), encoding="utf-8")

    def start() -> subprocess.Popen[str]:
        command = [sys.executable, "-c", COMMAND, "sweep", str(settings), "--out", str(tmp_path / "out")]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=True)

    return start


def imports_torch(process: psutil.Process) -> bool:
    """Whether a process is in the middle of its imports: torch's libraries are mapped."""
    try:
        return "libtorch" in Path(f"/proc/{process.pid}/maps").read_text()
    except OSError:
        return False


@pytest.mark.parametrize(
    ("number", "written", "with_limit", "without"),
    [
        (signal.SIGSEGV, "", True, False),
        (signal.SIGABRT, "", True, False),
        (signal.SIGABRT, "terminate called after throwing an instance of 'std::bad_alloc'", True, True),
        (signal.SIGKILL, "", False, False),
        (signal.SIGTERM, "", False, False),
        (None, "RuntimeError: unable to mmap 13200 bytes from file: Cannot allocate memory (12)", True, True),
        (None, "cannot allocate memory for thread-local data: ABORT", True, True),  # glibc, and exit code 127
        (None, "RuntimeError: can't start new thread", True, False),
        (None, "libgomp: Thread creation failed: Resource temporarily unavailable", True, False),
        (None, "RuntimeError: could not create a primitive", True, False),
        (None, "RuntimeError: could not execute a primitive", True, False),
        (None, "ZeroDivisionError: division by zero", False, False),
    ],
)
def test_under_a_memory_limit_falls_of_libraries_are_for_want_of_memory(
    number: signal.Signals | None, written: str, with_limit: bool, without: bool, tmp_path: Path
) -> None:
    log = tmp_path / "log.txt"
    log.write_text(written, encoding="utf-8")
    finished = Unfinished("died", "", exit_signal=number)
    assert ran_out_of_memory(finished, log, False, is_limited=True) == with_limit
    assert ran_out_of_memory(finished, log, False, is_limited=False) == without


@pytest.mark.parametrize("is_kernel", [True, False])
def test_a_killed_process_was_out_of_memory_only_where_the_kernel_killed_one(is_kernel: bool, tmp_path: Path) -> None:
    (tmp_path / "log.txt").write_text("", encoding="utf-8")
    finished = Unfinished("died", "", exit_signal=signal.SIGKILL)
    assert ran_out_of_memory(finished, tmp_path / "log.txt", is_kernel, is_limited=True) == is_kernel


@pytest.mark.slow
def test_what_a_child_tells_after_it_was_asked_to_stop_is_heard(tmp_path: Path) -> None:
    heard = []

    def hear(event: JobEvent) -> None:
        assert isinstance(event, StepProgress)
        heard.append(event.step)
        if event.step == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ForkServer().run(TellAfterStop(), tmp_path / "log.txt", hear)
    assert heard == [1, 2]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the fork server is Linux's")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_to_the_group_while_the_server_imports_leaves_no_traceback(
    started: Callable[[], subprocess.Popen[str]], number: signal.Signals, code: int
) -> None:
    process = started()
    try:
        us = psutil.Process(process.pid)
        soon(lambda: any(imports_torch(child) for child in us.children(recursive=True)))
        children = us.children(recursive=True)
        os.killpg(process.pid, number)
        out, err = process.communicate(timeout=60)  # until the last of the group has closed its end
    finally:
        process.kill()
        process.wait()
    assert (process.returncode, out) == (code, "")
    assert "Traceback" not in err
    assert err.splitlines()[-1].startswith("howlow: stopped")
    _, left = psutil.wait_procs(children, timeout=20)
    assert [child for child in left if child.status() != psutil.STATUS_ZOMBIE] == []


@pytest.mark.slow
def test_a_signal_to_the_group_in_a_trial_keeps_its_checkpoint(
    started: Callable[[], subprocess.Popen[str]], tmp_path: Path
) -> None:
    process = started()
    trials = tmp_path / "out" / "trials"
    try:
        soon(lambda: any(trials.glob("r*/steps.jsonl")))
        os.killpg(process.pid, signal.SIGTERM)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 143
    assert "Traceback" not in err
    running = [trial for trial in trials.iterdir() if not (trial / "record.json").exists()]
    for trial in running:
        state = json.loads((trial / "checkpoint" / "state.json").read_text())
        assert state["identity"]["kind"] == "lora"
        assert "Traceback" not in (trial / "log.txt").read_text()


def test_a_signal_may_come_at_any_moment_of_waiting_for_workers(tmp_path: Path) -> None:
    """The exception of a handler goes through the main thread's wait, and leaves no lock in another state."""
    from howlow.executors.local import _Crew

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    met, crew = 0, _Crew(ForkServer())
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        for microseconds in range(1, 400):
            try:
                crew.look_at_s = time.perf_counter() + 0.02
                signal.setitimer(signal.ITIMER_REAL, microseconds * 1e-6)
                crew.hear(lambda _: None, lambda: None)
                signal.setitimer(signal.ITIMER_REAL, 0)
            except KeyboardInterrupt:
                met += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert met, "signals came while it waited"
