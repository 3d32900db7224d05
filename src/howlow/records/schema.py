"""The types of a record. Absent is `None`, never 0, -1 or NaN."""

from typing import Any, Literal

from pydantic import Field

from howlow.records.conditions import DeviceConditions
from howlow.records.data import DataRecord
from howlow.records.energy import EnergyPart, EnergySource, EnergyWindow
from howlow.records.gemms import GemmRecord
from howlow.records.memory import BatchSearch, MemoryShortage
from howlow.records.neighbours import Neighbour
from howlow.records.shrunk import ShrunkRecord
from howlow.records.warnings import Frozen, PhaseName, RecordWarning
from howlow.settings import Settings, TrialKind

SCHEMA_VERSION = 2

_AttentionKernel = Literal["own", "products", "sdpa", "flex"]
HeapMode = Literal["kept", "bounded"]
_Layout = Literal["padded", "packed", "shared"]
_Way = Literal["padded", "packed", "shared", "single"]
Part = Literal["burn_in", "measured"]
Status = Literal["done", "out_of_memory", "diverged", "failed"]


class Step(Frozen):
    """One optimizer step, or one batch of inference: a raw line of `steps.jsonl`."""

    phase: PhaseName
    part: Part
    step: int = Field(description="counted from 0 within its phase")
    start_s: float = Field(description="seconds since the trial's start, pauses of a resumed trial left out")
    duration_s: float
    opens_segment: bool | None = Field(
        None,
        description="the measured window begins with this step, or goes on with it after a pause, so that the time "
        "before it is in no figure; only ever true",
    )
    micro_batches: int
    samples: int = Field(description="examples, whatever the layout")
    tokens: int = Field(description="real tokens: prompt and completion read, in generation also those written")
    target_tokens: int = Field(description="tokens with a loss; in generation the tokens written")
    computed_tokens: int = Field(description="tokens the model ran on, padding included")
    loss: float | None = Field(
        None, description="summed negative log-likelihood of the target tokens / their number, in nats"
    )
    energy_counter_j: float | None = Field(
        None,
        description="the energy counter's reading right after the step's end; None: there is no counter, or the last "
        "reading is so recent that another one would cost too much",
    )
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
    process_memory_bytes: int | None = Field(None, description="of a GPU's, this process's; asked once a second")
    utilization: float | None = Field(
        None, description="0..1: the GPU's SMs busy, or this process's share of its cores"
    )
    temperature_c: float | None = None
    energy_counter_j: float | None = Field(None, description="the energy counter, wrap-arounds undone")
    memory_utilization: float | None = Field(None, description="0..1: the time in which the GPU's memory was used")
    sm_clock_hz: float | None = None
    memory_clock_hz: float | None = None
    throttle_reasons: tuple[str, ...] | None = Field(None, description="why the clock is lower than it could be")
    throttled_s: dict[str, float] | None = Field(
        None, description="the time in which clocks were lowered, by reason, in seconds since the driver was loaded"
    )
    memory_temperature_c: float | None = None
    power_limit_w: float | None = Field(None, description="the limit that the driver enforces")
    cpu_clock_hz: float | None = Field(None, description="the mean of the cores that the process may use")
    phase: PhaseName


class PhaseRecord(Frozen):
    """What was read once about a whole phase (the steps hold the rest)."""

    phase: PhaseName
    start_s: float
    duration_s: float
    peak_memory_bytes: int | None = Field(
        None,
        description="device memory in use on a GPU, resident on a CPU; of several devices (`Resolved.devices`) that of "
        "the one that had most, as all peaks",
    )
    peak_process_memory_bytes: int | None = Field(
        None,
        description="on a GPU, what of it the trial's own process had, as the driver counts it (asked once a second)",
    )
    peak_allocated_bytes: int | None = Field(None, description="torch's allocator on a GPU")
    peak_reserved_bytes: int | None = Field(None, description="torch's allocator on a GPU")
    measured_duration_s: float | None = Field(
        None,
        description="the measured window: from the first measured step's start to the last one's end, less the pauses; "
        "None without measured steps",
    )
    measured_samples: int | None = Field(None, description="the samples of the measured part")
    pauses: int | None = Field(None, description="pauses between measured steps, as for a checkpoint")
    pauses_duration_s: float | None = Field(None, description="their time, in none of the measured figures")
    windows: tuple[EnergyWindow, ...] = Field((), description="the energies of its parts")
    conditions: tuple[DeviceConditions, ...] = Field(
        (), description="clocks, heat and throttling of its measured window"
    )

    def window(self, part: EnergyPart, device: str | None = None) -> EnergyWindow | None:
        """The energy of a part, of the trial's source or of one device; None where it has none."""
        return next((found for found in self.windows if (found.part, found.device) == (part, device)), None)

    def energy_j(self, part: EnergyPart) -> float | None:
        """The joules of a part, of the trial's source; None where it has none."""
        found = self.window(part)
        return None if found is None else found.energy_j


class Idle(Frozen):
    """What the energy source read while nothing ran, before the trial."""

    power_w: float
    error_w: float | None = None
    cpu_power_w: float | None = Field(None, description="the CPU's, where an accelerator is the trial's device")
    duration_s: float
    temperature_c: float | None = None
    measured_at: str = Field(description="UTC, ISO 8601")


