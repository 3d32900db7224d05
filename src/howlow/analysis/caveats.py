"""Which columns a warning qualifies, so that its mark can stand at the numbers that it touches.

A warning names subjects: what a figure has to depend on to be touched. A warning about one phase touches the columns
of that phase's stage and those of the trial as a whole. A warning about the trial itself, for instance that it was
resumed, touches no column; its mark stands at the trial.
"""

from collections.abc import Mapping
from functools import cache

from howlow.analysis.column import Column, Stage, Subject
from howlow.analysis.columns import COLUMNS
from howlow.records import PhaseName, RecordWarning, WarningKind

_COSTS: tuple[Subject, ...] = ("speed", "energy", "cpu_energy")
_OF_PART: Mapping[str, tuple[Subject, ...]] = {
    "phase": ("phase_energy",),
    "prefill": ("prefill_energy",),
    "decode": ("decode_energy",),
}

_SUBJECTS: Mapping[WarningKind, tuple[Subject, ...]] = {
    WarningKind.TRAIN_TEST_OVERLAP: ("quality",),
    WarningKind.EXAMPLES_DROPPED: ("quality",),
    WarningKind.UNANSWERABLE_LEFT_OUT: ("quality",),
    WarningKind.FILES_LEFT_OUT: ("quality",),
    WarningKind.TEXT_WITHOUT_TOKENS: ("quality",),
    WarningKind.TEXT_CUT: ("quality",),
    WarningKind.RANK_ABOVE_MATRIX: (),
    WarningKind.TOKENIZER_SUBSTITUTED: ("quality",),
    WarningKind.ENERGY_ABSENT: ("energy",),
    WarningKind.ENERGY_ASSUMED: ("energy",),
    WarningKind.ENERGY_OF_ANOTHER_DEVICE: ("energy",),
    WarningKind.IDLE_ABSENT: ("energy_above_idle",),
    WarningKind.PEAK_MEMORY_ABSENT: ("memory",),
    WarningKind.PERPLEXITY_OVERFLOW: ("exponential",),
    WarningKind.STEPS_SKIPPED: ("optimizer", "quality"),
    WarningKind.SHORT_BURN_IN: _COSTS,
    WarningKind.RESUMED: (),
    WarningKind.RANDOM_WEIGHTS: ("quality",),
    WarningKind.LONGER_THAN_MODEL: ("quality",),
    WarningKind.PLAINER_STEPS: (*_COSTS, "memory"),
    WarningKind.LAYOUT_FELL_BACK: (*_COSTS, "memory"),
    WarningKind.WRITTEN_ONE_BY_ONE: (*_COSTS, "memory"),
    WarningKind.LAYERS_LEFT_OUT: (),
    WarningKind.ADAPTER_IN_EXPERTS: ("quality",),
    WarningKind.FREQUENCIES_OF_FULL_ROW: ("quality",),
    WarningKind.NEAR_TIES: ("answers",),
    WarningKind.WEIGHTS_LEFT_OUT: ("quality",),
    WarningKind.REFERENCES_TOO_LONG: ("answers",),
    WarningKind.REFERENCES_WITH_STOP: ("answers",),
    WarningKind.REFERENCES_WITH_SPECIAL_TOKENS: ("answers",),
    WarningKind.REFERENCES_ALTERED: ("answers",),
    WarningKind.STOP_NEVER_WRITTEN: ("answers",),
    WarningKind.CHAT_PROMPT_CHANGED: ("quality",),
    WarningKind.ENERGY_WINDOW_TOO_SHORT: ("energy",),
    WarningKind.ENERGY_GAP: ("energy",),
    WarningKind.COUNTER_STOOD_STILL: ("energy",),
    WarningKind.ENERGY_OF_PART_VAGUE: ("energy",),
    WarningKind.SENSOR_LATE: ("energy", "utilization"),
    WarningKind.SENSOR_FAILED: ("energy", "utilization"),
    WarningKind.TIMELINE_GAP: ("power_readings", "utilization"),
    WarningKind.METER_OVERHEAD: _COSTS,
    WarningKind.NOT_STEADY: _COSTS,
    WarningKind.STEADINESS_UNKNOWN: _COSTS,
    WarningKind.OTHER_PROCESS_ON_DEVICE: (*_COSTS, "memory", "utilization"),
    WarningKind.OTHER_WORK_ON_MACHINE: _COSTS,
    WarningKind.RAN_BESIDE_OTHER_TRIALS: _COSTS,
    WarningKind.SWAPPING: (*_COSTS, "memory"),
    WarningKind.DEVICE_PARTITIONED: ("energy",),
    WarningKind.DEVICE_VIRTUAL: _COSTS,
    WarningKind.POWER_CAPPED: _COSTS,
    WarningKind.THROTTLED: _COSTS,
    WarningKind.HELD_BY_POWER_LIMIT: _COSTS,
    WarningKind.QUALITY_NOT_COMPARABLE: ("quality",),
    WarningKind.COSTS_NOT_COMPARABLE: (*_COSTS, "memory", "utilization"),
    WarningKind.ANOTHER_CARD: _COSTS,
    WarningKind.BASELINE_REPEATED: (),
    WarningKind.REPEATS_DIFFER: ("quality",),
    WarningKind.GENERAL_TEXT_IN_TRAINING: ("forgetting",),
    WarningKind.LARGE_EFFECTIVE_BATCH: (),
    WarningKind.ATTENTION_ALONE_ADAPTED: (),
    WarningKind.ALPHA_GROWS_WITH_RANK: (),
    WarningKind.ADAPTER_NOT_FUSED: (*_COSTS, "memory"),
    WarningKind.OTHER_SETTINGS_UNTRIED: (),
}


def qualified(warning: RecordWarning, inference: PhaseName | None) -> tuple[str, ...]:
    """The names of the columns that a warning qualifies, in their order.

    inference: the phase that the inference columns are about; a warning about another one does not touch them.
    """
    return _touched(_subjects(warning), _stages(warning, inference))


@cache
def _touched(subjects: tuple[Subject, ...], stages: tuple[Stage, ...]) -> tuple[str, ...]:
    return tuple(column.name for column in COLUMNS if _is_touched(column, subjects, stages))


def _is_touched(column: Column, subjects: tuple[Subject, ...], stages: tuple[Stage, ...]) -> bool:
    return (column.stage is None or column.stage in stages) and not column.subjects.isdisjoint(subjects)


def _stages(warning: RecordWarning, inference: PhaseName | None) -> tuple[Stage, ...]:
    if warning.phase is None:
        return "train", "inference"
    if warning.phase == "train":
        return ("train",)
    return ("inference",) if warning.phase == inference else ()


def _subjects(warning: RecordWarning) -> tuple[Subject, ...]:
    """Without energy, measured steps take their prefill and decode with them; any other part lacks only its own."""
    if warning.meter == "cpu":
        return ("cpu_energy",) if warning.part == "measured" else ()
    return _OF_PART.get(warning.part or "measured", _SUBJECTS[warning.kind])
