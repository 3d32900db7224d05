"""The order of training: every step has the same number of examples, only an epoch's last may be short.

`groups`: the groups are shuffled and each is kept together, so that examples with a common prefix meet in one step; a
group may be split where a step ends. `examples`: the classic order, in which every example is shuffled by itself.
"""

import random
from collections.abc import Sequence
from typing import Literal


def epoch_order(groups: Sequence[str], shuffle: Literal["groups", "examples"], seed: int, epoch: int) -> list[int]:
    """Indices of the examples in the order of one epoch; `groups[i]` is the group of example i.

    The generator is Python's Mersenne Twister seeded with the text "SEED-EPOCH", so that any program can repeat it.
    """
    members: dict[str, list[int]] = {}
    for index, group in enumerate(groups):
        members.setdefault(group if shuffle == "groups" else str(index), []).append(index)
    units = list(members.values())
    random.Random(f"{seed}-{epoch}").shuffle(units)
    return [index for unit in units for index in unit]


def steps(
    groups: Sequence[str],
    shuffle: Literal["groups", "examples"],
    seed: int,
    epochs: int,
    batch_size: int,
    max_steps: int | None = None,
) -> list[list[int]]:
    """The example indices of every optimizer step of a training."""
    found: list[list[int]] = []
    for epoch in range(epochs):
        order = epoch_order(groups, shuffle, seed, epoch)
        found += [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    return found[:max_steps]
