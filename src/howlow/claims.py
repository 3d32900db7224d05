"""Claims: which worker runs which trial, without a coordinator, on one machine or on several that share the folder.

Each time a worker takes a trial it creates the next *generation*, `trials/NAME/.claim/0001.json`, `0002.json`, and so
on. The file appears whole under its final name (`os.link`), which fails if the name exists, so exactly one worker wins
a generation. The highest generation holds the trial. A generation may be followed by the next when

* its holder has released it;
* the holder ran on this machine and this boot, and its lock on the claim file (flock) is gone: the operating system
  drops the lock when a process ends, however it ends, so the claim of a dead worker is free at once;
* the holder ran elsewhere, and an observer has seen no renewal for `EXPIRY_S` of the observer's own monotonic clock. A
  holder renews its claim every `HEARTBEAT_S` by changing `0001.beat`. Clocks of two machines are never compared, and
  no lock is relied on between machines. `EXPIRY_S` exceeds the minute for which a network file system may show old
  contents.

Fencing: a holder that was paused for longer than `EXPIRY_S` may have lost its trial. So before the trial's process
writes a checkpoint or the record, it looks for a higher generation, and at the last renewal of its own claim, by the
clock of this machine that goes on while it sleeps. A network file system may not show the higher generation yet, so a
claim that has lapsed is lost even if none is seen: it is never renewed again, its process stops without writing, and
the worker takes the trial anew, from its checkpoint, unless another one has it. A worker that takes over from an
expired claim first gives every file that the old process appends to a new inode (`detach`), so that what the old
process still writes reaches no file of the new one.

What remains: a process that is paused for so long exactly between its look and its write can put an older checkpoint,
or its own record, into the folder. Both are whole and of this trial, which may then have been run twice.
"""

import json
import os
import shutil
import socket
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from howlow.meters.clock import boot_s, now_s
from howlow.outcomes import ClaimLostError

try:
    import fcntl
except ImportError:  # not on Windows: every claim there expires by time
    fcntl = None  # type: ignore[assignment]

HEARTBEAT_S = 10.0
EXPIRY_S = 180.0


@dataclass(frozen=True)
class Host:
    """A machine, or a container of it, since its last start; equal only where locks and the clock are shared."""

    name: str
    machine: str
    boot: str

    def is_beside(self, other: "Host") -> bool:
        """Whether both are one machine, whose containers have names of their own."""
        return self.boot == other.boot if self.boot else self == other

    @classmethod
    def here(cls) -> "Host":
        """This machine."""
        return cls(socket.gethostname(), _first_line("/etc/machine-id"), _first_line("/proc/sys/kernel/random/boot_id"))


def _first_line(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError:
        return ""


@dataclass(frozen=True)
class Holder:
    """Who created a generation; `since_s` is on the machine's clock since its start, `node` as in `Claims`."""

    host: Host
    pid: int
    since_s: float
    is_locked: bool
    node: str = ""

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host.name}"


@dataclass
class Claim:
    """A trial that this process holds."""

    folder: Path
    generation: int
    lock: int | None
    has_expired_before: bool = False
    """Whether the claim before it expired without a renewal: its holder may still be alive."""

    def is_current(self) -> bool:
        """Whether no other worker has, or may have, taken the trial over."""
        return is_current(self.folder, self.generation)

    def renew(self) -> None:
        """Show other machines that this worker is alive; a claim that is lost stays lost."""
        if self.is_current():
            _write_beat(self.folder, self.generation, "held")

    def release(self, *, unused: bool) -> None:
        """Let others take the trial at once; `unused`: it was not run under this claim."""
        with suppress(OSError):  # a full disk or a folder that is gone: the lock or the expiry frees it
            _write_beat(self.folder, self.generation, "void" if unused else "free")
        if self.lock is not None:
            os.close(self.lock)
            self.lock = None


@dataclass(frozen=True)
class _Beat:
    """The last renewal of a claim that this process has seen, and whether it is not the first that it saw."""

    text: str
    since_s: float
    has_changed: bool


