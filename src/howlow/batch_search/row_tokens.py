"""The tokens of rows, counted for the many ways in which a search cuts the same examples into rows.

In `shared`, sequences that differ within their first `SMALLEST_SHARED` tokens share nothing. So a row's tokens are a
sum over families, the examples that begin alike, and what a family's members take together is counted once.
On a CPU nothing is remembered, because it would count as memory that the probe takes.
"""

from collections.abc import Sequence

from howlow.engine.layouts import Layout, computed_tokens
from howlow.engine.prefix_tree import SMALLEST_SHARED
from howlow.engine.tokens import TokenizedExample


class RowTokens:
    """Counts rows of these examples in one layout (`howlow.engine.layouts.computed_tokens`).

    remembers: whether families are counted once each.
    """

    def __init__(
        self, examples: Sequence[TokenizedExample], layout: Layout, sequence_length: int, *, remembers: bool
    ) -> None:
        self._examples, self._layout, self._sequence_length = examples, layout, sequence_length
        self._by_family = remembers and layout == "shared"
        self._family = _families(examples) if self._by_family else []
        self._known: dict[tuple[int, ...], int] = {}

    def of(self, rows: Sequence[int]) -> int:
        """The computed tokens of the examples at these indices as one batch."""
        if not self._by_family:
            return self._counted(rows)
        members: dict[int, list[int]] = {}
        for index in rows:
            members.setdefault(self._family[index], []).append(index)
        return sum(self._of_family(tuple(family)) for family in members.values())

    def _of_family(self, members: tuple[int, ...]) -> int:
        if members not in self._known:
            self._known[members] = self._counted(members)
        return self._known[members]

    def _counted(self, rows: Sequence[int]) -> int:
        return computed_tokens([self._examples[index] for index in rows], self._layout, self._sequence_length)


def _families(examples: Sequence[TokenizedExample]) -> list[int]:
    """A number for each example, equal for those that begin alike."""
    numbers: dict[tuple[int, ...], int] = {}
    beginnings = ((example.prompt + example.completion)[:SMALLEST_SHARED] for example in examples)
    return [numbers.setdefault(beginning, len(numbers)) for beginning in beginnings]
