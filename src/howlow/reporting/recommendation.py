"""The recommendation for people and as a JSON document: the verdict, its reasons in plain sentences, the bill."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from howlow.analysis.bill import BillItem, bill_of
from howlow.analysis.columns import TRAIN_BATCH_SIZE
from howlow.analysis.comparison import Group, compare
from howlow.analysis.constraints import Kept
from howlow.analysis.contest import judged_apart, one_a_seed, trained_references
from howlow.analysis.recommendation import Candidate, Recommendation, Terms, recommend_from
from howlow.analysis.rows import Results, rows
from howlow.analysis.setting_verdicts import setting_verdicts
from howlow.reporting import formatting
from howlow.reporting.looks import looks_document, looks_sentences
from howlow.reporting.setting_verdicts import change_sentence, scaling_of
from howlow.reporting.settling import settling_document, settling_sentences
from howlow.reporting.summary import axes_words

_MOST_SETTINGS = 6


def headline(found: Recommendation) -> str:
    """The answer in one sentence."""
    scope, chosen, label = ", for this seed" if found.seeds == 1 else "", found.chosen, found.terms.metric.label
    within = " that keeps the limits" if found.excluded else ""
    if found.verdict == "constraints_not_met":
        measured = "" if found.is_nearest_known else "as measured, "
        return f"No rank is shown to keep the limits; {measured}rank {found.nearest} is the nearest."
    if chosen is None:
        best = f"the best one{within} in {label}"
        return f"Not enough evidence: no rank is shown to be as good as {best} ({_terms(found)})."
    verdict = f"No adapter is needed{scope}" if chosen.rank is None else f"Recommended{scope}: rank {chosen.rank}"
    if chosen.judged is None:
        return f"{verdict}. It is the only candidate that keeps the limits."
    whose = "The base model" if chosen.rank is None else f"Rank {chosen.rank}"
    least = formatting.worse(chosen.judged.low, found.terms.scale)
    return f"{verdict}. {whose} is at most {least} than the best rank{within} in {label} ({_terms(found)})."


def headlines(folder: Path, accept_different: Sequence[str] = ()) -> list[str]:
    """The answer for each of a sweep's settings, each in one sentence.

    Raises:
        UserError: there is nothing to compare.
    """
    results = rows([folder], accept_different)
    references = trained_references(compare(results))
    if len(references) < 2:
        return [headline(recommend_from(results))]
    apart = judged_apart(results)
    if apart == [{}]:
        return _of_scalings(results)
    if apart:
        each = [(axes_words(values), recommend_from(results, where=values)) for values in apart[:_MOST_SETTINGS]]
        return [f"With {words}, each rank at its best settings: {headline(found)}" for words, found in each]
    return [
        f"With {axes_words(one.axes)}: {headline(recommend_from(results, where=one.axes))}"
        for one in references[:_MOST_SETTINGS]
    ]


def _of_scalings(results: Results) -> list[str]:
    """The answer with each rank at its best settings, the answer for each scaling, and whether these differ.

    Of other settings it is said only where the answer changes with them.
    """
    overall, found = recommend_from(results), setting_verdicts(results)
    others = [change_sentence(one) for one in found if one.changes and one is not scaling_of(found)]
    if (scaling := scaling_of(found)) is None:
        return [headline(overall), *others]
    told = [f"With {axes_words(axes)}: {headline(one)}" for axes, one in scaling.found if one is not None]
    best = f"Each rank at its best settings: {headline(overall)}"
    return [best, *told[:_MOST_SETTINGS], *others, *([change_sentence(scaling)] if scaling.is_known else [])]


def recommendation_text(found: Recommendation) -> str:
    """What `howlow recommend` prints."""
    return "\n".join([headline(found), *(f"* {reason}" for reason in reasons(found))])


def reasons(found: Recommendation) -> list[str]:
    """Why, in plain sentences: the candidates, what takes no part, what it costs, and what would settle it."""
    about = (_of_candidates, _of_settings, _of_others, _of_scope, looks_sentences, _of_bill, settling_sentences)
    return [sentence for sentences in about for sentence in sentences(found)]


def recommendation_json(found: Recommendation) -> str:
    """The document that `howlow recommend --json` prints; absent is null."""
    asked, scale = found.terms, found.terms.scale
    document = {
        "metric": asked.metric.name,
        "margin": asked.margin,
        "confidence": asked.confidence,
        "verdict": found.verdict,
        "rank": found.rank,
        "reasons": reasons(found),
        "candidates": [_candidate_document(found, candidate) for candidate in found.candidates],
        "headline": headline(found),
        "better": asked.metric.better,
        "margin_is_relative": scale.is_relative,
        "for_this_seed_only": found.seeds == 1,
        "seeds": found.seeds,
        "test_examples": found.test_examples,
        "all_test_examples": found.all_test_examples,
        "reference_rank": found.contest.reference.rank,
        "bill": [_bill_document(item) for item in _bill(found)],
        "excluded": [_excluded_document(rank, missed) for rank, missed in found.excluded.items()],
        "nearest": found.nearest,
        "not_done": [{"rank": rank, "trials": words} for rank, words in found.contest.not_done.items()],
        "settle": settling_document(found),
        "looks": looks_document(found),
    }
    return json.dumps(document, indent=1, allow_nan=False)


# -- candidates -----------------------------------------------------------------------------------------------------


def _of_candidates(found: Recommendation) -> Iterator[str]:
    asked, chosen = found.terms, found.chosen
    if found.verdict == "constraints_not_met" or len(found.candidates) < 2:
        return
    yield (
        f"A rank is enough if its {asked.metric.label} is shown to be less than {_margin(asked)} worse than that of "
        "every other candidate. Each one that may be the best is taken for it in turn, so that picking it is paid for."
    )
    for candidate in found.candidates:
        yield _candidate_sentence(found, candidate)
        if candidate is chosen:
            return


def _candidate_sentence(found: Recommendation, candidate: Candidate) -> str:
    asked, judged = found.terms, candidate.judged
    worse = partial(formatting.worse, scale=asked.scale)
    assert judged is not None, "only a lone candidate has no judgement"
    value = value_words(found, candidate.group)
    told = f"{_capital(_name(candidate.rank))} has {asked.metric.label} {value}"
    told += f", {worse(judged.difference)} than the best" if judged.difference < 0 else ", the best"
    if candidate.is_non_inferior:
        return f"{told}; it is at most {worse(judged.low)} than any other candidate, so it is enough."
    if judged.high < 0 and judged.high <= -asked.gain:
        return f"{told}; it is at least {worse(judged.high)}, so it is too low."
    obstacle = found.obstacle(candidate)
    assert obstacle is not None, "a candidate that is not enough has an obstacle"
    whose = "it" if obstacle.rank == candidate.rank else f"{_name(obstacle.rank)}, which lies between,"
    could = f"{whose} could be {worse(obstacle.low)} than {_name(obstacle.best)}"
    return f"{told}; {could}, so it is not shown to be enough."


def value_words(found: Recommendation, group: Group) -> str:
    """A candidate's mean score; with its seeds where others have another number of them."""
    metric = found.terms.metric
    value = formatting.quantity(group.mean(metric), metric.unit)
    if group.rank is None or not found.has_unequal_seeds:
        return value
    return f"{value} ({formatting.counted(len(one_a_seed(group)), 'seed')})"


