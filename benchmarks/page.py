"""How long a page of 1,000 records takes: to write, until its first paint, until it can be used, and to sort it.

    python benchmarks/page.py DIR [--records N]

The trials of the run directory DIR are copied under further seeds until there are N. The page is opened in a fresh
Chromium (tests/chromium.py says how it is found) at two widths. Times are of this machine, from the navigation's start.
It fails where the page is 5 MB or larger, or the first paint takes longer than 2 s. The last line is one JSON document.
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
from itertools import cycle
from pathlib import Path
from typing import Any

from howlow.analysis import compare, rows
from howlow.reporting.page import page as report_page

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from chromium import browser, missing, opened

MOST_BYTES, MOST_PAINT_MS = 5_000_000, 2000
TIMES = """() => {
  const paint = performance.getEntriesByType("paint").find(entry => entry.name === "first-contentful-paint");
  const [navigation] = performance.getEntriesByType("navigation");
  return {first_paint_ms: paint.startTime, ready_ms: navigation.domContentLoadedEventEnd};
}"""
SORT = """() => {
  const start = performance.now();
  document.querySelector("#sort-2").click();
  document.body.getBoundingClientRect();
  return performance.now() - start;
}"""
SLIDE = """() => {
  const slider = document.querySelector("#slider-margin");
  if (slider === null) return null;
  const start = performance.now();
  slider.value = 50;
  slider.dispatchEvent(new Event("input"));
  document.body.getBoundingClientRect();
  return performance.now() - start;
}"""


def copied(source: Path, folder: Path, number: int) -> None:
    """Fill a folder with `number` trials: those of the source, then copies of its adapters under further seeds."""
    trials = sorted(path.parent for path in source.glob("trials/*/record.json"))
    records = [json.loads((trial / "record.json").read_text(encoding="utf-8")) for trial in trials]
    for trial in trials[:number]:
        shutil.copytree(trial, folder / "trials" / trial.name, ignore=shutil.ignore_patterns("adapter", "checkpoint"))
    adapters = [(trial, record) for trial, record in zip(trials, records, strict=True) if record["kind"] == "lora"]
    if not adapters:
        raise SystemExit(f"{source}: no adapter was trained there")
    for (trial, record), seed in zip(cycle(adapters), range(1000, 1000 + number - len(trials)), strict=False):
        name = trial.name.replace(f"-s{record['seed']}", f"-s{seed}", 1)
        copy = folder / "trials" / name
        shutil.copytree(trial, copy, ignore=shutil.ignore_patterns("adapter", "checkpoint"))
        other: dict[str, Any] = {**record, "trial": name, "seed": seed}
        other["settings"] = {**record["settings"], "seed": seed}
        (copy / "record.json").write_text(json.dumps(other), encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--records", type=int, default=1000)
    asked = parser.parse_args()
    if (reason := missing()) is not None:
        raise SystemExit(reason)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        copied(asked.folder, folder, asked.records)
        started = time.perf_counter()
        comparison = compare(rows([folder]))
        read_s = time.perf_counter() - started
        (folder / "report.html").write_text(report_page(comparison), encoding="utf-8")
        found = {
            "records": len(comparison.results.trials),
            "read_s": round(read_s, 1),
            "write_s": round(time.perf_counter() - started - read_s, 1),
            "bytes": (folder / "report.html").stat().st_size,
            "widths": {str(width): measured(folder / "report.html", width) for width in (1400, 420)},
        }
    for width, times in found["widths"].items():
        print(f"{width} px: " + ", ".join(f"{name} {value}" for name, value in times.items()))
    print(json.dumps(found))
    slowest = max(times["first_paint_ms"] for times in found["widths"].values())
    return int(found["bytes"] >= MOST_BYTES or slowest > MOST_PAINT_MS)


def measured(path: Path, width: int) -> dict[str, Any]:
    """The times of one page in a browser of its own, in milliseconds."""
    with browser() as started:
        page, heard = opened(started, path, width=width)
        assert not heard.complaints, heard.complaints
        found = page.evaluate(TIMES) | {"sort_ms": page.evaluate(SORT), "slide_ms": page.evaluate(SLIDE)}
    return {name: None if value is None else round(value) for name, value in found.items()}


if __name__ == "__main__":
    sys.exit(main())
