"""The columns of costs, which fine-tuning and inference each have under a prefix of their own.

Throughput, time, energy and power are all of the measured window, so that power = energy/sample x samples/s. The window
goes from the first measured step's start to the last one's end, less the pauses.
"""

from dataclasses import replace

from howlow.analysis.column import Column, Panel, Stage, Subject, TablePlace, TableSection


def of(*subjects: Subject) -> frozenset[Subject]:
    """What a figure depends on."""
    return frozenset(subjects)


_SPEED, _ENERGY, _MEMORY, _CPU, _USE = of("speed"), of("energy"), of("memory"), of("cpu_energy"), of("utilization")
_IN_WINDOW = "of the measured window"
_OVER_STEPS = "both summed over the measured steps"
_IN_STEPS = "of the readings inside the measured steps"

_IN_TERMINAL: dict[Stage, tuple[str, ...]] = {
    "train": ("samples_per_s", "time_per_sample_s", "energy_per_sample_j", "peak_memory_bytes", "final_loss"),
    "inference": ("samples_per_s",),
}
"""The terminal has less room than the page."""


def of_stage(stage: Stage, meaning: str, *columns: Column) -> list[Column]:
    """The columns of one stage: their names with its prefix, their places in its section of the tables."""
    return [_of_stage(stage, meaning, column) for column in columns]


def _of_stage(stage: Stage, meaning: str, column: Column) -> Column:
    section: TableSection = "fine-tuning" if stage == "train" else "inference"
    place = column.table and TablePlace(section, column.table.order, column.name in _IN_TERMINAL[stage])
    return replace(
        column,
        name=f"{stage}_{column.name}",
        meaning=f"{meaning}: {column.meaning}" if meaning else column.meaning,
        stage=stage,
        table=place,
        phrase=column.phrase and column.phrase.format(stage="training" if stage == "train" else stage),
        error=column.error and f"{stage}_{column.error}",
        interval=column.interval and (f"{stage}_{column.interval[0]}", f"{stage}_{column.interval[1]}"),
    )


def at(order: int) -> TablePlace:
    """A place in the tables; `of_stage` puts it into the section of the stage."""
    return TablePlace("fine-tuning", order)


RATES = (
    Column(
        "samples_per_s",
        "throughput",
        "per_second",
        f"samples / time, {_IN_WINDOW}",
        "higher",
        subjects=_SPEED,
        table=at(2),
        heading="samples/s",
        panel=Panel(1, "Throughput", "samples/s"),
        phrase="the {stage} throughput",
        over_steps=("samples", "time"),
        interval=("samples_per_s_low", "samples_per_s_high"),
    ),
    Column(
        "tokens_per_s",
        "tokens/s",
        "per_second",
        f"real tokens / time, {_IN_WINDOW}",
        "higher",
        subjects=_SPEED,
        over_steps=("tokens", "time"),
        interval=("tokens_per_s_low", "tokens_per_s_high"),
    ),
)
NEW_TOKENS = Column(
    "new_tokens_per_sample",
    "new tokens",
    "number",
    "tokens written / samples of the measured generate steps",
    table=at(12),
    is_optional=True,
)
MEASURED_COSTS = (
    Column(
        "time_per_sample_s",
        "time/sample",
        "seconds",
        f"time / samples, {_IN_WINDOW}",
        "lower",
        subjects=_SPEED,
        table=at(3),
        panel=Panel(3, "Time per sample"),
        over_steps=("time", "samples"),
        interval=("time_per_sample_low_s", "time_per_sample_high_s"),
    ),
    Column(
        "energy_per_sample_j",
        "energy/sample",
        "joules",
        "energy / samples, of the measured window; of several devices, their sum",
        "lower",
        subjects=_ENERGY,
        table=at(4),
        panel=Panel(2, "Energy per sample"),
        phrase="the energy per sample",
        error="energy_error_per_sample_j",
        over_steps=("time", "samples"),
        energy_of=(("measured", None),),
        interval=("energy_per_sample_low_j", "energy_per_sample_high_j"),
    ),
    Column(
        "cpu_energy_per_sample_j",
        "CPU energy/sample",
        "joules",
        "the same for the CPU and its memory, where the trial runs on an accelerator",
        "lower",
        subjects=_CPU,
        table=at(7),
        is_optional=True,
        over_steps=("time", "samples"),
        energy_of=(("measured", "cpu"),),
    ),
    Column(
        "power_w",
        "power",
        "watts",
        "energy / time, of the measured window",
        "lower",
        subjects=_ENERGY,
        table=at(9),
        panel=Panel(4, "Average power"),
        energy_of=(("measured", None),),
        interval=("power_low_w", "power_high_w"),
    ),
    Column(
        "peak_memory_bytes",
        "peak memory",
        "bytes",
        "device memory in use on a GPU, resident memory on a CPU; of several devices, the one that had most",
        "lower",
        subjects=_MEMORY,
        table=at(10),
        panel=Panel(5, "Peak memory"),
        phrase="the peak memory",
    ),
    Column("peak_allocated_bytes", "peak allocated", "bytes", "memory of tensors on a GPU", "lower", subjects=_MEMORY),
    Column("peak_reserved_bytes", "peak reserved", "bytes", "taken by torch on a GPU", "lower", subjects=_MEMORY),
    Column(
        "utilization",
        "utilisation",
        "fraction",
        f"mean {_IN_STEPS}",
        subjects=_USE,
        reading="utilization",
        table=at(11),
        panel=Panel(6, "Utilisation"),
    ),
)
METERED = (
    Column(
        "energy_error_per_sample_j",
        "energy error/sample",
        "joules",
        "how far energy/sample can be from what the sensor measured; of polled power only rounding, gaps at the edges "
        "and late readings: swings between two readings are not in it; of a counter that no power is read beside (as "
        "RAPL), an update that it lost is not in it",
        table=at(5),
        is_relative=False,
        is_optional=True,
    ),
    Column(
        "energy_above_idle_per_sample_j",
        "energy above idle/sample",
        "joules",
        "energy/sample less the device's idle power x time/sample",
        "lower",
        subjects=of("energy", "energy_above_idle"),
        table=at(6),
        error="energy_above_idle_error_per_sample_j",
        is_optional=True,
        over_steps=("time", "samples"),
        energy_of=(("measured", None),),
    ),
    Column(
        "energy_above_idle_error_per_sample_j",
        "error of energy above idle/sample",
        "joules",
        "the error of energy/sample plus that of the idle power x time/sample",
        is_relative=False,
    ),
    Column(
        "cpu_energy_above_idle_per_sample_j",
        "CPU energy above idle/sample",
        "joules",
        "CPU energy/sample less the CPU's idle power x time/sample",
        "lower",
        subjects=_CPU,
        table=at(8),
        is_optional=True,
        over_steps=("time", "samples"),
        energy_of=(("measured", "cpu"),),
    ),
    Column(
        "phase_energy_j",
        "phase energy",
        "joules",
        "energy of the whole phase, burn-in and pauses included",
        "lower",
        subjects=of("energy", "phase_energy"),
    ),
    Column(
        "phase_power_w",
        "phase power",
        "watts",
        "the phase's energy / the time it covers",
        "lower",
        subjects=of("energy", "phase_energy"),
    ),
    *(
        Column(
            f"power_p{percent:02d}_w",
            f"power, {percent} %",
            "watts",
            f"{words} {_IN_STEPS}",
            subjects=of("energy", "power_readings"),
        )
        for percent, words in ((5, "5th percentile"), (50, "median"), (95, "95th percentile"))
    ),
    Column(
        "memory_utilization",
        "memory use",
        "fraction",
        "share of the time in which a GPU's memory was read or written, mean of the readings",
        subjects=_USE,
        reading="memory_utilization",
    ),
)
PROCESS_MEMORY = Column(
    "peak_process_memory_bytes",
    "process memory",
    "bytes",
    "of the device memory in use on a GPU, that of the trial's own process, as the driver counts it",
    "lower",
    subjects=_MEMORY,
    table=at(22),
    is_optional=True,
)
STEP_TIMES = (
    *(
        Column(
            f"step_time_p{percent:02d}_s",
            label,
            "seconds",
            f"{words} of the time of a measured step by itself",
            "lower",
            subjects=_SPEED,
            table=at(20) if percent == 50 else None,
            is_optional=True,
        )
        for percent, label, words in (
            (5, "step time, 5 %", "5th percentile"),
            (50, "step time", "median"),
            (95, "step time, 95 %", "95th percentile"),
        )
    ),
    Column(
        "host_share",
        "between steps",
        "fraction",
        "share of the measured window that lies between steps: waiting for batches and writing lines",
        "lower",
        subjects=_SPEED,
        table=at(21),
        is_relative=False,
        is_optional=True,
    ),
)
_PREFILL, _DECODE = of("energy", "prefill_energy"), of("energy", "decode_energy")
_PER_TOKEN = f"energy / tokens, {_OVER_STEPS}; absent where the source is too slow for such short parts"


