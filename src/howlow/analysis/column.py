"""What is known about a column of results.csv; `columns` lists them all.

Units are kinds of quantity in SI; only `howlow.reporting` turns them into text.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from howlow.records.energy import EnergyPart

Unit = Literal[
    "text",
    "count",
    "number",
    "bytes",
    "seconds",
    "per_second",
    "joules",
    "watts",
    "fraction",
    "nats",
    "hertz",
    "celsius",
]
Better = Literal["higher", "lower"]
Stage = Literal["train", "inference"]
TableSection = Literal["adapter", "fine-tuning", "inference", "quality"]
StepSum = Literal["time", "samples", "tokens", "prompt_tokens", "later_tokens", "prefill_time", "decode_time"]
"""What the measured steps of a phase add up (`howlow.analysis.uncertainty`)."""
Subject = Literal[
    "quality",
    "answers",
    "exponential",
    "forgetting",
    "optimizer",
    "speed",
    "energy",
    "phase_energy",
    "prefill_energy",
    "decode_energy",
    "energy_above_idle",
    "cpu_energy",
    "power_readings",
    "utilization",
    "memory",
]
"""What a figure depends on. A warning names subjects, and so reaches every column that depends on one of them."""
COST_SUBJECTS: frozenset[Subject] = frozenset({"speed", "energy", "cpu_energy", "memory", "utilization"})
"""What may be compared only where it was measured under equal conditions."""


@dataclass(frozen=True)
class TablePlace:
    """Where the tables show a column: its section, and its order there."""

    section: TableSection
    order: int
    in_terminal: bool = False
    """shown on the terminal, too, which has less room than the page"""


@dataclass(frozen=True)
class Panel:
    """Where the figures show a column: the order of its panel, and for a cost the panel's title and a rate's unit."""

    order: int
    title: str | None = None
    unit: str = ""
    unless: str | None = None
    """left out where this column, which says the same, has a panel"""


@dataclass(frozen=True)
class Column:
    """One column. Without `table` and `panel` it stands in results.csv alone."""

    name: str
    label: str
    unit: Unit
    meaning: str
    better: Better | None = None
    """which direction is good; None: neither"""
    stage: Stage | None = None
    """the stage of a trial that it is about; None: the trial as a whole"""
    subjects: frozenset[Subject] = frozenset()
    table: TablePlace | None = None
    heading: str | None = None
    """a label for tables that is shorter than `label`"""
    panel: Panel | None = None
    phrase: str | None = None
    """its name within a sentence; the summary in words leaves out columns without one"""
    error: str | None = None
    """the column that says how far this one can be from the truth"""
    over_steps: tuple[StepSum, StepSum] | None = None
    """the two sums over the measured steps whose ratio it varies with; blocks of steps give its error"""
    energy_of: tuple[tuple[EnergyPart, str | None], ...] = ()
    """the energy windows (part and device) that it is of; their bounds are in its error"""
    reading: Literal["utilization", "memory_utilization"] | None = None
    """the reading that it is the mean of; blocks of readings give its error"""
    interval: tuple[str, str] | None = None
    """the columns that hold the ends of its interval"""
    is_relative: bool = True
    """whether its ratio to the reference rank's value says anything"""
    is_optional: bool = False
    """its absence is not explained: some tasks or energy sources never give it, or another absence explains it"""
    shows_zero: bool = True
    """whether tables show it where every value is 0"""

    @property
    def is_number(self) -> bool:
        """Whether its values are numbers that can be averaged and divided."""
        return self.unit != "text"

    @property
    def is_exact(self) -> bool:
        """Whether one process gives it without an error: counts, sizes and peaks."""
        inexact = self.subjects & {"quality", "optimizer", "utilization", "speed", "energy", "cpu_energy"}
        return self.over_steps is None and not self.energy_of and not inexact

    @property
    def follows_from_seed(self) -> bool:
        """Whether repeats of one seed should give the same value, so that they say nothing about its error."""
        return bool(self.subjects & {"quality", "optimizer"})

    @property
    def section(self) -> TableSection | None:
        """The section of the tables in which it stands; None where they do not show it."""
        return self.table.section if self.table is not None else None

    def is_shown(self, values: Iterable[Any]) -> bool:
        """Whether a table of trials with these values shows it."""
        there = [value for value in values if value is not None]
        return bool(there) and (self.shows_zero or any(there))

    @property
    def is_quality(self) -> bool:
        """Whether it says how good the model's output is, and not what it cost."""
        return "quality" in self.subjects

    @property
    def is_cost(self) -> bool:
        """Whether it may be averaged and divided only among trials that were measured under equal conditions."""
        return not self.subjects.isdisjoint(COST_SUBJECTS)

    @property
    def is_energy(self) -> bool:
        """Whether it is absent where there is no energy source."""
        return self.unit in ("joules", "watts")
