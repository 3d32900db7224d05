"""Is every bad input one line? Named bad inputs, each through the command line; the output is a table.

    python benchmarks/bad_inputs.py [--group NAME ...] [--show]

A bad input has to end with exit code 2, one line on stderr, nothing on stdout and no traceback. An odd input that is
right has to end with exit code 0. The commands run in this process, and the children of `howlow sweep` come from one
fork server; inputs without permission run in a process of their own.

`--show` prints every message. Failures are always printed with theirs. The last line is one JSON document. Exit status
1 says that an input is not handled.
"""

import argparse
import contextlib
import importlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bad_cases import Case, Place, cases
from valid_inputs import settings_table, write_data, write_model

ROOT = Path(__file__).resolve().parent.parent
RECORDED = ROOT / "tests/recorded/schema-1/trials/r0004-s0-training.learning_rate=0.0005"


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    code: int
    stdout: str
    stderr: str
    has_traceback: bool

    @property
    def lines(self) -> list[str]:
        """What a person reads on stderr."""
        return [line for line in self.stderr.splitlines() if line.strip()]

    def is_right(self, case: Case) -> bool:
        """Whether it is what the input deserves."""
        if not case.is_bad:
            return self.code == 0 and not self.has_traceback
        return self.code == 2 and len(self.lines) == 1 and not self.stdout and not self.has_traceback


def run_here(command: list[str]) -> Outcome:
    """Run a command in this process."""
    import howlow.cli

    out, err, code, has_traceback = io.StringIO(), io.StringIO(), 0, False
    before = sys.argv
    sys.argv = ["howlow", *command]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            howlow.cli.main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException:
            code, has_traceback = 1, True
            err.write(traceback.format_exc())
    sys.argv = before
    return Outcome(code, out.getvalue(), err.getvalue(), has_traceback or "Traceback (most" in err.getvalue())


def run_without_privilege(command: list[str]) -> Outcome:
    """Run a command in a process that permissions hold for, also where this one is root's."""
    drop = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
    paths = os.pathsep.join([str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [*drop, sys.executable, "-m", "howlow", *command],
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    return Outcome(done.returncode, done.stdout, done.stderr, "Traceback (most" in done.stderr)


@contextlib.contextmanager
def one_fork_server() -> Iterator[None]:
    """Let every sweep of this process use one fork server."""
    from howlow.executors.fork_server import ForkServer

    sweep = importlib.import_module("howlow.sweeping.sweep")  # the package has a function of this name
    shared = ForkServer()
    before, sweep.ForkServer = sweep.ForkServer, lambda: shared
    try:
        yield
    finally:
        sweep.ForkServer = before


def run_directory(folder: Path, model: Path, data: Path) -> Path:
    """A run directory with one trial that is done, as an earlier howlow wrote it."""
    from howlow import load_settings
    from howlow.settings import to_toml

    trial = folder / "trials/r0001-s0"
    shutil.copytree(RECORDED, trial)
    record = json.loads((trial / "record.json").read_text(encoding="utf-8"))
    record |= {"trial": "r0001-s0", "axes": {}}
    (trial / "record.json").write_text(json.dumps(record), encoding="utf-8")
    settings = load_settings(None, [settings_table(model, data)])
    (folder / "sweep.toml").write_text(to_toml(settings), encoding="utf-8")
    return folder


def outcomes(chosen: list[Case], folder: Path) -> Iterator[tuple[Case, Outcome]]:
    """Run every case in a scratch folder of its own."""
    model, data = write_model(folder / "model"), write_data(folder / "data")
    run = run_directory(folder / "run", model, data)
    for number, case in enumerate(chosen):
        place = Place(folder / f"case-{number}", model, data, run)
        place.folder.mkdir()
        try:
            command = case.command(place)
            yield case, (run_without_privilege if case.needs_permission else run_here)(command)
        finally:
            for path in place.folder.rglob("*"):
                path.chmod(0o700)


def message_of(outcome: Outcome, folder: Path) -> str:
    """The last line on stderr, without the scratch folder's name."""
    last = outcome.lines[-1] if outcome.lines else "(nothing)"
    return re.sub(rf"{re.escape(str(folder))}/(case-\d+/)?", "", last)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--group", action="append", help="only these groups")
    parser.add_argument("--show", action="store_true", help="print every message")
    asked = parser.parse_args()
    os.environ |= {"HF_HUB_OFFLINE": "1", "COLUMNS": "200"}
    chosen = [case for case in cases() if not asked.group or case.group in asked.group]
    counts: dict[str, list[bool]] = {}
    failed = []
    with tempfile.TemporaryDirectory(prefix="bad-") as scratch, one_fork_server():
        folder = Path(scratch)
        for case, outcome in outcomes(chosen, folder):
            is_right = outcome.is_right(case)
            counts.setdefault(case.group, []).append(is_right)
            if asked.show or not is_right:
                kind = "traceback" if outcome.has_traceback else f"{len(outcome.lines)} lines"
                verdict = "right" if is_right else "WRONG"
                print(f"{verdict} | {case.group} | {case.name[:60]} | exit {outcome.code} | {kind} | ", end="")
                print(message_of(outcome, folder)[:300], flush=True)
            if not is_right:
                failed.append(f"{case.group}: {case.name}")
    print("\n| inputs | number | handled |\n| --- | --- | --- |")
    for group, right in counts.items():
        print(f"| {group} | {len(right)} | {sum(right)} |")
    total = sum(map(len, counts.values()))
    print(f"| all | {total} | {total - len(failed)} |\n")
    print(json.dumps({"inputs": total, "handled": total - len(failed), "failed": failed}))
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
