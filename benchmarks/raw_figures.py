"""The figures of a trial, computed from its raw files without any code of howlow; `recompute.py` compares them.

Time, throughput, energy and power are of the measured window. It is made of segments: stretches of measured steps, each
from the start of a step with `opens_segment` to the end of the last step before the next one.
"""

import json
import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

Line = dict[str, Any]
Span = tuple[float, float]
ROUNDING = 1e-9
WITHOUT_ERROR = 0.01
"""The relative difference allowed to an energy for which no error is stated."""


@dataclass(frozen=True)
class Figure:
    """A figure as it was computed here. within: how far the other may be from it; may_be_absent: from results.csv."""

    value: float | None
    within: float = 0.0
    may_be_absent: bool = False

    def over(self, divisor: float | None) -> "Figure":
        """The figure per sample, second or token."""
        if self.value is None or not divisor:
            return Figure(None, 0.0, self.may_be_absent)
        return Figure(self.value / divisor, self.within / divisor, self.may_be_absent)

    def agrees(self, ours: float | None) -> bool:
        """Whether the figure of results.csv is this one."""
        if ours is None or self.value is None:
            return ours is None and (self.value is None or self.may_be_absent)
        return math.isclose(ours, self.value, rel_tol=ROUNDING, abs_tol=self.within + 1e-15)


def ratio(numerator: float | None, denominator: float | None) -> float | None:
    return None if numerator is None or not denominator else numerator / denominator


def end_of(step: Line) -> float:
    return float(step["start_s"] + step["duration_s"])


def percentile(values: Iterable[float], share: float) -> float | None:
    """The value below which a share of the values lies, linear between two of them."""
    ordered = sorted(values)
    if not ordered:
        return None
    place = share * (len(ordered) - 1)
    low, part = int(place), place - int(place)
    return ordered[low] + part * (ordered[min(low + 1, len(ordered) - 1)] - ordered[low])


def lines_of(path: Path) -> list[Line]:
    """The whole lines of a JSONL file."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return [json.loads(line) for line in text.split("\n")[:-1]]


# -- the energy of spans of time ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Readings:
    """What one device told: moments and values, of a counter in joules or of power in watts."""

    points: Sequence[tuple[float, float]]

    @cached_property
    def times_s(self) -> list[float]:
        """The moments."""
        return [time_s for time_s, _ in self.points]

    def at(self, moment_s: float) -> float:
        """The value at a moment: on the line between the readings next to it, held outside of them."""
        after = bisect_left(self.times_s, moment_s)
        if after in (0, len(self.points)):
            return self.points[min(after, len(self.points) - 1)][1]
        (t0, v0), (t1, v1) = self.points[after - 1 : after + 1]
        return v0 + (moment_s - t0) / (t1 - t0) * (v1 - v0)

    def risen(self, span: Span, period_s: float) -> tuple[float, float]:
        """The rise of a counter over a span, and what the readings around its edges leave open."""
        open_j = 0.0
        for moment_s in span:
            before = max(0, bisect_right(self.times_s, moment_s) - 1)
            known = min(len(self.points) - 1, bisect_left(self.times_s, moment_s + period_s))
            open_j += self.points[known][1] - self.points[before][1]
        return self.at(span[1]) - self.at(span[0]), open_j

    def integrated(self, span: Span) -> float:
        """The trapezoids of power over a span."""
        inside = [time_s for time_s in self.times_s if span[0] < time_s < span[1]]
        moments = [span[0], *inside, span[1]]
        return math.fsum((t1 - t0) * (self.at(t0) + self.at(t1)) / 2 for t0, t1 in pairwise(moments))


@dataclass(frozen=True)
class Source:
    """Where a trial's energy comes from: stated watts, or devices that are read."""

    watts: float | None
    devices: Sequence[Readings] = ()
    is_polled: bool = False
    period_s: float = 0.0

    def over(self, spans: Iterable[Span], stated_error_j: float | None) -> Figure:
        """The energy of spans. It may be absent from results.csv: a window can be too short for its source."""
        spans = list(spans)
        if self.watts is not None:
            return Figure(self.watts * math.fsum(end - start for start, end in spans), 0.0, may_be_absent=True)
        if not spans or not self.devices or not all(len(device.points) > 1 for device in self.devices):
            return Figure(None, may_be_absent=True)
        pairs = [(span, device) for span in spans for device in self.devices]
        if self.is_polled:
            energy_j, open_j = math.fsum(device.integrated(span) for span, device in pairs), 0.0
        else:
            rises = [device.risen(span, self.period_s) for span, device in pairs]
            energy_j, open_j = (math.fsum(parts) for parts in zip(*rises, strict=True))
        stated_j = WITHOUT_ERROR * energy_j if stated_error_j is None else stated_error_j
        return Figure(energy_j, stated_j + open_j, may_be_absent=True)


