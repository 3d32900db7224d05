"""Which trials of one table had their costs measured under equal conditions, so that these may be divided.

Quality stands in one table wherever it was measured. Costs do not: trials are sorted by the keys that matter to costs
alone (`howlow.records.comparability`), and by their values. Trials with equal values have conditions of one number; 0
is that of trials which have, in every key, the value that most trials have.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from howlow.records.comparability import Difference, shown
from howlow.records.identity import Identified
from howlow.records.warnings import RecordWarning, WarningKind


@dataclass(frozen=True)
class CostConditions:
    """Trials with equal conditions, and in what they differ from most; in nothing where the number is 0."""

    number: int
    trials: tuple[str, ...]
    differences: tuple[Difference, ...]


def cost_conditions(trials: Sequence[str], found: Iterable[Difference]) -> tuple[CostConditions, ...]:
    """The trials sorted by the conditions of their costs. found: in what they differ from most of them."""
    of_trial: dict[str, list[Difference]] = {trial: [] for trial in trials}
    for one in found:
        if one.trial in of_trial and "costs" in one.figures:
            of_trial[one.trial].append(one)
    alike: dict[tuple[tuple[str, str], ...], list[str]] = {(): []}
    for trial, own in of_trial.items():
        alike.setdefault(tuple(sorted((one.key, shown(one.value)) for one in own)), []).append(trial)
    return tuple(
        CostConditions(number, tuple(names), tuple(of_trial[names[0]] if names else ()))
        for number, names in enumerate(alike.values())
    )


def other_cards(trials: Sequence[Identified]) -> list[tuple[str, RecordWarning]]:
    """Of trials that several cards of one kind ran: each that ran on another card than most, with a warning."""
    kinds: dict[str, list[tuple[str, str]]] = {}
    for one in trials:
        if one.environment is not None and one.environment.device_uuid is not None:
            kinds.setdefault(one.environment.device_name, []).append((one.trial, one.environment.device_uuid))
    return [found for cards in kinds.values() for found in _on_other_cards(cards)]


def _on_other_cards(cards: Sequence[tuple[str, str]]) -> Iterator[tuple[str, RecordWarning]]:
    ((usual, _),) = Counter(card for _, card in cards).most_common(1)
    for trial, card in cards:
        if card != usual:
            detail = f"measured on {card}, most trials on {usual}"
            yield trial, RecordWarning(kind=WarningKind.ANOTHER_CARD, detail=detail)
