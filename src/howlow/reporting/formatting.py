"""Numbers as people read them: the only place where SI becomes ms, GiB or %."""

import math
from collections.abc import Mapping
from typing import Any

from howlow.analysis.column import Unit
from howlow.analysis.margins import QualityScale
from howlow.analysis.ratios import Ratio
from howlow.analysis.statistics import FEWEST_BLOCKS, NoError

ABSENT = "n/a"
NOT_SIGNIFICANT = "not significant"
NO_ERROR = "no error"
NO_ERROR_BECAUSE: Mapping[NoError, str] = {
    "steps": f"fewer than {FEWEST_BLOCKS} steps",
    "readings": f"fewer than {FEWEST_BLOCKS} readings",
    "examples": f"fewer than {FEWEST_BLOCKS} scored test examples",
    "wide": "the interval would reach from below half to above twice the figure",
    "sensor": "the power sensor measures for only a part of the time",
    "bound": "no bound of the energy is known",
    "process": "one process does not show it",
    "zero": "the figure is not above 0",
}
"""Why a figure has no error, in words."""
_WIDE = 0.25
_SCALES = {
    "ms": 1e3,
    "min": 1 / 60,
    "h": 1 / 3600,
    "mJ": 1e3,
    "kJ": 1e-3,
    "kB": 1e-3,
    "MB": 1e-6,
    "GiB": 2.0**-30,
    "%": 100.0,
    "GHz": 1e-9,
}


def significant(value: float, digits: int = 3) -> str:
    """A number with at least that many significant digits, and an exponent only where it is tiny or huge."""
    if value == 0:
        return "0"
    magnitude = math.floor(math.log10(abs(value)))
    if magnitude < -4 or magnitude > 14:
        return f"{value:.{digits - 1}e}"
    rounded = round(value, digits - 1 - magnitude) if magnitude < digits else value
    magnitude = math.floor(math.log10(abs(rounded)))
    return f"{rounded:,.{max(0, digits - 1 - magnitude)}f}"


def as_asked(value: float, digits: int) -> str:
    """A number that a person chose: with at least that many digits, and with all that it has (up to 9)."""
    texts = (significant(value, more) for more in range(digits, 9))
    return next((text for text in texts if math.isclose(float(text.replace(",", "")), value)), significant(value, 9))


def percent_sure(confidence: float) -> str:
    """A confidence in per cent: `95.0 %`, never rounded to 100."""
    texts = (significant(100 * confidence, digits) for digits in range(3, 16))
    return f"{next((text for text in texts if float(text) < 100), '100')} %"


def size(value: float) -> str:
    """Bytes: kB and MB, as adapter sizes are usually given, and GiB, as memory is."""
    if value >= 2**30:
        return f"{significant(value / 2**30)} GiB"
    if value >= 1e6:
        return f"{significant(value / 1e6)} MB"
    return f"{significant(value / 1e3)} kB" if value >= 1e3 else f"{value:.0f} B"


def duration(value: float) -> str:
    """Seconds: ms below one, minutes from 120 s, hours from 120 min."""
    if value < 1:
        return f"{significant(value * 1e3)} ms"
    if value < 120:
        return f"{significant(value)} s"
    return f"{significant(value / 60)} min" if value < 7200 else f"{significant(value / 3600)} h"


def energy(value: float) -> str:
    """Joules, with mJ and kJ where they read better."""
    if 0 < value < 0.1:
        return f"{significant(value * 1e3)} mJ"
    return f"{significant(value / 1e3)} kJ" if value >= 1e4 else f"{significant(value)} J"


def quantity(value: Any, unit: Unit) -> str:
    """A value of that kind with its unit; the unit of a rate is in the heading."""
    if value is None:
        return ABSENT
    match unit:
        case "text":
            return plain(value)
        case "count":
            return f"{value:,.0f}"
        case "bytes":
            return size(value)
        case "seconds":
            return duration(value)
        case "joules":
            return energy(value)
        case "watts":
            return f"{significant(value)} W"
        case "hertz":
            return f"{significant(value / 1e9)} GHz"
        case "celsius":
            return f"{value:.1f} °C"
        case "fraction":
            return f"{value * 100:.1f} %"
        case "per_second":
            return significant(value)
        case "number" | "nats":
            return significant(value, 4)


