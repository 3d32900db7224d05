"""Every causal language model that transformers maps, tiny and with random weights, against transformers alone.

    python benchmarks/zoo.py [architecture ...]

Each is built from its config (`tests/zoo.py`), given to the check that stands before the first trial, and what the
check lets through is held against the model on each text by itself: losses of unequal texts, the gradients of every
adapter, greedy tokens of prompts of unequal length. The table has a row an architecture: seconds, the layouts that
hold, the ways to write answers that hold, or why it is refused. The last line is one JSON document. The exit code is 1
where anything that was let through is wrong, or a verdict is another than `tests/zoo.py` expects.
"""

import json
import sys
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import torch
import transformers
import zoo


def examine(kind: str) -> tuple[str, list[str]]:
    """The verdict on an architecture, and what is wrong."""
    if kind in zoo.TOO_LARGE:
        return f"not built: {zoo.TOO_LARGE[kind]}", []
    try:
        zoo.build(kind)
    except Exception as error:
        return f"not built: {type(error).__name__}: {' '.join(str(error).split())[:120]}", []
    found = zoo.examine(kind)
    expected = zoo.EXPECTED.get(kind, found.verdict)
    return found.verdict, found.wrong + ([] if found.verdict == expected else [f"expected: {expected}"])


def main(kinds: list[str]) -> int:
    """Print the table."""
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    counts: Counter[str] = Counter()
    for kind in kinds or zoo.KINDS:
        start = time.monotonic()
        verdict, wrong = examine(kind)
        state = verdict.partition(":")[0] if verdict.startswith(("refused", "not built")) else "taken"
        counts[state] += 1
        counts["wrong"] += bool(wrong)
        print(f"{kind:26} {time.monotonic() - start:6.1f} s  {verdict}", flush=True)
        for one in wrong:
            print(f"{'':36} WRONG {one}", flush=True)
    print(json.dumps({"architectures": sum(counts.values()) - counts["wrong"], **counts}))
    return 1 if counts["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
