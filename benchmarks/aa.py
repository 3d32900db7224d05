"""How often a report claims a difference between trials that differ in nothing (A/A pairs).

    python benchmarks/aa.py [--pairs N] [--simulated N] [--out DIR]

Every ratio carries a 95 % interval. Where nothing differs, at most 5 % of the intervals may leave out 1.

*Measured*: one sweep measures the same tiny trial (random weights, a fraction of a second of training) again and again.
Trials that ran one after the other form a pair, in random order, as two ranks of a sweep would; three pairs that
follow each other are two ranks with `run.repeats = 3`. The sweep resumes in DIR, and --pairs adds trials to it.
Energy is assumed: watts times time.

*Simulated*: pairs of trials with 4 to 8 samples a step and noise in the time per sample. One process without an offset:
successive values are correlated (AR(1), 0 to 0.9), normal or lognormal, and both trials do the same work or other work.
Further pairs have an offset of 1 % that each process has for itself, with and without repeats (correlation 0.6).

Claims: with repeats, and with step errors where processes have no offset, the rate is at most 5 %. It fails where the
lower end of its binomial interval (Clopper-Pearson, 95 %) is above that. Step errors alone leave out what processes
differ by, as the report says, so their rate is shown and not claimed. A pair without an error is no claim; how many
there are is shown. The last line is one JSON document.
"""

import argparse
import json
import os
import random
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from scipy.stats import binomtest

import howlow
from howlow.analysis.column import Column
from howlow.analysis.columns import column_named
from howlow.analysis.ratios import Ratio, relative_to
from howlow.analysis.rows import Trial
from howlow.analysis.statistics import LEVEL, of_steps
from howlow.analysis.uncertainty import of_sample

REPEATS = 3
STATED = 1 - LEVEL
THROUGHPUT, ENERGY = column_named("train_samples_per_s"), column_named("train_energy_per_sample_j")
Pair = tuple[list[Trial], list[Trial]]


@dataclass(frozen=True)
class Rate:
    """How many of the pairs were claimed to differ, how many have no error, and whether at most 5 % are promised."""

    name: str
    claimed: int
    without_error: int
    pairs: int
    is_promised: bool

    @property
    def ends(self) -> tuple[float, float]:
        """The binomial interval of the rate."""
        found = binomtest(self.claimed, self.pairs).proportion_ci(LEVEL)
        return float(found.low), float(found.high)

    @property
    def holds(self) -> bool:
        """Whether the pairs allow a rate of at most 5 %, where that is promised."""
        return not self.is_promised or self.ends[0] <= STATED

    def line(self) -> str:
        """The rate for people."""
        low, high = self.ends
        verdict = ("as stated" if self.holds else "MORE THAN STATED") if self.is_promised else "not promised"
        share = f"{self.claimed / self.pairs:6.1%} ({low:.1%} to {high:.1%})"
        return f"{self.name:66} {self.claimed:5} of {self.pairs:5}  {share}  {verdict}"

    def cell(self) -> str:
        """The rate and the share without an error, for a table."""
        mark = " " if self.holds else "!"
        return f"{self.claimed / self.pairs:6.1%}{mark} ({self.without_error / self.pairs:4.0%})"


def rate(name: str, pairs: Iterable[Pair], column: Column, *, is_promised: bool) -> Rate:
    found = [ratio_of(column, *pair) for pair in pairs]
    claimed = sum(one.is_significant for one in found)
    return Rate(name, claimed, sum(one.lack is not None for one in found), len(found), is_promised)


def ratio_of(column: Column, ours: Sequence[Trial], theirs: Sequence[Trial]) -> Ratio:
    means = [sum(trial.row[column.name] for trial in trials) / len(trials) for trials in (ours, theirs)]
    return relative_to(column, means[0] / means[1], ours, theirs)


# -- measured -------------------------------------------------------------------------------------------------------


