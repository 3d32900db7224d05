"""What the figures of `gpu.py` are held against: targets on one H100, all in one run."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from peers import Reply


@dataclass(frozen=True)
class Target:
    """A figure of the document, by its path, and the bound that it shall keep."""

    what: str
    path: tuple[str, ...]
    at_least: float | None = None
    at_most: float | None = None

    @property
    def bound(self) -> str:
        """In words."""
        return f"at least {self.at_least:g}" if self.at_least is not None else f"at most {self.at_most:g}"

    def judged(self, document: Reply) -> Reply:
        """The figure, and whether it keeps the bound; both None where it was not measured."""
        measured = found_at(document, self.path)
        is_met = None
        if measured is not None:
            is_met = measured >= self.at_least if self.at_least is not None else measured <= (self.at_most or 0.0)
        return {"what": self.what, "target": self.bound, "measured": measured, "met": is_met}


def found_at(document: Any, path: Sequence[str]) -> float | None:
    """The number at a path through dictionaries; None where there is none."""
    for key in path:
        if isinstance(document, list):
            document = document[int(key)] if int(key) < len(document) else None
        elif isinstance(document, dict):
            document = document.get(key)
        else:
            return None
    return float(document) if isinstance(document, int | float) else None


_OURS = ("shared", "graphed")
_STEP, _OF_GENERATE = "a token step, times the reading of the weights", "samples/s, times generate's best"
TARGETS = (
    Target("1B, 40 questions: samples/s, times the padded Trainer", ("engine-1b", "40", *_OURS, "of_trainer"), 20),
    Target("8B, 40 questions: samples/s, times the padded Trainer", ("engine-8b", "40", *_OURS, "of_trainer"), 14),
    Target("8B, 160 questions: share of the bf16 peak", ("engine-8b", "160", *_OURS, "share_of_peak"), 0.6),
    Target("8B: seconds until the first step (compiling)", ("engine-8b", "40", *_OURS, "once_s"), at_most=60),
    Target("1B, r = 512: a step, times that of r = 1", ("ranks", "graphed", "512", "of_rank_1"), at_most=1.25),
    Target("the same, not compiled", ("ranks", "recorded", "512", "of_rank_1"), at_most=1.25),
    Target(f"8B: {_STEP}", ("generation", "llama-3.1-8b", "graphed", "of_reading_weights"), at_most=1.5),
    Target(f"8B: {_OF_GENERATE}", ("generation", "llama-3.1-8b", "graphed", "of_generate"), 6),
    Target(f"1B: {_OF_GENERATE}", ("generation", "llama-3.2-1b", "graphed", "of_generate"), 6),
    Target("8B, first rank: seconds of a batch search", ("search", "rank 8", "total_s"), at_most=90),
    Target("8B, next rank: seconds of a batch search", ("search", "rank 64", "total_s"), at_most=30),
    Target("meters at 4 Hz: share of the steps' time", ("meters", "sessions", "0", "step_share"), at_most=0.005),
    Target("meters at 4 Hz: share of a core", ("meters", "sessions", "0", "core_share"), at_most=0.01),
)


def judged(document: Reply, checks: Sequence[str]) -> list[Reply]:
    """Every target of these checks."""
    return [target.judged(document) for target in TARGETS if target.path[0] in checks]


def lines(judgements: Sequence[Reply]) -> list[str]:
    """The same, a line each."""
    words = {None: "not measured", True: "met", False: "MISSED"}
    return [
        f"{one['what']}: {one['measured'] if one['measured'] is not None else 'n/a'}, "
        f"target {one['target']}: {words[one['met']]}"
        for one in judgements
    ]
