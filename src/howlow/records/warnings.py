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
    TEXT_CUT = "text_cut"
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
    NEAR_TIES = "near_ties"
    WEIGHTS_LEFT_OUT = "weights_left_out"
    ENERGY_WINDOW_TOO_SHORT = "energy_window_too_short"
    ENERGY_GAP = "energy_gap"
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


REMEDIES: Mapping[WarningKind, str] = {
    WarningKind.TRAIN_TEST_OVERLAP: "nothing to do; task.overlap = keep trains on them all the same",
    WarningKind.EXAMPLES_DROPPED: "raise training.sequence_length to keep them",
    WarningKind.TEXT_CUT: "raise training.sequence_length; where answers need the room, lower inference.max_new_tokens",
    WarningKind.RANK_ABOVE_MATRIX: "the extra rank adds cost but no expressiveness; leave this rank out",
    WarningKind.TOKENIZER_SUBSTITUTED: "give the model's own with the setting tokenizer",
    WarningKind.ENERGY_ABSENT: "run on a device with a sensor, or set meters.assumed_power_w",
    WarningKind.ENERGY_ASSUMED: "the watts were given by the user, not measured; use a sensor for a measured figure",
    WarningKind.ENERGY_OF_ANOTHER_DEVICE: "leave meters.energy at auto to read only the trial's own device",
    WarningKind.IDLE_ABSENT: "no energy above idle; see what kept the sensor from answering (howlow env tries it)",
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
    WarningKind.SENSOR_FAILED: "see whether driver and libraries fit each other; what was not read is a gap",
    WarningKind.TIMELINE_GAP: "leave the meters a core of their own, or lower meters.rate_hz",
    WarningKind.METER_OVERHEAD: "lower meters.rate_hz, or use more examples in a step",
    WarningKind.NOT_STEADY: 'raise meters.burn_in_steps, or set it to "auto", and use more examples; look for heat and '
    "outside work",
    WarningKind.STEADINESS_UNKNOWN: "use more examples: too few measured steps to tell whether the speed was steady",
    WarningKind.OTHER_PROCESS_ON_DEVICE: "end the other processes, or give the trial a device of its own",
    WarningKind.OTHER_WORK_ON_MACHINE: "let the other work end, or bind it to other cores",
    WarningKind.RAN_BESIDE_OTHER_TRIALS: "for costs that others can repeat, set run.workers = 1 and start no other "
    "worker on this machine",
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
    phase: PhaseName | None = Field(None, description="the phase that it is about; None: more than one, or the trial")
    part: Literal["measured", "phase", "prefill", "decode"] | None = Field(
        None, description="what of the phase has no energy: its measured steps and all in them, or this alone"
    )
    meter: Literal["trial", "cpu"] | None = Field(
        None, description="whose energy is missing: the trial's own device's, or the CPU's beside it"
    )

    @property
    def remedy(self) -> str:
        """What the user can do about it."""
        return REMEDIES[self.kind]
