"""Python commands run in forks of a process that has imported what takes seconds, for tests that start many of them.

What the dynamic loader reads (LD_LIBRARY_PATH) is that of the process that forks. Everything else is each command's
own: its environment, arguments, output and exit code. A fork is as fresh as a process of its own: importing is all
that has happened in it, as in the fork server of trials.
"""

import atexit
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import traceback
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

IMPORTED = ("howlow.cli", "howlow.executors.preloaded")


def run_forked(
    library: Path, code: str, arguments: list[str], environment: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    """Run `python -c CODE ...` with the libraries of a folder found first."""
    server = _server(library)
    assert server.stdin is not None
    assert server.stdout is not None
    with tempfile.TemporaryDirectory() as scratch:
        out, err = Path(scratch) / "out", Path(scratch) / "err"
        files = {"out": str(out), "err": str(err), "cwd": str(Path.cwd())}
        asked = {"code": code, "arguments": arguments, "environment": environment} | files
        server.stdin.write(json.dumps(asked) + "\n")
        server.stdin.flush()
        status = int(server.stdout.readline())
        return subprocess.CompletedProcess(["python", "-c", *arguments], status, out.read_text(), err.read_text())


@cache
def _server(library: Path) -> subprocess.Popen[str]:
    # OpenBLAS starts threads when NumPy is imported, and threads do not survive a fork.
    environment = os.environ | {"LD_LIBRARY_PATH": str(library), "OPENBLAS_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )
    atexit.register(_end, process)
    return process


def _end(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.close()
    process.wait()
    process.stdout.close()


# -- the process that forks -----------------------------------------------------------------------------------------


def _serve() -> None:
    for name in IMPORTED:
        __import__(name)
    for line in sys.stdin:
        asked = json.loads(line)
        child = os.fork()
        if child == 0:
            os._exit(_run(asked))
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def _run(asked: dict[str, Any]) -> int:
    """Run a command in this process; its exit code."""
    for number, path in ((1, asked["out"]), (2, asked["err"])):
        os.dup2(os.open(path, os.O_CREAT | os.O_WRONLY), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ.clear()
    os.environ.update(asked["environment"])
    os.chdir(asked["cwd"])
    try:
        _execute(asked["code"], asked["arguments"])
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    return code


def _execute(code: str, arguments: list[str]) -> None:
    sys.argv = ["-c", *arguments]
    main = sys.modules["__main__"] = ModuleType("__main__")
    exec(compile(code, "<string>", "exec"), main.__dict__)


if __name__ == "__main__":
    _serve()