# -- one trial ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trial:
    """The raw files of one trial."""

    folder: Path
    record: Line = field(default_factory=dict)
    steps: Sequence[Line] = ()
    timeline: Sequence[Line] = ()

    @classmethod
    def read(cls, folder: Path) -> "Trial":
        """Read a trial's folder."""
        record = json.loads((folder / "record.json").read_text(encoding="utf-8"))
        return cls(folder, record, lines_of(folder / "steps.jsonl"), lines_of(folder / "timeline.jsonl"))

    def phase(self, name: str) -> Line | None:
        """What the record says of a phase that ended."""
        return next((phase for phase in self.record["phases"] if phase["phase"] == name), None)

    def window(self, phase: str, part: str, device: str | None = None) -> Line:
        """What the record says of an energy; empty without one."""
        found = self.phase(phase) or {}
        windows = [one for one in found.get("windows", ()) if (one["part"], one["device"]) == (part, device)]
        return windows[0] if windows else {}

    @cached_property
    def source(self) -> Source:
        """The trial's own energy source."""
        energy = self.record["energy"] or {}
        name, devices = energy.get("name"), energy.get("devices", ())
        if name == "assumed":
            return Source(self.record["settings"]["meters"]["assumed_power_w"])
        if not any(line["device"] in devices and "energy_counter_j" in line for line in self.timeline):
            return Source(None, [self._power(device) for device in devices], is_polled=True)
        ends = [(end_of(step), step["energy_counter_j"]) for step in self.steps if "energy_counter_j" in step]
        own = [self._counter(device, ends if len(devices) == 1 else ()) for device in devices]
        return Source(None, own, period_s=energy.get("update_period_s") or 0.0)

    @cached_property
    def cpu(self) -> Source:
        """The CPU of a trial on an accelerator: the devices with counters that are not the trial's own."""
        energy = self.record["energy"] or {}
        others = {line["device"] for line in self.timeline if "energy_counter_j" in line} - set(energy["devices"])
        return Source(
            None, [self._counter(device) for device in sorted(others)], period_s=energy["cpu_update_period_s"] or 0.0
        )

    def _power(self, device: str) -> Readings:
        return Readings(sorted(self._values(device, "power_w")))

    def _counter(self, device: str, further: Iterable[tuple[float, float]] = ()) -> Readings:
        return Readings(sorted(dict([*self._values(device, "energy_counter_j"), *further]).items()))

    def _values(self, device: str, key: str) -> Iterator[tuple[float, float]]:
        return ((line["time_s"], line[key]) for line in self.timeline if line["device"] == device and key in line)

    def figures(self) -> dict[str, Figure]:
        """Everything that the raw files tell, under the names of the columns."""
        found: dict[str, Figure] = {}
        generates = self.phase("generate") is not None
        inference = "generate" if generates else "evaluate"
        for stage, phase in (("train", "train"), ("inference", inference)):
            if self.phase(phase) and not (stage == "train" and self.record["kind"] == "base"):
                figures = PhaseFigures(self, phase).all()
                found |= {f"{stage}_{name}": figure for name, figure in figures.items()}
        if "train_step_time_p50_s" in found:
            found["train_final_loss"] = Figure([one for one in self.steps if one["phase"] == "train"][-1].get("loss"))
        return found | self._scores()

    def _scores(self) -> dict[str, Figure]:
        """The loss of the test; with a merged adapter the scores are those of the attached one, which is not here."""
        settings = self.record["settings"]
        is_merged = settings["inference"]["adapter"] == "merged" and self.record["kind"] == "lora"
        steps = [step for step in self.steps if step["phase"] == "evaluate" and step["target_tokens"]]
        if self.record["status"] != "done" or is_merged or settings["random_weights"] or not steps:
            return {}
        losses = [math.inf if step.get("loss") is None else step["loss"] * step["target_tokens"] for step in steps]
        loss = math.fsum(losses) / sum(step["target_tokens"] for step in steps)
        exponential = math.exp(loss) if loss < 700 else None
        return {
            "loss": Figure(loss if math.isfinite(loss) else None),
            "perplexity": Figure(exponential, may_be_absent=True),  # only tasks about texts have it
        }


