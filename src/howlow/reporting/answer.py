"""What stands first on the page: the answer, its bill, and the inputs with which the page takes the decision again.

`browser/decision.js` repeats the rule for the margin and the limits that a reader sets. It compares and adds nothing
that is not in these documents, so its verdicts are those of `howlow recommend`, which a test holds it to.
"""

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

from howlow.analysis.column import Unit
from howlow.analysis.comparison import Comparison
from howlow.analysis.constraints import Kept
from howlow.analysis.contest import judged_apart
from howlow.analysis.decision_inputs import CandidateInputs, DecisionInputs, decision_inputs
from howlow.analysis.recommendation import Recommendation, asked_metrics, recommend_from
from howlow.analysis.setting_verdicts import setting_verdicts
from howlow.errors import UserError
from howlow.reporting import formatting
from howlow.reporting.recommendation import bill_words, headline, reasons, tested_words, value_words
from howlow.reporting.setting_verdicts import change_sentences
from howlow.reporting.summary import axes_words

_MOST_DECISIONS = 12
_BEST_SETTINGS = "each rank at its best settings"


@dataclass(frozen=True)
class LimitedCost:
    """A cost that the page's sliders limit: what it is called, in a table's heading, and its unit."""

    label: str
    heading: str
    unit: Unit


LIMITED: Mapping[str, LimitedCost] = {
    "max_memory": LimitedCost("peak memory", "memory", "bytes"),
    "max_energy": LimitedCost("energy of a fine-tuning", "energy", "joules"),
    "max_time": LimitedCost("time of a fine-tuning", "time", "seconds"),
}


@dataclass(frozen=True)
class Answer:
    """The answer for one setting and one metric, without limits and with the metric's own margin.

    where: the setting; empty where each rank has its best one, or there is a single one.
    across: whether the answer changes with the settings that were swept, in sentences.
    """

    found: Recommendation
    inputs: DecisionInputs
    where: Mapping[str, Any]
    setting: str
    across: tuple[str, ...] = ()

    @property
    def headline(self) -> str:
        """The answer in one sentence."""
        return headline(self.found)

    @property
    def reasons(self) -> list[str]:
        """Why."""
        return reasons(self.found)


@dataclass(frozen=True)
class Answers:
    """The answers of a report; where there is none, why."""

    found: tuple[Answer, ...]
    problem: str | None


def answers(comparison: Comparison) -> Answers:
    """The answers for each of the sweep's settings and each of the task's metrics, at most 12.

    Where validation scores choose settings, the first ones have each rank at its best settings: at each value of an
    axis that stays a person's choice.
    """
    results = comparison.results
    found: list[Answer] = []
    problem = None
    metrics: list[str | None] = [*asked_metrics(results)]
    across = {name: tuple(change_sentences(setting_verdicts(results, name))) for name in metrics}
    for (where, setting), name in list(product(_settings(comparison), metrics or [None]))[:_MOST_DECISIONS]:
        try:
            recommendation = recommend_from(results, metric=name, where=where if name else {})
        except UserError as error:
            problem = problem or str(error)
            continue
        inputs = decision_inputs(recommendation)
        found.append(Answer(recommendation, inputs, where, setting, across.get(name, ())))
    return Answers(tuple(found), None if found else problem or "no rank is done")


def _settings(comparison: Comparison) -> list[tuple[Mapping[str, Any], str]]:
    """The settings to answer for, with their names."""
    each = [(reference.axes, axes_words(reference.axes)) for reference in comparison.references]
    apart = judged_apart(comparison.results) if len(each) > 1 else []
    return [*((values, ", ".join(filter(None, [axes_words(values), _BEST_SETTINGS]))) for values in apart), *each]


# -- documents ------------------------------------------------------------------------------------------------------


def decision_document(answer: Answer) -> dict[str, Any]:
    """A decision's inputs, for the page's scripts; absent is null."""
    found, inputs = answer.found, answer.inputs
    asked, number = found.terms, len(inputs.candidates)
    return {
        "setting": answer.setting,
        "metric": {
            "label": asked.metric.label,
            "unit": asked.metric.unit,
            "isRelative": asked.scale.is_relative,
            "higherIsBetter": asked.metric.better == "higher",
        },
        "margin": asked.margin,
        "confidence": asked.confidence,
        "tested": tested_words(found),
        "referenceRank": found.contest.reference.rank,
        "command": _command(answer),
        "limits": list(_limits(inputs)),
        "candidates": [_candidate(answer, candidate) for candidate in inputs.candidates],
        "pairs": [[_pair(inputs, i, j) for j in range(i + 1, number)] for i in range(number)],
        "reasons": answer.reasons,
        "across": list(answer.across),
    }


def _pair(inputs: DecisionInputs, ours: int, theirs: int) -> list[float | None]:
    pair = inputs.pairs[ours, theirs]
    return [pair.value, pair.half_width, pair.strict_half_width, pair.seeds]


def _candidate(answer: Answer, candidate: CandidateInputs) -> dict[str, Any]:
    return {
        "rank": candidate.rank,
        "seeds": candidate.seeds,
        "value": value_words(answer.found, candidate.group),
        "costs": {name: _cost(cost) for name, cost in candidate.costs.items()},
        "bill": [asdict(bill_words(item)) for item in candidate.bill],
    }


def _cost(one: Kept) -> dict[str, float | str | None]:
    unit = one.limit.columns[0].unit
    return {"cost": one.cost, "end": one.end, "text": formatting.quantity(one.cost, unit)}


def _limits(inputs: DecisionInputs) -> Iterator[dict[str, Any]]:
    """The limits, with the smallest and the largest end that each is held against, or why it cannot be held."""
    for name, limited in LIMITED.items():
        costs = [candidate.costs[name] for candidate in inputs.candidates if name in candidate.costs]
        ends = [cost.end for cost in costs if cost.end]
        is_measured = any(cost.cost is not None for cost in costs)
        yield {
            "name": name,
            "option": costs[0].limit.option,
            "label": limited.label,
            "short": limited.heading,
            "unit": limited.unit,
            "least": min(ends, default=None),
            "most": max(ends, default=None),
            "problem": None if ends else "error unknown" if is_measured else "not measured",
        }


def _command(answer: Answer) -> str | None:
    """The command that says the same, to which the page adds margin and limits; None for several folders."""
    contest = answer.found.contest
    folders = contest.comparison.results.folders
    if len(folders) > 1:
        return None
    where = [f"{axis}={value}" for axis, value in answer.where.items() if value is not None]
    choice = [word for one in where for word in ("--where", one)]
    return shlex.join(["howlow", "recommend", str(folders[0]), "--metric", contest.metric.name, *choice])