def _of_generation(column: Column, order: int) -> Column:
    return replace(column, table=at(order), is_optional=True)


GENERATION = tuple(
    _of_generation(column, order)
    for order, column in enumerate(
        (
            Column(
                "prefill_time_per_sample_s",
                "prefill time/sample",
                "seconds",
                f"time until the first new token / samples, {_OVER_STEPS}",
                "lower",
                subjects=_SPEED,
                over_steps=("prefill_time", "samples"),
            ),
            Column(
                "decode_time_per_sample_s",
                "decode time/sample",
                "seconds",
                f"time after the first new token / samples, {_OVER_STEPS}",
                "lower",
                subjects=_SPEED,
                over_steps=("decode_time", "samples"),
            ),
            Column(
                "prefill_tokens_per_s",
                "prefill tokens/s",
                "per_second",
                f"tokens of the prompts (real ones, however many were computed) / time, {_OVER_STEPS}",
                "higher",
                subjects=_SPEED,
                over_steps=("prompt_tokens", "prefill_time"),
            ),
            Column(
                "decode_tokens_per_s",
                "decode tokens/s",
                "per_second",
                f"new tokens after the first ones / time, {_OVER_STEPS}",
                "higher",
                subjects=_SPEED,
                over_steps=("later_tokens", "decode_time"),
            ),
            Column(
                "prefill_energy_per_token_j",
                "prefill energy/token",
                "joules",
                _PER_TOKEN,
                "lower",
                subjects=_PREFILL,
                over_steps=("prefill_time", "prompt_tokens"),
                energy_of=(("prefill", None),),
            ),
            Column(
                "decode_energy_per_token_j",
                "decode energy/token",
                "joules",
                _PER_TOKEN,
                "lower",
                subjects=_DECODE,
                over_steps=("decode_time", "later_tokens"),
                energy_of=(("decode", None),),
            ),
        ),
        start=13,
    )
)


def _ends(column: Column) -> list[Column]:
    """The columns of the two ends of a column's interval."""
    meaning = f"{column.label} of this trial, by its own steps and its energy's bound: the 95 % interval's"
    return [
        Column(name, f"{column.label}, {end}", column.unit, f"{meaning} {end} end", is_relative=False)
        for name, end in zip(column.interval or (), ("lower", "upper"), strict=False)
    ]


INTERVALS = tuple(end for column in (*RATES, *MEASURED_COSTS) for end in _ends(column))
"""How far the figures of one trial can be from the truth, as far as that trial itself shows."""
