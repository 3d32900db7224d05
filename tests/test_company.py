"""What a record says of the trials beside it, and which figures that touches."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from test_rows import settings_of

from howlow.analysis.caveats import qualified
from howlow.claims import EXPIRY_S, Claims, Host
from howlow.jobs import NodeBusy
from howlow.meters.session import PhaseInterval
from howlow.node import VARIABLE, Stay, Visitor, place_of_tickets, present
from howlow.outcomes import ClaimLostError, StoppedError
from howlow.records import LayoutChoice, Neighbour
from howlow.trial import company, lease
from howlow.trial.company import conclude_company, neighbours_so_far, visiting
from howlow.trial.lease import lease_watched
from howlow.trial.state import TrialState

BEGUN_S = 1000.0  # on the machine's clock, when the trial's time is 0


def stay(trial: str, begun_s: float, ended_s: float, run_directory: str, device: str = "cuda:1") -> Stay:
    return Stay(Visitor(trial, run_directory, "trial", device, began_s=begun_s), begun_s, ended_s)


def trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *stays: Stay, **changes: Any) -> TrialState:
    """A trial that fine-tuned in its first 10 seconds, and generated from 20 to 30."""
    state = TrialState(
        name="r0001-s0",
        kind="lora",
        axes={},
        settings=settings_of("question_answering", 1, 0, **changes),
        folder=tmp_path / "trials" / "r0001-s0",
        data_folder=tmp_path,
        link=SimpleNamespace(),  # type: ignore[arg-type]
        choice=LayoutChoice(layout="padded"),
    )
    spans = [PhaseInterval("train", 0.0, 10.0), PhaseInterval("generate", 20.0, 30.0)]
    state.session = SimpleNamespace(spans=spans, trial_time=lambda: 31.0)  # type: ignore[assignment]
    state.presence = SimpleNamespace(neighbours=lambda: list(stays), waited_s=0.0)  # type: ignore[assignment]
    monkeypatch.setattr(company, "machine_s", lambda: BEGUN_S + 31.0)
    return state


def test_the_record_says_which_trial_worked_where_in_which_phase_and_how_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = str(tmp_path)
    stays = stay("r0002-s0", 1005.0, 1008.0, here), stay("r0004-s0", 1009.0, 1021.5, here, "cuda:2")
    state = trial(tmp_path, monkeypatch, *stays, stay("r0008-s0", 1012.0, 1019.0, here))
    conclude_company(state)
    assert state.found.neighbours == (
        Neighbour(trial="r0002-s0", work="trial", device="cuda:1", phases=("train",), overlap_s=3.0),
        Neighbour(trial="r0004-s0", work="trial", device="cuda:2", phases=("train", "generate"), overlap_s=2.5),
        Neighbour(trial="r0008-s0", work="trial", device="cuda:1", phases=(), overlap_s=0.0),
    )
    told = {warning.phase: warning for warning in state.found.warnings}
    assert told.keys() == {"train", "generate"}
    assert told["train"].kind == "ran_beside_other_trials"
    assert told["train"].detail.endswith("on this machine: r0002-s0 on cuda:1, r0004-s0 on cuda:2")
    assert told["generate"].detail.endswith("on this machine: r0004-s0 on cuda:2")
    assert "train_samples_per_s" in qualified(told["train"], "generate")
    assert "inference_samples_per_s" not in qualified(told["train"], "generate")


def test_trials_of_another_sweep_are_the_work_of_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = trial(tmp_path, monkeypatch, stay("r0001-s0", 1005.0, 1008.0, "/runs/other"))
    conclude_company(state)
    (warning,) = state.found.warnings
    assert (warning.kind, warning.phase) == ("other_work_on_machine", "train")
    assert "r0001-s0 of /runs/other on cuda:1" in warning.detail


def test_with_exclusive_figures_of_a_phase_with_company_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside = stay("r0002-s1", 1005.0, 1008.0, str(tmp_path))
    state = trial(tmp_path, monkeypatch, beside, **{"run.exclusive": True})
    conclude_company(state)
    assert [(warning.kind, warning.phase) for warning in state.found.warnings] == [("costs_left_out", "train")]


def test_what_ran_beside_earlier_processes_stays_and_is_added_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = trial(tmp_path, monkeypatch, stay("r0002-s0", 1025.0, 1028.0, str(tmp_path)))
    before = Neighbour(trial="r0002-s0", work="trial", device="cuda:1", phases=("train",), overlap_s=4.0)
    state.found.neighbours = (before,)
    (found,) = neighbours_so_far(state) or ()
    assert (found.phases, found.overlap_s) == (("train", "generate"), 7.0)
    state.found.neighbours = None  # an earlier process could not tell
    assert neighbours_so_far(state) is None


def test_a_trial_whose_tickets_are_elsewhere_is_told_by_its_claim(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Jobs with a /tmp of their own: without this their costs would look undisturbed."""
    monkeypatch.setenv(VARIABLE, str(tmp_path / "node"))
    state = trial(tmp_path, monkeypatch)
    for name, place in ((state.name, place_of_tickets()), ("r0002-s0", "another"), ("r0004-s0", place_of_tickets())):
        assert Claims(tmp_path, node=place).take(name) is not None
    state.claim = 1
    conclude_company(state)
    (warning,) = state.found.warnings
    assert (warning.kind, warning.phase) == ("ran_beside_other_trials", None)
    assert warning.detail == "at the same time on this machine (with a HOWLOW_NODE of its own): r0002-s0"


def test_one_that_waits_tells_whom_it_waits_for_and_stops_when_it_is_asked_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "node"))
    heard: list[Any] = []
    link: Any = SimpleNamespace(stop_requested=False, report=heard.append)

    def stop(event: NodeBusy) -> None:
        heard.append(event)
        link.stop_requested = True

    link.report = stop
    alone = Visitor("r0001-s0", "/runs/a", "trial", "cpu", True)
    other = Visitor("r0002-s0", "/runs/a", "trial", "cpu")
    with present(alone, lambda other: None), pytest.raises(StoppedError), visiting(link, other):
        raise AssertionError
    assert heard == [NodeBusy(other="r0001-s0 of /runs/a")]


def test_a_trial_whose_claim_is_lost_ends_between_two_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = trial(tmp_path, monkeypatch)
    state.claim, looks = 1, [True, False, True, False, False]
    monkeypatch.setattr(lease, "is_current", lambda *_: looks.pop(0) if looks else True)
    with lease_watched(state, every_s=0.001):
        while not state.has_lost_claim:
            pass
        with pytest.raises(ClaimLostError):
            state.report_progress("train", 1, 2)
    assert EXPIRY_S > 2 * lease.HEARTBEAT_S


def test_a_trial_waits_for_no_process_of_another_machine_or_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that SLURM has suspended keeps its locks on NFS, although its claim has long been taken over."""
    here, own = Host.here(), lease.own_lock()
    assert own == lease.own_lock()
    assert own.startswith(".lock")  # which `--retry` leaves where it is
    monkeypatch.setattr(Host, "here", lambda: Host(here.name, here.machine, "another start"))
    assert lease.own_lock() != own
