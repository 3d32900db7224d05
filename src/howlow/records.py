"""What a trial leaves behind: the types of a record, how it is written and read, and when two may be compared.

A trial's folder holds `record.json` (settings, environment, status, measurements, scores, warnings), `steps.jsonl`
(one raw line a step) and `timeline.jsonl` (one line a reading). The record is written last, under a temporary name,
flushed to the disk and renamed: there is a record, or the trial is not done. Nothing here is a summary; throughput,
relative figures and the like are computed when records are read (`howlow.analysis`).

Absent is `None`, never 0, -1 or NaN.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType, UnionType
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from howlow.errors import UserError
from howlow.settings import Settings, TrialKind, setting_keys

SCHEMA_VERSION = 1
T = TypeVar("T", bound=BaseModel)

PhaseName = Literal["load", "train", "evaluate", "generate"]
Part = Literal["burn_in", "measured"]
Status = Literal["done", "out_of_memory", "diverged", "failed"]


class WarningKind(StrEnum):
    """Every reason to distrust or to qualify a trial's numbers; the list is closed."""

    TRAIN_TEST_OVERLAP = "train_test_overlap"
    EXAMPLES_DROPPED = "examples_dropped"
    TEXT_CUT = "text_cut"
    RANK_ABOVE_MATRIX = "rank_above_matrix"
    TOKENIZER_SUBSTITUTED = "tokenizer_substituted"
    ENERGY_ABSENT = "energy_absent"
    ENERGY_ASSUMED = "energy_assumed"
    ENERGY_OF_ANOTHER_DEVICE = "energy_of_another_device"
    PEAK_MEMORY_ABSENT = "peak_memory_absent"
    PERPLEXITY_OVERFLOW = "perplexity_overflow"
    STEPS_SKIPPED = "steps_skipped"
    SHORT_BURN_IN = "short_burn_in"
    RESUMED = "resumed"
    RANDOM_WEIGHTS = "random_weights"
    LONGER_THAN_MODEL = "longer_than_model"
    LAYOUT_FELL_BACK = "layout_fell_back"
    NEAR_TIES = "near_ties"
    WEIGHTS_LEFT_OUT = "weights_left_out"
    ENERGY_WINDOW_TOO_SHORT = "energy_window_too_short"
    ENERGY_GAP = "energy_gap"
    SENSOR_LATE = "sensor_late"
    TIMELINE_GAP = "timeline_gap"
    METER_OVERHEAD = "meter_overhead"
    NOT_STEADY = "not_steady"
    STEADINESS_UNKNOWN = "steadiness_unknown"
    OTHER_PROCESS_ON_DEVICE = "other_process_on_device"
    OTHER_WORK_ON_MACHINE = "other_work_on_machine"
    SWAPPING = "swapping"
    DEVICE_PARTITIONED = "device_partitioned"
    DEVICE_VIRTUAL = "device_virtual"
    POWER_CAPPED = "power_capped"
    THROTTLED = "throttled"


