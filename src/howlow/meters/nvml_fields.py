"""NVML's field values: several values of a device in one call.

Drivers differ in the fields that they know. Each field is tried once, when the device is opened, and one that the
driver does not answer is not asked for again.
"""

from collections.abc import Iterable
from typing import Any

import pynvml

ERRORS = (pynvml.NVMLError, pynvml.NVMLLibraryMismatchError)  # the second: the driver lacks the function
POWER, MEMORY_HEAT = pynvml.NVML_FI_DEV_POWER_INSTANT, pynvml.NVML_FI_DEV_MEMORY_TEMP
ENERGY = pynvml.NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION
THROTTLED_TIMES = {  # in nanoseconds (nvml.h); older bindings lack most of the names
    "sw_power_cap": pynvml.NVML_FI_DEV_PERF_POLICY_POWER,
    "sw_thermal_slowdown": 269,
    "hw_thermal_slowdown": 270,
    "hw_power_brake": 271,
}
_ALL = (POWER, MEMORY_HEAT, ENERGY, *THROTTLED_TIMES.values())
_WIDE = {ENERGY, *THROTTLED_TIMES.values()}  # their values have 64 bits, those of the others 32


class Fields:
    """The fields of one device; `known` are those that its driver answers."""

    def __init__(self, card: Any) -> None:
        self._card = card
        self.known = frozenset(_ALL)
        self.known = frozenset(field for field in _ALL if self.values([field]))

    def values(self, fields: Iterable[int]) -> dict[int, int]:
        """The values of those fields that the driver answers, asked in one call; none where the call fails."""
        wanted = [field for field in fields if field in self.known]
        try:
            answers = pynvml.nvmlDeviceGetFieldValues(self._card, wanted) if wanted else ()
        except ERRORS:
            return {}
        return {field: _number(field, one) for field, one in zip(wanted, answers, strict=True) if _is_answered(one)}

    def value(self, field: int) -> int:
        """One field's value.

        Raises:
            NVMLError: the driver does not answer.
        """
        (answer,) = pynvml.nvmlDeviceGetFieldValues(self._card, [field])
        if not _is_answered(answer):
            raise pynvml.NVMLError(answer.nvmlReturn)
        return _number(field, answer)


def _is_answered(answer: Any) -> bool:
    return bool(answer.nvmlReturn == pynvml.NVML_SUCCESS)


def _number(field: int, answer: Any) -> int:
    return int(answer.value.ullVal if field in _WIDE else answer.value.uiVal)