@dataclass
class Claims:
    """The claims of one run directory, seen by one process; `node`: where its machine's tickets are (`howlow.node`)."""

    run_directory: Path
    host: Host = field(default_factory=Host.here)
    node: str = ""
    expiry_s: float = EXPIRY_S
    heartbeat_s: float = HEARTBEAT_S
    clock: Callable[[], float] = now_s
    _held: list[Claim] = field(default_factory=list)
    _seen: dict[tuple[str, int], _Beat] = field(default_factory=dict)
    _guard: threading.Lock = field(default_factory=threading.Lock)

    def take(self, trial: str) -> Claim | None:
        """Claim a trial; None where another worker holds it or was quicker."""
        folder = claim_folder(self.run_directory, trial)
        folder.mkdir(parents=True, exist_ok=True)
        with self._guard:
            last = latest(folder)
            how = "free" if last == 0 else self._state(folder, last)
            if how == "held":
                return None
            claim = self._create(folder, last + 1)
            if claim is not None:
                claim.has_expired_before = how == "expired"
                self._held.append(claim)
            return claim

    def release(self, claim: Claim, *, unused: bool = False) -> None:
        """Give a trial back, or note that it has ended; `unused`: it was not run under this claim."""
        with self._guard:
            if claim in self._held:
                self._held.remove(claim)
        claim.release(unused=unused)

    def holder(self, trial: str) -> Holder | None:
        """Who holds a trial now, as far as this process can tell."""
        folder = claim_folder(self.run_directory, trial)
        last = latest(folder)
        if last == 0:
            return None
        with self._guard:
            return _read_holder(folder, last) if self._state(folder, last) == "held" else None

    def may_be_dead(self, trial: str) -> bool:
        """Whether another machine holds a trial whose claim this process has not seen renewed."""
        folder = claim_folder(self.run_directory, trial)
        with self._guard:
            seen = self._seen.get((str(folder), latest(folder)))
        return seen is not None and not seen.has_changed

    @contextmanager
    def renewed(self) -> Iterator[None]:
        """Renew every held claim in a thread."""
        ended = threading.Event()
        thread = threading.Thread(target=self._renew, args=(ended,), name="howlow-claims", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def _renew(self, ended: threading.Event) -> None:
        while not ended.wait(self.heartbeat_s):
            with self._guard:
                held = list(self._held)
            for claim in held:
                with suppress(OSError):  # the next one may succeed
                    claim.renew()

    def _state(self, folder: Path, generation: int) -> str:
        """Of the highest generation: held, free or expired."""
        beat = _read_beat(folder, generation)
        if beat.startswith(("free", "void")):
            return "free"
        holder = _read_holder(folder, generation)
        if holder is not None and holder.host == self.host and holder.is_locked:
            return "held" if is_locked(_path(folder, generation)) else "free"
        key, now = (str(folder), generation), self.clock()
        seen = self._seen.get(key)
        if seen is None or beat != seen.text:
            self._seen[key] = _Beat(beat, now, seen is not None)
            return "held"
        return "expired" if now - seen.since_s >= self.expiry_s else "held"

    def _create(self, folder: Path, generation: int) -> Claim | None:
        temporary = folder / f".{uuid.uuid4().hex}.tmp"
        descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o644)
        try:
            locked = _lock(descriptor, exclusive=True)  # before the file has its name: nobody sees it unlocked
            holder = Holder(self.host, os.getpid(), machine_s(), locked, self.node)
            os.write(descriptor, json.dumps(asdict(holder)).encode())
            os.fsync(descriptor)
            won = _link(temporary, _path(folder, generation))
        except BaseException:
            os.close(descriptor)
            raise
        finally:
            temporary.unlink(missing_ok=True)
        if not won:
            os.close(descriptor)
            return None
        claim = Claim(folder, generation, descriptor)
        try:
            _write_beat(folder, generation, "held")
        except BaseException:
            os.close(descriptor)
            raise
        return claim


# -- what anyone may ask --------------------------------------------------------------------------------------------


def claim_folder(run_directory: Path, trial: str) -> Path:
    """Where the claims of a trial are."""
    return run_directory / "trials" / trial / ".claim"


def latest(folder: Path) -> int:
    """The highest generation; 0 where there is none."""
    try:
        return max((int(path.stem) for path in folder.iterdir() if _is_claim(path)), default=0)
    except FileNotFoundError:
        return 0


def is_current(folder: Path, generation: int) -> bool:
    """Whether a generation that a process of this machine holds still holds its trial, and has not lapsed."""
    return latest(folder) == generation and not _has_lapsed(folder, generation)


