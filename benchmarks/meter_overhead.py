"""Measure what the meters cost: their share of a core and of the steps' time, and how much a step slows down.

    python benchmarks/meter_overhead.py [--steps 800] [--step_s 0.1] [--rates 4 20] [--seconds 10]

Short blocks of the same work (matrix products of about a tenth of a second) run alternately with and without a meter
session. Each pair of blocks is compared by itself, and every second pair begins with the session, so that drift favours
neither. The session reads a counter at each step's end and records the timeline. The counter is RAPL's or NVML's where
the machine has one, else a file that is read as RAPL's is. `slower` is by how much the median step takes longer with a
session (the median over the pairs); `noise` is the standard error of that median.

Then, for each rate, a session of some seconds as in a trial, and one of a third of that. `step_share` is the time that
steps wait for readings over the steps' time. A session begins with finding out how often the counter is updated, which
takes the same time in a short trial and in a long one. So the meters' CPU time is told in two parts, from the two
sessions: `start_core_s`, and `core_share` of the time after that. `whole_core_share` is that of the long session as it
was. `calls_s` is how long single questions take while the device works. `conditions` are those of the session's window.
Claims at 4 readings a second: at most 0.5 % of the steps' time, and on a GPU at most 1 % of a core. Each part is
printed as a JSON line when it has ended, the sessions first; the last line is one JSON document of all.
"""

import argparse
import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from howlow.meters.energy import EnergyMeter
from howlow.meters.machine import choose_device
from howlow.meters.nvml import NvmlDevice
from howlow.meters.nvml_fields import ENERGY, THROTTLED_TIMES
from howlow.meters.rapl import RaplZone
from howlow.meters.session import Session
from howlow.meters.sources import Asked, open_energy

BLOCK = 10


def meter_of(folder: Path, device: torch.device) -> EnergyMeter:
    """Open the machine's own source, or a file that is read like RAPL's."""
    found = open_energy(Asked("auto", device))
    if found.kind in ("counter", "power"):
        return found
    (folder / "energy_uj").write_text("123456789\n")
    zone = RaplZone(folder, "package-0", 262_143.0)
    return EnergyMeter("a file", "read like RAPL's", "counter", (zone,), 0.001)


def work_of(device: torch.device, step_s: float) -> Callable[[], None]:
    """Make a step that takes about `step_s`."""
    matrix = torch.randn(1024, 1024, device=device)

    def run(times: int) -> None:
        for _ in range(times):
            torch.mm(matrix, matrix)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    run(20)
    started = time.perf_counter()
    run(50)
    times = max(1, round(50 * step_s / (time.perf_counter() - started)))
    return lambda: run(times)


def plain(work: Callable[[], None]) -> list[float]:
    durations = []
    for _ in range(BLOCK):
        started = time.perf_counter()
        work()
        durations.append(time.perf_counter() - started)
    return durations


def measured(work: Callable[[], None], session: Session) -> list[float]:
    durations = []
    with session.phase("train") as phase:
        for _ in range(BLOCK):
            started = time.perf_counter()
            with phase.step(measured=True, samples=1):
                work()
            durations.append(time.perf_counter() - started)
        phase.end()
    return durations


def in_session(
    work: Callable[[], None], rate_hz: float, device: torch.device
) -> tuple[list[float], tuple[float, float]]:
    """Run a block in a session; return its step times and the meters' shares of CPU time and step time."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        with Session(folder, device, meter_of(folder, device), rate_hz, 0.0) as session:
            durations = measured(work, session)
            record = session.report(None)
    return durations, (record.cpu_share or 0.0, record.step_share or 0.0)


def compared(rate_hz: float, device: torch.device, steps: int, step_s: float) -> dict[str, float | None]:
    work = work_of(device, step_s)
    ratios: list[float] = []
    without: list[float] = []
    shares: list[tuple[float, float]] = []
    for pair in range(max(4, steps // (2 * BLOCK))):
        own = plain(work) if pair % 2 else []
        durations, share = in_session(work, rate_hz, device)
        own = own or plain(work)
        ratios.append(statistics.median(durations) / statistics.median(own))
        without += own
        shares.append(share)
    return {
        "rate_hz": rate_hz,
        "step_s": statistics.median(without),
        "cpu_share": statistics.mean(share for share, _ in shares),
        "step_share": statistics.mean(share for _, share in shares),
        "slower": statistics.median(ratios) - 1,
        "noise": math.sqrt(math.pi / 2 / len(ratios)) * statistics.stdev(ratios),  # of a median of normal values
    }


def sessions_of(rate_hz: float, device: torch.device, seconds: float, step_s: float) -> dict[str, object]:
    """Run a short and a long session; return the long one, and the meters' CPU time in two parts."""
    short, long = (one_session(rate_hz, device, length_s, step_s) for length_s in (seconds / 3, seconds))
    (short_s, short_share), (long_s, long_share) = (
        (one["session_s"], one.pop("whole_core_share")) for one in (short, long)
    )
    core_share = (long_s * long_share - short_s * short_share) / (long_s - short_s)
    parts = {"core_share": core_share, "start_core_s": short_s * (short_share - core_share)}
    return long | parts | {"whole_core_share": long_share}


