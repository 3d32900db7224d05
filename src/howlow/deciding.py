"""A sweep that ends when its recommendation holds: `howlow sweep --until-decided`.

The sweep runs in rounds. The first one trains every rank with the first seed, the second one those that are not stopped
with the second seed. From then on each round is followed by a look: the recommendation at the level that the plan
allows for it (`howlow.analysis.group_sequential`), and the ranks whose next seed tells most
(`howlow.analysis.allocation`).

What happens next follows from the records and from `looks.json`, which is written before each round. So a sweep that
was killed at any instant goes on with the same plan, looks and spent error.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

from howlow.analysis.allocation import next_seeds, stopped_after_one_seed
from howlow.analysis.column import Column
from howlow.analysis.columns import column_named
from howlow.analysis.group_sequential import plan_of
from howlow.analysis.margins import DEFAULT_CONFIDENCE, QualityScale, checked_confidence
from howlow.analysis.quality_columns import TEXT_WEIGHTS
from howlow.analysis.recommendation import Recommendation, recommend_from
from howlow.analysis.rows import rows
from howlow.errors import UserError
from howlow.jobs import Tell
from howlow.records import (
    LookRecord,
    LooksEnd,
    LooksRecord,
    Record,
    Status,
    StoppedRank,
    read_looks,
    read_records,
    write_looks,
)
from howlow.settings import Settings, TrialPlan, expand
from howlow.settings.checking import RANK_AXIS, SEED_AXIS
from howlow.sweeping import SweepResult, sweep
from howlow.tasks import task_named

MOST_SEEDS = 5
"""Planned where the settings name a single seed."""


@dataclass(frozen=True)
class SweepBudget:
    """When to end undecided; None: no limit.

    max_time_s: of the trials' own time, divided by the workers. No trial begins after it; the running one is ended.
    max_trials: with a record, baselines included.
    """

    max_time_s: float | None = None
    max_trials: int | None = None

    def __post_init__(self) -> None:
        if self.max_time_s is not None and not 0 < self.max_time_s < float("inf"):
            raise UserError(f"--max-time {self.max_time_s:g}: a number of seconds above 0 is expected")
        if self.max_trials is not None and self.max_trials < 1:
            raise UserError(f"--max-trials {self.max_trials}: a number of at least 1 is expected")


@dataclass(frozen=True)
class DecidedSweep:
    """What was run, how it was looked at, and why it ended."""

    result: SweepResult
    looks: LooksRecord
    planned: int
    """trials, if every planned seed were run"""


def sweep_until_decided(
    settings: Settings,
    out: Path | str,
    *,
    metric: str | None = None,
    margin: float | None = None,
    confidence: float = DEFAULT_CONFIDENCE,
    budget: SweepBudget | None = None,
    retry: Sequence[Status] = (),
    accept_different: Sequence[str] = (),
    on_event: Tell | None = None,
    on_look: Callable[[LooksRecord, Sequence[str]], None] | None = None,
) -> DecidedSweep:
    """Run, or resume, a sweep until its recommendation holds or the budget is spent.

    Args:
        settings: as for `howlow.sweep`. Their seeds are the most that are run; with a single one, 5 are planned.
        out: the run directory.
        metric: a column of quality; None: the task's main one.
        margin: how much worse than the best is enough; None: the metric's default.
        confidence: of the recommendation, all looks together.
        budget: when to end undecided.
        retry, accept_different, on_event: as in `howlow.sweep`.
        on_look: is called after each look, with the names of the trials that come next.

    Raises:
        UserError: as `howlow.sweep`; there is nothing to compare; the folder was looked at with other terms.
    """
    planned = planned_settings(settings)
    terms = _checked_terms(planned, metric, margin, confidence)
    folder = Path(out)
    course = _Course(folder, planned, terms, budget or SweepBudget(), tuple(accept_different), on_look)
    _refuse_other_terms(folder, read_looks(folder), terms)
    result = sweep(
        planned, out, retry=retry, accept_different=accept_different, on_event=on_event, rounds=course.rounds
    )
    return DecidedSweep(result, course.looks, len(expand(planned)))


def planned_settings(settings: Settings) -> Settings:
    """The settings with all seeds that may be run.

    Raises:
        UserError: there is nothing to decide: fewer than two ranks, several settings, or no scores.
    """
    ranks, seeds = settings.grid[RANK_AXIS], settings.grid[SEED_AXIS]
    if len(ranks) < 2:
        raise UserError(f"--until-decided: rank {ranks[0]} is the only one; give at least two, such as --ranks 1..64")
    further = [axis for axis in settings.grid if axis not in (RANK_AXIS, SEED_AXIS)]
    if further:
        raise UserError(
            f"--until-decided: the grid has the further axis {further[0]}, and a decision is about one setting; give "
            "one value, or run the whole grid without --until-decided"
        )
    if settings.random_weights:
        raise UserError("--until-decided: random_weights = true has no scores to decide by; use a pretrained model")
    more = seeds if len(seeds) > 1 else [seeds[0] + further for further in range(MOST_SEEDS)]
    return settings.model_copy(update={"grid": settings.grid | {SEED_AXIS: more}})


def _checked_terms(settings: Settings, metric: str | None, margin: float | None, confidence: float) -> LooksRecord:
    """What is asked, before anything is known."""
    column = _metric(settings.task.name, metric)
    checked, sure = QualityScale(column).checked_margin(margin), checked_confidence(confidence)
    return LooksRecord(metric=column.name, margin=checked, confidence=sure, seeds=tuple(settings.grid[SEED_AXIS]))


def _metric(task: str, name: str | None) -> Column:
    found = task_named(task)
    names = [*found.metrics, *([] if found.generates else [one for one in TEXT_WEIGHTS if one not in found.metrics])]
    if name is not None and name not in names:
        raise UserError(f"--metric {name}: the task {task} has no such score; it has: {', '.join(names)}")
    return column_named(name or names[0])


def _refuse_other_terms(folder: Path, there: LooksRecord | None, terms: LooksRecord) -> None:
    """Refuse to look with other terms than those that were fixed before the first look."""
    if there is None:
        return
    for name in ("metric", "margin", "confidence", "seeds"):
        before, now = getattr(there, name), getattr(terms, name)
        if before != now:
            raise UserError(
                f"--out {folder}: its looks were planned with {name} {_plain(before)}, and it is {_plain(now)} now; a "
                f"plan that changes after a look does not keep its error: give the same {name}, or another folder"
            )


def _plain(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


# -- the rounds -----------------------------------------------------------------------------------------------------


@dataclass
class _Course:
    """Chooses the rounds of one sweep, and keeps `looks.json`."""

    folder: Path
    settings: Settings
    looks: LooksRecord
    budget: SweepBudget
    accept_different: tuple[str, ...]
    on_look: Callable[[LooksRecord, Sequence[str]], None] | None

    def rounds(self, plans: Sequence[TrialPlan]) -> Iterator[Sequence[str]]:
        """The names of the trials to run next, until the looking ends."""
        self.looks = (read_looks(self.folder) or self.looks).model_copy(update={"ended": None})
        while True:
            records = {record.trial: record for record in read_records(self.folder)}
            asked = {plan.name for plan in plans}
            names = self._next(plans, {name: record for name, record in records.items() if name in asked})
            write_looks(self.folder, self.looks)
            if not names:
                return
            yield names

    def _next(self, plans: Sequence[TrialPlan], records: dict[str, Record]) -> list[str]:
        """The trials to run now; none: the looking has ended."""
        asked = {plan.name for plan in plans}
        if left := [name for name in self.looks.round if name in asked - records.keys()]:
            return self._affordable(left, records)
        first, second = self.looks.seeds[:2]
        names = [plan.name for plan in plans if plan.rank is None or plan.seed == first]
        if left := [name for name in names if name not in records]:
            return self._begun(left, records)
        try:
            if self.looks.stopped is None:
                self._stop_hopeless_ranks()
            going = self._going(records)
            names = [plan.name for plan in plans if plan.rank in going and plan.seed == second]
            if left := [name for name in names if name not in records]:
                return self._begun(left, records)
            return self._look(plans, records)
        except _NothingToCompareError:
            return self._end("nothing_to_compare")

    def _begun(self, names: list[str], records: dict[str, Record]) -> list[str]:
        """Begin a round; no look is taken before it is complete, even if the sweep is killed or its budget ends."""
        self.looks = self.looks.model_copy(update={"round": tuple(names)})
        return self._affordable(names, records)

    def _going(self, records: dict[str, Record]) -> set[int]:
        """The ranks that may get further seeds: none that was stopped, and none with a trial that is not done."""
        ended = {record.rank for record in records.values() if record.status != "done"}
        stopped = {one.rank for one in self.looks.stopped or ()}
        ranks = {record.rank for record in records.values() if record.rank is not None}
        return ranks - ended - stopped

    def _affordable(self, names: list[str], records: dict[str, Record]) -> list[str]:
        """Those of the trials that the budget has room for now; none: it is spent."""
        if self.budget.max_trials is not None:
            names = names[: max(0, self.budget.max_trials - len(records))]
            if not names:
                return self._end("max_trials")
        if self.budget.max_time_s is None:
            return names
        workers = self.settings.run.workers or 1
        spent_s = sum(record.total_s or 0.0 for record in records.values()) / workers
        return names[:workers] if spent_s < self.budget.max_time_s else self._end("max_time")

    def _end(self, reason: LooksEnd) -> list[str]:
        self.looks = self.looks.model_copy(update={"ended": reason})
        return []

    # -- looking ----------------------------------------------------------------------------------------------------

    def _recommended(self) -> Recommendation:
        """What can be said now; the file of the looks has to be written."""
        write_looks(self.folder, self.looks)
        results = rows([self.folder], self.accept_different)
        try:
            return recommend_from(results, **self.looks.terms)
        except UserError:
            raise _NothingToCompareError from None

    def _stop_hopeless_ranks(self) -> None:
        """After the first seed; at least two ranks go on."""
        found = self._recommended()
        hopeless = stopped_after_one_seed(found.pairs, found.terms.gain, self.looks.confidence)
        spare = max(0, sum(group.rank is not None for group in found.groups) - 2)
        worst = sorted(hopeless, key=lambda one: hopeless[one])[:spare]
        ranks = {found.groups[one].rank: hopeless[one] for one in sorted(worst)}
        stopped = tuple(StoppedRank(rank=rank, high=high) for rank, high in ranks.items() if rank is not None)
        self.looks = self.looks.model_copy(update={"stopped": stopped})

    def _look(self, plans: Sequence[TrialPlan], records: dict[str, Record]) -> list[str]:
        found, sure, planned = self._recommended(), self.looks.confidence, len(self.looks.seeds)
        if self.looks.information is None:
            trained = [index for index, group in enumerate(found.groups) if group.rank is not None]
            neighbours = [found.pairs.difference(*pair) for pair in pairwise(trained)]
            plan = plan_of([one for one in neighbours if one is not None], planned)
            self.looks = self.looks.model_copy(update={"information": plan.information})
            found = replace(found, pairs=replace(found.pairs, plan=plan), looks=self.looks)
        need = next_seeds(found.pairs, found.terms.gain, sure, planned)
        self._note(found, len(records))
        if need.is_settled:
            reached = all(len(scores.seeds) in (0, planned) for scores in found.pairs.scores)
            return self._tell(
                self._end("decided" if need.chosen is not None else "all_seeds" if reached else "hopeless")
            )
        ranks = {found.groups[one].rank for one in need.candidates} & self._going(records)
        names = [name for rank in ranks for name in self._next_seed(plans, records, rank)]
        ordered = [plan.name for plan in plans if plan.name in names]
        return self._tell(self._begun(ordered, records) if ordered else self._end("all_seeds"))

    def _next_seed(self, plans: Sequence[TrialPlan], records: dict[str, Record], rank: int | None) -> list[str]:
        """The trials of the first planned seed that a rank has not run."""
        left = [plan for plan in plans if plan.rank == rank and plan.name not in records]
        seed = next((seed for seed in self.looks.seeds if any(plan.seed == seed for plan in left)), None)
        return [plan.name for plan in left if plan.seed == seed]

    def _note(self, found: Recommendation, trials: int) -> None:
        """Add a look; one at the same trials as the last, by a sweep that was started again, is that one."""
        assert found.pairs.plan is not None, "the first look has planned the levels"
        most = max(len(scores.seeds) for scores in found.pairs.scores)
        look = LookRecord(
            trials=trials,
            seeds=found.seeds,
            verdict=found.verdict,
            rank=found.rank,
            spent=found.pairs.plan.spent(most, self.looks.confidence),
        )
        if not self.looks.looks or self.looks.looks[-1].trials != trials:
            self.looks = self.looks.model_copy(update={"looks": (*self.looks.looks, look)})

    def _tell(self, names: list[str]) -> list[str]:
        if self.on_look is not None:
            self.on_look(self.looks, names)
        return names


class _NothingToCompareError(Exception):
    """Fewer than two ranks have scores."""