def _has_lapsed(folder: Path, generation: int) -> bool:
    """Whether a claim of this machine was not renewed for so long that others may take the trial."""
    state, _, renewed = _read_beat(folder, generation).partition(" ")
    try:
        return state != "held" or machine_s() - float(renewed) >= EXPIRY_S
    except ValueError:
        return True


def refuse_if_lost(run_directory: Path, trial: str, generation: int | None) -> None:
    """To be called before a trial's process writes a checkpoint or its record.

    Raises:
        ClaimLostError: another worker has taken the trial over.
    """
    if generation is not None and not is_current(claim_folder(run_directory, trial), generation):
        raise ClaimLostError(trial)


def detach(trial_folder: Path) -> None:
    """Give the files that a trial appends to new inodes: what an old process still writes is lost."""
    for path in (*trial_folder.glob("*.jsonl"), *trial_folder.glob("log.txt")):
        copy = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
        shutil.copyfile(path, copy)
        copy.replace(path)


def neighbours(folder: Path, trial: str, *, only_now: bool = False, unseen_by: str | None = None) -> tuple[str, ...]:
    """The other trials of a run directory that ran on this machine when this one did, or that run `only_now`.

    unseen_by: only those whose machine's tickets are elsewhere (`Claims.node`), as in a container of its own.
    """
    host, now = Host.here(), machine_s()
    own = [(now, now)] if only_now else list(_intervals(claim_folder(folder, trial), host, now))
    found = {
        other.parent.name
        for other in (folder / "trials").glob("*/.claim")
        for start, end in _intervals(other, host, now, unseen_by)
        if any(start < own_end and own_start <= end for own_start, own_end in own)
    }
    return tuple(sorted(found - {trial}))


def _intervals(folder: Path, host: Host, now: float, unseen_by: str | None = None) -> Iterator[tuple[float, float]]:
    """When a trial was run on this machine, since it was started: begin and end of each generation."""
    for generation in range(1, latest(folder) + 1):
        holder = _read_holder(folder, generation)
        if holder is None or not holder.host.is_beside(host) or holder.node == unseen_by:
            continue
        state, _, since = _read_beat(folder, generation).partition(" ")
        if state == "void":
            continue
        with suppress(ValueError):  # no beat: the holder died as it began
            renewed_s = float(since)
            may_live = state == "held" and now - renewed_s < EXPIRY_S
            is_running = may_live and (not holder.is_locked or is_locked(_path(folder, generation)))
            yield holder.since_s, now if is_running else renewed_s


def machine_s() -> float:
    """Seconds on a clock that all processes of this machine share."""
    since_start = boot_s()
    return now_s() if since_start is None else since_start


# -- files ----------------------------------------------------------------------------------------------------------


def _is_claim(path: Path) -> bool:
    return path.suffix == ".json" and path.stem.isdigit()


def _path(folder: Path, generation: int) -> Path:
    return folder / f"{generation:04d}.json"


def _read_holder(folder: Path, generation: int) -> Holder | None:
    """None where the file is not whole yet, or not there any more."""
    try:
        found = json.loads(_path(folder, generation).read_text(encoding="utf-8"))
        return Holder(**found | {"host": Host(**found["host"])})
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _read_beat(folder: Path, generation: int) -> str:
    try:
        return (folder / f"{generation:04d}.beat").read_text(encoding="utf-8")
    except OSError:
        return ""


def _write_beat(folder: Path, generation: int, state: str) -> None:
    """Overwrite the beat, always at the same length: this works on a full disk, and other machines see it."""
    text = f"{state} {machine_s():18.6f}\n".encode()
    descriptor = os.open(folder / f"{generation:04d}.beat", os.O_CREAT | os.O_WRONLY, 0o644)
    try:
        os.write(descriptor, text)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _link(temporary: Path, path: Path) -> bool:
    """Give a file its final name, unless the name exists."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        return temporary.stat().st_nlink == 2  # on NFS a repeated request finds the link that the first one made
    except OSError:  # a file system without hard links: an empty file there is as exclusive
        if temporary.stat().st_nlink == 2:  # the link was made, its reply was lost
            return True
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL, 0o644))
        except FileExistsError:
            return False
        temporary.replace(path)
    return True


def _lock(descriptor: int, exclusive: bool) -> bool:
    """Lock without waiting; False where another holds the lock, or the file system has none."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def is_locked(path: Path) -> bool:
    """Whether a process of this machine holds a claim file's lock."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        return not _lock(descriptor, exclusive=False)
    finally:
        os.close(descriptor)
