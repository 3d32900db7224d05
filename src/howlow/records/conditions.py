"""The conditions under which a phase was measured: clocks, temperatures, throttling, the power limit.

They are summaries over the measured window, one for each device that reports any of them.
"""

from pydantic import Field

from howlow.records.warnings import Frozen


class Spread(Frozen):
    """The smallest, the mean and the largest of the readings in a window."""

    low: float
    mean: float
    high: float


class DeviceConditions(Frozen):
    """What the readings of one device inside a measured window say; absent where the device does not report it."""

    device: str = Field(description="its name in the timeline")
    readings: int = Field(description="readings inside the measured window")
    duration_s: float = Field(description="the seconds of the measured window that they are about")
    sm_clock_hz: Spread | None = None
    memory_clock_hz: Spread | None = None
    cpu_clock_hz: Spread | None = Field(None, description="the mean of the cores that the process may use")
    temperature_c: Spread | None = None
    memory_temperature_c: Spread | None = None
    power_limit_w: Spread | None = Field(None, description="the limit that the driver enforced")
    throttled_share: dict[str, float] | None = Field(
        None,
        description="share of the window in which the clocks were lowered, 0..1, by reason: from the driver's own "
        "counters of time where it has them, else the share of the readings; None: the device does not report it",
    )
