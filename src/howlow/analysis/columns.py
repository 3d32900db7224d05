"""The columns of results.csv. Every fact about a column stands here; tables, figures and caveats derive from it.

The order of `COLUMNS` is the file's. Names and meanings never change. New columns go to the end, and the further axes
of a grid follow them under their dotted names. Other modules refer to a column by its constant (`TRAIN_BATCH_SIZE`) or
choose columns by their fields; none of them spells a name. `cost_columns` lists what fine-tuning and inference cost.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import get_args

from howlow.analysis.column import Column, Panel, Stage, TablePlace, TableSection
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
REPEAT = Column("repeat", "repeat", "count", "which measurement of the same trial this is, counted from 1")
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

# -- quality --------------------------------------------------------------------------------------------------------

_QUALITY, _ANSWERS, _EXPONENTIAL = of("quality"), of("quality", "answers"), of("quality", "exponential")


def _at(order: int) -> TablePlace:
    return TablePlace("quality", order, in_terminal=True)


LOSS = Column(
    "loss",
    "test loss",
    "nats",
    "negative log-likelihood per target token of the test",
    "lower",
    subjects=_QUALITY,
    table=_at(10),
    heading="loss",
    panel=Panel(7, unless="perplexity"),
)
_SCORES = (
    LOSS,
    Column(
        "perplexity",
        "perplexity",
        "number",
        "exp(loss)",
        "lower",
        subjects=_EXPONENTIAL,
        table=_at(7),
        panel=Panel(6),
    ),
    Column(
        "word_perplexity",
        "word perplexity",
        "number",
        "exp(negative log-likelihood per word)",
        "lower",
        subjects=_EXPONENTIAL,
        table=_at(8),
    ),
    Column(
        "bits_per_byte",
        "bits/byte",
        "number",
        "negative log-likelihood in bits per byte of text",
        "lower",
        subjects=_QUALITY,
        table=_at(9),
    ),
    Column(
        "exact_match",
        "exact match",
        "fraction",
        "answers that equal a reference after normalisation",
        "higher",
        subjects=_ANSWERS,
        table=_at(2),
        panel=Panel(2),
    ),
    Column(
        "f1",
        "F1",
        "fraction",
        "overlap of words with the best reference",
        "higher",
        subjects=_ANSWERS,
        table=_at(1),
        panel=Panel(1),
    ),
    Column(
        "rouge1",
        "ROUGE-1",
        "fraction",
        "F-measure of the words shared with the reference, stemmed (rouge-score)",
        "higher",
        subjects=_ANSWERS,
        table=_at(4),
        panel=Panel(3),
    ),
    Column(
        "rouge2",
        "ROUGE-2",
        "fraction",
        "F-measure of the pairs of words shared with the reference, stemmed (rouge-score)",
        "higher",
        subjects=_ANSWERS,
        table=_at(5),
        panel=Panel(4),
    ),
    Column(
        "rougeL",
        "ROUGE-L",
        "fraction",
        "F-measure of the longest common subsequence with the reference, stemmed (rouge-score's rougeL)",
        "higher",
        subjects=_ANSWERS,
        table=_at(6),
        panel=Panel(5),
    ),
)

_OF_PARTS = (
    Column(
        "has_answer_exact_match",
        "exact match, with answer",
        "fraction",
        "exact_match of the questions that have an answer; absent where all have one",
        "higher",
        subjects=_ANSWERS,
        table=TablePlace("quality", 12),
    ),
    Column(
        "has_answer_f1",
        "F1, with answer",
        "fraction",
        "f1 of the questions that have an answer; absent where all have one",
        "higher",
        subjects=_ANSWERS,
        table=_at(11),
    ),
    Column(
        "no_answer_exact_match",
        "exact match, no answer",
        "fraction",
        "share of the questions without an answer to which none was given; absent where all have one",
        "higher",
        subjects=_ANSWERS,
        table=TablePlace("quality", 14),
    ),
    Column(
        "no_answer_f1",
        "F1, no answer",
        "fraction",
        "f1 of the questions without an answer, which is their exact_match; absent where all have one",
        "higher",
        subjects=_ANSWERS,
        table=_at(13),
    ),
)
_GENERAL = (
    Column(
        "general_loss_before",
        "general loss before",
        "nats",
        "negative log-likelihood per token of task.general_text, of the base model",
        table=_at(15),
        is_relative=False,
        is_optional=True,
    ),
    Column(
        "general_loss_after",
        "general loss after",
        "nats",
        "the same of the model that was trained (or cut); what it is above the loss before was forgotten",
        "lower",
        subjects=of("quality", "forgetting"),
        table=_at(16),
        panel=Panel(8),
    ),
)

UNMATCHABLE_REFERENCES = Column(
    "unmatchable_references",
    "unmatchable answers",
    "count",
    "accepted answers that no generation can match as they stand: too long, or with stop text or special tokens",
    table=_at(3),
    is_relative=False,
    is_optional=True,
    shows_zero=False,
)

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

# -- all of them ----------------------------------------------------------------------------------------------------

COLUMNS: tuple[Column, ...] = (
    *_TRIAL,
    TRAIN_BATCH_SIZE,
    *of_stage("train", "fine-tuning", *RATES, *MEASURED_COSTS),
    *of_stage("train", "", _FINAL_LOSS),
    INFERENCE_BATCH_SIZE,
    *of_stage("inference", _OF_INFERENCE, *RATES, NEW_TOKENS, *MEASURED_COSTS),
    ENERGY_SOURCE,
    *_SCORES,
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
    *_OF_PARTS,
    *_GENERAL,
    START_RANK,
    UPDATE_KEPT,
    CONTINUED_STEPS,
)
_BY_NAME = {column.name: column for column in COLUMNS}


def columns_of(axes: Iterable[str]) -> tuple[Column, ...]:
    """All columns of results whose grid has these further axes."""
    return (*COLUMNS, *map(_axis, axes))


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


TEXT_WEIGHTS: Mapping[str, tuple[str, float]] = {
    "loss": ("tokens", 1.0),
    "perplexity": ("tokens", 1.0),
    "word_perplexity": ("words", 1.0),
    "bits_per_byte": ("bytes", math.log(2)),
}
"""What a metric divides the summed log-likelihood of texts by: a number of each line, times a factor."""