def _candidate_document(found: Recommendation, candidate: Candidate) -> dict[str, Any]:
    scale, judged = found.terms.scale, candidate.judged
    low, high = scale.ends(judged.low, judged.high) if judged else (None, None)
    return {
        "rank": candidate.rank,
        "difference": scale.of_gain(judged.difference) if judged else 0.0,
        "low": low,
        "high": high,
        "non_inferior": candidate.is_non_inferior,
        "value": candidate.group.mean(found.terms.metric),
        "seeds": len(one_a_seed(candidate.group)) if candidate.rank is not None else None,
        "settings": _settings_document(found, candidate),
    }


def _settings_document(found: Recommendation, candidate: Candidate) -> dict[str, Any] | None:
    """The settings that a rank was given by its validation scores; None where all have the same."""
    choice = None if candidate.rank is None else found.contest.choices.get(candidate.rank)
    return None if choice is None else dict(choice.axes)


# -- the settings of each rank -----------------------------------------------------------------------------------


def _of_settings(found: Recommendation) -> Iterator[str]:
    """Which settings each rank was given, and by what."""
    choices, data = found.contest.choices, found.contest.reference.group.trials[0].record.data
    if not choices:
        return
    aside = formatting.counted((data.validation_examples if data else None) or 0, "validation example")
    given = [f"rank {rank} {axes_words(choice.axes)}" for rank, choice in choices.items()]
    most = max(choice.tried for choice in choices.values())
    yield (
        f"Each rank has the settings, of up to {most}, with the best {found.terms.metric.label} on {aside} that were "
        f"set aside from training: {'; '.join(given)}. The same seeds chose them, so a lucky seed may count twice."
    )


