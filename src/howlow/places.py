"""Which folder an error is about: a cache that cannot be written is to blame itself, not the run directory."""

import math
import os
import shutil
from pathlib import Path

from howlow.errors import lacks_access, path_of, reason, refused


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
