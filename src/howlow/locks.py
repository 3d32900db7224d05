"""Locks within one machine, also on a file system that has none: nothing between machines rests on them."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

_HAS_NONE = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


def file_lock(path: Path) -> FileLock:
    """A lock that ends with its process, however that ends."""
    return FileLock(path, fallback_to_soft=False)  # a file that stands for a lock would outlive a killed process


def lacks_locks(error: OSError) -> bool:
    """Whether the file system has no locks, as NFS that is mounted without them."""
    return error.errno in _HAS_NONE


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Wait for the lock and hold it; without a lock where the file system has none.

    So it may only save work. What must not happen twice is guarded by claims (`howlow.claims`).
    """
    lock = file_lock(path)
    try:
        lock.acquire()
    except OSError as error:
        if not lacks_locks(error):
            raise
        yield
        return
    try:
        yield
    finally:
        lock.release()