REMEDIES: Mapping[WarningKind, str] = {
    WarningKind.TRAIN_TEST_OVERLAP: "nothing to do; task.overlap = keep trains on them all the same",
    WarningKind.EXAMPLES_DROPPED: "raise training.sequence_length to keep them",
    WarningKind.TEXT_CUT: "raise training.sequence_length; where answers need the room, lower inference.max_new_tokens",
    WarningKind.RANK_ABOVE_MATRIX: "the extra rank adds cost but no expressiveness; leave this rank out",
    WarningKind.TOKENIZER_SUBSTITUTED: "give the model's own with the setting tokenizer",
    WarningKind.ENERGY_ABSENT: "run on a device with a sensor, or set meters.assumed_power_w",
    WarningKind.ENERGY_ASSUMED: "the watts were given by the user, not measured; use a sensor for a measured figure",
    WarningKind.ENERGY_OF_ANOTHER_DEVICE: "leave meters.energy at auto to read only the trial's own device",
    WarningKind.PEAK_MEMORY_ABSENT: "run where /proc/self/clear_refs can be written to reset the resident peak",
    WarningKind.PERPLEXITY_OVERFLOW: "read the loss instead",
    WarningKind.STEPS_SKIPPED: "gradients overflowed in fp16; use bf16 or fp32 if there are many",
    WarningKind.SHORT_BURN_IN: "use more examples, so that burn-in can have its steps",
    WarningKind.RESUMED: "the trial was interrupted and went on; run it afresh for an unbroken measurement",
    WarningKind.RANDOM_WEIGHTS: "the costs are those of the architecture; quality needs the real weights",
    WarningKind.LONGER_THAN_MODEL: "lower training.sequence_length to what the model was made for",
    WarningKind.LAYOUT_FELL_BACK: "nothing is wrong but the speed; training.layout = padded says the same on purpose",
    WarningKind.NEAR_TIES: "another layout or batch may write other tokens there; smallest_margin in predictions.jsonl",
    WarningKind.WEIGHTS_LEFT_OUT: "see that config.json and the weights are of the same model",
    WarningKind.ENERGY_WINDOW_TOO_SHORT: "use more examples, so that the measured part lasts that long",
    WarningKind.ENERGY_GAP: "see what kept the sensor from answering; the figures cover only what it saw",
    WarningKind.SENSOR_LATE: "no step waited for it; see what kept the sensor from answering (howlow env tries it)",
    WarningKind.TIMELINE_GAP: "leave the meters a core of their own, or lower meters.rate_hz",
    WarningKind.METER_OVERHEAD: "lower meters.rate_hz, or use more examples in a step",
    WarningKind.NOT_STEADY: 'raise meters.burn_in_steps, or set it to "auto", and use more examples; look for heat and '
    "outside work",
    WarningKind.STEADINESS_UNKNOWN: "use more examples: too few measured steps to tell whether the speed was steady",
    WarningKind.OTHER_PROCESS_ON_DEVICE: "end the other processes, or give the trial a device of its own",
    WarningKind.OTHER_WORK_ON_MACHINE: "let the other work end, or bind it to other cores",
    WarningKind.SWAPPING: "free memory, or use a smaller batch",
    WarningKind.DEVICE_PARTITIONED: "use the whole card for energy; other instances work on it too",
    WarningKind.DEVICE_VIRTUAL: "use a whole card; on a shared one time and energy depend on the others",
    WarningKind.POWER_CAPPED: "the figures hold for this limit; nvidia-smi -pl sets another",
    WarningKind.THROTTLED: "cool the device, set run.cooldown_s, and run the trial again",
}


class Frozen(BaseModel):
    """A frozen value that refuses unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class RecordWarning(Frozen):
    """One reason to distrust or qualify a number, with what it is about."""

    kind: WarningKind
    detail: str

    @property
    def remedy(self) -> str:
        """What the user can do about it."""
        return REMEDIES[self.kind]


class Step(Frozen):
    """One optimizer step, or one batch of inference: a raw line of `steps.jsonl`."""

    phase: PhaseName
    part: Part
    step: int = Field(description="counted from 0 within its phase")
    start_s: float = Field(description="seconds since the trial's start, pauses of a resumed trial left out")
    duration_s: float
    micro_batches: int
    samples: int = Field(description="examples, whatever the layout")
    tokens: int = Field(description="real tokens: prompt and completion read, in generation also those written")
    target_tokens: int = Field(description="tokens with a loss; in generation the tokens written")
    computed_tokens: int = Field(description="tokens the model ran on, padding included")
    loss: float | None = Field(
        None, description="summed negative log-likelihood of the target tokens / their number, in nats"
    )
    energy_counter_j: float | None = Field(None, description="the energy counter's reading at the step's end")
    gradient_norm: float | None = Field(None, description="before clipping")
    skipped: bool = Field(False, description="the optimizer did not step: a gradient overflowed in fp16")
    prefill_s: float | None = Field(
        None, description="generation: until the prompts were read and a token each written"
    )
    prefill_tokens: int | None = Field(None, description="generation: tokens that the model ran on to read the prompts")


class Reading(Frozen):
    """One line of `timeline.jsonl`."""

    time_s: float
    device: str
    power_w: float | None = None
    memory_bytes: int | None = None
    utilization: float | None = Field(
        None, description="0..1: the GPU's SMs busy, or this process's share of its cores"
    )
    temperature_c: float | None = None
    energy_counter_j: float | None = Field(None, description="the energy counter, wrap-arounds undone")
    memory_utilization: float | None = Field(None, description="0..1: the time in which the GPU's memory was used")
    sm_clock_hz: float | None = None
    memory_clock_hz: float | None = None
    throttle_reasons: tuple[str, ...] | None = Field(None, description="why the clock is lower than it could be")
    phase: PhaseName


class EnergyWindow(Frozen):
    """The energy of one device beside the trial's own sum: the CPU beside an accelerator, or one device of several."""

    device: str
    part: Literal["measured", "phase"]
    energy_j: float
    error_j: float | None = Field(None, description="how far the energy can lie from the truth; None: no bound")
    duration_s: float = Field(description="the time that energy_j covers")
    samples: int = Field(description="the samples that energy_j covers (of the measured part)")
    readings: int


