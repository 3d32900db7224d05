"""Which examples every trial of a sweep sees: the limits, and no leak from the test into training.

The examples of each side are put into groups, and the groups into an order seeded by `task.seed`. The first examples in
this order are taken, up to the limit, which may cut the last group. A trial's own seed changes nothing here.

A training group is left out where one of its overlap keys (for SQuAD its paragraph), white space collapsed, occurs
*anywhere* in the test data, also beyond the test's limit: a later sweep with more test examples then still trains on
the same ones. Groups are left out before the training limit applies, so that the limit is still reached.

Where both sides are the same data, this would leave nothing. Then the test's groups are chosen first and set aside
whole (with the part of the last one that the limit cut off), and training takes from the others.

`task.validation_examples` sets further groups aside, from the end of the order, so that training still takes the same
first ones. What has anything in common with them is left out of training as well.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from random import Random

from howlow.errors import UserError
from howlow.settings import TaskSettings
from howlow.tasks.examples import Example, Purpose

_Group = list[Example]


@dataclass(frozen=True)
class Selection:
    """The examples of all trials, in their order."""

    train: tuple[Example, ...]
    test: tuple[Example, ...]
    overlap_left_out: int
    """training examples left out because their group occurs in the test data"""
    overlap_groups: int
    """the number of their groups"""
    validation: tuple[Example, ...] = ()
    """examples set aside from training, to choose between settings"""


def select(train: Sequence[Example], test: Sequence[Example], settings: TaskSettings) -> Selection:
    """Apply `task.seed`, `task.overlap` and the limits of the examples for training, test and validation.

    Raises:
        UserError: nothing is left for training or for the test, or too little for validation.
    """
    for purpose, examples, source in (("training", train, settings.train), ("test", test, settings.test)):
        if not examples:
            raise UserError(f"there is no {purpose} example in {source}; give data with at least one")
    groups = _ordered_groups(train, settings.seed, "train")
    test_groups = _ordered_groups(test, settings.seed, "test")
    kept = groups
    if settings.overlap == "exclude":
        choose = _kept_of_same_data if _same_data(train, test) else _kept_outside_test
        kept = choose(groups, test_groups, settings)
    for_training, validation = _divided(kept, settings)
    return Selection(
        train=_first_examples(for_training, settings.train_examples),
        test=_first_examples(test_groups, settings.test_examples),
        overlap_left_out=len(train) - sum(map(len, kept)),
        overlap_groups=len(groups) - len(kept),
        validation=validation,
    )


def _divided(groups: list[_Group], settings: TaskSettings) -> tuple[list[_Group], tuple[Example, ...]]:
    """The groups left for training, and the examples that are set aside for validation."""
    count = settings.validation_examples
    if count is None:
        return groups, ()
    chosen = list(_groups_reaching(reversed(groups), count))
    others = _without_keys(groups[: len(groups) - len(chosen)], _keys(chain.from_iterable(chosen)))
    found = _first_examples(chosen, count)
    if not others or len(found) < count:
        raise UserError(
            f"task.validation_examples = {count}: whole groups are set aside from training, and {settings.train} has "
            f"{len(groups)} groups with {sum(map(len, groups))} examples for both; lower it, or give more training data"
        )
    return others, found


def _ordered_groups(examples: Sequence[Example], seed: int, purpose: Purpose) -> list[_Group]:
    groups: dict[str, _Group] = {}
    for example in examples:
        groups.setdefault(example.group, []).append(example)
    ordered = list(groups.values())
    Random(f"{seed}-{purpose}").shuffle(ordered)
    return ordered


def _first_examples(groups: Iterable[_Group], limit: int | None) -> tuple[Example, ...]:
    return tuple(islice(chain.from_iterable(groups), limit))


# -- overlap --------------------------------------------------------------------------------------------------------


def _keys(examples: Iterable[Example]) -> set[str]:
    # Questions share their paragraph: each distinct text is collapsed once, or SQuAD would take seconds.
    distinct = {key for example in examples for key in example.overlap_keys}
    return {" ".join(key.split()) for key in distinct} - {""}  # two blank texts have nothing in common


def _without_keys(groups: Iterable[_Group], keys: set[str]) -> list[_Group]:
    return [group for group in groups if keys.isdisjoint(_keys(group))]


def _same_data(train: Sequence[Example], test: Sequence[Example]) -> bool:
    def same(example: Example, other: Example | None) -> bool:
        return other is not None and (example.prompt, example.completion) == (other.prompt, other.completion)

    by_id = {example.id: example for example in test}
    return len(train) == len(test) and all(same(example, by_id.get(example.id)) for example in train)


def _kept_outside_test(groups: list[_Group], test_groups: list[_Group], settings: TaskSettings) -> list[_Group]:
    """The training groups that have nothing in common with any of the test data."""
    kept = _without_keys(groups, _keys(chain.from_iterable(test_groups)))
    if not kept:
        raise UserError(
            f"all {len(groups)} training groups of {settings.train} occur in the test data {settings.test}; "
            'give other training data, or task.overlap = "keep" to train on them anyway'
        )
    return kept


def _kept_of_same_data(groups: list[_Group], test_groups: list[_Group], settings: TaskSettings) -> list[_Group]:
    """Where training and test data are the same: the groups that have nothing in common with the test's chosen ones."""
    if settings.test_examples is None:
        raise UserError(
            f"task.train and task.test hold the same data ({settings.test}), and the test takes all of it; "
            'give task.test_examples to divide it, or task.overlap = "keep" to train on the test data'
        )
    chosen = list(_groups_reaching(test_groups, settings.test_examples))
    names = {group[0].group for group in chosen}
    others = [group for group in groups if group[0].group not in names]
    kept = _without_keys(others, _keys(chain.from_iterable(chosen)))
    if not kept:
        raise UserError(
            f"task.train and task.test hold the same data ({settings.test}), of which task.test_examples = "
            f"{settings.test_examples} leaves none of the {len(groups)} groups for training; "
            "lower it, or give other test data"
        )
    return kept


def _groups_reaching(groups: Iterable[_Group], num_examples: int) -> Iterator[_Group]:
    """The first groups that together have that many examples, or all of them."""
    for group in groups:
        if num_examples <= 0:
            return
        yield group
        num_examples -= len(group)
