"""The closed list of reasons to distrust or to qualify a trial's numbers, each with what the user can do about it."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

PhaseName = Literal["load", "train", "evaluate", "generate"]


class WarningKind(StrEnum):
    """Every reason to distrust or to qualify a trial's numbers; the list is closed."""

    TRAIN_TEST_OVERLAP = "train_test_overlap"
    EXAMPLES_DROPPED = "examples_dropped"
    UNANSWERABLE_LEFT_OUT = "unanswerable_left_out"
    TEXT_WITHOUT_TOKENS = "text_without_tokens"
    TEXT_CUT = "text_cut"
    FILES_LEFT_OUT = "files_left_out"
    RANK_ABOVE_MATRIX = "rank_above_matrix"
    TOKENIZER_SUBSTITUTED = "tokenizer_substituted"
    ENERGY_ABSENT = "energy_absent"
    ENERGY_ASSUMED = "energy_assumed"
    ENERGY_OF_ANOTHER_DEVICE = "energy_of_another_device"
    IDLE_ABSENT = "idle_absent"
    PEAK_MEMORY_ABSENT = "peak_memory_absent"
    PERPLEXITY_OVERFLOW = "perplexity_overflow"
    STEPS_SKIPPED = "steps_skipped"
    SHORT_BURN_IN = "short_burn_in"
    RESUMED = "resumed"
    RANDOM_WEIGHTS = "random_weights"
    LONGER_THAN_MODEL = "longer_than_model"
    LAYOUT_FELL_BACK = "layout_fell_back"
    PLAINER_STEPS = "plainer_steps"
    WRITTEN_ONE_BY_ONE = "written_one_by_one"
    LAYERS_LEFT_OUT = "layers_left_out"
    ADAPTER_IN_EXPERTS = "adapter_in_experts"
    FREQUENCIES_OF_FULL_ROW = "frequencies_of_full_row"
    NEAR_TIES = "near_ties"
    WEIGHTS_LEFT_OUT = "weights_left_out"
    REFERENCES_TOO_LONG = "references_too_long"
    REFERENCES_WITH_STOP = "references_with_stop"
    REFERENCES_WITH_SPECIAL_TOKENS = "references_with_special_tokens"
    REFERENCES_ALTERED = "references_altered"
    STOP_NEVER_WRITTEN = "stop_never_written"
    CHAT_PROMPT_CHANGED = "chat_prompt_changed"
    ENERGY_WINDOW_TOO_SHORT = "energy_window_too_short"
    ENERGY_GAP = "energy_gap"
    COUNTER_STOOD_STILL = "counter_stood_still"
    ENERGY_OF_PART_VAGUE = "energy_of_part_vague"
    SENSOR_LATE = "sensor_late"
    SENSOR_FAILED = "sensor_failed"
    TIMELINE_GAP = "timeline_gap"
    METER_OVERHEAD = "meter_overhead"
    NOT_STEADY = "not_steady"
    STEADINESS_UNKNOWN = "steadiness_unknown"
    OTHER_PROCESS_ON_DEVICE = "other_process_on_device"
    OTHER_WORK_ON_MACHINE = "other_work_on_machine"
    RAN_BESIDE_OTHER_TRIALS = "ran_beside_other_trials"
    SWAPPING = "swapping"
    DEVICE_PARTITIONED = "device_partitioned"
    DEVICE_VIRTUAL = "device_virtual"
    POWER_CAPPED = "power_capped"
    THROTTLED = "throttled"
    HELD_BY_POWER_LIMIT = "held_by_power_limit"
    QUALITY_NOT_COMPARABLE = "quality_not_comparable"
    COSTS_NOT_COMPARABLE = "costs_not_comparable"
    ANOTHER_CARD = "another_card"
    BASELINE_REPEATED = "baseline_repeated"
    REPEATS_DIFFER = "repeats_differ"
    GENERAL_TEXT_IN_TRAINING = "general_text_in_training"
    LARGE_EFFECTIVE_BATCH = "large_effective_batch"
    ATTENTION_ALONE_ADAPTED = "attention_alone_adapted"
    ALPHA_GROWS_WITH_RANK = "alpha_grows_with_rank"
    ADAPTER_NOT_FUSED = "adapter_not_fused"
    OTHER_SETTINGS_UNTRIED = "other_settings_untried"


