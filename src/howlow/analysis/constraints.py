"""Limits on what a rank may cost, and whether each rank is shown to keep them.

A rank keeps a limit if the worse end of its cost's interval does. The time and the energy of a fine-tuning are those of
a sample in the measured window times its samples. Memory is the larger peak of fine-tuning and inference. The base
model is not fine-tuned, so only memory limits it.
"""

import math
from dataclasses import dataclass

from howlow.analysis.column import Column
from howlow.analysis.columns import column_named
from howlow.analysis.comparison import Group
from howlow.errors import UserError
from howlow.records import read_steps

_STAGES = ("train", "inference")
PEAK_MEMORIES = tuple(column_named(f"{stage}_peak_memory_bytes") for stage in _STAGES)
TUNING_TIME, INFERENCE_TIME = (column_named(f"{stage}_time_per_sample_s") for stage in _STAGES)
TUNING_ENERGY, INFERENCE_ENERGY = (column_named(f"{stage}_energy_per_sample_j") for stage in _STAGES)
TUNING_THROUGHPUT = column_named(f"{_STAGES[0]}_samples_per_s")


@dataclass(frozen=True)
class CostLimits:
    """The most that a rank may cost, and the least throughput; None: no limit."""

    max_memory_bytes: float | None = None
    max_energy_j: float | None = None
    max_time_s: float | None = None
    min_throughput_per_s: float | None = None

    def __post_init__(self) -> None:
        for limit in self.given:
            if not (math.isfinite(limit.value) and limit.value > 0):
                raise UserError(f"{limit.option} {limit.value:g}: a number above 0 is expected")

    @property
    def given(self) -> tuple["Limit", ...]:
        """The limits that there are."""
        limits = (
            Limit("max_memory", self.max_memory_bytes or 0.0, PEAK_MEMORIES, False, False),
            Limit("max_energy", self.max_energy_j or 0.0, (TUNING_ENERGY,), True, False),
            Limit("max_time", self.max_time_s or 0.0, (TUNING_TIME,), True, False),
            Limit("min_throughput", self.min_throughput_per_s or 0.0, (TUNING_THROUGHPUT,), False, True),
        )
        values = (self.max_memory_bytes, self.max_energy_j, self.max_time_s, self.min_throughput_per_s)
        return tuple(limit for limit, value in zip(limits, values, strict=True) if value is not None)


@dataclass(frozen=True)
class Limit:
    """One limit.

    columns: the costs that must each keep it.
    is_of_all_samples: whether it is on the whole fine-tuning, and the columns are of one sample.
    is_least: whether the cost must be at least this, not at most.
    """

    name: str
    value: float
    columns: tuple[Column, ...]
    is_of_all_samples: bool
    is_least: bool

    @property
    def option(self) -> str:
        """Its name on the command line."""
        return f"--{self.name.replace('_', '-')}"


@dataclass(frozen=True)
class Kept:
    """A rank and a limit: the cost as measured and the worse end of its interval, each None where it is not known."""

    limit: Limit
    cost: float | None
    end: float | None

    @property
    def is_kept(self) -> bool:
        """Whether the rank is shown to keep the limit."""
        if self.end is None:
            return False
        return self.end >= self.limit.value if self.limit.is_least else self.end <= self.limit.value

    @property
    def excess(self) -> tuple[float, float]:
        """By which factor the worse end misses the limit, and the cost as measured; infinite where not known."""
        return self._factor(self.end), self._factor(self.cost)

    def _factor(self, value: float | None) -> float:
        if not value:
            return 1.0 if self.is_kept else float("inf")
        return self.limit.value / value if self.limit.is_least else value / self.limit.value


def kept(group: Group, limits: CostLimits) -> tuple[Kept, ...]:
    """How a group of trials stands to each of the limits."""
    return tuple(
        _kept(group, limit) for limit in limits.given if group.kind != "base" or limit.columns == PEAK_MEMORIES
    )


def _kept(group: Group, limit: Limit) -> Kept:
    columns = [column for column in limit.columns if group.kind != "base" or column.stage == "inference"]
    factor = _samples(group) if limit.is_of_all_samples else 1.0
    costs, ends = [group.mean(column) for column in columns], [_end(group, column, limit) for column in columns]
    there = [cost for cost in costs if cost is not None]
    known = [end for end in ends if end is not None]
    worst = min if limit.is_least else max
    is_known = len(known) == len(columns) and bool(known)
    return Kept(limit, worst(there) * factor if there else None, worst(known) * factor if is_known else None)


def _end(group: Group, column: Column, limit: Limit) -> float | None:
    """The worse end of the interval of a cost; of one that is exact, its largest value over seeds and repeats."""
    ends = group.interval(column)
    end = ends.low if limit.is_least else ends.high
    values = [trial.row[column.name] for trial in group.counted(column) if trial.row[column.name] is not None]
    if end is None or not column.is_exact:
        return end
    return float(max(end, *values))


def _samples(group: Group) -> float:
    """The samples of a fine-tuning, burn-in included."""
    steps = read_steps(group.trials[0].folder)
    return float(sum(step.samples for step in steps if step.phase == "train"))
