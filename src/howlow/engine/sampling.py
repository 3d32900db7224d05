"""Greedy sampling: the most likely token. It reads nothing from the device."""

import math

from torch import Tensor

_LARGEST_VOCABULARY = 1 << 24  # up to which fp32 holds every token id exactly


def most_likely(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The most likely token of each row, and how far its logit stands above the second's; logits: (rows, vocabulary).

    Of equal logits the first one is chosen.
    """
    assert logits.shape[1] <= _LARGEST_VOCABULARY, "token ids are read as fp32"
    logits = logits.float()
    best, chosen = logits.max(dim=-1)
    second = logits.scatter(1, chosen[:, None], -math.inf).amax(dim=-1)
    return chosen, best - second
