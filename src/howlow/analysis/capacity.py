"""Which rank has room for the data, by a rule of thumb: as many trainable parameters as completion tokens.

Networks store about 2 bits a parameter at most (Allen-Zhu and Li, 2024), and a token of text tells about 1 bit (LoRA
Without Regret, Schulman et al., 2025), so one parameter a token leaves room. The rule needs no training and is no
measurement: fine-tuning seldom has to store its data, so a much lower rank may do.
"""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Capacity:
    """The trainable parameters of each rank, by rank, against the completion tokens of the training data."""

    completion_tokens: int
    parameters: tuple[tuple[int, int], ...]
    """(rank, trainable parameters)"""

    @property
    def sufficient_rank(self) -> int | None:
        """The smallest of the ranks that has at least as many parameters as there are completion tokens."""
        return next((rank for rank, parameters in self.parameters if parameters >= self.completion_tokens), None)

    @property
    def smallest_rank(self) -> int:
        """The smallest rank at all that would have; an adapter's parameters are proportional to its rank."""
        rank, parameters = self.parameters[-1]
        return max(1, -(-self.completion_tokens * rank // parameters))


def capacity(completion_tokens: int, parameters: Iterable[tuple[int, int]]) -> Capacity:
    """The capacity of adapters with these (rank, trainable parameters), on data with so many completion tokens."""
    return Capacity(completion_tokens, tuple(sorted(set(parameters))))
