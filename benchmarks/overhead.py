"""Measure the overhead of a sweep, apart from training, inference and loading weights, and how soon a trial starts.

    python benchmarks/overhead.py [--out DIR]

The script runs `howlow sweep demo` once, as a user would, and reads the records. Claims: the overhead is under 5 % of
the wall time; a trial's process reaches its first step within 3 s of its start; `howlow --help` takes under 0.4 s, and
`howlow report` on 1,000 records under 10 s. The last line is one JSON document.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from howlow.records import read_record, read_records, write_record

HOWLOW = Path(sys.executable).parent / "howlow"


def timed(command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - start


def copies(out: Path, into: Path, count: int) -> None:
    """Copy the trials of a real sweep until there are `count`, each with its own seed."""
    real = [record for record in read_records(out) if record.kind == "lora"]
    for number in range(count):
        record = real[number % len(real)]
        name = f"r{record.rank:04d}-s{number}"
        settings = record.settings.model_copy(update={"seed": number})
        shutil.copytree(out / "trials" / record.trial, into / "trials" / name, ignore=shutil.ignore_patterns("adapter"))
        write_record(
            into / "trials" / name, record.model_copy(update={"trial": name, "seed": number, "settings": settings})
        )
    assert read_record(into / "trials" / name) is not None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="keep the sweep's folder here")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        out = asked.out or Path(scratch) / "demo"
        wall_s = timed([str(HOWLOW), "sweep", "demo", "--out", str(out)])
        records = read_records(out)
        work_s = sum(phase.duration_s for record in records for phase in record.phases)
        ready_s = [record.preparation_s for record in records if record.preparation_s is not None]
        help_s = [timed([str(HOWLOW), "--help"]) for _ in range(7)]
        copies(out, Path(scratch) / "many", 1000)
        report_s = timed([str(HOWLOW), "report", str(Path(scratch) / "many")])
    found = {
        "trials": len(records),
        "wall_s": round(wall_s, 1),
        "own_share": round(1 - work_s / wall_s, 4),
        "trial_ready_s_median": round(statistics.median(ready_s), 2),
        "trial_ready_s_max": round(max(ready_s), 2),
        "help_s_median": round(statistics.median(help_s), 3),
        "help_s_max": round(max(help_s), 3),
        "report_1000_records_s": round(report_s, 2),
    }
    for key, value in found.items():
        print(f"{key:24} {value}")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
