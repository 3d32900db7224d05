"""Every causal language model that transformers maps, tiny and with random weights, against transformers alone.

    python benchmarks/zoo.py [architecture ...] [--out FOLDER] [--limit-s SECONDS]

Each is built from its config (`tests/zoo.py`), given to the check that stands before the first trial, and what the
check lets through is held against the model on each text by itself: losses of unequal texts, the gradients of every
adapter, greedy tokens of prompts of unequal length, and the number of parameters that a dry run tells.

Each architecture has a process of its own and at most `--limit-s` seconds. Its result is a line in `FOLDER/zoo.jsonl`
as soon as it is known; a later run with the same libraries and the same code goes on from there. In the end
`FOLDER/zoo.md` holds a row an architecture, and how many came to which end. The last line on stdout is one JSON
document. The exit code is 1 where anything that was let through is wrong, a verdict is another than `tests/zoo.py`
expects, or the time was not enough.
"""

import argparse
import json
import multiprocessing
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

import torch
import transformers
import zoo

from howlow.records.own_sources import code_sha256

_SHOWN = 160
"""Characters of a verdict in the table."""


@dataclass(frozen=True)
class Result:
    """What became of one architecture; `made_by` names the libraries and the code."""

    kind: str
    seconds: float
    verdict: str
    wrong: list[str]
    made_by: str

    @property
    def end(self) -> str:
        """The verdict without what is special to this architecture."""
        if self.wrong:
            return "WRONG"
        if self.verdict.startswith(("refused", "not built", "no result")):
            return ": ".join(self.verdict.split(": ")[:2])[:_SHOWN]
        return self.verdict


def made_by() -> str:
    """The libraries and the code that a result depends on."""
    versions = " ".join(f"{name} {version(name)}" for name in ("transformers", "peft", "torch"))
    code = sha256((code_sha256() + Path(zoo.__file__).read_text(encoding="utf-8")).encode()).hexdigest()
    return f"{versions}, code {code[:12]}"


def verdict_on(kind: str) -> tuple[str, list[str]]:
    """The verdict on an architecture, and what is wrong."""
    if kind in zoo.TOO_LARGE:
        return f"not built: {zoo.TOO_LARGE[kind]}", []
    try:
        zoo.build(kind)
    except Exception as error:  # whatever a model's own code raises
        return f"not built: {type(error).__name__}: {' '.join(str(error).split())[:120]}", []
    found = zoo.examine(kind)
    expected = zoo.EXPECTED.get(kind, found.verdict)
    return found.verdict, found.wrong + ([] if found.verdict == expected else [f"expected: {expected}"])


def _tell(kind: str, answer: Connection) -> None:
    try:
        answer.send(verdict_on(kind))
    except Exception as error:
        answer.send(("no result", [f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"]))


def examine(kind: str, limit_s: float, made: str) -> Result:
    """Examine an architecture in a process of its own."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    start, child = time.monotonic(), context.Process(target=_tell, args=(kind, theirs), daemon=True)
    child.start()
    theirs.close()
    verdict, wrong = "no result", [f"not done after {limit_s:.0f} s"]
    try:
        if ours.poll(limit_s):
            verdict, wrong = ours.recv()
    except EOFError:
        child.join()
        wrong = [f"the process ended with {child.exitcode}"]
    child.kill()
    child.join()
    return Result(kind, round(time.monotonic() - start, 1), verdict, wrong, made)


def results(kinds: Sequence[str], folder: Path, limit_s: float) -> Iterator[Result]:
    """The result of each architecture: the one that is kept, or a new one, which is kept."""
    path, made = folder / "zoo.jsonl", made_by()
    folder.mkdir(parents=True, exist_ok=True)
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    known = {found.kind: found for found in (Result(**json.loads(line)) for line in lines) if found.made_by == made}
    with path.open("a", encoding="utf-8") as file:
        for kind in kinds:
            found = known.get(kind) or examine(kind, limit_s, made)
            if kind not in known:
                file.write(json.dumps(asdict(found)) + "\n")
                file.flush()
            yield found


def tables(found: Sequence[Result]) -> str:
    """How many came to which end, and a row an architecture, in Markdown."""
    ends = Counter(one.end for one in found)
    lines = [f"{found[0].made_by}\n", "| end | architectures |", "| --- | --- |"]
    lines += [f"| {end} | {count} |" for end, count in ends.most_common()]
    lines += [f"| all | {len(found)} |", "", "| architecture | seconds | verdict |", "| --- | --- | --- |"]
    for one in found:
        wrong = "".join(f"; WRONG: {problem[:_SHOWN]}" for problem in one.wrong)
        lines.append(f"| {one.kind} | {one.seconds:.1f} | {one.verdict[:_SHOWN]}{wrong} |".replace("\n", " "))
    return "\n".join(lines) + "\n"


def main() -> int:
    """Examine, print a line each, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", metavar="architecture")
    parser.add_argument("--out", type=Path, default=Path("runs/zoo"), help="where results are kept")
    parser.add_argument("--limit-s", type=float, default=300.0, help="seconds for an architecture")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    found = []
    for one in results(asked.kinds or zoo.KINDS, asked.out, asked.limit_s):
        found.append(one)
        print(f"{one.kind:26} {one.seconds:6.1f} s  {one.verdict}", flush=True)
        for problem in one.wrong:
            print(f"{'':36} WRONG {problem}", flush=True)
    (asked.out / "zoo.md").write_text(tables(found), encoding="utf-8")
    wrong = [one.kind for one in found if one.wrong]
    print(json.dumps({"architectures": len(found), "wrong": wrong, "ends": Counter(one.end for one in found)}))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
