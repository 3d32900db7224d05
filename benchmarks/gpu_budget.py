"""How the time of `gpu.py` is divided, and how long its checks take by what an H100 has shown.

`expected` adds up step times that were measured on an H100 (`RESULTS.md`, h100/engine.json) and rounds that were not
measured upwards. So the division is checked before a GPU is there: `tests/test_budget.py` runs it with 46 and with 60 s
of compiling.
"""

import math
from dataclasses import dataclass

from budget import Share, limit_of
from gpu_engine import RANKS, TABLE, Cell
from gpu_study import CELLS
from gpu_timings import PASSES, PASSES_S

TOTAL_S = 540.0
SHARES = {
    "machine": Share(least_s=12, most_s=30),
    "engine-1b": Share(least_s=85, most_s=150),
    "engine-8b": Share(least_s=116, most_s=190),
    "generation": Share(least_s=48, most_s=95),
    "tests": Share(least_s=40, most_s=150),
    "ranks": Share(least_s=60, most_s=130),
    "search": Share(least_s=115, most_s=200),
    "study": Share(least_s=44, most_s=100),
    "meters": Share(least_s=20, most_s=50),
}
_START_S = 12.0  # a process, its imports, the tokens of 640 questions
_CACHED_S = 10.0  # what an earlier process has compiled


@dataclass(frozen=True)
class Shown:
    """A model on an H100, in seconds: loading it, and a step of 40 and of 160 questions in `shared`."""

    load_s: float
    plain: tuple[float, float]
    graphed: tuple[float, float]
    trainer: float

    def step_s(self, cell: Cell) -> float:
        """A step of a cell. `packed` computes three times the tokens of `shared`."""
        if cell.layout == "padded":
            return self.trainer * (4 if cell.is_large else 1)
        shared = (self.graphed if cell.form == "graphed" else self.plain)[cell.is_large]
        return shared * (3 if cell.layout == "packed" else 1)


ONE_B = Shown(load_s=4, plain=(0.14, 0.183), graphed=(0.0283, 0.102), trainer=40 / 67)
EIGHT_B = Shown(load_s=15, plain=(0.37, 0.78), graphed=(0.167, 0.6), trainer=40 / 21.5)


@dataclass(frozen=True)
class Expected:
    """Seconds until a check has what its targets need, and until it ends."""

    needed_s: float
    whole_s: float


def expected(compiling_s: float) -> dict[str, Expected]:
    """The time of each check if compiling a layer takes so long."""
    return {
        "machine": Expected(12, 12),
        "engine-1b": _engine(ONE_B, compiling_s, needed=1),
        "engine-8b": _engine(EIGHT_B, compiling_s, needed=2),
        "generation": Expected(_START_S + 35, _START_S + 70),
        "tests": Expected(40, 140),
        "ranks": _ranks(compiling_s),
        "search": Expected(25 + 90, 25 + 90 + 10 + 12 + 30),
        "study": _study(),
        "meters": Expected(_START_S + 8, _START_S + 28),
    }


def _engine(shown: Shown, compiling_s: float, needed: int) -> Expected:
    """The table, cell by cell; the first `needed` ones have the targets."""
    so_far = _START_S + shown.load_s + 3 + 4 * shown.trainer
    ends, compiled = [], set[str]()
    for cell in TABLE:
        kernel = "own" if cell.layout == "padded" else "flex"
        is_new = cell.form in ("compiled", "graphed") and kernel not in compiled
        compiled |= {kernel} if is_new else set()
        so_far += _timed_s(shown.step_s(cell), cell) + (compiling_s if is_new else 0)
        ends.append(so_far)
    return Expected(ends[needed - 1], ends[-1])


def _timed_s(step_s: float, cell: Cell) -> float:
    """One cell: laying out, warming up and recording each shape, and the passes."""
    pass_s = step_s * cell.steps
    recorded = 4 if cell.form in ("recorded", "graphed") else 0
    return 1 + pass_s * (recorded + 1 + min(PASSES, math.ceil(PASSES_S / pass_s)))


def _ranks(compiling_s: float) -> Expected:
    """All ranks recorded, which has the curve, then both ends compiled; r = 1 is compiled as r = 8 was before."""
    one = _timed_s(ONE_B.plain[0], Cell(False, "shared", "recorded")) / 2 + 1
    curve = _START_S + ONE_B.load_s + len(RANKS) * one
    return Expected(curve, curve + _CACHED_S + compiling_s + 2 * one)


def _study() -> Expected:
    """Each cell takes some seconds of steps, and the adapter to be made."""
    base = _START_S + 15
    return Expected(base + 2 * 8, base + len(CELLS) * 9)


def simulated(takes_s: dict[str, float], total_s: float = TOTAL_S) -> dict[str, tuple[float, float | None]]:
    """When each check begins, and its limit, if it ends after so long or at its limit."""
    begins_s, found = 0.0, {}
    for name in SHARES:
        limit_s = limit_of(name, SHARES, total_s - begins_s)
        found[name] = begins_s, limit_s
        begins_s += min(takes_s[name], limit_s or 0.0)
    return found
