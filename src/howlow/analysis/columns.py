"""The columns of results.csv: each once, with its name, label, unit and meaning.

Their order is the file's. Names and meanings never change; further columns may be appended, and the further axes of a
grid follow under their dotted names. Units are kinds of quantity in SI; only `howlow.reporting` turns them into text.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Unit = Literal["text", "count", "number", "bytes", "seconds", "per_second", "joules", "watts", "fraction", "nats"]
Better = Literal["higher", "lower"]


@dataclass(frozen=True)
class Column:
    """One column: `better` says which direction is good, None where neither is."""

    name: str
    label: str
    unit: Unit
    meaning: str
    better: Better | None = None

    @property
    def is_number(self) -> bool:
        """Whether its values are numbers that can be averaged and divided."""
        return self.unit != "text"


_TRIAL = (
    Column("trial", "trial", "text", "the trial's name, and its folder's"),
    Column("kind", "kind", "text", "lora, base (zero-shot, no adapter) or full (every weight trained)"),
    Column("rank", "rank", "count", "the adapter's inner dimension; absent without an adapter"),
    Column("seed", "seed", "count", "initialisation, order and dropout"),
    Column("status", "status", "text", "done, out_of_memory, diverged or failed"),
    Column("alpha", "alpha", "number", "the numerator of the adapter's scaling"),
    Column("scaling_factor", "scaling", "number", "s in h = W x + s B A x"),
    Column("layout", "layout", "text", "how examples became token batches"),
    Column("precision", "precision", "text", "of weights and arithmetic"),
    Column("total_parameters", "parameters", "count", "of the model without its adapter"),
    Column("trainable_parameters", "trainable", "count", "parameters that the optimizer changed"),
    Column("adapter_bytes", "adapter size", "bytes", "size of adapter_model.safetensors", "lower"),
)

_PHASE: tuple[tuple[str, str, Unit, str, Better | None], ...] = (
    ("samples_per_s", "throughput", "per_second", "samples / time, both summed over the measured steps", "higher"),
    ("tokens_per_s", "tokens/s", "per_second", "real tokens / time, both summed over the measured steps", "higher"),
    ("new_tokens_per_sample", "new tokens", "number", "tokens written / samples of the measured generate steps", None),
    ("time_per_sample_s", "time/sample", "seconds", "time / samples, both summed over the measured steps", "lower"),
    ("energy_per_sample_j", "energy/sample", "joules", "energy of the measured part / its samples", "lower"),
    ("cpu_energy_per_sample_j", "CPU energy/sample", "joules", "the same of the CPU beside an accelerator", "lower"),
    ("power_w", "power", "watts", "energy of the measured part / the time it covers", "lower"),
    ("peak_memory_bytes", "peak memory", "bytes", "device memory in use on a GPU, resident on a CPU", "lower"),
    ("peak_allocated_bytes", "peak allocated", "bytes", "torch's allocator on a GPU", "lower"),
    ("peak_reserved_bytes", "peak reserved", "bytes", "torch's allocator on a GPU", "lower"),
    ("utilization", "utilisation", "fraction", "mean of the readings inside the measured steps", None),
)


def _phase_columns(prefix: str, words: str) -> list[Column]:
    return [
        Column(f"{prefix}_{name}", label, unit, f"{words}: {meaning}", better)
        for name, label, unit, meaning, better in _PHASE
        if prefix == "inference" or name != "new_tokens_per_sample"
    ]


_METERED: tuple[tuple[str, str, Unit, str, Better | None], ...] = (
    ("energy_error_per_sample_j", "energy error/sample", "joules", "how far energy/sample can be from the truth", None),
    (
        "energy_above_idle_per_sample_j",
        "energy above idle/sample",
        "joules",
        "energy/sample less the device's idle power x time/sample",
        "lower",
    ),
    (
        "energy_above_idle_error_per_sample_j",
        "error of energy above idle/sample",
        "joules",
        "the error of energy/sample and that of the idle power x time/sample",
        None,
    ),
    (
        "cpu_energy_above_idle_per_sample_j",
        "CPU energy above idle/sample",
        "joules",
        "CPU energy/sample less the CPU's idle power x time/sample",
        "lower",
    ),
    ("phase_energy_j", "phase energy", "joules", "energy of the whole phase, burn-in and pauses included", "lower"),
    ("phase_power_w", "phase power", "watts", "the phase's energy / the time it covers", "lower"),
    ("power_p05_w", "power, 5 %", "watts", "5th percentile of the readings inside the measured steps", None),
    ("power_p50_w", "power, 50 %", "watts", "median of the readings inside the measured steps", None),
    ("power_p95_w", "power, 95 %", "watts", "95th percentile of the readings inside the measured steps", None),
    (
        "memory_utilization",
        "memory use",
        "fraction",
        "time in which a GPU's memory was used, mean of the readings",
        None,
    ),
)

_GENERATION: tuple[tuple[str, str, Unit, str, Better | None], ...] = (
    (
        "prefill_time_per_sample_s",
        "prefill time/sample",
        "seconds",
        "time until the first new token / samples",
        "lower",
    ),
    ("decode_time_per_sample_s", "decode time/sample", "seconds", "time after the first new token / samples", "lower"),
    (
        "prefill_tokens_per_s",
        "prefill tokens/s",
        "per_second",
        "tokens of the prompts (real ones, however many were computed) / time",
        "higher",
    ),
    ("decode_tokens_per_s", "decode tokens/s", "per_second", "new tokens after the first ones / time", "higher"),
    (
        "prefill_energy_per_token_j",
        "prefill energy/token",
        "joules",
        "energy / tokens; absent where a part is too short for the source",
        "lower",
    ),
    (
        "decode_energy_per_token_j",
        "decode energy/token",
        "joules",
        "energy / tokens; absent where a part is too short for the source",
        "lower",
    ),
)

COLUMNS: tuple[Column, ...] = (
    *_TRIAL,
    Column("train_batch_size", "batch size", "count", "examples in one forward and backward pass"),
    *_phase_columns("train", "fine-tuning"),
    Column("train_final_loss", "final loss", "nats", "loss of the last training step", "lower"),
    Column("inference_batch_size", "batch size", "count", "test examples in one batch"),
    *_phase_columns("inference", "generation if the task has answers, else the loss over the test text"),
    Column("energy_source", "energy source", "text", "where energy and power come from"),
    Column("loss", "test loss", "nats", "negative log-likelihood per target token of the test", "lower"),
    Column("perplexity", "perplexity", "number", "exp(loss)", "lower"),
    Column("word_perplexity", "word perplexity", "number", "exp(negative log-likelihood per word)", "lower"),
    Column("bits_per_byte", "bits/byte", "number", "negative log-likelihood in bits per byte of text", "lower"),
    Column("exact_match", "exact match", "fraction", "answers that equal a reference after normalisation", "higher"),
    Column("f1", "F1", "fraction", "overlap of words with the best reference", "higher"),
    Column("rouge1", "ROUGE-1", "fraction", "overlap of words with the reference", "higher"),
    Column("rouge2", "ROUGE-2", "fraction", "overlap of pairs of words with the reference", "higher"),
    Column("rougeL", "ROUGE-L", "fraction", "longest common subsequence with the reference", "higher"),
    *(
        Column(f"{prefix}_{name}", label, unit, f"{words}: {meaning}", better)
        for prefix, words in (("train", "fine-tuning"), ("inference", "inference"))
        for name, label, unit, meaning, better in _METERED
    ),
    Column("idle_power_w", "idle power", "watts", "what the energy source read before the trial, while nothing ran"),
    Column("meter_rate_hz", "reading rate", "per_second", "readings a second of the timeline, as it turned out"),
    Column("meter_largest_gap_s", "largest gap", "seconds", "the longest time without a reading of one instrument"),
    Column(
        "meter_cpu_share",
        "meters' CPU",
        "fraction",
        "CPU time of the meters, nvidia-smi's included / the trial's",
        "lower",
    ),
    Column(
        "meter_step_share",
        "meters' time",
        "fraction",
        "time that the steps' readings took / that of the steps",
        "lower",
    ),
    *(
        Column(f"inference_{name}", label, unit, f"generation: {meaning}, both summed over the measured steps", better)
        for name, label, unit, meaning, better in _GENERATION
    ),
)

QUALITY = ("loss", "perplexity", "word_perplexity", "bits_per_byte", "exact_match", "f1", "rouge1", "rouge2", "rougeL")


def columns_of(axes: Iterable[str]) -> tuple[Column, ...]:
    """All columns of results whose grid has these further axes."""
    return (*COLUMNS, *(Column(axis, axis, "text", f"the setting {axis}") for axis in axes))


def column_named(name: str) -> Column:
    """The column of that name; a further axis is a text."""
    return next((column for column in COLUMNS if column.name == name), Column(name, name, "text", f"setting {name}"))
