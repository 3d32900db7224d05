"""Long simulations in parts: several processes, and a file that keeps what is finished."""

import json
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from threadpoolctl import threadpool_limits

Part = Callable[[], Any]


def finished(parts: Mapping[str, Part], processes: int, kept: Path | None) -> dict[str, Any]:
    """The results of all parts, by name; what JSON can hold.

    kept: parts whose results are in this file, a line each, are not run again; None: nothing is kept.
    """
    there = _read(kept) if kept is not None and kept.exists() else {}
    found = {name: there[name] for name in parts if name in there}
    # BLAS threads that several processes start on the same cores make hours of minutes.
    with ProcessPoolExecutor(max(1, processes), initializer=threadpool_limits, initargs=(1,)) as pool:
        running = {pool.submit(part): name for name, part in parts.items() if name not in found}
        for one in as_completed(running):
            found[running[one]] = one.result()
            if kept is not None:
                kept.parent.mkdir(parents=True, exist_ok=True)
                with kept.open("a", encoding="utf-8") as file:
                    file.write(json.dumps([running[one], one.result()]) + "\n")
    return {name: found[name] for name in parts}


def _read(kept: Path) -> dict[str, Any]:
    lines = kept.read_text(encoding="utf-8").splitlines(keepends=True)
    return dict(json.loads(line) for line in lines if line.endswith("\n"))  # the last one may have been cut off
