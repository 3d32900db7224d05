"""Which columns a warning qualifies, so that it can stand beside the numbers it touches.

A warning about one phase touches that phase's columns; one about quality those of quality. What touches the trial as a
whole, as that it was resumed, touches no column: it stands beside the trial.
"""

from collections.abc import Mapping

from howlow.analysis.columns import COLUMNS, QUALITY
from howlow.records import PhaseName, RecordWarning, WarningKind

_SPEED = ("samples_per_s", "tokens_per_s", "time_per_sample_s")
_ENERGY = ("energy", "power")
_CPU = "cpu_energy"
_MEMORY = ("peak_",)
_USE = ("utilization",)
_PERCENTILES = ("power_p05_w", "power_p50_w", "power_p95_w")
_COSTS = (*_SPEED, *_ENERGY, _CPU)
_OF_PART = {"phase": ("phase_energy", "phase_power"), "prefill": ("prefill_energy",), "decode": ("decode_energy",)}

_WORDS: Mapping[WarningKind, tuple[str, ...]] = {
    WarningKind.TRAIN_TEST_OVERLAP: QUALITY,
    WarningKind.EXAMPLES_DROPPED: QUALITY,
    WarningKind.TEXT_CUT: QUALITY,
    WarningKind.RANK_ABOVE_MATRIX: (),
    WarningKind.TOKENIZER_SUBSTITUTED: QUALITY,
    WarningKind.ENERGY_ABSENT: _ENERGY,
    WarningKind.ENERGY_ASSUMED: _ENERGY,
    WarningKind.ENERGY_OF_ANOTHER_DEVICE: _ENERGY,
    WarningKind.IDLE_ABSENT: ("above_idle",),
    WarningKind.PEAK_MEMORY_ABSENT: _MEMORY,
    WarningKind.PERPLEXITY_OVERFLOW: ("perplexity", "word_perplexity"),
    WarningKind.STEPS_SKIPPED: ("train_final_loss", *QUALITY),
    WarningKind.SHORT_BURN_IN: _COSTS,
    WarningKind.RESUMED: (),
    WarningKind.RANDOM_WEIGHTS: QUALITY,
    WarningKind.LONGER_THAN_MODEL: QUALITY,
    WarningKind.LAYOUT_FELL_BACK: (*_COSTS, *_MEMORY),
    WarningKind.NEAR_TIES: ("exact_match", "f1", "rouge1", "rouge2", "rougeL"),
    WarningKind.WEIGHTS_LEFT_OUT: QUALITY,
    WarningKind.ENERGY_WINDOW_TOO_SHORT: _ENERGY,
    WarningKind.ENERGY_GAP: _ENERGY,
    WarningKind.SENSOR_LATE: (*_ENERGY, *_USE),
    WarningKind.SENSOR_FAILED: (*_ENERGY, *_USE),
    WarningKind.TIMELINE_GAP: (*_PERCENTILES, *_USE),
    WarningKind.METER_OVERHEAD: _COSTS,
    WarningKind.NOT_STEADY: _COSTS,
    WarningKind.STEADINESS_UNKNOWN: _COSTS,
    WarningKind.OTHER_PROCESS_ON_DEVICE: (*_COSTS, *_MEMORY, *_USE),
    WarningKind.OTHER_WORK_ON_MACHINE: _COSTS,
    WarningKind.RAN_BESIDE_OTHER_TRIALS: _COSTS,
    WarningKind.SWAPPING: (*_COSTS, *_MEMORY),
    WarningKind.DEVICE_PARTITIONED: _ENERGY,
    WarningKind.DEVICE_VIRTUAL: _COSTS,
    WarningKind.POWER_CAPPED: _COSTS,
    WarningKind.THROTTLED: _COSTS,
    WarningKind.QUALITY_NOT_COMPARABLE: QUALITY,
    WarningKind.COSTS_NOT_COMPARABLE: (*_COSTS, *_MEMORY, *_USE),
}
"""The names of quality's columns, and for costs what a column's name holds behind its phase."""


def qualified(warning: RecordWarning, inference: PhaseName | None) -> tuple[str, ...]:
    """The columns that a warning qualifies, in their order; `inference`: the phase that these columns are of."""
    words = _words(warning)
    if warning.phase is None:
        prefixes: tuple[str, ...] = ("train_", "inference_")
    elif warning.phase == "train":
        prefixes = ("train_",)
    else:
        prefixes = ("inference_",) if warning.phase == inference else ()
    return tuple(
        column.name
        for column in COLUMNS
        if column.name in words or (column.name.startswith(prefixes) and _holds(column.name, words))
    )


def _words(warning: RecordWarning) -> tuple[str, ...]:
    """Energy that is missing: what the measured steps lack their parts lack as well, another part lacks it alone."""
    if warning.meter == "cpu":
        return (_CPU,) if warning.part == "measured" else ()
    return _OF_PART.get(warning.part or "measured", _WORDS[warning.kind])


def _holds(name: str, words: tuple[str, ...]) -> bool:
    """Whether a cost's name holds one of these; an error is itself a reason for distrust, and needs no other."""
    if _CPU in name:
        return _CPU in words
    return "error" not in name and any(word in name for word in words if word not in QUALITY)
