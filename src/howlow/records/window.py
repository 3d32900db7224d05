"""The measured window, as the raw steps show it.

The window of a phase is made of *segments*: stretches of measured steps without a pause, each from its first step's
start to its last one's end. Throughput, energy and power are of the window.
"""

from collections.abc import Iterable, Sequence
from itertools import pairwise

from howlow.records.schema import Step
from howlow.records.warnings import PhaseName


def measured_steps(steps: Iterable[Step], phase: PhaseName) -> list[Step]:
    """The measured steps of a phase, in their order."""
    return [step for step in steps if step.phase == phase and step.part == "measured"]


def window_times_s(measured: Sequence[Step]) -> list[float]:
    """The part of the window that each measured step took: from the end of the step before it to its own end.

    A step that opens a segment took its own time alone. The sum is the length of the window. Older lines do not say
    which steps open a segment; there every step took its own time alone.
    """
    if not any(step.opens_segment for step in measured):
        return [step.duration_s for step in measured]
    first = [step.duration_s for step in measured[:1]]
    return first + [
        step.duration_s if step.opens_segment else step.start_s + step.duration_s - before.start_s - before.duration_s
        for before, step in pairwise(measured)
    ]
