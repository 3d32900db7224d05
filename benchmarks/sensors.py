"""Measure the sensors of an NVIDIA GPU: how often they change, how far they lag, and what reading them costs.

    python benchmarks/sensors.py [--out DIR] [--seconds S]

The script needs torch with CUDA and nvidia-ml-py, but not howlow. It writes raw readings to DIR, so that a reader can
check the figures. The parts are:

    calls    the latency of each NVML question that a meter may ask, idle and under load (median, 95th percentile)
    pace     how often the energy counter and each power reading change, idle and under load: the times between changes
    lag      bursts of matrix products after rests: how long after a burst's beginning and end the counter and the power
             are half way between their levels before and after
    waves    a load that is switched on and off with periods of 20 to 400 ms: energy by the counter against the mean
             of both power readings polled at 4, 20 and 100 Hz; they differ where a sensor misses part of the load
    cost     the time of steps of small kernels, alone and while a thread asks the questions at 4 and 20 Hz

The last line is one JSON document.
"""

import argparse
import itertools
import json
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pynvml
import torch

POWER_AVERAGE, POWER_INSTANT = 185, 186  # NVML_FI_DEV_POWER_AVERAGE, NVML_FI_DEV_POWER_INSTANT
SIZE = 8192  # a bf16 product of this size takes about 1.5 ms on an H100
Reading = dict[str, float]


class Device:
    """One GPU's NVML questions by name; each returns joules, watts, or a value that is only timed."""

    def __init__(self) -> None:
        pynvml.nvmlInit()
        self.handle = pynvml.nvmlDeviceGetHandleByIndex(0)
        self.questions: dict[str, Callable[[], Any]] = {
            "energy_counter_j": lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(self.handle) / 1e3,
            "power_usage_w": lambda: pynvml.nvmlDeviceGetPowerUsage(self.handle) / 1e3,
            "power_average_w": lambda: self.field(POWER_AVERAGE),
            "power_instant_w": lambda: self.field(POWER_INSTANT),
            "both_power_fields": lambda: pynvml.nvmlDeviceGetFieldValues(self.handle, [POWER_AVERAGE, POWER_INSTANT]),
            "utilization": lambda: pynvml.nvmlDeviceGetUtilizationRates(self.handle).gpu,
            "memory": lambda: pynvml.nvmlDeviceGetMemoryInfo(self.handle).used,
            "temperature": lambda: pynvml.nvmlDeviceGetTemperature(self.handle, pynvml.NVML_TEMPERATURE_GPU),
            "sm_clock": lambda: pynvml.nvmlDeviceGetClockInfo(self.handle, pynvml.NVML_CLOCK_SM),
            "memory_clock": lambda: pynvml.nvmlDeviceGetClockInfo(self.handle, pynvml.NVML_CLOCK_MEM),
            "throttle_reasons": lambda: pynvml.nvmlDeviceGetCurrentClocksEventReasons(self.handle),
            "processes": lambda: pynvml.nvmlDeviceGetComputeRunningProcesses(self.handle),
        }

    def field(self, number: int) -> float:
        """Read a power field in watts."""
        (found,) = pynvml.nvmlDeviceGetFieldValues(self.handle, [number])
        return float(found.value.uiVal) / 1e3

    def read(self) -> Reading:
        """Read the counter and the powers, each with the time at the middle of its question."""
        found: Reading = {}
        for name in ("energy_counter_j", "power_usage_w", "power_instant_w"):
            begun = time.perf_counter()
            found[name] = self.questions[name]()
            found[f"{name}@"] = (begun + time.perf_counter()) / 2
        return found


class Load:
    """Matrix products that keep the device busy; `queue` returns before they have finished."""

    def __init__(self) -> None:
        self.a, self.b = (torch.randn(SIZE, SIZE, device="cuda", dtype=torch.bfloat16) for _ in range(2))
        self.out = torch.empty_like(self.a)
        self.queue(20)
        torch.cuda.synchronize()
        begun = time.perf_counter()
        self.queue(100)
        torch.cuda.synchronize()
        self.product_s = (time.perf_counter() - begun) / 100

    def queue(self, products: int) -> None:
        """Queue this many products."""
        for _ in range(products):
            torch.mm(self.a, self.b, out=self.out)

    def run(self, seconds: float) -> None:
        """Keep the device busy for about this many seconds."""
        self.queue(max(1, round(seconds / self.product_s)))
        torch.cuda.synchronize()


