"""What a search for the largest batch knows, as its processes tell one another."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from howlow.records.warnings import Frozen

BatchSetting = Literal["training.batch_size", "inference.batch_size"]


@dataclass(frozen=True)
class Probe:
    """One batch that was run: its load (tokens of its heaviest part) and its peak; None where memory ran out.

    is_first: it was the first of its process. is_whole: all that the trial runs was run; a *plain* probe leaves out
    what a trial does only once, such as compiling, recording and merging.
    """

    batch: int
    load: int
    peak_bytes: int | None
    fits: bool
    is_first: bool = False
    is_whole: bool = True


def whole_takes_more(probes: Iterable[Probe]) -> int | None:
    """By how much a whole probe's peak is above a plain one's of the same batch, at the heaviest run in both ways.

    None where no batch was; where a whole one ran out of memory, it is not known by how much.
    """
    whole, plain = dict[int, tuple[int, int]](), dict[int, int]()
    for probe in probes:
        if probe.peak_bytes is not None and probe.is_whole:
            whole[probe.batch] = probe.load, probe.peak_bytes
        elif probe.peak_bytes is not None:
            plain[probe.batch] = probe.peak_bytes
    both = [(load, peak - plain[batch]) for batch, (load, peak) in whole.items() if batch in plain]
    return max(both)[1] if both else None


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