# -- what takes no part, and how far it goes ------------------------------------------------------------------------


def _of_others(found: Recommendation) -> Iterator[str]:
    contest = found.contest
    for rank, missed in found.excluded.items():
        yield f"Rank {rank} is left out: {formatting.enumerated([_missed_words(one) for one in missed])}."
    for rank, words in contest.not_done.items():
        yield f"Rank {rank} is no candidate: {words}."
    for rank, words in contest.unfinished.items():
        yield f"Rank {rank} is judged by the seeds that are done: {words}."
    if contest.base is None:
        yield "The base model was not scored (`baselines`), so nobody knows whether an adapter is needed at all."
    if found.verdict == "constraints_not_met" and any(group.rank is None for group in found.groups):
        yield "Without an adapter there is nothing to train, so the base model keeps the limits; it was not compared."


def _missed_words(one: Kept) -> str:
    limit, unit = one.limit, one.limit.columns[0].unit
    bound, what = formatting.quantity(limit.value, unit), _COSTS[limit.name]
    if one.end is None:
        known = "was not measured" if one.cost is None else f"of {formatting.quantity(one.cost, unit)} has no interval"
        return f"{what} {known}, so it is not shown to keep {limit.option} {bound}"
    side = "less" if limit.is_least else "more"
    return f"{what} may be {formatting.quantity(one.end, unit)}, {side} than {limit.option} {bound}"


_COSTS = {
    "max_memory": "its peak memory",
    "max_energy": "the energy of its fine-tuning",
    "max_time": "the time of its fine-tuning",
    "min_throughput": "its training throughput",
}


def _excluded_document(rank: int, missed: tuple[Kept, ...]) -> dict[str, Any]:
    limits = [
        {"limit": one.limit.name, "limit_value": one.limit.value, "value": one.cost, "end": one.end} for one in missed
    ]
    return {"rank": rank, "limits": limits}


def _of_scope(found: Recommendation) -> Iterator[str]:
    if found.seeds == 1:
        most = max(len(one_a_seed(group)) for group in found.groups if group.rank is not None)
        whose = "The ranks were trained with one seed" if most == 1 else "Some ranks have one seed in common"
        yield (
            f"{whose}, so the intervals cover other test examples and leave out other seeds: what is said holds for "
            "this seed."
        )
    if found.has_unequal_seeds:
        yield (
            "Ranks have different numbers of seeds. A score is the mean over a rank's own seeds, a difference is over "
            "the seeds that both ranks have, so the two need not agree."
        )
    if found.pairs.scores and len(found.pairs.scores[0].weights) < 2:
        yield "All test examples belong together, so they say nothing about others, and ranks cannot be compared."
    else:
        yield from (_unknown_words(found, pair) for pair in found.pairs.unknown)
    if not found.has_clusters:
        yield (
            "The records are of an older version and do not say which test examples go together, so each counts as "
            "independent and the intervals may be too short."
        )


