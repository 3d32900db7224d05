"""The blocks of the documents that a test runs, and how.

A block of `bash` or `python` runs as it stands. Comments in the source change that; the page does not show them:

    <!-- skip: next "why it is not run" -->
    <!-- tested with: WORDS -->         added to every `howlow sweep` and `howlow shrink` of the next block
    <!-- tested after: PAGE, PAGE -->   pages (under docs/) whose blocks leave what this page needs

Any other block is output, settings or a file, and says so by its language. Sybil finds the blocks and skips.
"""

import contextlib
import io
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import SkipTest

from sybil import Document, Example
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser, SkipParser

from howlow import cli

ROOT = Path(__file__).parent.parent
RUN, SHOWN = {"bash", "python"}, {"text", "toml", "json", "yaml"}
_WORDS = re.compile(r"<!-- tested with: (.*) -->\s*\Z")
_AFTER = re.compile(r"<!-- tested after: (.*) -->")
_SHELL = re.compile(r"<<|[|&;<>$`]")


def documents() -> list[Path]:
    """The README and every page under docs/."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def parsed(page: Path) -> Document:
    """A page with its blocks to run and the comments that skip some."""
    return Document.parse(str(page), PythonCodeBlockParser(), CodeBlockParser("bash", run_bash), SkipParser())


class Pages:
    """Runs pages in the current folder, each once, and what a page needs before it."""

    def __init__(self) -> None:
        self._run: set[Path] = set()

    def run(self, page: Path) -> None:
        """Run a page's blocks in their order, unless that was done."""
        if page in self._run:
            return
        document = parsed(page)
        for needed in _AFTER.findall(document.text):
            for name in needed.split(","):
                self.run(ROOT / "docs" / name.strip())
        for example in document.examples():
            with contextlib.suppress(SkipTest):
                example.evaluate()
        self._run.add(page)


def run_bash(example: Example) -> None:
    """Run a block: commands of howlow in this process, which saves their imports; anything else in bash."""
    commands = [with_words(command, example) for command in joined_lines(str(example.parsed))]
    if all(is_plain(command) for command in commands):
        for command in commands:
            run_howlow(command)
    else:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        text = "\n".join(commands)
        subprocess.run(["bash", "-euo", "pipefail", "-c", text], check=True, env=os.environ | {"PATH": path})


def joined_lines(text: str) -> list[str]:
    """The lines of a block, those that end in a backslash joined, without comments."""
    if "<<" in text:
        return text.splitlines()
    lines = text.replace("\\\n", " ").splitlines()
    return [line for line in (re.sub(r"\s+#.*", "", f" {line}").strip() for line in lines) if line]


def is_plain(command: str) -> bool:
    """Whether it is a command of howlow that needs no shell."""
    return command.startswith("howlow ") and not _SHELL.search(re.sub(r"'[^']*'", "", command))


def with_words(command: str, example: Example) -> str:
    """The command with the words that the comment above its block adds."""
    words = _WORDS.search(example.document.text[: example.start])
    starts = words is not None and re.match(r"howlow (sweep|shrink) ", command)
    return f"{command} {words[1]}" if words is not None and starts else command


def run_howlow(command: str) -> None:
    """Run a command line in this process; an exit code but 0 is a failure that shows what was printed."""
    printed, arguments, terminate = io.StringIO(), sys.argv, signal.getsignal(signal.SIGTERM)
    sys.argv = shlex.split(command)
    code: Any = 0
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            cli.main()
    except SystemExit as end:
        code = end.code or 0
    finally:
        sys.argv = arguments
        signal.signal(signal.SIGTERM, terminate)
    assert code == 0, f"{command}\nended with exit code {code}:\n{printed.getvalue()}"