def measure(out: Path, trials: int) -> list[Trial]:
    """The trials of the sweep in `out`, in the order in which they ran."""
    model, data = out / "model", out / "data.txt"
    if not model.exists():
        write_inputs(model, data)
    table = {
        "model": str(model),
        "tokenizer": "smollm2-135m",
        "random_weights": True,
        "baselines": [],
        "task": {"name": "language_modeling", "train": str(data), "test": str(data), "overlap": "keep"},
        "training": {"sequence_length": 64, "batch_size": 4, "layout": "padded", "compile": False},
        "meters": {"energy": "assumed", "assumed_power_w": 30.0},
        "grid": {"lora.rank": [4]},
        "run": {"repeats": trials},
    }
    settings = howlow.load_settings(None, [table])
    howlow.sweep(settings, out / "sweep", on_event=told(trials))
    found = howlow.load(out / "sweep").trials
    return sorted(
        (trial for trial in found if trial.record.status == "done"), key=lambda trial: trial.record.started_at
    )


def told(trials: int) -> Callable[[Any], None]:
    ended = 0

    def hear(event: Any) -> None:
        nonlocal ended
        if event.event == "trial_ended":
            ended += 1
            print(f"\r{ended} trials measured (of at most {trials})", end="", file=sys.stderr, flush=True)

    return hear


def write_inputs(model: Path, data: Path) -> None:
    """The config of a tiny LLaMA, and a text of lines of 5 to 40 words."""
    model.mkdir(parents=True)
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 49152,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
    }
    (model / "config.json").write_text(json.dumps(config))
    words, draw = ("alpha", "beta", "gamma", "delta", "epsilon", "zeta"), random.Random(0)
    lines = [" ".join(draw.choices(words, k=draw.randint(5, 40))) for _ in range(160)]
    data.write_text("\n".join(lines))


def single_pairs(trials: Sequence[Trial], draw: random.Random) -> list[Pair]:
    """Two trials that ran one after the other, in random order."""
    couples = [list(trials[index : index + 2]) for index in range(0, len(trials) - 1, 2)]
    for couple in couples:
        draw.shuffle(couple)
    return [([one], [other]) for one, other in couples]


def repeated_pairs(trials: Sequence[Trial], draw: random.Random) -> list[Pair]:
    """Two settings with repeats, measured in passes of two."""
    couples = single_pairs(trials, draw)
    groups = [couples[index : index + REPEATS] for index in range(0, len(couples) - REPEATS + 1, REPEATS)]
    return [
        tuple(  # type: ignore[misc]
            [renamed(couple[side][0], f"{'ab'[side]}{index}", index) for index, couple in enumerate(group)]
            for side in (0, 1)
        )
        for group in groups
    ]


def renamed(trial: Trial, name: str, repeat: int) -> Trial:
    return replace(trial, record=trial.record.model_copy(update={"trial": name, "repeat": repeat}))


# -- simulated ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Noise:
    """How the time per sample varies: from step to step, and between processes."""

    correlation: float
    is_skewed: bool = False
    offset: float = 0.0


def simulated_pairs(
    count: int, steps: int, noise: Noise, repeats: int = 1, *, is_same_work: bool = True, seed: int = 0
) -> Iterable[Pair]:
    draw = np.random.default_rng(seed)
    works = [draw.integers(4, 9, (count, repeats, steps)).astype(float) for _ in "ab"]
    sides = [works[0], works[0] if is_same_work else works[1]]
    times = [samples * slowness(noise, samples.shape, draw) for samples in sides]
    for pair in range(count):
        yield tuple(  # type: ignore[misc]
            [
                simulated(f"{name}{repeat}", repeat, sides[side][pair, repeat], times[side][pair, repeat], work)
                for repeat in range(repeats)
                for work in [repeat if is_same_work else (name, repeat)]
            ]
            for side, name in enumerate("ab")
        )


def slowness(noise: Noise, shape: tuple[int, ...], draw: np.random.Generator) -> Any:
    """The time per sample of each step, correlated along the last axis."""
    values = draw.normal(size=shape)
    for step in range(1, shape[-1]):
        new = (1 - noise.correlation**2) ** 0.5 * values[..., step]
        values[..., step] = noise.correlation * values[..., step - 1] + new
    spread = np.exp(values) / 2 if noise.is_skewed else values
    return np.exp(0.05 * spread + noise.offset * draw.normal(size=(*shape[:-1], 1)))


