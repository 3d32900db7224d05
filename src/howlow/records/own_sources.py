"""Which sources of howlow a trial ran: a hash of their content, and git's commit where there is one.

Two commits of one version may differ in speed, so costs are compared only between equal sources. The rooms that only
read records, print them or start workers cannot change a figure and are left out of the hash.
"""

import hashlib
import subprocess
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parent.parent
NOT_OF_A_TRIAL = ("__main__.py", "analysis", "cli.py", "progress.py", "reporting", "tracking")
_GIT_TIMEOUT_S = 5.0


@cache
def code_sha256(package: Path = PACKAGE) -> str:
    """A hash of the names and contents of the sources that a trial runs."""
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        name = path.relative_to(package)
        if name.parts[0] not in NOT_OF_A_TRIAL and not name.parts[0].startswith("cli_"):
            digest.update(f"{name.as_posix()} {path.stat().st_size}\n".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


@cache
def revision(package: Path = PACKAGE) -> str | None:
    """Git's commit of the sources, with -dirty where a file differs from it; None where git does not know them."""
    if _git(package, "ls-files", "--error-unmatch", "__init__.py") is None:
        return None  # the package is installed, perhaps below somebody else's repository
    commit, changed = _git(package, "rev-parse", "HEAD"), _git(package, "status", "--porcelain", "--", ".")
    return commit if commit is None or not changed else f"{commit}-dirty"


def _git(folder: Path, *arguments: str) -> str | None:
    """What git prints; None where there is no git, no repository, or no such file in it."""
    command = ["git", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_GIT_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
