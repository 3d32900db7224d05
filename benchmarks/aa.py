"""How often a report claims a difference between trials that differ in nothing (A/A pairs).

    python benchmarks/aa.py [--pairs N] [--simulated N] [--out DIR]

Every ratio carries a 95 % interval. Where nothing differs, at most 5 % of the intervals may leave out 1.

*Measured*: one sweep measures the same tiny trial (random weights, a fraction of a second of training) again and again.
Trials that ran one after the other form a pair, in random order, as two ranks of a sweep would; three pairs that
follow each other are two ranks with `run.repeats = 3`. The sweep resumes in DIR, and --pairs adds trials to it.
Energy is assumed: watts times time.

*Simulated*: pairs of trials whose steps do the same work, 4 to 8 samples each, with noise whose successive values are
correlated (AR(1), correlation 0.6), once without and once with an offset of 1 % that each process has for itself.

Claims: with repeats, and with step errors where processes have no offset, the rate is at most 5 %. It fails where the
lower end of its binomial interval (Clopper-Pearson, 95 %) is above that. Step errors alone leave out what processes
differ by, as the report says, so their rate is shown and not claimed. The last line is one JSON document.
"""

import argparse
import json
import os
import random
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from scipy.stats import binomtest

import howlow
from howlow.analysis.column import Column
from howlow.analysis.columns import column_named
from howlow.analysis.ratios import relative_to
from howlow.analysis.rows import Trial
from howlow.analysis.statistics import LEVEL, of_steps
from howlow.analysis.uncertainty import Evidence

REPEATS = 3
STATED = 1 - LEVEL
THROUGHPUT, ENERGY = column_named("train_samples_per_s"), column_named("train_energy_per_sample_j")
Pair = tuple[list[Trial], list[Trial]]


@dataclass(frozen=True)
class Rate:
    """How many of the pairs were claimed to differ; whether at most 5 % are promised."""

    name: str
    claimed: int
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


def rate(name: str, pairs: Iterable[Pair], column: Column, *, is_promised: bool) -> Rate:
    found = list(pairs)
    return Rate(name, sum(is_claimed(column, *pair) for pair in found), len(found), is_promised)


def is_claimed(column: Column, ours: Sequence[Trial], theirs: Sequence[Trial]) -> bool:
    means = [sum(trial.row[column.name] for trial in trials) / len(trials) for trials in (ours, theirs)]
    return relative_to(column, means[0] / means[1], ours, theirs).is_significant


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


def simulated_pairs(count: int, steps: int, repeats: int, offset: float, draw: np.random.Generator) -> Iterable[Pair]:
    for _ in range(count):
        works = [draw.integers(4, 9, steps).astype(float) for _ in range(repeats)]
        ours, theirs = (
            [simulated(f"{side}{repeat}", repeat, samples, offset, draw) for repeat, samples in enumerate(works)]
            for side in "ab"
        )
        yield ours, theirs


def simulated(name: str, repeat: int, samples: np.ndarray, offset: float, draw: np.random.Generator) -> Any:
    """A trial whose steps have these samples, and whose time per sample is correlated from step to step."""
    steps = len(samples)
    noise, correlation = np.empty(steps), 0.6
    noise[0] = draw.normal()
    for step in range(1, steps):
        noise[step] = correlation * noise[step - 1] + (1 - correlation**2) ** 0.5 * draw.normal()
    times = samples * np.exp(0.05 * noise + offset * draw.normal())
    found = of_steps(samples.tolist(), times.tolist(), repeat)
    evidence = Evidence(None if found is None else (found,))
    record = SimpleNamespace(trial=name, seed=0, repeat=repeat)
    row = {THROUGHPUT.name: float(samples.sum() / times.sum())}
    return SimpleNamespace(record=record, row=row, evidence={THROUGHPUT.name: evidence})


# -- all of it ------------------------------------------------------------------------------------------------------


def simulate(count: int) -> list[Rate]:
    draw, found = np.random.default_rng(0), []
    for steps in (3, 5, 8, 12, 40, 400):
        for repeats, offset in ((1, 0.0), (1, 0.01), (REPEATS, 0.01)):
            told_offset = "with an offset of 1 %" if offset else "without an offset"
            rests_on = "one process, step errors" if repeats == 1 else f"{repeats} repeats"
            pairs = simulated_pairs(count, steps, repeats, offset, draw)
            name = f"simulated, {steps} steps, processes {told_offset}: {rests_on}"
            found.append(rate(name, pairs, THROUGHPUT, is_promised=repeats > 1 or not offset))
    return found


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
    parser.add_argument("--simulated", type=int, default=2000, help="simulated pairs of each kind")
    parser.add_argument(
        "--out", type=Path, default=Path(tempfile.gettempdir()) / "howlow-aa", help="the sweep's folder"
    )
    asked = parser.parse_args()
    if 0 < asked.pairs < REPEATS:
        parser.error(f"--pairs {asked.pairs}: give 0, or at least {REPEATS}")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    rates = simulate(asked.simulated)
    rates += compare(measure(asked.out, 2 * asked.pairs)) if asked.pairs else []
    print("", file=sys.stderr)
    for one in rates:
        print(one.line())
    lines = [
        {"name": one.name, "claimed": one.claimed, "pairs": one.pairs, "low": one.ends[0], "high": one.ends[1]}
        | {"promised": one.is_promised, "holds": one.holds}
        for one in rates
    ]
    print(json.dumps({"stated": round(STATED, 3), "rates": lines}))
    if not all(one.holds for one in rates):
        sys.exit("more differences are claimed than stated")


if __name__ == "__main__":
    main()