def simulated(name: str, repeat: int, samples: Any, times: Any, work: Any) -> Any:
    """A trial whose steps have these samples and times; `work` is equal where the same steps did the same work."""
    found = of_steps(samples.tolist(), times.tolist(), work)
    evidence = of_sample(found, "steps")
    record = SimpleNamespace(trial=name, seed=0, repeat=repeat)
    row = {THROUGHPUT.name: float(samples.sum() / times.sum())}
    return SimpleNamespace(record=record, row=row, evidence={THROUGHPUT.name: evidence})


# -- all of it ------------------------------------------------------------------------------------------------------

STEPS, CORRELATIONS = (3, 4, 5, 6, 8, 12, 20, 40, 100, 400), (0.0, 0.3, 0.6, 0.9)
KINDS = (("normal, same work", False, True), ("normal, other work", False, False), ("lognormal, same work", True, True))


def simulate_processes(count: int) -> dict[tuple[int, str], list[Rate]]:
    """One process of each trial, without an offset: a row of rates, one a correlation, for each number of steps."""
    return {
        (steps, kind): [
            rate(f"simulated, {steps} steps, {kind}, {noise.correlation}", pairs, THROUGHPUT, is_promised=True)
            for noise in (Noise(correlation, is_skewed) for correlation in CORRELATIONS)
            for pairs in [simulated_pairs(count, steps, noise, is_same_work=is_same_work, seed=steps)]
        ]
        for steps in STEPS
        for kind, is_skewed, is_same_work in KINDS
    }


def table(rows: Mapping[tuple[int, str], Sequence[Rate]]) -> Iterable[str]:
    yield "claimed to differ (without an error), one process, by the correlation from step to step"
    yield f"{'steps':>5}  {'noise':22}" + "".join(f"{correlation:>16}" for correlation in CORRELATIONS)
    for (steps, kind), rates in rows.items():
        yield f"{steps:5}  {kind:22}" + "".join(f"{one.cell():>16}" for one in rates)


def simulate_offsets(count: int) -> Iterable[Rate]:
    """Processes with an offset of their own: with step errors alone, and with repeats."""
    for steps in (12, 40, 400):
        for repeats in (1, REPEATS):
            rests_on = "one process, step errors" if repeats == 1 else f"{repeats} repeats"
            pairs = simulated_pairs(count, steps, Noise(0.6, offset=0.01), repeats, seed=steps)
            name = f"simulated, {steps} steps, an offset of 1 %: {rests_on}"
            yield rate(name, pairs, THROUGHPUT, is_promised=repeats > 1)


def compare(trials: Sequence[Trial]) -> list[Rate]:
    draw = random.Random(0)
    single, repeated = single_pairs(trials, draw), repeated_pairs(trials, draw)
    return [
        rate("measured throughput: one process, step errors", single, THROUGHPUT, is_promised=False),
        rate(f"measured throughput: {REPEATS} repeats", repeated, THROUGHPUT, is_promised=True),
        rate("measured energy, assumed watts: one process, step errors", single, ENERGY, is_promised=False),
        rate(f"measured energy, assumed watts: {REPEATS} repeats", repeated, ENERGY, is_promised=True),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=45, help="measured pairs; 0: simulate only")
    parser.add_argument("--simulated", type=int, default=1000, help="simulated pairs of each kind")
    parser.add_argument(
        "--out", type=Path, default=Path(tempfile.gettempdir()) / "howlow-aa", help="the sweep's folder"
    )
    asked = parser.parse_args()
    if 0 < asked.pairs < REPEATS:
        parser.error(f"--pairs {asked.pairs}: give 0, or at least {REPEATS}")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    processes = simulate_processes(asked.simulated)
    others = list(simulate_offsets(asked.simulated))
    others += compare(measure(asked.out, 2 * asked.pairs)) if asked.pairs else []
    print("", file=sys.stderr)
    print("\n".join([*table(processes), "", *(one.line() for one in others)]))
    rates = [*(one for row in processes.values() for one in row), *others]
    lines = [
        {"name": one.name, "claimed": one.claimed, "pairs": one.pairs, "low": one.ends[0], "high": one.ends[1]}
        | {"without_error": one.without_error, "promised": one.is_promised, "holds": one.holds}
        for one in rates
    ]
    print(json.dumps({"stated": round(STATED, 3), "rates": lines}))
    if not all(one.holds for one in rates):
        sys.exit("more differences are claimed than stated")


if __name__ == "__main__":
    main()
