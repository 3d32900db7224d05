"""Whether the answer depends on settings that were swept: the recommendation at each of their values.

`lora.alpha` and `lora.scaling` go together, as the scaling. Every other axis stands by itself: at each of its values
a recommendation is made, and validation scores choose the remaining settings of each rank. Where they cannot choose,
the combinations of all axes are compared instead; where they can choose some, those of the axes that stay a person's
choice (the batch size, the sweep).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from howlow.analysis.comparison import Reference, compare
from howlow.analysis.contest import judged_apart, trained_references
from howlow.analysis.recommendation import Recommendation, recommend_from
from howlow.analysis.rows import Results
from howlow.analysis.setting_choice import SCALING, differing_axes
from howlow.errors import UserError

SCALING_NAME = "scaling"
SETTING_NAME = "setting"
Axes = Mapping[str, Any]


@dataclass(frozen=True)
class SettingVerdicts:
    """The recommendations at the values of one setting; None where nothing can be recommended at a value.

    name: that of its axis, "scaling", or "setting" for the combinations of all axes.
    """

    name: str
    found: tuple[tuple[Axes, Recommendation | None], ...]

    @property
    def is_known(self) -> bool:
        """Whether two values at least have an answer."""
        return sum(one is not None for _, one in self.found) > 1

    @property
    def changes(self) -> bool:
        """Whether the values that have an answer have different ones."""
        return len({(one.verdict, one.rank) for _, one in self.found if one is not None}) > 1


def setting_verdicts(results: Results, metric: str | None = None) -> list[SettingVerdicts]:
    """What each setting that was swept does to the answer, the scaling first; empty where one setting was.

    metric: a column of quality; None: the task's main one.
    """
    settings = trained_references(compare(results))
    return [
        SettingVerdicts(name, tuple((values, _answer(results, metric, values)) for values in _values(settings, axes)))
        for name, axes in _named_axes(results, differing_axes(settings))
    ]


def _named_axes(results: Results, axes: Sequence[str]) -> list[tuple[str, list[str]]]:
    """The settings by name, each with its axes."""
    scaling = [axis for axis in axes if axis in SCALING]
    others = [(axis, [axis]) for axis in axes if axis not in SCALING]
    named = [(SCALING_NAME, scaling), *others] if scaling else others
    apart = judged_apart(results)
    if apart == [{}] or len(named) < 2:
        return named
    own = list(apart[0]) if apart else list(axes)
    return [(own[0] if len(own) == 1 else SETTING_NAME, own)]


def _values(settings: Sequence[Reference], axes: Sequence[str]) -> list[Axes]:
    """The values on these axes that were tried together."""
    tried = [{axis: one.axes[axis] for axis in axes} for one in settings]
    return list({repr(values): values for values in tried}.values())


def _answer(results: Results, metric: str | None, values: Axes) -> Recommendation | None:
    try:
        return recommend_from(results, metric=metric, where=values)
    except UserError:  # fewer than two ranks are done at this value
        return None