class PhaseRecord(Frozen):
    """What was read once about a whole phase (the steps hold the rest)."""

    phase: PhaseName
    start_s: float
    duration_s: float
    peak_memory_bytes: int | None = Field(None, description="device memory in use on a GPU, resident on a CPU")
    peak_allocated_bytes: int | None = Field(None, description="torch's allocator on a GPU")
    peak_reserved_bytes: int | None = Field(None, description="torch's allocator on a GPU")
    measured_energy_j: float | None = Field(None, description="energy of the measured part, pauses subtracted")
    measured_duration_s: float | None = Field(None, description="the time that measured_energy_j covers")
    measured_samples: int | None = Field(None, description="the samples that measured_energy_j covers")
    phase_energy_j: float | None = Field(None, description="energy of the whole phase, burn-in and pauses included")
    measured_energy_error_j: float | None = Field(
        None, description="how far measured_energy_j can lie from the truth, as the source's pace and gaps allow"
    )
    measured_energy_readings: int | None = Field(None, description="the readings that measured_energy_j rests on")
    phase_energy_error_j: float | None = Field(None, description="the same for phase_energy_j")
    phase_energy_duration_s: float | None = Field(None, description="the time that phase_energy_j covers")
    energies: tuple[EnergyWindow, ...] = Field((), description="the CPU beside it (cpu), and each device of several")


class EnergySource(Frozen):
    """Where energy and power come from, or why they are absent."""

    name: str | None = Field(
        description="nvml counter, nvml power, nvidia-smi, rapl, amd, apple, jetson, assumed; None: no source"
    )
    detail: str = Field(description="the device, or the reason for the absence")
    update_period_s: float | None = Field(None, description="how often the source has something new")
    devices: tuple[str, ...] = Field((), description="their names in the timeline; several are summed")
    cpu: str | None = Field(None, description="the source of the CPU's energy beside an accelerator, or why none")


class Idle(Frozen):
    """What the energy source read while nothing ran, before the trial."""

    power_w: float
    error_w: float | None = None
    duration_s: float
    temperature_c: float | None = None
    measured_at: str = Field(description="UTC, ISO 8601")


class MeterRecord(Frozen):
    """How the meters themselves did."""

    rate_hz: float | None = Field(None, description="readings a second of the slowest instrument, as it turned out")
    largest_gap_s: float | None = Field(None, description="the longest time between two readings of one instrument")
    readings: int = Field(0, description="lines of the timeline of this process")
    late: int = Field(0, description="readings that did not come in time")
    cpu_share: float | None = Field(None, description="CPU time of the meters / that of the process")
    step_share: float | None = Field(None, description="time the steps' readings took / time of the steps")
    idle: Idle | None = Field(None, description="the idle power before the trial; None where no source reads it")


class ModelRecord(Frozen):
    """The model and the adapter of a trial."""

    reference: str
    architecture: str
    total_parameters: int = Field(description="of the base model")
    trainable_parameters: int
    scaling_factor: float | None = None
    alpha: float | None = None
    adapter_bytes: int | None = Field(None, description="size of adapter_model.safetensors")
    precision: str
    tokenizer: str
    weights: Literal["pretrained", "random"]


