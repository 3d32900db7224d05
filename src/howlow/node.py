"""The node: who works on this machine at one time, and who has it to himself.

Each process that loads a model for a trial takes a *ticket*: a numbered file in a folder of this machine since its
last start (in `/tmp/howlow-node`, or `HOWLOW_NODE`), which it holds locked until it ends. The system frees the lock
however the process ends. Tickets are served in their order. A process that is to be *alone* waits until none with a
lower number is left; any other waits for those with a lower number that are to be alone. So nobody is passed over for
ever, and nobody begins beside a process that is alone. Every start of every machine has a folder of its own, named
after it: tickets of an earlier start, or of another machine on a shared file system, count for nothing.

Tickets also tell afterwards who ran beside whom. An ended one stays as long as a process is alive that began before it
ended. Of a process that was killed, the end is when another one finds it dead.
"""

import json
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from howlow.claims import Host, is_locked, machine_s
from howlow.errors import UserError, reason
from howlow.meters.clock import sleep

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

VARIABLE = "HOWLOW_NODE"
_FOLDER = Path("/tmp/howlow-node")
_LOOK_EVERY_S = 0.2
_READABLE = 0o644
"""By every user, whatever the umask: who cannot open a ticket takes its process for dead."""
KindOfWork = Literal["trial", "search", "idle reading"]


@dataclass(frozen=True)
class Visitor:
    """Who works on this machine; `began_s` is on the machine's clock, None as long as it waits."""

    trial: str
    run_directory: str
    work: KindOfWork
    device: str
    is_alone: bool = False
    device_uuid: str | None = None
    began_s: float | None = None

    def __str__(self) -> str:
        return f"{self.trial} of {self.run_directory}"


@dataclass(frozen=True)
class Stay:
    """A visitor, and when it worked, on the machine's clock; of one that still works, until now."""

    visitor: Visitor
    began_s: float
    ended_s: float


@dataclass
class Presence:
    """A process that works on this machine now; to be made by `present`."""

    folder: Path
    number: int
    visitor: Visitor
    _descriptor: int
    waited_s: float = 0.0

    def describe(self, device: str, device_uuid: str | None) -> None:
        """Tell others which device it is, once that is known."""
        self.visitor = replace(self.visitor, device=device, device_uuid=device_uuid)
        with suppress(OSError):  # a full disk: the others know less of it
            _write(self._descriptor, self.visitor)

    def begin(self) -> None:
        """Tell others that it no longer waits."""
        self.visitor = replace(self.visitor, began_s=machine_s())
        with suppress(OSError):
            _write(self._descriptor, self.visitor)

    def blocker(self) -> Visitor | None:
        """Whom this process has to wait for."""
        for number in _numbers(self.folder):
            path = _ticket(self.folder, number)
            if number < self.number and is_locked(path):
                other = _read(path) or replace(
                    self.visitor, trial="another trial", is_alone=True
                )  # it is being written
                if self.visitor.is_alone or other.is_alone:
                    return other
        return None

    def neighbours(self) -> list[Stay]:
        """Who else has worked on this machine since this process began."""
        own_s = self.visitor.began_s
        assert own_s is not None, "only a process that has begun has neighbours"
        stays = (_stay(self.folder, number) for number in _numbers(self.folder) if number != self.number)
        return [stay for stay in stays if stay is not None and stay.ended_s >= own_s]

    def end(self) -> None:
        """Let others begin."""
        with suppress(OSError):  # the lock alone tells it, too
            _note_end(self.folder, self.number)
            _remove_old(self.folder, self.number)
        os.close(self._descriptor)


@contextmanager
def present(visitor: Visitor, wait: Callable[[Visitor], None]) -> Iterator[Presence | None]:
    """Work on this machine as its rules allow; None where it has no folder for tickets and the visitor is not alone.

    wait: is called again and again with whom this process waits for; it may raise to give up.

    Raises:
        UserError: the process is to be alone, and this machine has no folder for tickets.
    """
    try:
        presence = _entered(_folder(), visitor)
    except OSError as error:
        if visitor.is_alone:
            raise _no_folder(error) from None
        yield None
        return
    try:
        since_s = machine_s()
        while (other := presence.blocker()) is not None:
            wait(other)
            sleep(_LOOK_EVERY_S)
            presence.waited_s = machine_s() - since_s
        presence.begin()
        yield presence
    finally:
        presence.end()


def place_of_tickets() -> str:
    """Which folder this process sees as its machine's; those of containers with a /tmp of their own are different."""
    try:
        _make(_folder())
        found = _folder().stat()
    except OSError:
        return ""
    return f"{found.st_dev}:{found.st_ino}"