def unit_and_factor(value: float, unit: Unit) -> tuple[str, float]:
    """The unit that a value of that kind is shown in, and what to multiply by to get there; "" without a unit."""
    _, space, shown = quantity(value, unit).rpartition(" ")
    return (shown, _SCALES.get(shown, 1.0)) if space and unit not in ("text", "count") else ("", 1.0)


def deviation(value: float, unit: Unit, mean: float) -> str:
    """A standard deviation in the unit that its mean is shown in."""
    shown = quantity(mean, unit).rpartition(" ")[2]
    return significant(value * _SCALES.get(shown, 1.0), 2)


def gap(value: float, unit: Unit, *, is_relative: bool, is_asked: bool = False) -> str:
    """The size of a difference in quality: `1.2 points` of a score, `0.5 %` of a perplexity, `0.01 nats`.

    is_asked: it is a margin that a person chose, and is not rounded.
    """
    shown = as_asked if is_asked else significant
    if unit == "fraction":
        return f"{shown(value * 100, 2)} points"
    if is_relative:
        return f"{shown(value * 100, 2)} %"
    return f"{shown(value, 2)}{' nats' if unit == 'nats' else ''}"


def worse(gain: float, scale: QualityScale) -> str:
    """`1.2 points worse`: how far one thing is below another; a difference that nothing bounds has no size."""
    if not math.isfinite(gain):
        return "any amount worse"
    return f"{gap(abs(scale.of_gain(gain)), scale.metric.unit, is_relative=scale.is_relative)} worse"


def times(value: float | None) -> str:
    """A figure relative to the reference's."""
    return ABSENT if value is None else f"{significant(value)}x"


def relative(ratio: Ratio, *, with_ends: bool = False) -> str:
    """`1.13x ±0.04`, or with its ends `1.13x (1.09 to 1.17)`; the words where the evidence carries no difference.

    Where ± would say something else than the ends (the interval is wide, or ends close to 1), the ends are written.
    Where no error is known, that stands there, with its reason where the ends would be.
    """
    if ratio.lack is not None:
        return f"{NO_ERROR}: {NO_ERROR_BECAUSE[ratio.lack]}" if with_ends else NO_ERROR
    if not ratio.is_shown or ratio.low is None or ratio.high is None:
        return NOT_SIGNIFICANT
    if ratio.error < 1e-6 * ratio.value:
        return times(ratio.value)
    decimals = max(2 - math.floor(math.log10(ratio.value)), math.ceil(-math.log10(ratio.error)), 0)
    holds_1 = abs(ratio.value - 1) <= ratio.error + 10.0**-decimals
    if not with_ends and not holds_1 and ratio.error <= _WIDE * ratio.value:
        return f"{ratio.value:,.{decimals}f}x ±{ratio.error:.{decimals}f}"
    while decimals < 6 and 1 in (round(ratio.low, decimals), round(ratio.high, decimals)):
        decimals += 1
    return f"{ratio.value:,.{decimals}f}x ({ratio.low:,.{decimals}f} to {ratio.high:,.{decimals}f})"


def plain(value: Any) -> str:
    """A setting's value: lists without brackets, floats as they were written."""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return ABSENT if value is None else str(value)


def counted(number: int, noun: str) -> str:
    """`1 trial`, `2 trials`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def enumerated(parts: list[str]) -> str:
    """`this`, `this and that`, `this, that and another`."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def listed(names: list[str], most: int = 6) -> str:
    """The first names, and how many more there are."""
    if len(names) <= most:
        return ", ".join(names)
    return f"{', '.join(names[: most - 1])} and {len(names) - most + 1} more"
