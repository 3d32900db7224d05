"""Every setting once: its type, its default, its unit, its rule and what it affects.

A field's description is its documentation: `docs/settings.md`, the flags' help and the messages derive from it.
"""

import hashlib
import json
from collections.abc import Iterable
from operator import attrgetter
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from howlow.settings.adapter import LoraSettings
from howlow.settings.clusters import RaySettings, SlurmSettings
from howlow.settings.devices import refuse_with_several_devices
from howlow.settings.fields import BatchSize, Names, NonNegative, Positive, Section, Seed, Text, affects
from howlow.settings.machines import RunSettings


class TaskSettings(Section):
    """The data, how an example becomes prompt and completion, and how an answer is scored."""

    name: Text = Field(description="the kind of data and of scoring", json_schema_extra=affects("data"))
    train: Text = Field(
        description="a file, a folder, or hub data as owner/name[:config[:split]]", json_schema_extra=affects("data")
    )
    test: Text = Field(
        description="test data, in the same forms; the same file as `train` is split by groups",
        json_schema_extra=affects("data"),
    )
    train_examples: Positive | None = Field(
        None, description="at most this many training examples; absent: all", json_schema_extra=affects("data")
    )
    test_examples: Positive | None = Field(
        None, description="at most this many test examples; absent: all", json_schema_extra=affects("data")
    )
    validation_examples: Positive | None = Field(
        None,
        description="training examples set aside, by whole groups, to choose between settings of a rank without the "
        "test; scored as the test is, and not measured; absent: none",
        json_schema_extra=affects("data"),
    )
    seed: Seed = Field(
        0,
        description="seed of the order of the groups, from which the limits take the first; equal for all trials",
        json_schema_extra=affects("data"),
    )
    overlap: Literal["exclude", "keep"] = Field(
        "exclude",
        description="what happens to training groups whose prefix or text occurs in the test data",
        json_schema_extra=affects("data"),
    )
    unit: Literal["paragraph", "window"] | None = Field(
        None,
        description="how a text becomes examples: each non-empty line is one (paragraph), "
        "or the text is cut into windows that do not overlap",
        json_schema_extra=affects("data"),
    )
    template: str | None = Field(
        None,
        description="the prompt's text, with the task's placeholders; "
        "\"chat\": the default text as the user's turn of the tokenizer's chat template, and the completion as the "
        "assistant's",
        json_schema_extra=affects("data"),
    )
    stop: str | None = Field(
        None,
        description="generation ends before this text, and accepted answers are compared up to it; empty: never; "
        "absent: the task's own",
        json_schema_extra=affects("data"),
    )
    answerable_only: bool | None = Field(
        None,
        description="leave unanswerable questions out of training and test",
        json_schema_extra=affects("data"),
    )
    general_text: Text | None = Field(
        None,
        description="a text that has nothing to do with the task, in the forms of plain text: its loss before and "
        "after training says what training made the model forget; absent: not looked at",
        json_schema_extra=affects("data"),
    )
    general_windows: Positive | None = Field(
        None,
        description="at most this many windows of sequence_length tokens of the general text; absent: all",
        json_schema_extra=affects("data"),
    )