@dataclass(frozen=True)
class PhaseFigures:
    """The figures of one phase of a trial."""

    trial: Trial
    name: str

    @cached_property
    def measured(self) -> list[Line]:
        """The measured steps."""
        return [step for step in self.trial.steps if (step["phase"], step["part"]) == (self.name, "measured")]

    @cached_property
    def segments(self) -> list[Span]:
        """The stretches of the measured window; none where the lines do not say where they open."""
        found: list[Span] = []
        for step in self.measured:
            if step.get("opens_segment"):
                found.append((step["start_s"], end_of(step)))
            elif found:
                found[-1] = found[-1][0], end_of(step)
            else:
                return []
        return found

    def all(self) -> dict[str, Figure]:
        """All of them, under the names of the columns without the stage."""
        found = self._times() | self._readings() | self._energies()
        return found | self._parts() if self.name == "generate" else found

    def _sum(self, key: str) -> float:
        return math.fsum(step[key] for step in self.measured)

    @property
    def window_s(self) -> float:
        """The length of the measured window."""
        return math.fsum(end - start for start, end in self.segments)

    def _times(self) -> dict[str, Figure]:
        times_s = [step["duration_s"] for step in self.measured]
        percentiles = {f"step_time_p{percent:02d}_s": percentile(times_s, percent / 100) for percent in (5, 50, 95)}
        steps = {name: Figure(value) for name, value in percentiles.items()}
        if self.measured and not self.segments:
            return steps  # an older file, which does not say where its window opens
        samples, window_s, in_steps_s = self._sum("samples"), self.window_s, math.fsum(times_s)
        values = {
            "samples_per_s": ratio(samples, window_s),
            "tokens_per_s": ratio(self._sum("tokens"), window_s),
            "time_per_sample_s": ratio(window_s, samples),
        }
        share = ratio(window_s - in_steps_s, window_s)  # a difference of two long times
        of_window = {name: Figure(value) for name, value in values.items()} | {"host_share": Figure(share, ROUNDING)}
        return steps | of_window

    def _readings(self) -> dict[str, Figure]:
        """Means and percentiles of the readings inside the measured steps."""
        spans = [(step["start_s"], end_of(step)) for step in self.measured]
        starts = [start for start, _ in spans]

        def is_inside(line: Line) -> bool:
            last = bisect_right(starts, line["time_s"]) - 1
            return line["phase"] == self.name and last >= 0 and line["time_s"] <= spans[last][1]

        inside = [line for line in self.trial.timeline if is_inside(line)]
        own = (self.trial.record["environment"] or {}).get("device")
        looks = [line for line in inside if own is None or line["device"] == own]
        devices = (self.trial.record["energy"] or {}).get("devices") or [own]
        newest: dict[str, float] = {}
        powers = []
        for line in inside:
            if line["device"] in devices and "power_w" in line:
                newest[line["device"]] = line["power_w"]
                if len(newest) == len(devices):
                    powers.append(math.fsum(newest.values()))
        means = {key: [line[key] for line in looks if key in line] for key in ("utilization", "memory_utilization")}
        means |= self._conditions(own)
        return {
            **{key: Figure(math.fsum(values) / len(values) if values else None) for key, values in means.items()},
            **{f"power_p{percent:02d}_w": Figure(percentile(powers, percent / 100)) for percent in (5, 50, 95)},
        }

    def _conditions(self, own: str | None) -> dict[str, list[float]]:
        """What the trial's own device read in the window, between its steps too."""
        inside = [
            line
            for line in self.trial.timeline
            if line["device"] == own and any(start <= line["time_s"] <= end for start, end in self.segments)
        ]
        clocks = [[line[key] for line in inside if key in line] for key in ("sm_clock_hz", "cpu_clock_hz")]
        temperatures = [line["temperature_c"] for line in inside if "temperature_c" in line]
        return {"clock_hz": clocks[0] or clocks[1], "temperature_c": temperatures}

    def _energies(self) -> dict[str, Figure]:
        trial, samples, window_s = self.trial, self._sum("samples"), self.window_s
        told, cpu, idle = trial.window(self.name, "measured"), trial.window(self.name, "measured", "cpu"), self._idle()
        if told and not math.isclose(told["duration_s"] or 0.0, window_s):
            return {}  # a segment has no energy, and the files do not say which; or an older file
        energy = trial.source.over(self.segments, told.get("error_j"))
        found = {
            "energy_per_sample_j": energy.over(samples),
            "power_w": energy.over(window_s),
            "energy_above_idle_per_sample_j": above(energy, idle.get("power_w"), window_s).over(samples),
        }
        if told.get("error_j") is not None:
            found["energy_error_per_sample_j"] = Figure(told["error_j"] / samples)
            if idle.get("error_w") is not None:
                worst_j = told["error_j"] + idle["error_w"] * window_s
                found["energy_above_idle_error_per_sample_j"] = Figure(worst_j / samples)
        if cpu:
            of_cpu = trial.cpu.over(self.segments, cpu["error_j"])
            found["cpu_energy_per_sample_j"] = of_cpu.over(samples)
            above_idle = above(of_cpu, idle.get("cpu_power_w"), window_s)
            found["cpu_energy_above_idle_per_sample_j"] = above_idle.over(samples)
        return found | self._whole_phase()

    def _idle(self) -> Line:
        return (self.trial.record["meters"] or {}).get("idle") or {}

    def _whole_phase(self) -> dict[str, Figure]:
        """The energy of the phase with burn-in and pauses; the record alone knows its edges."""
        phase = self.trial.phase(self.name) or {}
        if self.trial.record["resumed"] and self.trial.source.watts is None:
            return {}  # it has two parts, and the record keeps the edges of one
        span = (phase["start_s"], phase["start_s"] + phase["duration_s"])
        energy = self.trial.source.over([span], self.trial.window(self.name, "phase").get("error_j"))
        return {"phase_energy_j": energy, "phase_power_w": energy.over(phase["duration_s"])}

    def _parts(self) -> dict[str, Figure]:
        """Prefill and decode: parts of the steps that generate."""
        parted = [step for step in self.measured if "prefill_s" in step and "prefill_tokens" in step]
        samples = sum(step["samples"] for step in parted)
        read = sum(step["tokens"] - step["target_tokens"] for step in parted)
        written = sum(step["target_tokens"] - step["samples"] for step in parted)
        prefill = [(step["start_s"], step["start_s"] + step["prefill_s"]) for step in parted]
        decode = [(start, end_of(step)) for (_, start), step in zip(prefill, parted, strict=True)]
        prefill_s, decode_s = (math.fsum(end - start for start, end in spans) for spans in (prefill, decode))
        energies = {
            f"{part}_energy_per_token_j": self.trial.source.over(
                spans, self.trial.window(self.name, part).get("error_j")
            ).over(tokens)
            for part, spans, tokens in (("prefill", prefill, read), ("decode", decode, written))
        }
        values = {
            "new_tokens_per_sample": ratio(self._sum("target_tokens"), self._sum("samples")),
            "prefill_time_per_sample_s": ratio(prefill_s, samples),
            "decode_time_per_sample_s": ratio(decode_s, samples),
            "prefill_tokens_per_s": ratio(read, prefill_s),
            "decode_tokens_per_s": ratio(written or None, decode_s),
        }
        return {name: Figure(value) for name, value in values.items()} | energies


def above(energy: Figure, idle_w: float | None, time_s: float) -> Figure:
    """An energy less that of the idle power."""
    if energy.value is None or idle_w is None:
        return Figure(None, may_be_absent=True)
    return Figure(energy.value - idle_w * time_s, energy.within, may_be_absent=True)