REMEDIES: Mapping[WarningKind, str] = {
    WarningKind.TRAIN_TEST_OVERLAP: "nothing to do; to train on them anyway, set task.overlap = keep",
    WarningKind.EXAMPLES_DROPPED: "raise training.sequence_length to keep them",
    WarningKind.UNANSWERABLE_LEFT_OUT: "nothing to do if only questions with an answer are meant; to train on the "
    "others and score them, too, set task.answerable_only = false",
    WarningKind.TEXT_WITHOUT_TOKENS: "leave these texts out of the data, or set a tokenizer that has their characters",
    WarningKind.TEXT_CUT: "raise training.sequence_length, or lower inference.max_new_tokens to leave room for prompts",
    WarningKind.FILES_LEFT_OUT: "nothing to do if they are no part of the text; else give them the ending .txt",
    WarningKind.RANK_ABOVE_MATRIX: "leave this rank out: it adds cost, and the product of the matrices cannot use it",
    WarningKind.TOKENIZER_SUBSTITUTED: "give the model's own tokenizer with the setting tokenizer",
    WarningKind.ENERGY_ABSENT: "run on a device with a sensor, or set meters.assumed_power_w",
    WarningKind.ENERGY_ASSUMED: "nothing was measured, the watts are those you gave; use a device with a sensor",
    WarningKind.ENERGY_OF_ANOTHER_DEVICE: "set meters.energy = auto to read only the trial's own device",
    WarningKind.IDLE_ABSENT: "run one trial at a time; if the sensor did not answer, howlow env says why",
    WarningKind.PEAK_MEMORY_ABSENT: "run where a process may write /proc/self/clear_refs, which resets its peak",
    WarningKind.PERPLEXITY_OVERFLOW: "read the loss instead",
    WarningKind.STEPS_SKIPPED: "if many steps were skipped, use bf16 or fp32: gradients overflowed in fp16",
    WarningKind.SHORT_BURN_IN: "use more examples, so that all burn-in steps fit",
    WarningKind.RESUMED: "run the trial again for a measurement without interruption",
    WarningKind.RANDOM_WEIGHTS: "use the real weights to measure quality; the costs are those of the architecture",
    WarningKind.LONGER_THAN_MODEL: "lower training.sequence_length to the length that the model was made for",
    WarningKind.PLAINER_STEPS: "the results are right, but the steps are slower; set training.compile = false to "
    "choose it yourself",
    WarningKind.LAYOUT_FELL_BACK: "the results are the same, but padded is slower; to choose it yourself, set "
    "training.layout = padded",
    WarningKind.WRITTEN_ONE_BY_ONE: "the answers are the model's own, but the costs of generation are those of single "
    "prompts, whatever inference.batch_size is",
    WarningKind.LAYERS_LEFT_OUT: "nothing to do: an adapter there would never train; name other layers in "
    "lora.target_modules to adapt more of the text model",
    WarningKind.ADAPTER_IN_EXPERTS: "nothing to do if the experts are to be adapted; else name the layers in full in "
    "lora.target_modules, without those of the feed-forward part",
    WarningKind.FREQUENCIES_OF_FULL_ROW: "lower training.sequence_length to the length up to which this model's "
    "frequencies are fixed, if the losses are to be those of each text alone",
    WarningKind.NEAR_TIES: "with another layout or batch size these answers may differ; smallest_margin in "
    "predictions.jsonl shows which",
    WarningKind.WEIGHTS_LEFT_OUT: "check that config.json and the weights belong to the same model",
    WarningKind.REFERENCES_TOO_LONG: "raise inference.max_new_tokens to at least the length of the longest",
    WarningKind.REFERENCES_WITH_STOP: "set task.stop to a text that no answer holds, or to the empty text",
    WarningKind.REFERENCES_WITH_SPECIAL_TOKENS: "remove these texts from the answers; EOS follows a completion anyway",
    WarningKind.REFERENCES_ALTERED: "set tokenizer to one that can write these answers, or change the answers",
    WarningKind.ENERGY_WINDOW_TOO_SHORT: "use more examples: the measured part must last at least as long as the "
    "warning says",
    WarningKind.STOP_NEVER_WRITTEN: "set task.stop to a text as the tokenizer writes it, or to the empty text",
    WarningKind.CHAT_PROMPT_CHANGED: "nothing to do where answers are to come without thoughts; to keep the template's "
    "own end, give the prompt's text as task.template",
    WarningKind.ENERGY_GAP: "find out why the sensor did not answer; the figures cover only the time in which it did",
    WarningKind.COUNTER_STOOD_STILL: "the sensor is at fault, not the trial: howlow env watches the counter; "
    "update the driver, or choose another source with meters.energy",
    WarningKind.ENERGY_OF_PART_VAGUE: "raise inference.batch_size, so that reading prompts and writing each take many "
    "update periods of the counter; the energy of the whole steps is not touched",
    WarningKind.SENSOR_LATE: "find out why the sensor was slow (howlow env tries it); no step waited for it",
    WarningKind.SENSOR_FAILED: "check that the driver and its libraries match; the failed readings are missing",
    WarningKind.TIMELINE_GAP: "leave a core free for the meters, or lower meters.rate_hz",
    WarningKind.METER_OVERHEAD: "lower meters.rate_hz, or use more examples in a step",
    WarningKind.NOT_STEADY: 'raise meters.burn_in_steps or set it to "auto", use more examples, and look for heat and '
    "background load",
    WarningKind.STEADINESS_UNKNOWN: "use more examples: too few measured steps to see whether the speed was steady",
    WarningKind.OTHER_PROCESS_ON_DEVICE: "end the other processes, or give the trial a device of its own",
    WarningKind.OTHER_WORK_ON_MACHINE: "wait until the other work has ended, or bind it to other cores",
    WarningKind.RAN_BESIDE_OTHER_TRIALS: "for costs that others can repeat, set run.workers = 1 and start no other "
    "worker on this machine",
    WarningKind.SWAPPING: "free memory, or use a smaller batch",
    WarningKind.DEVICE_PARTITIONED: "use the whole card to measure energy: it includes that of the other instances",
    WarningKind.DEVICE_VIRTUAL: "use a whole card: on a shared one time and energy depend on the other users",
    WarningKind.POWER_CAPPED: "the figures hold for this power limit; nvidia-smi -pl changes it",
    WarningKind.HELD_BY_POWER_LIMIT: "the figures hold for this power limit; raise it (nvidia-smi -pl), or fix a clock "
    "that fits under it (nvidia-smi -lgc), for a speed that does not depend on heat and silicon",
    WarningKind.THROTTLED: "cool the device, set run.cooldown_s, and run the trial again",
    WarningKind.QUALITY_NOT_COMPARABLE: "run the trials under equal conditions; --accept-different allowed this one",
    WarningKind.COSTS_NOT_COMPARABLE: "compare the quality alone, or run the trials under equal conditions on "
    "one machine; --accept-different allowed this difference",
    WarningKind.ANOTHER_CARD: "cards of one kind may differ by a few per cent; where it matters, run all trials on one "
    "(run.device = cuda:0)",
    WarningKind.BASELINE_REPEATED: "name its folder first to report the other measurement; how far they differ "
    "is the noise between two runs",
    WarningKind.REPEATS_DIFFER: "on a CPU equal seeds give equal scores: report it as a defect; a GPU may add in "
    "another order each time: a difference in quality has to be larger than this one",
    WarningKind.GENERAL_TEXT_IN_TRAINING: "name a text in task.general_text that training does not see: the loss on "
    "this one says what was learned, not what was forgotten",
    WarningKind.LARGE_EFFECTIVE_BATCH: "set training.effective_batch_size to 32 or less: LoRA loses more quality in "
    "large batches than full fine-tuning does, at every rank",
    WarningKind.ATTENTION_ALONE_ADAPTED: "set lora.target_modules = all-linear to adapt the feed-forward layers, too: "
    "at an equal number of parameters this is often better than a higher rank in attention alone",
    WarningKind.ALPHA_GROWS_WITH_RANK: "give lora.alpha as a number, or the axis training.learning_rate: an update "
    "that grows with the rank needs a lower rate at high ranks",
    WarningKind.ADAPTER_NOT_FUSED: "the results are right; compare the costs of plain LoRA with these knowing that the "
    "code differs, too",
    WarningKind.OTHER_SETTINGS_UNTRIED: "give the axes training.learning_rate and lora.alpha or lora.scaling, so that "
    "each rank is judged by its best setting",
}


class Frozen(BaseModel):
    """A frozen value that refuses unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class RecordWarning(Frozen):
    """One reason to distrust or to qualify a number, and what it concerns."""

    kind: WarningKind
    detail: str
    phase: PhaseName | None = Field(None, description="the phase that it concerns; None: several phases, or the trial")
    part: Literal["measured", "phase", "prefill", "decode"] | None = Field(
        None,
        description="the part of the phase that has no energy; measured: its measured steps with prefill and decode",
    )
    meter: Literal["trial", "cpu"] | None = Field(
        None, description="whose energy is missing: that of the trial's own device, or that of the CPU"
    )

    @property
    def remedy(self) -> str:
        """What the user can do about it."""
        return REMEDIES[self.kind]
