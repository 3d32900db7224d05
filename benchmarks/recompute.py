"""Compute the figures of results.csv again, from the raw files of a run directory and without any code of howlow.

    python benchmarks/recompute.py DIR [DIR ...]

`steps.jsonl` holds every step, and where the measured window opens or goes on after a pause (`opens_segment`).
`timeline.jsonl` holds every reading. `record.json` is asked only for what these files do not hold: the names of devices
and of the energy source, watts that the user stated, the idle power, the errors of energies, and which phases ended.

Figures of time, counts and losses have to be equal up to rounding. An energy may differ by its stated error, and by
what this script's own reading of the counter at the edges of a segment leaves open. A table shows both figures of every
column and trial, then which columns were not computed and why. The last line is one JSON document. The exit status is 1
where a figure disagrees.
"""

import argparse
import csv
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from raw_figures import Figure, Trial

NOT_COMPUTED = {
    "a fact that record.json alone holds": (
        *("trial", "kind", "rank", "seed", "repeat", "status", "alpha", "scaling_factor", "layout", "precision"),
        *("total_parameters", "trainable_parameters", "adapter_bytes", "energy_source", "unmatchable_references"),
        *("train_batch_size", "inference_batch_size"),
    ),
    "the system's own high-water mark, of which readings are only samples": tuple(
        f"{stage}_peak_{name}_bytes"
        for stage in ("train", "inference")
        for name in ("memory", "allocated", "reserved", "process_memory")
    ),
    "the driver's or the meters' own reckoning, in record.json": tuple(
        f"{stage}_{name}"
        for stage in ("train", "inference")
        for name in (
            *("throttled_share", "energy_statistical_error_per_sample_j"),
            *("dram_energy_per_sample_j", "total_energy_per_sample_j"),
        )
    ),
    "steps.jsonl is older and does not say where the measured window opens": tuple(
        f"{stage}_{name}"
        for stage in ("train", "inference")
        for name in ("samples_per_s", "tokens_per_s", "time_per_sample_s")
    ),
    "computed from predictions.jsonl": (
        *("exact_match", "f1", "rouge1", "rouge2", "rougeL", "word_perplexity", "bits_per_byte"),
    ),
    "the meters' account of themselves, in record.json": (
        *("idle_power_w", "meter_rate_hz", "meter_largest_gap_s", "meter_cpu_share", "meter_step_share"),
    ),
}


@dataclass(frozen=True)
class Compared:
    """A figure of results.csv and the same one computed here."""

    trial: str
    column: str
    ours: float | None
    again: Figure

    @property
    def agrees(self) -> bool:
        """Whether both are the same."""
        return self.again.agrees(self.ours)

    @property
    def difference(self) -> float | None:
        """Relative."""
        if self.ours is None or self.again.value is None:
            return None
        return (self.ours - self.again.value) / abs(self.again.value) if self.again.value else self.ours

    def __str__(self) -> str:
        def shown(value: float | None, form: str = ".9g") -> str:
            return "absent" if value is None else format(value, form)

        verdict = "" if self.agrees else "  DISAGREES"
        difference = shown(self.difference, "+.1e")
        return f"{self.column:44} {shown(self.ours):>16} {shown(self.again.value):>16} {difference:>9}{verdict}"


def number(cell: str) -> float | None:
    return float(cell) if cell else None


def compared(folder: Path) -> tuple[list[Compared], dict[str, list[str]]]:
    """All figures of a run directory, and by reason the columns that were not computed."""
    results = folder / "results.csv"
    if not results.exists():
        sys.exit(f"{results} is absent; run `howlow report {folder}` first")
    found, left = list[Compared](), dict[str, list[str]]()
    with results.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            name = row["trial"]
            figures = Trial.read(folder / "trials" / name).figures()
            computed = [column for column in row if column in figures]
            found += [Compared(name, column, number(row[column]), figures[column]) for column in computed]
            for column in (column for column, cell in row.items() if cell and column not in figures):
                left.setdefault(column, []).append(name)
    return found, left


def reason(column: str) -> str:
    """Why a column with a value was not computed."""
    known = [why for why, columns in NOT_COMPUTED.items() if column in columns]
    if known:
        return known[0]
    if {"low", "high"} & set(column.split("_")):
        return "an interval: a statistic of the steps, not a figure of them"
    if "." in column:
        return "a fact that record.json alone holds"
    if "energy" in column or column.endswith("_w"):
        return "its energy covers a part that the raw files do not name"
    return "the files do not hold it, or this script does not know it"


def shown(folder: Path, found: Sequence[Compared], left: dict[str, list[str]], say: Callable[[str], None]) -> None:
    """The table of a run directory."""
    for trial in dict.fromkeys(one.trial for one in found):
        say(f"\n{folder / 'trials' / trial}\n{'column':44} {'results.csv':>16} {'recomputed':>16} {'relative':>9}")
        for one in found:
            if one.trial == trial and (one.ours is not None or not one.agrees):
                say(str(one))
    say("\nnot recomputed:")
    for why in dict.fromkeys(map(reason, left)):
        say(f"  {why}: {' '.join(column for column in left if reason(column) == why)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="run directories with results.csv")
    everything = list[Compared]()
    for folder in parser.parse_args().folders:
        found, left = compared(folder)
        shown(folder, found, left, print)
        everything += found
    there = [one for one in everything if one.ours is not None]
    wrong = [f"{one.trial} {one.column}" for one in everything if not one.agrees]
    print(f"\n{len(there)} figures compared, {len(wrong)} disagree")
    print(json.dumps({"compared": len(there), "disagree": wrong}))
    sys.exit(1 if wrong or not there else 0)


if __name__ == "__main__":
    main()