class DataRecord(Frozen):
    """The examples of a sweep: the same for every trial that shares its task, tokenizer and sequence length."""

    train_sha256: str = Field(description="of the training examples' token ids, in order")
    test_sha256: str
    train_examples: int
    train_groups: int
    test_examples: int
    test_groups: int
    train_tokens: int
    test_tokens: int
    longest_tokens: int = Field(description="the longest training example")
    overlap_left_out: int = Field(description="training examples left out because their group occurs in the test data")
    dropped: int = Field(description="training examples too long for the sequence length")
    cut: int = Field(description="examples whose text or context was cut")


class LayoutChoice(Frozen):
    """The layout that trials take, and why."""

    layout: Literal["padded", "packed", "shared"]
    kernel: Literal["sdpa", "flex"] | None = Field(None, description="the attention kernel of packed and shared")
    problem: str | None = Field(None, description="why the layout is padded though another would have been taken")


class LayoutTokens(Frozen):
    """What a layout made of a phase's examples."""

    tokens: int = Field(description="real tokens of the examples, a shared prefix counted once for each")
    computed_tokens: int = Field(description="tokens the model ran on")
    padded_tokens: int = Field(description="tokens that the layout padded would have run on")
    padding_share: float = Field(description="share of computed_tokens that is padding, 0..1")
    saved_share: float = Field(description="share of padded_tokens that was not computed, 0..1")


class LayoutRecord(LayoutChoice):
    """The layout of a trial, and what it saved."""

    train: LayoutTokens | None = None
    evaluate: LayoutTokens | None = None


class MergedRecord(Frozen):
    """How far inference with the merged adapter agrees with the attached one (`inference.adapter = "merged"`)."""

    loss: float | None = Field(
        description="the test's loss with the adapter merged; `scores.loss` is the attached one's"
    )
    texts: int | None = Field(None, description="answers written by both; absent where the task writes none")
    equal_texts: int | None = Field(None, description="answers that are the same")


class BatchProbe(Frozen):
    """One probe of a search for the largest batch."""

    batch: int
    computed_tokens: int = Field(description="tokens that the model ran on in the heaviest batch of the schedule")
    peak_memory_bytes: int | None = Field(description="as the limit counts it; None where the memory ran out")
    fits: bool


class BatchSearch(Frozen):
    """The search for the largest batch that fits, for a batch size of "max"."""

    setting: Literal["training.batch_size", "inference.batch_size"]
    batch: int | None = Field(description="the largest that fits; None where not even one example does")
    largest: int = Field(description="the largest that was allowed: the examples, or training.effective_batch_size")
    limit_bytes: int
    budget_bytes: int = Field(description="the limit less the margin; a peak of at most this fits")
    limit: str = Field(description="where the limit comes from")
    memory: str = Field(description="what the peaks count: VmData on a CPU, memory reserved by torch on CUDA")
    probes: tuple[BatchProbe, ...] = Field(description="in their order; the last confirms the batch that was found")


class Scores(Frozen):
    """Quality on the test data; each absent where the task or random weights do not give it."""

    loss: float | None = None
    perplexity: float | None = None
    word_perplexity: float | None = None
    bits_per_byte: float | None = None
    exact_match: float | None = None
    f1: float | None = None
    rouge1: float | None = None
    rouge2: float | None = None
    rougeL: float | None = None  # noqa: N815  (the score's own name, and the column's)
    target_tokens: int | None = None
    words: int | None = None
    bytes: int | None = None


class Environment(Frozen):
    """What the trial ran on; records of different environments are not compared."""

    device: str = Field(description="cpu, cuda:0, mps")
    device_name: str
    device_uuid: str | None = None
    driver: str | None = None
    device_memory_bytes: int | None = None
    cpu: str
    cores: int
    threads: int = Field(description="torch's intra-op threads")
    memory_bytes: int
    platform: str
    python: str
    versions: dict[str, str] = Field(description="howlow, torch, transformers, peft, tokenizers")


