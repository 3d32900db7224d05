"""`looks.json`: how a sweep that ran until its recommendation held has looked at its data.

Looking while the data grow spends a part of the error that was stated, so whoever reads the folder later has to know:
what was planned before the first look, the variances that fixed the levels, and every look. The sweep writes the file
whole after each look. A sweep that was killed goes on with it.
"""

from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from howlow.errors import UserError
from howlow.records.files import write_atomically
from howlow.records.warnings import Frozen

LooksEnd = Literal["decided", "hopeless", "all_seeds", "max_trials", "max_time", "nothing_to_compare"]
"""Why the looking ended: the recommendation holds; no planned seed would settle it; every planned seed was run; the
budget is spent; fewer than two ranks have scores."""


class LookRecord(Frozen):
    """One look: how many trials had a record, what was recommended, and the error spent so far."""

    trials: int
    seeds: int
    """of the rank that takes part and has the fewest"""
    verdict: str
    rank: int | None
    spent: float


class StoppedRank(Frozen):
    """A rank that was stopped after its first seed, and the upper bound of its difference to the best (a gain)."""

    rank: int
    high: float


class LooksRecord(Frozen):
    """What was planned, and what was seen.

    information: the share of the information at 2 seeds, 3 seeds, ...; None before the first look.
    stopped: ranks that take no part after their first seed; None before all have one.
    """

    metric: str
    margin: float = Field(ge=0, allow_inf_nan=False)
    confidence: float = Field(gt=0.5, lt=1)
    seeds: tuple[int, ...] = Field(min_length=2)
    information: tuple[float, ...] | None = None
    stopped: tuple[StoppedRank, ...] | None = None
    looks: tuple[LookRecord, ...] = ()
    round: tuple[str, ...] = ()
    """the trials that have to be run before the next look"""
    ended: LooksEnd | None = None

    @model_validator(mode="after")
    def _is_a_plan(self) -> Self:
        """The shares grow up to 1, one for each number of seeds; levels cannot be computed of others."""
        shares = self.information
        if shares and (shares[-1] != 1 or not all(0 < one < other for one, other in pairwise(shares))):
            raise ValueError("information does not grow to 1")
        return self

    @property
    def terms(self) -> dict[str, Any]:
        """The metric, the margin and the confidence, by name."""
        return {"metric": self.metric, "margin": self.margin, "confidence": self.confidence}


def write_looks(run_directory: Path, looks: LooksRecord) -> None:
    """Write the file whole."""
    write_atomically(_place(run_directory), looks.model_dump_json(indent=1) + "\n")


def read_looks(run_directory: Path) -> LooksRecord | None:
    """What a sweep's looks were; None where it did not look.

    Raises:
        UserError: the file is damaged.
    """
    place = _place(run_directory)
    try:
        return LooksRecord.model_validate_json(place.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValidationError, UnicodeDecodeError) as error:
        what = error.strerror if isinstance(error, OSError) else "damaged, or another version's"
        raise UserError(
            f"{place}: cannot be read as the looks of a sweep ({what}); without it the error that looking has spent is "
            "not known; restore it, or run the sweep in another folder"
        ) from None


def _place(run_directory: Path) -> Path:
    return run_directory / "looks.json"