def refuse_no_node() -> None:
    """Refuse `run.exclusive` on a machine where processes cannot be told apart.

    Raises:
        UserError: there is no folder for tickets, or the system has no locks.
    """
    try:
        presence = _entered(_folder(), Visitor("", "", "idle reading", ""))
    except OSError as error:
        raise _no_folder(error) from None
    presence.end()


def _no_folder(error: OSError) -> UserError:
    return UserError(
        f"run.exclusive: {_folder()}: {reason(error)}; set {VARIABLE} to a folder on a disk of this machine that "
        "all its users may write to, or run.exclusive = false"
    )


# -- tickets --------------------------------------------------------------------------------------------------------


def _folder() -> Path:
    return Path(os.environ.get(VARIABLE) or _FOLDER) / Host.here().boot


def _make(folder: Path) -> None:
    """Make a folder for all users of the machine."""
    if folder.is_dir():
        return
    if not folder.parent.exists():
        _make(folder.parent)
    folder.mkdir(exist_ok=True)
    with suppress(OSError):  # another user was quicker
        folder.chmod(0o1777)


def _entered(folder: Path, visitor: Visitor) -> Presence:
    """Take the next number."""
    if fcntl is None:
        raise OSError("this system has no flock")
    _make(folder)
    temporary = folder / f".{uuid.uuid4().hex}.tmp"
    descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o644)
    try:
        os.fchmod(descriptor, _READABLE)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # before the ticket has its name
        _write(descriptor, visitor)
        number = _named(folder, temporary)
    except BaseException:
        os.close(descriptor)
        raise
    finally:
        temporary.unlink(missing_ok=True)
    return Presence(folder, number, visitor, descriptor)


def _named(folder: Path, temporary: Path) -> int:
    """Give a ticket the next free number: the link fails where another process took the number at the same moment."""
    number = max(_numbers(folder), default=0)
    while True:
        number += 1
        try:
            os.link(temporary, _ticket(folder, number))
        except FileExistsError:
            continue
        if number == max(_numbers(folder)):
            return number
        _ticket(folder, number).unlink()  # a lower number, which others removed: nobody passes those who wait


def _numbers(folder: Path) -> list[int]:
    return sorted(int(path.stem) for path in folder.iterdir() if path.suffix == ".ticket" and path.stem.isdigit())


def _ticket(folder: Path, number: int) -> Path:
    return folder / f"{number:09d}.ticket"


def _end_of(folder: Path, number: int) -> Path:
    return folder / f"{number:09d}.end"


def _write(descriptor: int, visitor: Visitor) -> None:
    text = json.dumps(asdict(visitor)).encode()
    os.pwrite(descriptor, text, 0)
    os.ftruncate(descriptor, len(text))


def _read(path: Path) -> Visitor | None:
    """None where the file is not there any more, or not whole."""
    try:
        return Visitor(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _stay(folder: Path, number: int) -> Stay | None:
    """When a visitor worked; None where it has not begun."""
    path = _ticket(folder, number)
    is_there, visitor = is_locked(path), _read(path)
    if visitor is None or visitor.began_s is None:
        return None
    return Stay(visitor, visitor.began_s, machine_s() if is_there else _ended_s(folder, number))


def _ended_s(folder: Path, number: int) -> float:
    """When a visitor ended; one that was killed, now."""
    with suppress(FileExistsError, PermissionError):
        _note_end(folder, number)
    try:
        return float(_end_of(folder, number).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return machine_s()


def _note_end(folder: Path, number: int) -> None:
    """Keep the end of a visitor, unless it is known."""
    descriptor = os.open(_end_of(folder, number), os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    try:
        os.fchmod(descriptor, _READABLE)
        os.write(descriptor, f"{machine_s():.6f}".encode())
    finally:
        os.close(descriptor)


def _remove_old(folder: Path, own: int) -> None:
    """Remove the tickets of those who ended before anybody began who is here now; the highest number stays."""
    numbers = _numbers(folder)
    here = [number for number in numbers if number != own and is_locked(_ticket(folder, number))]
    began = [_read(_ticket(folder, number)) for number in here]
    first_s = min((one.began_s for one in began if one is not None and one.began_s is not None), default=machine_s())
    for number in numbers[:-1]:
        if number not in here and number != own and _ended_s(folder, number) < first_s:
            with suppress(OSError):  # another user's
                _ticket(folder, number).unlink(missing_ok=True)
                _end_of(folder, number).unlink(missing_ok=True)
