"""The time of `benchmarks/gpu.py` is kept, whatever its checks take, and the most important come first."""

import importlib.util
import sys
from itertools import accumulate
from pathlib import Path
from typing import Any

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


def test_all_checks_of_the_benchmark_fit_into_its_time(monkeypatch: Any):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    gpu = loaded("gpu")
    assert list(gpu.SHARES) == list(gpu.CHECKS)
    assert gpu.TOTAL_S <= 540
    assert None not in budget.planned(gpu.SHARES, gpu.TOTAL_S).values()
