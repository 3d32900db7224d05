"""What would settle a decision for which there is not enough evidence, with the command that runs it."""

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from howlow.analysis.contest import one_a_seed
from howlow.analysis.recommendation import Recommendation
from howlow.analysis.settling import Plan
from howlow.reporting import formatting


def settling_sentences(found: Recommendation) -> Iterator[str]:
    """What would settle it, by the differences and variances found so far; nothing where it is settled."""
    settled = found.settlement
    if settled is None:
        return
    if settled.goal is None and found.pairs.unknown:
        yield _missing_words(found)
        return
    if settled.goal is None:
        yield (
            "More data alone is not expected to settle it: by the differences found, ranks between the best one and a "
            "smaller one are worse by more than the margin. A larger margin may."
        )
        return
    goal = _goal_words(found, settled.goal)
    plans = [plan for plan in (settled.more_seeds, settled.more_examples, settled.both) if plan is not None]
    for plan in plans:
        yield f"{_plan_words(found, plan)} would show with a chance of 80 % that {goal}: `{_command(found, plan)}`"
    if not plans:
        yield f"No number of seeds up to 50 or of test examples within reason is expected to show that {goal}."
    if found.seeds == 1:
        yield f"Several seeds say how far the choice depends on the seed: `{_seeds_command(found, _seeds(found, 3))}`"


def _missing_words(found: Recommendation) -> str:
    """What candidates lack that cannot be compared at all."""
    if len(found.pairs.scores[0].weights) < 2:
        return "Test on examples of several paragraphs or documents: task.test has more, or task.test_examples is low."
    run = _seeds_run(found)
    return f"Run the seeds that are missing: `{_seeds_command(found, run)}`"


def settling_document(found: Recommendation) -> dict[str, Any] | None:
    """The same for the JSON document; None where there is nothing to settle."""
    settled = found.settlement
    if settled is None:
        return None
    plans = {"more_seeds": settled.more_seeds, "more_examples": settled.more_examples, "both": settled.both}
    return {
        "rank": None if settled.goal is None else found.groups[settled.goal].rank,
        "no_adapter": settled.goal is not None and found.groups[settled.goal].rank is None,
        **{name: None if plan is None else _plan_document(found, plan) for name, plan in plans.items()},
    }


def _plan_document(found: Recommendation, plan: Plan) -> dict[str, Any]:
    return {"seeds": plan.seeds, "test_examples": plan.examples, "command": _command(found, plan)}


def _goal_words(found: Recommendation, goal: int) -> str:
    rank = found.groups[goal].rank
    return "no adapter is needed" if rank is None else f"rank {rank} is enough"


def _plan_words(found: Recommendation, plan: Plan) -> str:
    seeds, examples = plan.seeds - found.seeds, plan.examples - (found.all_test_examples or 0)
    more = [f"{formatting.counted(seeds, 'more seed')} (in all {plan.seeds})"] if seeds else []
    if examples:
        known = "" if _tests_on_all(found) else ", if task.test holds so many"
        more.append(f"{formatting.counted(examples, 'more test example')} (in all {plan.examples:,}{known})")
    return formatting.enumerated(more)


def _command(found: Recommendation, plan: Plan) -> str:
    """The command that runs it; more test examples need a folder of their own, as every trial is scored anew.

    Where the sweep tests on all that the test data hold, more examples need larger test data.
    """
    examples = found.all_test_examples or 0
    if plan.examples <= examples:
        return _seeds_command(found, _seeds(found, plan.seeds))
    folder = _folder(found)
    listed = _seeds(found, plan.seeds)[: plan.seeds]
    is_all_seeds = found.looks is None and plan.seeds == found.seeds
    seeds = [] if is_all_seeds else ["--seeds", ",".join(map(str, listed))]
    limit = ["--test", "LARGER_TEST_DATA"] if _tests_on_all(found) else ["--set", f"task.test_examples={plan.examples}"]
    out = folder.with_name(f"{folder.name}-{plan.examples}-test-examples")
    return shlex.join(["howlow", "sweep", str(folder / "sweep.toml"), *seeds, *limit, "--out", str(out)])


def _tests_on_all(found: Recommendation) -> bool:
    """Whether the sweep tests on all that its test data hold: it was not asked for fewer."""
    asked = found.groups[-1].trials[0].record.settings.task.test_examples
    return asked is None or (found.all_test_examples or 0) < asked


def _seeds_command(found: Recommendation, seeds: Sequence[int]) -> str:
    folder, listed = _folder(found), ",".join(map(str, seeds))
    again = ["--retry", ",".join(ended)] if (ended := _to_retry(found)) else []
    return shlex.join(["howlow", "sweep", str(folder / "sweep.toml"), "--seeds", listed, *again, "--out", str(folder)])


def _to_retry(found: Recommendation) -> list[str]:
    """How trials of the candidates ended that are not done, so that their seeds are missing."""
    records = found.contest.comparison.results.records
    mine = [record for record in records if record.kind == "lora" and record.rank in found.contest.unfinished]
    return sorted({record.status for record in mine} & {"failed", "out_of_memory"})


def _folder(found: Recommendation) -> Path:
    return found.contest.folders[0]


def _seeds(found: Recommendation, number: int) -> list[int]:
    """The seeds that were run, and the next ones up to this number."""
    run = _seeds_run(found)
    further = (seed for seed in range(len(run) + number) if seed not in run)
    return [*run, *(next(further) for _ in range(max(0, number - len(run))))]


def _seeds_run(found: Recommendation) -> list[int]:
    """The seeds that any candidate has."""
    return sorted({trial.record.seed for group in found.contest.ranks.values() for trial in one_a_seed(group)})
