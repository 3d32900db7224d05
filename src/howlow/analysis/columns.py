"""The columns of results.csv. Every fact about a column stands here; tables, figures and caveats derive from it.

The order of `COLUMNS` is the file's. Names and meanings never change. New columns go to the end, and the further axes
of a grid follow them under their dotted names. Other modules refer to a column by its constant (`TRAIN_BATCH_SIZE`) or
choose columns by their fields; none of them spells a name. `cost_columns` lists what fine-tuning and inference cost,
`quality_columns` the scores.
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import get_args

from howlow.analysis.column import Column, Stage, TablePlace, TableSection
from howlow.analysis.condition_columns import CONDITIONS, FURTHER_ENERGIES
from howlow.analysis.cost_columns import (
    GENERATION,
    INTERVALS,
    MEASURED_COSTS,
    METERED,
    NEW_TOKENS,
    PROCESS_MEMORY,
    RATES,
    STEP_TIMES,
    of,
    of_stage,
)
from howlow.analysis.quality_columns import GENERAL_LOSSES, SCORES, SCORES_OF_PARTS, UNMATCHABLE_REFERENCES, VALIDATION

# -- the trial ------------------------------------------------------------------------------------------------------

TRIAL = Column("trial", "trial", "text", "the trial's name, and its folder's")
SEED = Column("seed", "seed", "count", "governs initialisation, order and dropout")
KIND = Column(
    "kind",
    "kind",
    "text",
    "lora, shrunk (a trained adapter cut to this rank), base (zero-shot, no adapter) or full (every weight trained)",
)
RANK = Column("rank", "rank", "count", "the adapter's inner dimension; absent without an adapter")
STATUS = Column("status", "status", "text", "done, out_of_memory, diverged or failed")
SWEEP = Column("sweep", "sweep", "text", "the run directory that the trial is from; there where there are several")
REPEAT = Column("repeat", "repeat", "count", "which measurement of the same trial this is, counted from 1")
RAN_ON = (
    Column("ran_on_machine", "machine", "text", "the name of the machine that ran it"),
    Column("ran_on_device", "device", "text", "the name of its device, the CPU's where it ran on that"),
    Column("ran_on_uuid", "device's UUID", "text", "which of several GPUs it was"),
)
NEIGHBOURS = Column(
    "trials_beside",
    "trials beside it",
    "count",
    "other trials that ran on its machine during its phases; absent: not known",
    is_relative=False,
    is_optional=True,
)
ADAPTER_BYTES = Column(
    "adapter_bytes",
    "adapter size",
    "bytes",
    "size of adapter_model.safetensors",
    "lower",
    table=TablePlace("adapter", 2),
)
ENERGY_SOURCE = Column("energy_source", "energy source", "text", "where energy and power come from")
_TRIAL = (
    TRIAL,
    KIND,
    RANK,
    SEED,
    STATUS,
    Column("alpha", "alpha", "number", "the numerator of the adapter's scaling"),
    Column("scaling_factor", "scaling", "number", "s in h = W x + s B A x"),
    Column("layout", "layout", "text", "how examples became token batches"),
    Column("precision", "precision", "text", "dtype of the weights and the arithmetic"),
    Column("total_parameters", "parameters", "count", "the model's, without its adapter"),
    Column(
        "trainable_parameters",
        "trainable",
        "count",
        "parameters that the optimizer changed",
        table=TablePlace("adapter", 1),
    ),
    ADAPTER_BYTES,
)
_METERS = (
    Column("idle_power_w", "idle power", "watts", "power that the energy source read before the trial, at rest"),
    Column("meter_rate_hz", "reading rate", "per_second", "readings per second of the timeline, as measured"),
    Column("meter_largest_gap_s", "largest gap", "seconds", "the longest time without a reading of one instrument"),
    Column(
        "meter_cpu_share", "meters' CPU", "fraction", "the meters' CPU time, nvidia-smi's too / the trial's", "lower"
    ),
    Column("meter_step_share", "meters' time", "fraction", "time of the steps' readings / time of the steps", "lower"),
)

# -- fine-tuning and inference --------------------------------------------------------------------------------------


def _batch_size(stage: Stage, meaning: str) -> Column:
    place = TablePlace("fine-tuning", 1)
    (column,) = of_stage(stage, "", Column("batch_size", "batch size", "count", meaning, table=place))
    return replace(column, is_relative=False)


TRAIN_BATCH_SIZE = _batch_size("train", "examples in one forward and backward pass")
INFERENCE_BATCH_SIZE = _batch_size("inference", "test examples in one batch")
BATCH_SIZES: dict[Stage, Column] = {"train": TRAIN_BATCH_SIZE, "inference": INFERENCE_BATCH_SIZE}
BATCH_AXES: dict[Stage, str] = {"train": "training.batch_size", "inference": "inference.batch_size"}
"""The setting that each batch follows from, which a grid may have as an axis."""
_FINAL_LOSS = Column(
    "final_loss",
    "final loss",
    "nats",
    "loss of the last training step",
    "lower",
    subjects=of("optimizer"),
    table=TablePlace("fine-tuning", 12),
)
_OF_INFERENCE = "generation if the task has answers, else the loss over the test text"

# -- shrunk adapters ------------------------------------------------------------------------------------------------

START_RANK = Column(
    "start_rank",
    "cut from rank",
    "count",
    "rank of the trained adapter that a shrunk one was cut from",
    table=TablePlace("adapter", 3),
    is_relative=False,
    is_optional=True,
)
UPDATE_KEPT = Column(
    "update_kept",
    "update kept",
    "fraction",
    "share of the trained update's squared singular values that the cut kept",
    "higher",
    table=TablePlace("adapter", 4, in_terminal=True),
    is_relative=False,
    is_optional=True,
)
CONTINUED_STEPS = Column(
    "continued_steps",
    "steps after the cut",
    "count",
    "optimizer steps of further training after the cut",
    table=TablePlace("adapter", 5),
    is_relative=False,
    is_optional=True,
)

# -- several devices ------------------------------------------------------------------------------------------------

DEVICES = Column(
    "devices",
    "devices",
    "count",
    "devices over which the base was sharded; energy is the sum of all, memory that of the one that had most",
    is_relative=False,
)

# -- all of them ----------------------------------------------------------------------------------------------------

COLUMNS: tuple[Column, ...] = (
    *_TRIAL,
    TRAIN_BATCH_SIZE,
    *of_stage("train", "fine-tuning", *RATES, *MEASURED_COSTS),
    *of_stage("train", "", _FINAL_LOSS),
    INFERENCE_BATCH_SIZE,
    *of_stage("inference", _OF_INFERENCE, *RATES, NEW_TOKENS, *MEASURED_COSTS),
    ENERGY_SOURCE,
    *SCORES,
    *of_stage("train", "fine-tuning", *METERED),
    *of_stage("inference", "inference", *METERED),
    *_METERS,
    *of_stage("inference", "generation", *GENERATION),
    UNMATCHABLE_REFERENCES,
    *of_stage("train", "fine-tuning", *STEP_TIMES),
    *of_stage("inference", "inference", *STEP_TIMES),
    *of_stage("train", "fine-tuning", *CONDITIONS, *FURTHER_ENERGIES),
    *of_stage("inference", "inference", *CONDITIONS, *FURTHER_ENERGIES),
    *of_stage("train", "fine-tuning", PROCESS_MEMORY),
    *of_stage("inference", "inference", PROCESS_MEMORY),
    *of_stage("train", "fine-tuning", *INTERVALS),
    *of_stage("inference", "inference", *INTERVALS),
    REPEAT,
    *SCORES_OF_PARTS,
    *GENERAL_LOSSES,
    START_RANK,
    UPDATE_KEPT,
    CONTINUED_STEPS,
    *VALIDATION.values(),
    DEVICES,
    *RAN_ON,
    NEIGHBOURS,
)
_BY_NAME = {column.name: column for column in (*COLUMNS, SWEEP)}


def columns_of(axes: Iterable[str]) -> tuple[Column, ...]:
    """All columns of results that are told apart by these further axes."""
    return (*COLUMNS, *map(column_named, axes))


def column_named(name: str) -> Column:
    """The column of that name; any other name is that of a further axis."""
    return _BY_NAME.get(name) or _axis(name)


def _axis(name: str) -> Column:
    return Column(name, name, "text", f"the setting {name}")


def tabulated() -> list[Column]:
    """The columns that tables show, section by section."""
    sections = get_args(TableSection)
    shown = [(column.table, column) for column in COLUMNS if column.table is not None]
    shown.sort(key=lambda pair: (sections.index(pair[0].section), pair[0].order))
    return [column for _, column in shown]


def drawn(stage: Stage) -> list[Column]:
    """The costs of a stage that figures show, panel by panel."""
    return _by_panel(column for column in COLUMNS if column.stage == stage)


def drawn_quality() -> list[Column]:
    """The quality that figures show, panel by panel."""
    return _by_panel(column for column in COLUMNS if column.is_quality)


def _by_panel(columns: Iterable[Column]) -> list[Column]:
    with_panel = [(column.panel.order, column) for column in columns if column.panel is not None]
    return [column for _, column in sorted(with_panel, key=lambda pair: pair[0])]