@contextmanager
def busy(load: Load) -> Iterator[None]:
    """Keep the device computing without a break within this context."""
    over = threading.Event()

    def keep() -> None:
        while not over.is_set():
            load.run(0.1)

    thread = threading.Thread(target=keep)
    thread.start()
    time.sleep(1.0)
    try:
        yield
    finally:
        over.set()
        thread.join()


def summary(values: list[float]) -> dict[str, float | int | None]:
    """Compute the median, the 5th and 95th percentiles and the number of values."""
    if len(values) < 2:
        return {"n": len(values), "median": values[0] if values else None}
    cuts = statistics.quantiles(values, n=20)
    return {"n": len(values), "median": statistics.median(values), "p05": cuts[0], "p95": cuts[-1]}


# -- the parts ------------------------------------------------------------------------------------------------------


def calls(device: Device, times: int) -> dict[str, Any]:
    """Measure the latency of each question in seconds."""
    found: dict[str, Any] = {}
    for name, ask in device.questions.items():
        taken = []
        try:
            for _ in range(times):
                begun = time.perf_counter()
                ask()
                taken.append(time.perf_counter() - begun)
        except (pynvml.NVMLError, AttributeError) as error:
            found[name] = f"absent: {error}"
            continue
        found[name] = summary(taken)
    return found


def polled(device: Device, seconds: float) -> list[Reading]:
    """Read as fast as possible for this many seconds."""
    until, found = time.perf_counter() + seconds, []
    while time.perf_counter() < until:
        found.append(device.read())
    return found


def pace(readings: list[Reading]) -> dict[str, Any]:
    """Compute the times between two changes of each sensor."""
    found = {}
    for name in ("energy_counter_j", "power_usage_w", "power_instant_w"):
        pairs = itertools.pairwise(readings)
        changes = [after[f"{name}@"] for before, after in pairs if after[name] != before[name]]
        gaps = [later - earlier for earlier, later in itertools.pairwise(changes)]
        found[name] = {"between_changes_s": summary(gaps), "read_every_s": _every(readings, name)}
    return found


def _every(readings: list[Reading], name: str) -> float:
    return (readings[-1][f"{name}@"] - readings[0][f"{name}@"]) / max(1, len(readings) - 1)


