"""The capacity table, which is shown before training."""

from collections.abc import Iterator, Sequence

from howlow.analysis.capacity import Capacity
from howlow.reporting import formatting


def capacity_lines(capacity: Capacity, target_modules: Sequence[str]) -> Iterator[str]:
    """One line a rank, and the rank that suffices by the rule of thumb."""
    tokens = f"{capacity.completion_tokens:,}"
    yield f"capacity of adapters in {', '.join(target_modules)}, for {tokens} completion tokens of training data:"
    ranks = [str(rank) for rank, _ in capacity.parameters]
    counts = [f"{parameters:,}" for _, parameters in capacity.parameters]
    for (_, parameters), rank, count in zip(capacity.parameters, ranks, counts, strict=True):
        share = formatting.significant(parameters / capacity.completion_tokens)
        yield f"  rank {rank:>{max(map(len, ranks))}}: {count:>{max(map(len, counts))}} parameters, {share} a token"
    found = capacity.sufficient_rank
    lacks = f"none of these ranks has one; rank {capacity.smallest_rank} would"
    verdict = lacks if found is None else f"rank {found} suffices"
    yield f"  by a rule of thumb, one parameter a completion token: {verdict}; lower ranks often do as well"