class TrainingSettings(Section):
    """Fine-tuning: the batches, the optimizer (AdamW), the schedule and the precision."""

    layout: Literal["auto", "padded", "packed", "shared"] = Field(
        "auto",
        description="how examples become token batches: each padded to the sequence length (the paper's), several in a "
        "row (packed), or with common prefixes once (shared); auto: shared where that saves tokens, else packed",
        json_schema_extra=affects("layout"),
    )
    shuffle: Literal["groups", "examples"] = Field(
        "groups",
        description="the training order: whole groups are shuffled, or single examples",
        json_schema_extra=affects("layout", "memory", "quality", "cost"),
    )
    batch_size: BatchSize = Field(
        8,
        description="examples in one forward and backward pass; max: the largest batch that fits into the memory, "
        "searched for before each trial",
        json_schema_extra=affects("memory", "quality", "cost"),
    )
    effective_batch_size: Positive | None = Field(
        None,
        description="examples in one optimizer step, at least batch_size, by accumulation; absent: batch_size",
        json_schema_extra=affects("memory", "quality", "cost"),
    )
    sequence_length: Annotated[int, Field(ge=8, le=2**31 - 1)] = Field(
        512, description="the longest row, in tokens", json_schema_extra=affects("data")
    )
    learning_rate: float = Field(
        5e-5, gt=0.0, description="AdamW's learning rate (the paper, III.D)", json_schema_extra=affects("quality")
    )
    weight_decay: float = Field(
        0.0, ge=0.0, description="AdamW's decoupled weight decay", json_schema_extra=affects("quality")
    )
    betas: Annotated[tuple[float, float], Field(strict=False)] = Field(
        (0.9, 0.999),
        description="AdamW's two decay rates, each at least 0 and under 1",
        json_schema_extra=affects("quality"),
    )
    lr_schedule: Literal["constant", "linear", "cosine"] = Field(
        "constant",
        description="the learning rate after its warm-up; linear and cosine end at 0",
        json_schema_extra=affects("quality"),
    )
    lr_warmup_steps: NonNegative = Field(
        0, description="steps over which the learning rate rises from 0", json_schema_extra=affects("quality")
    )
    max_grad_norm: float = Field(
        1.0,
        ge=0.0,
        description="gradients are clipped to this L2 norm; 0: no clipping",
        json_schema_extra=affects("memory", "quality", "cost"),
    )
    epochs: Positive = Field(
        1, description="passes over the training examples", json_schema_extra=affects("memory", "quality", "cost")
    )
    max_steps: Positive | None = Field(
        None,
        description="stop after this many optimizer steps; absent: never early",
        json_schema_extra=affects("memory", "quality", "cost"),
    )
    loss_on: Literal["completion", "all"] = Field(
        "completion",
        description="the target tokens in training: the completion's, or the prompt's too",
        json_schema_extra=affects("memory", "quality", "cost"),
    )
    head: Literal["targets", "all"] = Field(
        "targets",
        description="where the vocabulary head is computed: at target positions, or everywhere",
        json_schema_extra=affects("layout", "execution", "memory"),
    )
    precision: Literal["auto", "fp32", "bf16", "fp16-autocast"] = Field(
        "auto",
        description="fp32 (auto on CPU), bf16 (auto on CUDA: base in bf16, adapter in fp32 under autocast), "
        "or fp16-autocast (weights in fp32, loss scaling; the paper's)",
        json_schema_extra=affects("layout", "execution", "memory", "quality"),
    )
    gradient_checkpointing: bool = Field(
        False, description="recompute activations in the backward pass", json_schema_extra=affects("memory", "cost")
    )
    compile: bool | Literal["auto"] = Field(
        "auto",
        description="compile the decoder's layers with torch.compile; auto: on CUDA. There adapters then run without "
        "casts and steps are replayed as CUDA graphs, too, and all three are checked against the plain step first. "
        "Compiling is burn-in. Generation is compiled, its token steps are replayed, and both are checked in the same "
        "way; with false everything runs plain",
        json_schema_extra=affects("execution", "memory", "cost"),
    )
    checkpoint_every_s: float = Field(
        60.0, gt=0.0, description="seconds between checkpoints", json_schema_extra=affects()
    )

    def precision_on(self, device: str) -> Literal["fp32", "bf16", "fp16-autocast"]:
        """The precision on a device, named as torch does: `auto` is bf16 on CUDA and fp32 elsewhere."""
        if self.precision == "auto":
            return "bf16" if device.startswith("cuda") else "fp32"
        return self.precision

    @model_validator(mode="after")
    def _betas_are_rates(self) -> Self:
        if not all(0.0 <= beta < 1.0 for beta in self.betas):
            raise ValueError(f"training.betas {list(self.betas)} must be at least 0 and under 1")
        return self


class InferenceSettings(Section):
    """Scoring the test data after fine-tuning, in the same process."""

    batch_size: BatchSize = Field(
        8,
        description="test examples in one batch; max: the largest that fits, as in training",
        json_schema_extra=affects("memory", "cost"),
    )
    adapter: Literal["attached", "merged"] = Field(
        "attached",
        description="merged: inference is measured with the adapter merged into a copy of the weights; scores are "
        "still those of the attached adapter, and the record says how far the two agree",
        json_schema_extra=affects("memory", "cost"),
    )
    max_new_tokens: Positive = Field(
        32, description="generation ends after this many tokens", json_schema_extra=affects("data")
    )


class MeterSettings(Section):
    """What is measured, and how often."""

    of_whole_sweep: ClassVar[bool] = True

    rate_hz: float = Field(
        4.0,
        ge=0.5,
        le=50.0,
        description="readings a second in the timeline (the paper: 4)",
        json_schema_extra=affects("cost"),
    )
    burn_in_steps: NonNegative | Literal["auto"] = Field(
        2,
        description="first steps of a phase left out of its figures; auto: until the halves of the last six steps "
        "agree in speed; never more than half of the phase's steps or three quarters of its samples",
        json_schema_extra=affects("cost"),
    )
    energy: Literal["auto", "nvml", "nvidia-smi", "amd", "rapl", "apple", "assumed", "none"] = Field(
        "auto",
        description="where energy comes from; auto: the trial's own device, if it has a sensor; a source given by "
        "name may read another device, and a warning says so",
        json_schema_extra=affects("cost"),
    )
    devices: Names | None = Field(
        None,
        description="the devices that the source reads, by UUID or its beginning (RAPL: package-0, dram-0), summed; "
        "absent: the trial's own device, or, on a CPU, all devices of a source given by name",
        json_schema_extra=affects("cost"),
    )
    assumed_power_w: float | None = Field(
        None, gt=0.0, description='watts for energy = "assumed"; figures say so', json_schema_extra=affects("cost")
    )

    @model_validator(mode="after")
    def _assumed_needs_watts(self) -> Self:
        if (self.energy == "assumed") != (self.assumed_power_w is not None):
            raise ValueError('meters.energy = "assumed" and meters.assumed_power_w = WATTS go together; give both')
        if self.devices and self.energy in ("assumed", "none"):
            raise ValueError(f'meters.devices does not apply to meters.energy = "{self.energy}"; leave it out')
        return self