class Record(Frozen):
    """Everything a finished trial leaves, apart from its raw steps, readings and predictions."""

    schema_version: int = SCHEMA_VERSION
    trial: str
    kind: TrialKind
    rank: int | None
    seed: int
    axes: dict[str, Any] = Field(description="the further grid axes under their dotted names")
    status: Status
    error: str | None = Field(None, description="one line, where the status is not done")
    resumed: int = Field(0, description="how often the trial went on after an interruption")
    settings: Settings
    environment: Environment | None
    model: ModelRecord | None
    data: DataRecord | None
    phases: tuple[PhaseRecord, ...] = ()
    energy: EnergySource | None = None
    layout: LayoutRecord | None = None
    merged: MergedRecord | None = None
    batch_search: tuple[BatchSearch, ...] = Field((), description="how a batch size of max was found")
    meters: MeterRecord | None = None
    scores: Scores = Scores()
    warnings: tuple[RecordWarning, ...] = ()
    started_at: str | None = Field(None, description="UTC, ISO 8601")
    ended_at: str | None = None
    preparation_s: float | None = Field(None, description="from the process's start to its first step")
    total_s: float | None = None

    def phase(self, name: PhaseName) -> PhaseRecord | None:
        """The record of one phase, if it ran."""
        return next((phase for phase in self.phases if phase.phase == name), None)


# -- files ----------------------------------------------------------------------------------------------------------


def write_atomically(path: Path, text: str) -> None:
    """Write under a temporary name, flush to the disk and rename: the file is whole or it is not there."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def clear_temporaries(folder: Path) -> None:
    """Remove what a killed writer left under temporary names; only for the one that holds the folder's lock."""
    for entry in folder.glob(".*.tmp"):
        if entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def write_record(folder: Path, record: Record) -> None:
    """Write `record.json` into the trial's folder; from then on the trial is done."""
    write_atomically(folder / "record.json", record.model_dump_json(indent=1) + "\n")


