"""What a search for the largest batch knows, as its processes tell one another."""

from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from howlow.records.warnings import Frozen

BatchSetting = Literal["training.batch_size", "inference.batch_size"]


@dataclass(frozen=True)
class Probe:
    """One batch that was run: its load (tokens of its heaviest part) and its peak; None where memory ran out."""

    batch: int
    load: int
    peak_bytes: int | None
    fits: bool


@dataclass(frozen=True)
class MemoryLine:
    """Peak bytes as an affine function of the load."""

    fixed_bytes: float
    bytes_per_load: float

    def at(self, load: int) -> float:
        """The peak that the line predicts."""
        return self.fixed_bytes + self.bytes_per_load * load


@dataclass(frozen=True)
class RankMemory:
    """What a rank takes for certain: weights, gradients and moments, and activations as wide as the rank."""

    rank: int
    line: MemoryLine


@dataclass(frozen=True)
class RankProbes:
    """The probes of another rank."""

    known: RankMemory
    probes: tuple[Probe, ...]


class MemoryBudget(Frozen):
    """How much memory a search may use."""

    limit_bytes: int
    budget_bytes: int = Field(description="the limit less run.memory_margin: a peak of at most this fits")
    enforced_bytes: int | None = Field(description="what the probing process is held to; None: nothing")
    limit: str = Field(description="where the limit comes from")
    memory: str = Field(description="what the peaks count")


class LargestFound(Frozen):
    """The end of a search: the largest batch that fits, None where not even one example does."""

    batch: int | None
    largest: int = Field(description="the largest batch that was allowed")