def _unknown_words(found: Recommendation, pair: tuple[int, int]) -> str:
    one, other = (_name(found.groups[place].rank) for place in pair)
    return f"{_capital(one)} and {other} have no seed in common, so they cannot be compared."


# -- the bill -------------------------------------------------------------------------------------------------------


def _bill(found: Recommendation) -> list[BillItem]:
    reference = found.contest.reference
    if found.chosen is None or found.verdict == "constraints_not_met" or found.chosen.rank == reference.rank:
        return []
    return list(bill_of(found.contest.comparison, found.chosen.group, reference))


def _of_bill(found: Recommendation) -> Iterator[str]:
    items, reference, chosen = _bill(found), found.contest.reference, found.chosen
    if chosen is None or not items:
        return
    told = [_item_words(item) for item in items if item.column is not TRAIN_BATCH_SIZE]
    saved = " It saves the fine-tuning." if chosen.rank is None else ""
    yield f"Against rank {reference.rank}, the reference, {_name(chosen.rank)} has: {'; '.join(told)}.{saved}"
    batch = next((item for item in items if item.column is TRAIN_BATCH_SIZE), None)
    if batch is not None and batch.value != batch.reference:
        sizes = [formatting.quantity(size, "count") for size in (batch.value, batch.reference)]
        yield f"It trains with a batch of {sizes[0]} instead of {sizes[1]}, and its costs are those of that batch."


def _item_words(item: BillItem) -> str:
    words = bill_words(item)
    return f"{words.label} {words.value} instead of {words.reference} ({words.ratio})"


@dataclass(frozen=True)
class BillWords:
    """An item of the bill as texts."""

    label: str
    value: str
    reference: str
    ratio: str


def bill_words(item: BillItem) -> BillWords:
    """What a cost is called, its two values, and their ratio with its interval or the words "not significant"."""
    column = item.column
    stage = {"train": "training ", "inference": "inference "}.get(column.stage or "", "")
    value, reference = (formatting.quantity(value, column.unit) for value in (item.value, item.reference))
    ratio = "not compared" if item.ratio is None else formatting.relative(item.ratio, with_ends=True)
    return BillWords(f"{stage}{column.label}", value, reference, ratio)


def _bill_document(item: BillItem) -> dict[str, Any]:
    ratio = item.ratio
    ends: dict[str, float | bool | None] = {"ratio": None, "low": None, "high": None, "significant": False}
    if ratio is not None:
        ends = {"ratio": ratio.value, "low": ratio.low, "high": ratio.high, "significant": ratio.is_significant}
    return {"column": item.column.name, "value": item.value, "reference": item.reference, **ends}


# -- words ----------------------------------------------------------------------------------------------------------


def _name(rank: int | None) -> str:
    return "the base model" if rank is None else f"rank {rank}"


def _capital(words: str) -> str:
    return words[0].upper() + words[1:]


def _terms(found: Recommendation) -> str:
    asked = found.terms
    sure = f"{formatting.percent_sure(asked.confidence)} confidence"
    return f"margin {_margin(asked)}, {sure}, {formatting.counted(found.seeds, 'seed')}, {tested_words(found)}"


def tested_words(found: Recommendation) -> str:
    """`200 test examples`; of a part's metric `97 of 200 test examples`."""
    scored, all_ = found.test_examples or 0, found.all_test_examples or 0
    part = f"{scored:,} of " if scored != all_ and all_ else ""
    return f"{part}{formatting.counted(all_ or scored, 'test example')}"


def _margin(asked: Terms) -> str:
    return formatting.gap(asked.margin, asked.metric.unit, is_relative=asked.scale.is_relative, is_asked=True)
