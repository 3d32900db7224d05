"""The looks of a sweep that ran until its recommendation held, in words and for the JSON document."""

from collections.abc import Iterator, Sequence
from typing import Any

from howlow.analysis.columns import column_named
from howlow.analysis.group_sequential import FIRST_LOOK
from howlow.analysis.margins import QualityScale
from howlow.analysis.recommendation import Recommendation
from howlow.records import LookRecord, LooksEnd, LooksRecord
from howlow.reporting import formatting

_ENDS: dict[LooksEnd, str] = {
    "decided": "the recommendation holds",
    "hopeless": "by what was found, not even all planned seeds are expected to settle it",
    "all_seeds": "all planned seeds were run",
    "max_trials": "--max-trials is spent",
    "max_time": "--max-time is spent",
    "nothing_to_compare": "fewer than two ranks have scores, so there is nothing to compare",
}


def looks_sentences(found: Recommendation) -> Iterator[str]:
    """How looking changed the bounds, and which ranks were stopped; nothing where a sweep was not looked at."""
    looks, plan, sure = found.looks, found.pairs.plan, found.terms.confidence
    if looks is None:
        return
    if plan is not None:
        at = [
            f"{formatting.percent_sure(plan.confidence(seeds, sure))} at {seeds} seeds"
            for seeds in range(FIRST_LOOK, plan.seeds + 1)
        ]
        yield (
            f"The sweep was looked at {formatting.counted(len(looks.looks), 'time')} while it grew. Bounds have the "
            f"confidence of their look ({formatting.enumerated(at)}), so that all looks together have "
            f"{formatting.percent_sure(sure)}."
        )
        if any(len(scores.seeds) > plan.seeds for scores in found.pairs.scores):
            yield f"Seeds beyond the {plan.seeds} planned ones are a further look, for which nothing was left to spend."
    scale = QualityScale(column_named(looks.metric))
    for one in looks.stopped or ():
        yield (
            f"Rank {one.rank} was stopped after its first seed, by which it is at least "
            f"{formatting.worse(one.high, scale)} in {scale.metric.label}."
        )


def look_line(looks: LooksRecord, names: Sequence[str]) -> str:
    """`look 2, 11 trials: rank 4 would be recommended; next: r0016-s2`."""
    last = looks.looks[-1]
    following = f"; next: {formatting.listed(list(names))}" if names else ""
    return f"look {len(looks.looks)}, {formatting.counted(last.trials, 'trial')}: {_verdict(last)}{following}"


def _verdict(look: LookRecord) -> str:
    told = {
        "recommended": f"rank {look.rank} would be recommended",
        "no_adapter": "no adapter would be needed",
        "not_enough_evidence": "not enough evidence yet",
    }
    return told.get(look.verdict, look.verdict)


def ending_line(looks: LooksRecord, trials: int, planned: int) -> str:
    """Why the sweep ended, and how much of it was run."""
    assert looks.ended is not None, "the sweep has ended"
    looked = formatting.counted(len(looks.looks), "look")
    return f"Ended after {trials} of at most {planned} trials and {looked}: {_ENDS[looks.ended]}."


def looks_document(found: Recommendation) -> dict[str, Any] | None:
    """For the JSON document; None where a sweep was not looked at."""
    looks, plan = found.looks, found.pairs.plan
    if looks is None:
        return None
    at = range(FIRST_LOOK, plan.seeds + 1) if plan is not None else ()
    return {
        "seeds": list(looks.seeds),
        "confidence_at": {str(n): plan.confidence(n, found.terms.confidence) for n in at} if plan is not None else {},
        "looks": [look.model_dump() for look in looks.looks],
        "stopped": [one.rank for one in looks.stopped or ()],
        "ended": looks.ended,
    }