class MeterRecord(Frozen):
    """How well the meters did."""

    rate_hz: float | None = Field(None, description="readings a second that the slowest instrument made")
    largest_gap_s: float | None = Field(
        None, description="the longest time without a reading of one instrument, from the trial's start to its end"
    )
    readings: int = Field(0, description="lines of the timeline, those before an interruption left out")
    late: int = Field(0, description="readings that did not come in time")
    cpu_share: float | None = Field(None, description="CPU time of the meters (nvidia-smi's, too) / the trial's")
    step_share: float | None = Field(None, description="time the steps' readings took / time of the steps")
    core_share: float | None = Field(None, description="CPU time of the meters / the time in which they read")
    idle: Idle | None = Field(None, description="the idle power before the trial; None where no source reads it")


class ModelRecord(Frozen):
    """The model and the adapter of a trial."""

    reference: str
    architecture: str
    total_parameters: int = Field(description="of the base model")
    trainable_parameters: int
    base_bytes: int | None = Field(None, description="of the base's weights as they are stored, quantised or not")
    scaling_factor: float | None = None
    alpha: float | None = None
    adapter_bytes: int | None = Field(None, description="size of adapter_model.safetensors")
    tokenizer: str
    weights: Literal["pretrained", "random"]


class LayoutChoice(Frozen):
    """What was chosen for trials on the loaded model: the layout, and why; the libraries of products."""

    layout: _Layout
    kernel: Literal["sdpa", "flex"] | None = Field(None, description="the attention kernel of packed and shared")
    problem: str | None = Field(None, description="why the layout is padded although another one was wanted")
    generation: Literal["padded", "single"] | None = Field(
        None, description="how answers are written where that differs; single: one prompt at a time"
    )
    generation_problem: str | None = Field(None, description="why answers are not written in the layout")
    idle_layers: tuple[str, ...] = Field(
        (), description="linear layers that had no influence on the losses of the texts that the model was checked on"
    )
    gemms: tuple[GemmRecord, ...] = Field((), description="empty: oneDNN computes all products, or none is fused")


class LayoutTokens(Frozen):
    """How many tokens a phase had, and how many of them the layout computed."""

    tokens: int = Field(description="real tokens of the examples; a shared prefix counts once for each of them")
    computed_tokens: int = Field(description="tokens the model ran on")
    padded_tokens: int | None = Field(
        None, description="tokens the model would have run on in the layout padded; None for generation"
    )
    padding_share: float | None = Field(None, description="share of computed_tokens that is padding, 0..1")
    saved_share: float | None = Field(None, description="share of padded_tokens that was not computed, 0..1")


class LayoutRecord(Frozen):
    """What a trial's layout saved (`Resolved` says which layout it was)."""

    problem: str | None = Field(None, description="why the layout is padded although another one was wanted")
    train: LayoutTokens | None = None
    evaluate: LayoutTokens | None = None
    generate: LayoutTokens | None = None


class Resolved(Frozen):
    """What was decided for a trial where the settings leave it open ("auto", "max") or do not say it at all.

    None: the trial ended before it was decided, or a record of schema 1 does not say it.
    """

    layout: _Layout | None = None
    generation_layout: _Way | None = Field(
        None, description="generation's, where the layout would write other answers; single: one prompt at a time"
    )
    attention_kernel: _AttentionKernel | None = Field(None, description="own: the model's own attention")
    precision: str | None = None
    train_batch_size: int | None = None
    inference_batch_size: int | None = None
    heap: HeapMode | None = Field(None, description="kept: freed memory is reused; bounded: it is given back at once")
    kernels_kept: int | None = Field(None, description="compiled kernels that oneDNN keeps")
    fused: bool | None = Field(None, description="whether frozen parts run fused in fine-tuning")
    joined_adapters: bool | None = Field(
        None, description="whether adapters run joined, from copies cast once a step, in fine-tuning"
    )
    gemms: tuple[GemmRecord, ...] | None = Field(
        None, description="the library for each product with frozen weights; None: none was chosen"
    )
    compiled: bool | None = Field(None, description="whether layers are compiled by torch in fine-tuning")
    graphed: bool | None = Field(None, description="whether fine-tuning's steps are replayed as CUDA graphs")
    generation_compiled: bool | None = Field(
        None, description="whether layers are compiled by torch in generation; None: nothing was generated"
    )
    generation_graphed: bool | None = Field(
        None, description="whether generation's token steps are replayed as CUDA graphs; None: nothing was generated"
    )
    row_lengths: tuple[int, ...] | None = Field(
        None, description="the lengths up to which fine-tuning's rows are filled; None: each as it is"
    )
    row_padding: float | None = Field(None, description="the share of the computed tokens that fills rows, 0..1")
    quantization: Literal["none", "nf4", "int8"] | None = Field(
        None, description="how the frozen base's linear layers are stored"
    )
    threads: int | None = Field(None, description="torch's intra-op threads")
    devices: tuple[str, ...] | None = Field(
        None,
        description="the devices over which the base is sharded, of each process; None: the trial has one. Memory is "
        "then that of the device that had most, energy the sum of all",
    )
    target_modules: tuple[str, ...] | None = Field(None, description="what the names of the adapted layers end in")