class LineWriter:
    """Appends whole lines to a JSONL file, each flushed, so that a killed process leaves at most a torn last line."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", encoding="utf-8")

    def append(self, line: str) -> None:
        """Write one line and hand it to the system."""
        self._file.write(line + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def cut_lines(path: Path, keep: Callable[[dict[str, Any]], bool]) -> None:
    """Cut a JSONL file back to its leading whole lines that satisfy `keep`; what stays keeps its bytes."""
    if not path.exists():
        return
    kept = 0
    for (_, raw), line in zip(_whole_lines(path), read_lines(path), strict=True):
        if not keep(line):
            break
        kept += len(raw) + 1
    if kept < path.stat().st_size:
        write_atomically(path, path.read_bytes()[:kept].decode("utf-8"))


def read_record(folder: Path) -> Record | None:
    """The trial's record, or None where there is none yet.

    Raises:
        UserError: the file is no record, or one of another schema version.
    """
    path = folder / "record.json"
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as a record: {error}") from None
    try:
        version = json.loads(text)["schema_version"]
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path}: no record; remove the file to run this trial again") from None
    if version != SCHEMA_VERSION:
        raise UserError(
            f"{path}: schema version {version}, this howlow reads version {SCHEMA_VERSION}; "
            "use the howlow that wrote it, or another folder"
        )
    try:
        return Record.model_validate_json(text)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(part) for part in problem["loc"])
        raise UserError(f"{path}: damaged at {where}: {problem['msg']}; remove the file to run it again") from None


def read_records(folder: Path) -> list[Record]:
    """All records of a run directory, in the order of their names.

    Raises:
        UserError: the folder is no run directory, or a record cannot be read.
    """
    trials = folder / "trials"
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give the --out folder of a sweep")
    if not trials.is_dir():
        raise UserError(f"{folder}: no run directory (it has no trials/ folder); give the --out folder of a sweep")
    found = [(entry, read_record(entry)) for entry in sorted(trials.iterdir()) if entry.is_dir()]
    for entry, record in found:
        if record is not None and record.trial != entry.name:
            raise UserError(
                f"{entry} holds the record of {record.trial}, whose folder is {trials / record.trial}; a trial has one "
                "folder, of its own name: remove the copy, or give it its name back"
            )
    return [record for _, record in found if record is not None]


def _whole_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The numbered lines of a JSONL file; a last line without its end (a killed writer) is left out."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return
    yield from enumerate(data.split(b"\n")[:-1], 1)


def _damaged(path: Path, number: int, problem: str) -> UserError:
    remedy = f"remove {path.parent} to run this trial again"
    return UserError(f"{path}, line {number}: damaged: {problem}; {remedy}")


def read_lines(path: Path, fields: Mapping[str, type | UnionType] = MappingProxyType({})) -> Iterator[dict[str, Any]]:
    """The whole lines of a JSONL file.

    Raises:
        UserError: a line is no JSON object, or one of its `fields` is not of its type; names the file and the line.
    """
    for number, line in _whole_lines(path):
        try:
            found = json.loads(line)
        except ValueError:
            raise _damaged(path, number, "no JSON") from None
        if not isinstance(found, dict):
            raise _damaged(path, number, "no JSON object")
        for name, kind in fields.items():
            if not isinstance(found.get(name), kind):
                raise _damaged(path, number, f"{name} is {found.get(name)!r}")
        yield found


def _read_models(path: Path, model: type[T]) -> list[T]:
    found = []
    for number, line in _whole_lines(path):
        try:
            found.append(model.model_validate_json(line))
        except ValidationError as error:
            problem = error.errors()[0]
            where = ".".join(str(part) for part in problem["loc"])
            raise _damaged(path, number, f"{where}: {problem['msg']}" if where else "no JSON object") from None
    return found


def read_steps(folder: Path) -> list[Step]:
    """The raw steps of a trial.

    Raises:
        UserError: a line is damaged; names the file and the line.
    """
    return _read_models(folder / "steps.jsonl", Step)


def read_timeline(folder: Path) -> list[Reading]:
    """The readings of a trial; a damaged line is refused as in `read_steps`."""
    return _read_models(folder / "timeline.jsonl", Reading)


# -- comparing ------------------------------------------------------------------------------------------------------


# A trial's own place in the grid, paths whose content the data's hashes stand for, and the batch, which the largest
# that fits makes depend on the rank (the paper, section IV.B): every table and figure shows where it changes.
_MAY_DIFFER = ("grid", "baselines", "seed", "lora.rank", "task.train", "task.test", "training.batch_size")


def _identity(record: Record) -> dict[str, Any]:
    """What must be equal for two records to stand in one table, key -> value."""
    identity: dict[str, Any] = {}
    if record.environment is not None:
        for key in ("device_name", "cpu", "cores", "threads"):
            identity[f"environment.{key}"] = getattr(record.environment, key)
        identity.update({f"versions.{name}": value for name, value in record.environment.versions.items()})
    if record.model is not None:
        for key in ("reference", "weights", "precision", "tokenizer", "total_parameters"):
            identity[f"model.{key}"] = getattr(record.model, key)
    if record.data is not None:
        for key in ("train_sha256", "test_sha256"):
            identity[f"data.{key}"] = getattr(record.data, key)
    searched = {search.setting for search in record.batch_search}
    for key in setting_keys():
        is_unused = record.kind == "base" and key.startswith(("lora.", "training."))
        value = record.settings.get(key)
        if key in searched:
            value = "max"
        is_open = value == "auto"  # a trial that died before it chose
        if (
            key not in _MAY_DIFFER
            and not key.startswith(("run.", "training.checkpoint"))
            and not is_unused
            and not is_open
        ):
            identity[key] = value
    return identity


# What follows from a setting that is an axis, beside the setting itself.
_FOLLOWS: Mapping[str, tuple[str, ...]] = {
    "model": ("model.", "data."),
    "tokenizer": ("model.tokenizer", "data."),
    "revision": ("model.", "data."),
    "random_weights": ("model.weights", "data."),
    "task": ("data.",),
    "training.sequence_length": ("data.",),
    "training.precision": ("model.precision",),
    "inference.max_new_tokens": ("data.",),
}


def refuse_to_mix(records: Sequence[Record]) -> None:
    """Refuse records that were not measured alike; a sweep's own grid axes, and what follows from them, may differ.

    Raises:
        UserError: naming the first differing key, both values and both trials.
    """
    axes = {axis for record in records for axis in record.axes}
    follows = tuple(
        key for axis in axes for known, keys in _FOLLOWS.items() if f"{axis}.".startswith(f"{known}.") for key in keys
    )
    seen: dict[str, tuple[str, Any]] = {}
    for record in records:
        for key, value in _identity(record).items():
            trial, first = seen.setdefault(key, (record.trial, value))
            if first != value and key not in axes and not key.startswith(follows or ("\0",)):
                raise UserError(
                    f"records differ in {key}: {trial} has {first!r}, {record.trial} has {value!r}; "
                    "figures measured differently are not compared"
                )
