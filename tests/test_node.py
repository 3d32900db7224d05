"""Who works on one machine at one time: nobody beside a process that is alone, nobody passed over, no lock outlives."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings as options
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from howlow import node
from howlow.errors import UserError
from howlow.node import Presence, Visitor, place_of_tickets, present, refuse_no_node


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(node.VARIABLE, str(tmp_path / "node"))
    monkeypatch.setattr(node, "_LOOK_EVERY_S", 0.01)
    return tmp_path / "node"


def visitor(trial: str, *, is_alone: bool = False) -> Visitor:
    return Visitor(trial, "/runs/demo", "trial", "cpu", is_alone)


class GivenUpError(Exception):
    pass


def give_up(other: Visitor) -> None:
    raise GivenUpError(other.trial)


def test_trials_run_side_by_side_and_know_each_other(folder: Path) -> None:
    with present(visitor("a"), give_up) as a:
        with present(visitor("b"), give_up) as b:
            assert a is not None
            assert b is not None
            b.describe("cuda:0", "GPU-1")
            (seen,) = a.neighbours()
            assert (seen.visitor.trial, seen.visitor.device_uuid) == ("b", "GPU-1")
            assert [stay.visitor.trial for stay in b.neighbours()] == ["a"]
        (seen,) = a.neighbours()
        assert seen.began_s <= seen.ended_s <= node.machine_s()
        with present(visitor("c"), give_up) as c:
            assert c is not None
            assert [stay.visitor.trial for stay in c.neighbours()] == ["a"], "b had ended before it began"


def test_one_that_is_alone_waits_for_those_before_it_and_the_others_wait_for_it() -> None:
    with present(visitor("a"), give_up):
        with pytest.raises(GivenUpError, match="a"), present(visitor("b", is_alone=True), give_up):
            pass
        waiting = node._entered(node._folder(), visitor("c", is_alone=True))
        with pytest.raises(GivenUpError, match="c"), present(visitor("d"), give_up):
            pass  # or else those who come later would keep it waiting for ever
        waiting.end()
    with (
        present(visitor("e", is_alone=True), give_up),
        pytest.raises(GivenUpError, match="e"),
        present(visitor("f"), give_up),
    ):
        pass


HOLDER = """
import sys
from howlow.node import Visitor, present
with present(Visitor("held", "/runs/demo", "trial", "cpu", True), lambda other: None):
    print("here", flush=True)
    sys.stdin.read()
"""


def test_a_killed_process_frees_the_machine(folder: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"here\n"
        with pytest.raises(GivenUpError, match="held"), present(visitor("a"), give_up):
            pass
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait(30)
        with present(visitor("a"), give_up):
            pass
    finally:
        holder.kill()
        holder.communicate()


def test_tickets_that_nobody_can_ask_for_any_more_are_removed(folder: Path) -> None:
    for _ in range(20):
        with present(visitor("a"), give_up):
            pass
    assert 1 <= len(list(folder.rglob("*.ticket"))) <= 2
    with present(visitor("long"), give_up) as long:
        for index in range(5):
            with present(visitor(f"t{index}"), give_up):
                pass
        assert long is not None
        assert [stay.visitor.trial for stay in long.neighbours()] == [f"t{index}" for index in range(5)]


def test_without_a_folder_trials_run_and_none_can_be_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(node.VARIABLE, str(tmp_path / "file" / "node"))
    with present(visitor("a"), give_up) as presence:
        assert presence is None
    with pytest.raises(UserError, match=r"run\.exclusive: .*: Not a directory; set HOWLOW_NODE to a folder"):
        refuse_no_node()
    with pytest.raises(UserError, match=r"run\.exclusive"), present(visitor("a", is_alone=True), give_up):
        pass


def test_tickets_of_another_start_or_machine_count_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that outlives a start, or that several machines see: their clocks and locks mean nothing here."""
    here = node.Host.here()
    with present(visitor("before", is_alone=True), give_up):
        monkeypatch.setattr(node.Host, "here", lambda: node.Host(here.name, here.machine, "after"))
        with present(visitor("after"), give_up) as after:
            assert after is not None
            assert after.neighbours() == []


def test_every_user_can_read_a_ticket_whatever_the_umask(folder: Path) -> None:
    before = os.umask(0o077)
    try:
        with present(visitor("a"), give_up):
            pass
    finally:
        os.umask(before)
    modes = {path.suffix: path.stat().st_mode & 0o777 for path in folder.rglob("*.*")}
    assert modes == {".ticket": 0o644, ".end": 0o644}
    folders = [folder, *filter(Path.is_dir, folder.iterdir())]
    assert {one.stat().st_mode & 0o7777 for one in folders} == {0o1777}


def test_the_place_of_tickets_differs_where_processes_do_not_see_each_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = place_of_tickets()
    assert first == place_of_tickets() != ""
    monkeypatch.setenv(node.VARIABLE, str(tmp_path / "another"))
    assert place_of_tickets() not in (first, "")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(node.VARIABLE, str(tmp_path / "file" / "node"))
    assert place_of_tickets() == ""


class Queue(RuleBasedStateMachine):
    """Processes come, begin when they may, end and die in any order."""

    @initialize()
    def begin(self) -> None:
        import tempfile

        self.scratch = tempfile.TemporaryDirectory()
        self.waiting: list[Presence] = []
        self.here: list[Presence] = []

    def teardown(self) -> None:
        for one in (*getattr(self, "waiting", ()), *getattr(self, "here", ())):
            one.end()
        if hasattr(self, "scratch"):
            self.scratch.cleanup()

    @rule(is_alone=st.booleans())
    def come(self, is_alone: bool) -> None:
        self.waiting.append(node._entered(Path(self.scratch.name), visitor("t", is_alone=is_alone)))

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def look(self, data: Any) -> None:
        one = data.draw(st.sampled_from(self.waiting))
        if one.blocker() is None:
            one.begin()
            self.waiting.remove(one)
            self.here.append(one)

    @precondition(lambda self: self.here or self.waiting)
    @rule(data=st.data(), dies=st.booleans())
    def leave(self, data: Any, dies: bool) -> None:
        one = data.draw(st.sampled_from([*self.here, *self.waiting]))
        (self.here if one in self.here else self.waiting).remove(one)
        if dies:
            os.close(one._descriptor)
        else:
            one.end()

    @invariant()
    def who_is_alone_is_alone(self) -> None:
        here = getattr(self, "here", [])
        assert len(here) < 2 or not any(one.visitor.is_alone for one in here)

    @invariant()
    def the_first_who_waits_is_let_in_when_the_machine_is_free(self) -> None:
        if getattr(self, "waiting", []) and not self.here:
            assert min(self.waiting, key=lambda one: one.number).blocker() is None

    @invariant()
    def nobody_has_a_lower_number_than_one_who_came_before(self) -> None:
        numbers = [one.number for one in getattr(self, "waiting", [])]
        assert numbers == sorted(numbers)


TestQueue = Queue.TestCase
TestQueue.settings = options(max_examples=50, stateful_step_count=20)