class MergedRecord(Frozen):
    """How far inference with the merged adapter agrees with the attached one (`inference.adapter = "merged"`)."""

    loss: float | None = Field(
        description="the test's loss with the adapter merged; `scores.loss` is the attached one's"
    )
    texts: int | None = Field(None, description="answers written by both; absent where the task writes none")
    equal_texts: int | None = Field(None, description="answers that are the same")


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
    has_answer_exact_match: float | None = None
    has_answer_f1: float | None = None
    no_answer_exact_match: float | None = None
    no_answer_f1: float | None = None
    general_loss_before: float | None = None
    general_loss_after: float | None = None
    target_tokens: int | None = None
    words: int | None = None
    bytes: int | None = None


class Environment(Frozen):
    """What the trial ran on; costs are compared only where all of it is equal (`howlow.records.comparability`)."""

    device: str = Field(description="cpu, cuda:0, mps")
    device_name: str
    device_uuid: str | None = None
    host: str | None = Field(None, description="the machine's name; None in older records")
    cards: tuple[str, ...] | None = Field(
        None, description="the UUIDs of all devices of this machine that the driver lists; None where it lists none"
    )
    driver: str | None = None
    device_memory_bytes: int | None = None
    cpu: str
    cores: int
    threads: int = Field(description="torch's intra-op threads")
    memory_bytes: int
    platform: str
    python: str
    versions: dict[str, str] = Field(description="howlow, torch, transformers, peft, tokenizers")
    power_limit_w: float | None = Field(None, description="the limit that the GPU's driver enforces")
    governor: str | None = Field(None, description="how Linux sets the CPU's frequency, where it says so")
    cpu_boost: bool | None = Field(None, description="whether the CPU may exceed its nominal frequency (turbo)")
    device_numa_node: int | None = Field(None, description="the memory node that the GPU is attached to")
    process_numa_nodes: tuple[int, ...] | None = Field(
        None, description="the memory nodes of the cores that the process may use"
    )
    variables: dict[str, str] | None = Field(
        None, description="environment variables that change speed, as the user set them; None in schema 1"
    )
    switches: dict[str, str] | None = Field(
        None, description="torch's switches that change speed: TF32, cuDNN, matmul precision; None in schema 1"
    )
    code_sha256: str | None = Field(None, description="of howlow's own sources, as far as a trial runs them")
    revision: str | None = Field(None, description="git's commit of these sources, -dirty where files were changed")


class Record(Frozen):
    """Everything a finished trial leaves, apart from its raw steps, readings and predictions."""

    schema_version: int = SCHEMA_VERSION
    trial: str
    kind: TrialKind
    rank: int | None
    seed: int
    axes: dict[str, Any] = Field(description="the further grid axes under their dotted names")
    repeat: int = Field(1, description="which measurement of the same trial this is, counted from 1 (`run.repeats`)")
    status: Status
    error: str | None = Field(None, description="one line, where the status is not done")
    shortage: MemoryShortage | None = Field(None, description="where the status is out_of_memory; None in old records")
    resumed: int = Field(0, description="how often the trial was resumed after an interruption")
    settings: Settings = Field(description='as asked: "auto" and "max" stay; `resolved` says what came of them')
    resolved: Resolved = Resolved()
    environment: Environment | None
    model: ModelRecord | None
    data: DataRecord | None
    phases: tuple[PhaseRecord, ...] = ()
    second_load: PhaseRecord | None = Field(
        None, description="the load of the process that ran inference, where another one had fine-tuned"
    )
    energy: EnergySource | None = None
    layout: LayoutRecord | None = None
    merged: MergedRecord | None = None
    shrunk: ShrunkRecord | None = Field(None, description="where the kind is shrunk: what the adapter was cut from")
    batch_search: tuple[BatchSearch, ...] = Field((), description="how a batch size of max was found")
    meters: MeterRecord | None = None
    scores: Scores = Scores()
    validation: Scores | None = Field(
        None, description="of the examples set aside to choose between settings; None: there are none"
    )
    warnings: tuple[RecordWarning, ...] = ()
    alone: bool | None = Field(
        None, description="whether the machine was the trial's alone (`run.exclusive`); None in older records"
    )
    neighbours: tuple[Neighbour, ...] | None = Field(
        None, description="what ran beside it on its machine; None: not known, as in older records"
    )
    started_at: str | None = Field(None, description="UTC, ISO 8601")
    ended_at: str | None = None
    preparation_s: float | None = Field(None, description="from the process's start to its first step")
    handover_s: float | None = Field(
        None,
        description="from the end of fine-tuning to the first step of inference: a fresh process starts and loads the "
        "model again; None: base, or an interruption in that time",
    )
    total_s: float | None = None

    def phase(self, name: PhaseName) -> PhaseRecord | None:
        """The record of one phase, if it ran."""
        return next((phase for phase in self.phases if phase.phase == name), None)
