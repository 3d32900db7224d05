"""Claims: one holder a trial at any time, dead holders are replaced, a paused holder writes nothing any more."""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings as options
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from howlow import claims
from howlow.claims import Claim, Claims, Host
from howlow.outcomes import ClaimLostError

ELSEWHERE = Host("elsewhere", "other machine", "other boot")
EXPIRY_S = 10.0


class Clock:
    """A monotonic clock that a test moves."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def side(folder: Path, host: Host, clock: Clock) -> Claims:
    return Claims(folder, host=host, expiry_s=EXPIRY_S, clock=clock)


def die(claim: Claim) -> None:
    """What the operating system does when a process ends."""
    if claim.lock is not None:
        os.close(claim.lock)
        claim.lock = None


def test_a_trial_has_one_holder_and_is_free_when_it_is_released(tmp_path: Path) -> None:
    ours, theirs = Claims(tmp_path), Claims(tmp_path)
    first = ours.take("t")
    assert first is not None
    assert (ours.take("t"), theirs.take("t")) == (None, None)
    assert str(theirs.holder("t")) == f"process {os.getpid()} on {Host.here().name}"
    ours.release(first)
    assert theirs.holder("t") is None
    second = theirs.take("t")
    assert second is not None
    assert (second.generation, second.has_expired_before) == (2, False)
    assert (first.is_current(), second.is_current()) == (False, True)
    with pytest.raises(ClaimLostError):
        claims.refuse_if_lost(tmp_path, "t", first.generation)
    claims.refuse_if_lost(tmp_path, "t", second.generation)
    claims.refuse_if_lost(tmp_path, "t", None)


def test_on_one_machine_a_dead_holders_claim_is_free_at_once(tmp_path: Path) -> None:
    first = Claims(tmp_path).take("t")
    assert first is not None
    other = Claims(tmp_path)
    assert other.take("t") is None
    die(first)
    second = other.take("t")
    assert second is not None
    assert not second.has_expired_before


def test_on_another_machine_a_claim_expires_only_without_renewals(tmp_path: Path) -> None:
    clock = Clock()
    there, here = side(tmp_path, ELSEWHERE, clock), side(tmp_path, Host.here(), clock)
    first = there.take("t")
    assert first is not None
    for _ in range(5):
        clock.now_s += EXPIRY_S - 1
        first.renew()
        assert here.take("t") is None
    clock.now_s += EXPIRY_S - 1
    assert here.take("t") is None
    clock.now_s += 1
    second = here.take("t")
    assert second is not None
    assert second.has_expired_before
    assert not first.is_current()


def test_a_worker_elsewhere_is_known_to_be_alive_once_it_renews(tmp_path: Path) -> None:
    clock = Clock()
    there, here = side(tmp_path, ELSEWHERE, clock), side(tmp_path, Host.here(), clock)
    first = there.take("t")
    assert first is not None
    assert here.take("t") is None
    assert here.may_be_dead("t"), "one look tells nothing"
    clock.now_s += 1
    first.renew()
    assert here.take("t") is None
    assert not here.may_be_dead("t")
    assert not here.may_be_dead("another")


def test_the_observers_clock_starts_when_it_first_looks(tmp_path: Path) -> None:
    clock = Clock()
    assert side(tmp_path, ELSEWHERE, clock).take("t")
    clock.now_s += 100 * EXPIRY_S
    assert side(tmp_path, Host.here(), clock).take("t") is None


def test_a_claim_that_was_not_written_whole_expires_too(tmp_path: Path) -> None:
    clock = Clock()
    folder = claims.claim_folder(tmp_path, "t")
    folder.mkdir(parents=True)
    (folder / "0001.json").write_text("")
    here = side(tmp_path, Host.here(), clock)
    assert here.take("t") is None
    clock.now_s += EXPIRY_S
    found = here.take("t")
    assert found is not None
    assert found.generation == 2


@pytest.mark.parametrize("problem", [PermissionError(1, "no links"), FileExistsError(17, "exists")])
def test_without_hard_links_a_generation_still_has_one_winner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, problem: OSError
) -> None:
    def link(*_: Any) -> None:
        raise problem

    monkeypatch.setattr(os, "link", link)
    first = Claims(tmp_path).take("t")
    assert (first is None) == isinstance(problem, FileExistsError)
    assert Claims(tmp_path).take("t") is None
    assert not list(claims.claim_folder(tmp_path, "t").glob(".*.tmp"))


@pytest.mark.parametrize("slept_s", [0.0, claims.EXPIRY_S - 5.0, claims.EXPIRY_S, 10 * claims.EXPIRY_S])
def test_a_holder_that_slept_past_its_lease_has_lost_the_trial_although_nobody_took_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slept_s: float
) -> None:
    ours, machine_s = Claims(tmp_path), claims.machine_s
    first = ours.take("t")
    assert first is not None
    monkeypatch.setattr(claims, "machine_s", lambda: machine_s() + slept_s)
    first.renew()  # the first thing that happens when the machine wakes up
    has_lapsed = slept_s >= claims.EXPIRY_S
    assert first.is_current() is not has_lapsed
    if has_lapsed:
        with pytest.raises(ClaimLostError):
            claims.refuse_if_lost(tmp_path, "t", first.generation)
    else:
        claims.refuse_if_lost(tmp_path, "t", first.generation)
    ours.release(first)
    second = ours.take("t")
    assert second is not None, "its worker takes it anew"
    claims.refuse_if_lost(tmp_path, "t", second.generation)


@pytest.mark.parametrize("beat", [None, "", "held", "held soon", "free        1.000000", "void        1.000000"])
def test_a_claim_that_cannot_be_shown_to_be_alive_is_lost(tmp_path: Path, beat: str | None) -> None:
    claim = Claims(tmp_path).take("t")
    assert claim is not None
    path = claims.claim_folder(tmp_path, "t") / "0001.beat"
    path.unlink()
    if beat is not None:
        path.write_text(beat)
    assert not claim.is_current()


def test_what_a_replaced_process_still_appends_reaches_nobody(tmp_path: Path) -> None:
    path = tmp_path / "steps.jsonl"
    with path.open("a") as old:
        old.write("one\n")
        old.flush()
        claims.detach(tmp_path)
        old.write("two\n")
        old.flush()
        assert path.read_text() == "one\n"


def test_trials_that_ran_at_one_time_are_neighbours(tmp_path: Path) -> None:
    ours = Claims(tmp_path)
    first = ours.take("first")
    assert first is not None
    assert claims.neighbours(tmp_path, "first", only_now=True) == ()
    second = ours.take("second")
    assert second is not None
    ours.release(second)
    third = ours.take("third")
    assert third is not None
    ours.release(third, unused=True)
    assert claims.neighbours(tmp_path, "first", only_now=True) == ()
    assert claims.neighbours(tmp_path, "first") == ("second",)
    ours.release(first)
    later = ours.take("later")
    assert later is not None
    assert claims.neighbours(tmp_path, "later") == ()


def test_only_those_whose_tickets_are_elsewhere_are_unseen_and_containers_of_one_machine_are_beside(
    tmp_path: Path,
) -> None:
    here = Host.here()
    ours = Claims(tmp_path, node="a")
    pod = Claims(tmp_path, host=Host("another-name", "", here.boot), node="b")
    far = Claims(tmp_path, host=ELSEWHERE, node="c")
    for side_of, name in ((ours, "own"), (ours, "seen"), (pod, "unseen"), (far, "far")):
        assert side_of.take(name) is not None
    assert claims.neighbours(tmp_path, "own") == ("seen", "unseen")
    assert claims.neighbours(tmp_path, "own", unseen_by="a") == ("unseen",)


def test_a_dead_container_is_a_neighbour_until_its_last_renewal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pod = Claims(tmp_path, host=Host("another-name", "", Host.here().boot))
    claim = pod.take("old")
    assert claim is not None
    die(claim)
    machine_s = claims.machine_s
    monkeypatch.setattr(claims, "machine_s", lambda: machine_s() + 2 * claims.EXPIRY_S)
    assert Claims(tmp_path).take("new") is not None
    assert claims.neighbours(tmp_path, "new") == ()


# -- any order of events --------------------------------------------------------------------------------------------


class Protocol(RuleBasedStateMachine):
    """Workers on two machines take, renew, pause, die and write in any order."""

    @initialize(hosts=st.lists(st.sampled_from([0, 1]), min_size=2, max_size=4))
    def begin(self, hosts: list[int]) -> None:
        import tempfile

        self.scratch = tempfile.TemporaryDirectory()
        self.clock = Clock()
        places = (Host.here(), ELSEWHERE)
        self.workers = [side(Path(self.scratch.name), places[host], self.clock) for host in hosts]
        self.held: dict[int, Claim] = {}
        self.renewed_s: dict[int, float] = {}
        self.dead: set[int] = set()  # generations whose holder died or gave them back
        self.winners: dict[int, int] = {}

    def teardown(self) -> None:
        for claim in getattr(self, "held", {}).values():
            die(claim)
        if hasattr(self, "scratch"):
            self.scratch.cleanup()

    @rule(data=st.data())
    def take(self, data: Any) -> None:
        index = data.draw(st.integers(0, len(self.workers) - 1))
        before = claims.latest(claims.claim_folder(Path(self.scratch.name), "t"))
        claim = self.workers[index].take("t")
        if claim is None:
            return
        assert claim.generation == before + 1
        assert claim.generation not in self.winners, "a generation has one winner"
        is_free = before == 0 or before in self.dead
        assert is_free or self.clock.now_s - self.renewed_s[before] >= EXPIRY_S, "a live holder keeps its trial"
        self.winners[claim.generation] = index
        self.renewed_s[claim.generation] = self.clock.now_s
        if index in self.held:  # a worker that was replaced while it was paused
            die(self.held[index])
            self.dead.add(self.held[index].generation)
        self.held[index] = claim

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def renew(self, data: Any) -> None:
        claim = self.held[data.draw(st.sampled_from(sorted(self.held)))]
        claim.renew()
        self.renewed_s[claim.generation] = self.clock.now_s

    @precondition(lambda self: self.held)
    @rule(data=st.data(), dies=st.booleans())
    def end(self, data: Any, dies: bool) -> None:
        index = data.draw(st.sampled_from(sorted(self.held)))
        claim = self.held.pop(index)
        self.dead.add(claim.generation)
        if dies:
            die(claim)
        else:
            self.workers[index].release(claim)

    @rule(seconds=st.sampled_from([1.0, EXPIRY_S / 2, EXPIRY_S]))
    def wait(self, seconds: float) -> None:
        self.clock.now_s += seconds

    @invariant()
    def only_the_newest_may_write(self) -> None:
        may_write = []
        for claim in getattr(self, "held", {}).values():
            with suppress(ClaimLostError):
                claims.refuse_if_lost(Path(self.scratch.name), "t", claim.generation)
                may_write.append(claim.generation)
        assert len(may_write) <= 1
        assert may_write in ([], [max(self.winners, default=0)])


TestProtocol = Protocol.TestCase
TestProtocol.settings = options(max_examples=60, stateful_step_count=25)

RACER = """
import sys, time
from pathlib import Path
from howlow.claims import Claims
root, trials = Path(sys.argv[1]), [f"t{number}" for number in range(int(sys.argv[2]))]
ours = Claims(root)
left = set(trials)
print("ready", flush=True)
while left:
    for name in sorted(left):
        done = root / "trials" / name / "done"
        if done.exists():
            left.discard(name)
        elif claim := ours.take(name):
            if not done.exists():
                with (root / "trials" / name / "starts").open("a") as file:
                    file.write(f"{claim.generation}\\n")
                time.sleep(0.005)
                assert claim.is_current()
                done.touch()
            ours.release(claim)
"""


@pytest.mark.slow
def test_processes_that_are_killed_lose_no_trial_and_run_none_twice(tmp_path: Path) -> None:
    trials = 150
    command = [sys.executable, "-c", RACER, str(tmp_path), str(trials)]
    racers = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(4)]
    try:
        for racer in racers:
            assert racer.stdout is not None
            racer.stdout.readline()
        for racer in racers[:2]:
            racer.send_signal(signal.SIGKILL)
        for racer in racers[2:]:
            assert racer.wait(60) == 0
    finally:
        for racer in racers:
            racer.kill()
            racer.wait()
            assert racer.stdout is not None
            racer.stdout.close()
    starts = [(tmp_path / "trials" / f"t{number}" / "starts").read_text().split() for number in range(trials)]
    assert all(len(set(generations)) == len(generations) for generations in starts), "no generation has two holders"
    assert sum(len(generations) > 1 for generations in starts) <= 2, "only a killed one's trial is started again"
