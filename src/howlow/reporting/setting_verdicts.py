"""Whether the answer depends on settings that were swept, in sentences."""

from collections.abc import Iterable, Iterator

from howlow.analysis.recommendation import Recommendation
from howlow.analysis.setting_verdicts import SCALING_NAME, SettingVerdicts
from howlow.reporting.summary import axes_words


def change_sentence(verdicts: SettingVerdicts) -> str:
    """`The verdict changes with the scaling.`"""
    named = _named(verdicts)
    return f"The verdict changes with {named}." if verdicts.changes else f"The verdict is the same with every {named}."


def change_sentences(found: Iterable[SettingVerdicts]) -> Iterator[str]:
    """Of each setting with several answers whether they differ, and what they are."""
    for verdicts in found:
        if not verdicts.is_known:
            continue
        each = [f"{axes_words(axes)}: {verdict_words(one)}" for axes, one in verdicts.found]
        yield f"{change_sentence(verdicts)} {'; '.join(each)}."


def verdict_words(found: Recommendation | None) -> str:
    """The answer in two or three words."""
    if found is None:
        return "nothing to compare"
    words = {
        "no_adapter": "no adapter",
        "not_enough_evidence": "not enough evidence",
        "constraints_not_met": "no rank keeps the limits",
    }
    return words.get(found.verdict, f"rank {found.rank}")


def _named(verdicts: SettingVerdicts) -> str:
    is_axis = "." in verdicts.name
    article = "the " if verdicts.changes and not is_axis else ""
    return f"{article}{verdicts.name}"


def scaling_of(found: Iterable[SettingVerdicts]) -> SettingVerdicts | None:
    """The verdicts of the scalings; None where a single one was tried."""
    return next((one for one in found if one.name == SCALING_NAME), None)
