"""The time of `benchmarks/gpu.py` is kept, whatever its checks take, and the most important come first."""

import importlib.util
import sys
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


def loaded(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


budget = loaded("budget")
shares = st.lists(st.tuples(st.integers(1, 200), st.integers(0, 200)), min_size=1, max_size=9).map(
    lambda pairs: {str(place): budget.Share(least, least + more) for place, (least, more) in enumerate(pairs)}
)


@given(shares=shares, total_s=st.integers(0, 1000), data=st.data())
def test_the_time_is_kept_and_every_check_that_fits_has_its_least(shares: Any, total_s: int, data: st.DataObject):
    """Checks may end before their limits; what they leave is for the later ones."""
    least_s = list(accumulate(share.least_s for share in shares.values()))
    first = [name for name, needed_s in zip(shares, least_s, strict=True) if needed_s <= total_s]
    left_s, run = total_s, []
    for name, share in shares.items():
        limit_s = budget.limit_of(name, shares, left_s)
        if limit_s is None:
            assert left_s < share.least_s
            continue
        run.append(name)
        assert share.least_s <= limit_s <= share.most_s
        left_s -= data.draw(st.integers(0, int(limit_s)), "takes")
        assert left_s >= 0
    assert run[: len(first)] == first, "the most important that fit are run, however long the earlier ones take"


@given(shares=shares, total_s=st.integers(0, 1000))
def test_the_plan_is_what_happens_if_all_take_as_long_as_they_may(shares: Any, total_s: int):
    planned = budget.planned(shares, total_s)
    assert list(planned) == list(shares)
    assert sum(limit or 0 for limit in planned.values()) <= total_s


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return loaded("gpu")


def test_all_checks_of_the_benchmark_fit_into_its_time(gpu: Any):
    assert list(gpu.SHARES) == list(gpu.CHECKS)
    assert gpu.TOTAL_S <= 540
    assert None not in budget.planned(gpu.SHARES, gpu.TOTAL_S).values()


@pytest.mark.parametrize("compiling_s", [46.0, 60.0])
def test_with_the_times_of_an_h100_each_check_has_what_its_targets_need(gpu: Any, compiling_s: float):
    divided = sys.modules["gpu_budget"]
    expected = divided.expected(compiling_s)
    for takes in ("needed_s", "whole_s"):
        for name, (begins_s, limit_s) in divided.simulated(
            {name: getattr(one, takes) for name, one in expected.items()}
        ).items():
            assert limit_s is not None, name
            assert limit_s >= max(divided.SHARES[name].least_s, expected[name].needed_s), (name, begins_s, limit_s)


# -- what a check keeps ------------------------------------------------------------------------------------------------


def test_a_check_that_is_stopped_has_what_it_had_kept(gpu: Any, tmp_path: Path):
    (tmp_path / "machine.json").write_text('{"device": "a card"}')
    found = gpu.run_check("machine", tmp_path, True, 0.01)
    assert found["device"] == "a card"
    assert found["error"].startswith("status stopped after 0 s")


def test_a_search_is_read_from_its_folder_while_it_runs_and_when_it_has_ended(gpu: Any, tmp_path: Path):
    look = sys.modules["gpu_checks"].looked_at
    assert look(tmp_path / "not there yet", 8, set()) == {}
    (tmp_path / "batch-of-rank-8.json").write_text('{"search": {"batch": 5, "duration_s": {"load": 1.5, "probe": 2}}}')
    assert look(tmp_path, 8, set()) == {
        "rank 8": {"total_s": 3.5, "batch": 5, "duration_s": {"load": 1.5, "probe": 2}},
        "under_way": None,
    }
    (tmp_path / "probes-of-rank-64.json").write_text('{"probes": [1, 2], "effort": {"loads": 1}}')
    under_way = {"rank": 64, "effort": {"loads": 1}, "probes": [1, 2]}
    assert look(tmp_path, 64, {"batch-of-rank-8.json"}) == {"under_way": under_way}


# -- the targets -------------------------------------------------------------------------------------------------------


def test_a_target_is_met_missed_or_not_measured(gpu: Any):
    targets = sys.modules["gpu_targets"]
    document = {
        "engine-1b": {"40": {"shared": {"graphed": {"of_trainer": 22.6}}}},
        "engine-8b": {"40": {"shared": {"graphed": {"of_trainer": 13.9, "once_s": 61}}}, "error": "stopped"},
        "meters": {"sessions": [{"step_share": 0.005, "core_share": None}]},
        "search": {"not_run": "10 s are left"},
    }
    found = targets.judged(document, list(gpu.CHECKS))
    assert len(found) == len(targets.TARGETS)
    by_what = {one["what"]: (one["measured"], one["met"]) for one in found}
    assert by_what["1B, 40 questions: samples/s, times the padded Trainer"] == (22.6, True)
    assert by_what["8B, 40 questions: samples/s, times the padded Trainer"] == (13.9, False)
    assert by_what["8B: seconds until the first step (compiling)"] == (61.0, False)
    assert by_what["8B, 160 questions: share of the bf16 peak"] == (None, None)
    assert by_what["meters at 4 Hz: share of the steps' time"] == (0.005, True)
    assert by_what["meters at 4 Hz: share of a core"] == (None, None)
    said = "\n".join(targets.lines(found))
    assert "22.6, target at least 20: met" in said
    assert "13.9, target at least 14: MISSED" in said
    assert "n/a, target at most 90: not measured" in said


def test_every_target_is_a_figure_of_a_check(gpu: Any):
    """By the paths that the checks fill in."""
    targets, table = sys.modules["gpu_targets"].TARGETS, sys.modules["gpu_engine"].TABLE
    assert {target.path[0] for target in targets} <= set(gpu.CHECKS)
    for target in targets:
        assert (target.at_least is None) != (target.at_most is None)
        if target.path[0].startswith("engine"):
            size, layout, form = target.path[1:4]
            assert (size == "160", layout, form) in table