class Settings(Section):
    """Everything a sweep, and with one value per axis a trial, is asked to do."""

    model: Text = Field(
        description="hub id, folder, GGUF file, `smollm2-135m` (packaged), or a known config with random_weights",
        json_schema_extra=affects("data"),
    )
    tokenizer: Text | None = Field(
        None, description="hub id, folder or GGUF file; absent: the model's", json_schema_extra=affects("data")
    )
    revision: str | None = Field(None, description="the hub's branch, tag or commit", json_schema_extra=affects("data"))
    trust_remote_code: bool = Field(
        False, description="run Python code that comes with a hub model", json_schema_extra=affects("data")
    )
    random_weights: bool = Field(
        False, description="build the model from its config alone, to study costs", json_schema_extra=affects("data")
    )
    quantization: Literal["none", "nf4", "int8"] = Field(
        "none",
        description="how the frozen base's linear layers are stored: 4 bits (nf4) or 8 bits (int8) a weight, through "
        "bitsandbytes; they are read back for each product, and adapters and arithmetic stay as training.precision "
        "says",
        json_schema_extra=affects("layout", "execution", "memory", "quality"),
    )
    double_quantization: bool = Field(
        True,
        description="store the scales of nf4's blocks in 8 bits, too, as QLoRA does: 4.13 instead of 4.5 bits a weight",
        json_schema_extra=affects("layout", "execution", "memory", "quality"),
    )
    baselines: Annotated[tuple[Literal["base", "full"], ...], Field(strict=False)] = Field(
        ("base",),
        description="further trials: base (zero-shot, no adapter), full (every weight trained)",
        json_schema_extra=affects(),
    )
    seed: Seed = Field(
        0, description="initial weights, order, dropout", json_schema_extra=affects("memory", "quality", "cost")
    )
    grid: dict[str, list[Any]] = Field(
        default_factory=dict,
        description="axes: dotted setting -> list of values; lora.rank and seed are always there",
        json_schema_extra=affects(),
    )
    task: TaskSettings = Field(description="the data")
    lora: LoraSettings = Field(default_factory=LoraSettings, description="the adapter")
    training: TrainingSettings = Field(default_factory=TrainingSettings, description="fine-tuning")
    inference: InferenceSettings = Field(default_factory=InferenceSettings, description="scoring")
    meters: MeterSettings = Field(default_factory=MeterSettings, description="measuring")
    run: RunSettings = Field(default_factory=RunSettings, description="running")
    ray: RaySettings = Field(default_factory=RaySettings, description="running on Ray")
    slurm: SlurmSettings = Field(default_factory=SlurmSettings, description="running on SLURM")

    @model_validator(mode="after")
    def _shared_needs_no_dropout(self) -> Self:
        if self.training.layout == "shared" and self.lora.dropout:
            problem = "examples that share a prefix would share its dropout mask"
            raise ValueError(f'training.layout = "shared" with lora.dropout: {problem}; set "packed", or no dropout')
        return self

    @model_validator(mode="after")
    def _devices_go_with_the_rest(self) -> Self:
        refuse_with_several_devices(self)
        return self

    @model_validator(mode="after")
    def _pissa_needs_the_weights(self) -> Self:
        if self.lora.variant == "pissa" and self.quantization != "none":
            raise ValueError(
                f'lora.variant = "pissa" with quantization = "{self.quantization}": PiSSA changes the base\'s weights '
                'before they are quantised, and the saved adapter would fit no base; set "lora" or "dora", or "none"'
            )
        return self

    def get(self, key: str) -> Any:
        """The value of a dotted setting, e.g. `settings.get("training.batch_size")`."""
        return attrgetter(key)(self)

    def digest(self, keys: Iterable[str], **further: Any) -> str:
        """16 hex digits that are equal where the settings of these dotted names and the further values are equal."""
        values = {key: self.get(key) for key in keys}
        plain = {key: value.model_dump() if isinstance(value, Section) else value for key, value in values.items()}
        return hashlib.sha256(json.dumps(plain | further, sort_keys=True).encode()).hexdigest()[:16]