def one_session(rate_hz: float, device: torch.device, seconds: float, step_s: float) -> dict[str, Any]:
    """Run one session, as a trial does; return the meters' shares, how long calls take, and the conditions."""
    work = work_of(device, step_s)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        meter = meter_of(folder, device)
        began_s = time.perf_counter()
        with Session(folder, device, meter, rate_hz, 0.0) as session, session.phase("train") as phase:
            until = time.perf_counter() + seconds
            while time.perf_counter() < until:
                with phase.step(measured=True, samples=1):
                    work()
            found = phase.end()
            record, session_s = session.report(None), time.perf_counter() - began_s
        calls = {name: call_s(ask, work) for name, ask in questions(meter).items()}
    return {
        "rate_hz": rate_hz,
        "seconds": seconds,
        "session_s": session_s,
        "whole_core_share": record.core_share or 0.0,
        "step_share": record.step_share,
        "readings": record.readings,
        "late": record.late,
        "calls_s": calls,
        "conditions": [one.model_dump(exclude_none=True) for one in found.conditions],
    }


def questions(meter: EnergyMeter) -> dict[str, Callable[[], object]]:
    """List the questions whose time matters: those of the sampler, and on NVML the counter in both its forms."""
    part = meter.instruments[0]
    asked: dict[str, Callable[[], object]] = {"look": part.look, "counter": part.counter_j}
    if isinstance(part, NvmlDevice):
        asked["counter as a field"] = lambda: part._fields.values([ENERGY])
        asked["throttling times"] = lambda: part._fields.values(THROTTLED_TIMES.values())
        asked["findings"] = part.findings
    return asked


def call_s(ask: Callable[[], object], work: Callable[[], None]) -> float:
    """Measure the median time of a call, between steps of work."""
    taken = []
    for _ in range(20):
        work()
        started = time.perf_counter()
        ask()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--step_s", type=float, default=0.1)
    parser.add_argument("--rates", type=float, nargs="+", default=[4.0, 20.0], help="readings a second")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each long session")
    asked = parser.parse_args()
    device = choose_device("auto")
    sessions, found = [], []
    for rate_hz in asked.rates:
        sessions.append(sessions_of(rate_hz, device, asked.seconds, asked.step_s))
        print(json.dumps({"part": "sessions", "found": sessions[-1]}), flush=True)
    for rate_hz in asked.rates:
        found.append(compared(rate_hz, device, asked.steps, asked.step_s))
        print(json.dumps({"part": "rates", "found": found[-1]}), flush=True)
    print(f"{device}, steps of {asked.step_s:g} s")
    for result in found:
        shown = ", ".join(f"{name} {value:.3%}" for name, value in result.items() if name not in ("rate_hz", "step_s"))
        print(f"{result['rate_hz']:4.0f} Hz: {shown}")
    for session in sessions:
        print(f"{session['rate_hz']:4.0f} Hz, one session: {session['core_share']:.3%} of a core after ", end="")
        print(f"{session['start_core_s']:.2f} s of it at the start, ", end="")
        print(f"{session['step_share']:.3%} of the steps' time")
    print(json.dumps({"device": str(device), "rates": found, "sessions": sessions}))


if __name__ == "__main__":
    main()
