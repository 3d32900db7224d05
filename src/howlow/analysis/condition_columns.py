"""The columns of the conditions of a stage, and of the energies that only some machines can measure."""

from howlow.analysis.column import Column
from howlow.analysis.cost_columns import at, of

_IN_WINDOW = "mean of the readings in the measured window"

CONDITIONS = (
    Column(
        "clock_hz",
        "clock",
        "hertz",
        f"clock of the GPU's SMs, or of the CPU's cores: {_IN_WINDOW}",
        subjects=of("utilization"),
        table=at(30),
        is_optional=True,
    ),
    Column(
        "temperature_c",
        "temperature",
        "celsius",
        f"of the device: {_IN_WINDOW}",
        subjects=of("utilization"),
        is_relative=False,
        is_optional=True,
    ),
    Column(
        "throttled_share",
        "throttled",
        "fraction",
        "share of the measured window in which heat or the power limit lowered the device's clocks, by the reason that "
        "did so the longest",
        "lower",
        subjects=of("utilization"),
        table=at(31),
        is_relative=False,
        is_optional=True,
        shows_zero=False,
    ),
)
FURTHER_ENERGIES = (
    Column(
        "energy_statistical_error_per_sample_j",
        "statistical error/sample",
        "joules",
        "of polled power: half of the 95 % interval of energy/sample that follows from the spread of the readings; "
        "swings between readings are in it; absent where the sensor measures for only a part of the time",
        is_relative=False,
        is_optional=True,
    ),
    Column(
        "dram_energy_per_sample_j",
        "DRAM energy/sample",
        "joules",
        "the part of the CPU's energy/sample (on a CPU: of energy/sample) that its memory took",
        "lower",
        subjects=of("cpu_energy"),
        is_optional=True,
    ),
    Column(
        "total_energy_per_sample_j",
        "total energy/sample",
        "joules",
        "the sum of energy/sample and CPU energy/sample: GPU, CPU and DRAM, where all three were measured",
        "lower",
        subjects=of("energy", "cpu_energy"),
        table=at(32),
        is_optional=True,
        over_steps=("time", "samples"),
        energy_of=(("measured", None), ("measured", "cpu")),
    ),
)
