"""The margin: how much worse than the best rank is still good enough, in the unit of each metric.

It is absolute for scores of answers (0.02 are two points of F1), relative for perplexities (0.01 is one per cent), and
absolute in nats or bits for losses. Differences are compared on a scale on which higher is better: scores as they are,
losses negated, perplexities as negated logarithms.
"""

import math
from dataclasses import dataclass

from howlow.analysis.column import Column
from howlow.errors import UserError

DEFAULT_OF_ANSWERS = 0.02
DEFAULT_OF_TEXTS = 0.01
DEFAULT_CONFIDENCE = 0.95


@dataclass(frozen=True)
class QualityScale:
    """How differences of a metric are counted."""

    metric: Column

    @property
    def is_relative(self) -> bool:
        """Whether differences are relative to the best rank's value."""
        return "exponential" in self.metric.subjects

    @property
    def default_margin(self) -> float:
        """The margin where none is given."""
        return DEFAULT_OF_ANSWERS if self.metric.unit == "fraction" else DEFAULT_OF_TEXTS

    def checked_margin(self, margin: float | None) -> float:
        """The margin to use.

        Raises:
            UserError: it is negative, no number, or allows everything.
        """
        found = self.default_margin if margin is None else margin
        if not math.isfinite(found) or found < 0:
            raise UserError(f"--margin {found}: a number of at least 0 is expected, such as {self.default_margin}")
        if self.metric.unit == "fraction" and found >= 1:
            raise UserError(
                f"--margin {found:g}: {self.metric.name} lies between 0 and 1, so this allows every rank; "
                f"give points as hundredths, such as {self.default_margin} for {self.default_margin * 100:g} points"
            )
        return found

    def as_gain(self, margin: float) -> float:
        """The margin on the scale on which differences are compared."""
        return math.log1p(margin) if self.is_relative else margin

    def of_gain(self, gain: float) -> float:
        """A difference on that scale as one of the metric itself: absolute, or relative where the margin is."""
        if self.is_relative:
            return math.expm1(min(-gain, 700.0))
        return gain if self.metric.better == "higher" else 0.0 - gain

    def ends(self, low: float, high: float) -> tuple[float | None, float | None]:
        """The ends of an interval of gains as differences of the metric, the smaller one first; None: no bound."""
        found = [self.of_gain(gain) if math.isfinite(gain) else None for gain in (low, high)]
        lower, upper = found if self.metric.better == "higher" else found[::-1]
        return lower, upper


def checked_confidence(confidence: float) -> float:
    """The confidence to use.

    Raises:
        UserError: it is no probability of more than a half.
    """
    if not 0.5 < confidence < 1:
        raise UserError(f"--confidence {confidence:g}: a number between 0.5 and 1 is expected, such as 0.95")
    return confidence
