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
from howlow.node import Presence, Visitor, present, refuse_no_node


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
    assert len(list(folder.glob("*.ticket"))) <= 2
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
TestQueue.settings = options(max_examples=50, stateful_step_count=20, deadline=None)
