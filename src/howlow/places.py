"""Which folder an error is about: a cache that cannot be written is to blame itself, not the run directory.

And how a process has ended that an error has ended.
"""

import errno
import math
import os
import shutil
from pathlib import Path

from howlow.errors import UserError, lacks_access, path_of, raised_by, reason, refused, subject_of
from howlow.outcomes import ClaimLostError, StoppedError, Unfinished, is_disk_full

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def caches() -> dict[str, Path]:
    """The variable that names a cache's folder -> the folder; a cache within another one comes first."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    hub = Path(os.environ.get("HF_HOME") or home / "huggingface").expanduser()
    return {
        "HF_DATASETS_CACHE": Path(os.environ.get("HF_DATASETS_CACHE") or hub / "datasets").expanduser(),
        "HF_HUB_CACHE": Path(os.environ.get("HF_HUB_CACHE") or hub / "hub").expanduser(),
        "HF_HOME": hub,
        "XDG_CACHE_HOME": home,
    }


def told(error: BaseException) -> str:
    """An error in one line: the file that the system refused and why, with the remedy; else its type and its words."""
    refusal = refused(error)
    path = None if refusal is None else path_of(refusal)
    if refusal is None or path is None:
        return f"{type(error).__name__}: {reason(error)}"
    advice = remedy(path) or ("; change its permissions, or name another" if lacks_access(error) else "")
    return f"{path}: {reason(refusal)}{advice}"


def of_cache(error: BaseException, variable: str) -> str | None:
    """What a loader's error says of a file or of a full cache, in one line; None where it is about neither.

    variable: the cache into which the loader writes.
    """
    refusal = refused(error)
    if refusal is not None and path_of(refusal):
        return told(error)
    return full_disk(error, caches()[variable]) if refusal is not None and refusal.errno in _FULL else None


def remedy(path: Path | str) -> str:
    """What to do about a path in a cache that cannot be written; nothing where it is in none."""
    variable = next((name for name, folder in caches().items() if _is_in(Path(path), folder)), None)
    return "" if variable is None else f"; set {variable} to another folder, with room, that you may write to"


def full_disk(error: BaseException, results: Path | str) -> str:
    """Which disk is full, in one line: that of the file which the error names, else the fullest of those in use.

    results: the folder into which the work writes its results. Caches and temporary files may be on other disks.
    """
    refusal = refused(error)
    named = None if refusal is None else path_of(refusal)
    in_use = [Path(results), *caches().values(), Path(os.environ.get("TMPDIR") or "/tmp")]
    place = named or str(min(in_use, key=_free_bytes))
    return f"{place}: {reason(error if refusal is None else refusal)}{remedy(place)}"


def _is_in(path: Path, folder: Path) -> bool:
    return folder in (path, *path.parents)


def _free_bytes(folder: Path) -> float:
    """What is free on the disk of a folder, which may not exist yet."""
    for place in (folder, *folder.parents):
        try:
            return shutil.disk_usage(place).free
        except OSError:
            continue
    return math.inf


def unfinished(error: BaseException, results: Path | str) -> Unfinished:
    """The end of a process whose work raised this error; `results`: as in `full_disk`."""
    if isinstance(error, UserError):
        return Unfinished("user_error", str(error))
    if isinstance(error, StoppedError | KeyboardInterrupt):
        return Unfinished("stopped")
    if isinstance(error, ClaimLostError):
        return Unfinished("claim_lost")
    if is_disk_full(error):
        return Unfinished("disk_full", full_disk(error, results))
    if lacks_access(error):
        return Unfinished("user_error", told(error))
    return Unfinished("crashed", told(error), raised_by=raised_by(error), subject=subject_of(error))