def lag(device: Device, load: Load, bursts: int) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Measure how late each sensor follows bursts of a second after rests, read as fast as possible."""
    found = []
    for number in range(bursts):
        readings, edges = list[Reading](), dict[str, float]()
        over = threading.Event()

        def look(readings: list[Reading] = readings, over: threading.Event = over) -> None:
            while not over.is_set():
                readings.append(device.read())

        thread = threading.Thread(target=look)
        thread.start()
        time.sleep(1.0 + 0.013 * number)  # so that the edges do not line up with the sensor's period
        edges["on"] = time.perf_counter()
        load.run(1.0)
        edges["off"] = time.perf_counter()
        time.sleep(1.0)
        over.set()
        thread.join()
        found.append({"edges": edges, "readings": readings})
    lags = {
        f"{name} {edge}": summary([one for burst in found if (one := _late(burst, name, edge)) is not None])
        for name in ("energy_counter_j", "power_usage_w", "power_instant_w")
        for edge in ("on", "off")
    }
    return found, lags


def _late(burst: dict[str, Any], name: str, edge: str) -> float | None:
    """Compute the seconds from an edge until the sensor is half way between its levels before and after."""
    at = burst["edges"][edge]
    series = _powers(burst["readings"], name)
    before = [watts for when, watts in series if at - 0.5 < when < at]
    after = [watts for when, watts in series if at + 0.6 < when < at + 0.95]
    if not before or not after:
        return None
    half, rises = (
        (statistics.mean(before) + statistics.mean(after)) / 2,
        statistics.mean(after) > statistics.mean(before),
    )
    passed = [when for when, watts in series if when > at and (watts > half) == rises]
    return passed[0] - at if passed else None


def _powers(readings: list[Reading], name: str) -> list[tuple[float, float]]:
    """List (time, watts) at each change of a sensor; for the counter, the slope since its previous change."""
    changes = [readings[0], *(b for a, b in itertools.pairwise(readings) if a[name] != b[name])]
    if not name.startswith("energy"):
        return [(one[f"{name}@"], one[name]) for one in changes]
    pairs = itertools.pairwise(changes)
    return [(b[f"{name}@"], (b[name] - a[name]) / (b[f"{name}@"] - a[f"{name}@"])) for a, b in pairs]


def waves(device: Device, load: Load, seconds: float) -> dict[str, Any]:
    """Compare the counter with both powers, polled at three rates, while the load is switched on and off."""
    found = {}
    for period_s in (0.02, 0.05, 0.1, 0.2, 0.4):
        over, readings = threading.Event(), list[Reading]()

        def look(readings: list[Reading] = readings, over: threading.Event = over) -> None:
            while not over.is_set():
                readings.append(device.read())
                time.sleep(0.002)

        thread = threading.Thread(target=look)
        thread.start()
        until = time.perf_counter() + seconds
        while time.perf_counter() < until:
            load.run(period_s / 2)
            time.sleep(period_s / 2)
        over.set()
        thread.join()
        found[f"{period_s:g} s"] = _energies(
            [one for one in readings if one["energy_counter_j@"] > until - seconds + 0.5]
        )
    return found


def _energies(readings: list[Reading]) -> dict[str, float]:
    """Compute the mean power in watts by the counter, and by power readings at 4, 20 and 100 Hz."""
    changes = [b for a, b in itertools.pairwise(readings) if a["energy_counter_j"] != b["energy_counter_j"]]
    first, last = changes[0], changes[-1]
    joules = last["energy_counter_j"] - first["energy_counter_j"]
    found = {"counter_w": joules / (last["energy_counter_j@"] - first["energy_counter_j@"])}
    for name in ("power_usage_w", "power_instant_w"):
        for rate_hz in (4, 20, 100):
            chosen, due = [], readings[0][f"{name}@"]
            for one in readings:
                if one[f"{name}@"] >= due:
                    chosen.append(one[name])
                    due += 1 / rate_hz
            found[f"{name} at {rate_hz} Hz"] = statistics.mean(chosen)
    return found


def cost(device: Device, rounds: int) -> dict[str, Any]:
    """Time steps of many small kernels, alternately alone and while a thread asks the questions."""
    x = torch.randn(256, 256, device="cuda")

    def step() -> float:
        torch.cuda.synchronize()
        begun = time.perf_counter()
        y = x
        for _ in range(400):
            y = torch.relu(y @ x) * 0.01
        torch.cuda.synchronize()
        return time.perf_counter() - begun

    for _ in range(20):
        step()
    found: dict[str, list[float]] = {"alone": [], "4 Hz": [], "20 Hz": []}
    for _ in range(rounds):
        for name in found:
            with _asking(device, 0.0 if name == "alone" else float(name.split()[0])):
                found[name].append(statistics.median(step() for _ in range(40)))
    ratios = {name: [a / b for a, b in zip(found[name], found["alone"], strict=True)] for name in ("4 Hz", "20 Hz")}
    return {
        "step_s": {name: summary(values) for name, values in found.items()},
        "ratio": {n: summary(v) for n, v in ratios.items()},
    }


@contextmanager
def _asking(device: Device, rate_hz: float) -> Iterator[None]:
    over = threading.Event()

    def ask() -> None:
        while not over.wait(1 / rate_hz):
            for name in ("energy_counter_j", "power_usage_w", "utilization", "memory", "temperature", "sm_clock"):
                device.questions[name]()

    thread = threading.Thread(target=ask, daemon=True)
    if rate_hz:
        thread.start()
    try:
        yield
    finally:
        over.set()
        if rate_hz:
            thread.join()


def main() -> None:
    """Run every part and write what each found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("sensors"), help="where the raw readings go")
    parser.add_argument("--seconds", type=float, default=4.0, help="the length of each measurement")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    device, load, found = Device(), Load(), dict[str, Any]()
    found["device"] = {
        "name": torch.cuda.get_device_name(0),
        "driver": pynvml.nvmlSystemGetDriverVersion(),
        "torch": torch.__version__,
        "power_limit_w": pynvml.nvmlDeviceGetEnforcedPowerLimit(device.handle) / 1e3,
        "product_s": load.product_s,
    }
    time.sleep(2.0)

    def keep(name: str, value: Any, raw: Any = None) -> None:
        found[name] = value
        print(name, json.dumps(value), flush=True)
        if raw is not None:
            (asked.out / f"{name.replace(' ', '-')}.json").write_text(json.dumps(raw), encoding="utf-8")

    keep("calls idle", calls(device, 200))
    idle = polled(device, asked.seconds)
    keep("pace idle", pace(idle), idle[:4000])
    with busy(load):
        keep("calls busy", calls(device, 200))
        under = polled(device, asked.seconds)
        keep("pace busy", pace(under), under[:4000])
    time.sleep(2.0)
    bursts, lags = lag(device, load, 6)
    keep("lag", lags, bursts[:2])
    keep("waves", waves(device, load, asked.seconds))
    keep("cost", cost(device, 8))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
