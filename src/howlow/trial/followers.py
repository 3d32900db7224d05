"""The processes of a trial's other devices, as its leading process sees them (`run.devices_per_trial`).

The leading process runs the trial: it alone has the meters, writes files, moves the weights and decides. It forks a
*follower* for each further device before torch is used, and sends it commands through a pipe
(`howlow.trial.device_commands`). The tensors of a step travel through `howlow.engine.sharding`.

Nobody outlives the others. A follower ends itself when its pipe breaks. When a follower fails or dies, the leading
process ends with the same end, and the worker records it: a process that waits for a layer's parts cannot be woken.
"""

import multiprocessing
import os
import pickle
import shutil
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import connection
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NoReturn

import torch

from howlow.engine import evaluation, sharding
from howlow.engine.execution import Execution, Running, running
from howlow.engine.generation import Generated
from howlow.engine.layouts import Batch
from howlow.engine.model import trainable
from howlow.engine.sharding import ALONE, DeviceGroup
from howlow.engine.shares import SplitBatch
from howlow.engine.training import BeginStep
from howlow.jobs import Link
from howlow.memory.peaks import Peaks
from howlow.memory.phases import ProcessMemory
from howlow.meters.own_processes import count_also
from howlow.outcomes import ClaimLostError, StoppedError, Unfinished
from howlow.places import unfinished
from howlow.trial.device_commands import BeginPhase, Command, Enter, Evaluate, Generate, HelpStep, Leave, ReadPeaks

_Pipe = connection.Connection
Follow = Callable[["Inbox", DeviceGroup], None]
"""What a follower does, until its inbox says that the leading process is done."""
_FORKS = sys.platform == "linux"
_SETTLED_S = 2.0
"""Within this time it is known whether an error of the leading process is that of a follower which has ended."""
_END_TIMEOUT_S = 10.0
_THE_END = b""
"""The message that ends a follower; a pipe that a thread still reads from is not closed by its owner."""


@dataclass
class Followers:
    """The followers of this process; none where a trial has one device, and in a follower itself."""

    group: DeviceGroup = ALONE
    link: Link | None = None
    _pipes: list["_Pipe[Any, Any]"] = field(default_factory=list)
    _processes: list[Any] = field(default_factory=list)
    _answers: list["SimpleQueue[Any]"] = field(default_factory=list)
    _are_loaded: bool = False
    _is_over: bool = False

    @property
    def count(self) -> int:
        """The devices of the trial."""
        return self.group.count

    # -- what the trial asks of them ----------------------------------------------------------------------------------

    def place(self, model: Any, device: torch.device) -> Any:
        """The model on its device, or sharded over those of all processes, each of which calls this once."""
        placed = self.group.place(model, device)
        self._are_loaded = True
        return placed

    @contextmanager
    def running(self, model: Any, execution: Execution, *, has_adapter: bool = True) -> Iterator[Running]:
        """Within this context the model runs on all devices as the execution says, with this process's weights.

        has_adapter: False within `disable_adapter`.
        """
        if self._pipes:
            self._tell(Enter(execution, model.training, has_adapter))
            sharding.broadcast([*trainable(model).values()])
        with running(model, execution) as run:
            yield run
        self._tell(Leave())

    @property
    def begin_step(self) -> BeginStep | None:
        """How a trainer hands a step out; None without followers."""
        return self._begin_step if self._pipes else None

    def _begin_step(self, step: int, batches: Sequence[Batch | SplitBatch]) -> None:
        split = [batch for batch in batches if isinstance(batch, SplitBatch)]
        for number in range(len(self._pipes)):
            self._send(number, pickle.dumps(HelpStep(step, tuple(batch.others[number] for batch in split))))

    def evaluate(self, run: Running, batches: Sequence[Batch]) -> list[list[float]]:
        """The summed loss of each example of each device's batch."""
        self._tell_each([Evaluate(batch) for batch in batches[1:]])
        own = evaluation.evaluate(run, batches[0])
        return [own, *self._hear()]

    def generate(
        self, run: Running, tokenizer: Any, eos: frozenset[int], commands: Sequence[Generate], **further: Any
    ) -> list[tuple[list[Generated], int]]:
        """Each device's rows, and the tokens that its model ran on; further: arguments for this process alone."""
        self._tell_each(commands[1:])
        own = commands[0].run(run, tokenizer, eos, **further)
        return [own, *self._hear()]

    def memory(self, device: torch.device) -> "LargestMemory":
        """The memory of all devices, as a phase needs it."""
        return LargestMemory(ProcessMemory(device), self)

    def begin_phase(self) -> None:
        """Let the followers start new peaks; while they load, each has its own."""
        if self._are_loaded:
            self._tell(BeginPhase())

    def peaks(self) -> list[Peaks]:
        """The followers' peaks since then."""
        self._tell(ReadPeaks())
        found: list[Peaks] = self._hear()
        return found

    # -- pipes --------------------------------------------------------------------------------------------------------

    def _tell(self, command: Command) -> None:
        self._tell_each([command] * len(self._pipes))

    def _tell_each(self, commands: Sequence[Command]) -> None:
        for number, command in enumerate(commands):
            self._send(number, pickle.dumps(command))

    def _send(self, number: int, message: bytes) -> None:
        with suppress(OSError):  # whoever watches it knows why it has gone
            self._pipes[number].send_bytes(message)

    def _hear(self) -> list[Any]:
        """The answer of each follower; where one has ended, this process ends with it (`_watch`)."""
        return [answers.get() for answers in self._answers]

    def start(self, follow: Follow) -> None:
        """Start a process for each further device."""
        context = multiprocessing.get_context("fork" if _FORKS else "spawn")
        for index in range(1, self.group.count):
            ours, theirs = context.Pipe(duplex=True)
            own = DeviceGroup(index, self.group.count, self.group.meeting)
            process = context.Process(  # type: ignore[attr-defined]
                target=_follower, args=(follow, own, theirs, [*self._pipes, ours] if _FORKS else []), daemon=True
            )
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)
            self._answers.append(SimpleQueue())
        for number in range(len(self._pipes)):
            threading.Thread(target=self._watch, args=(number,), name="howlow-follower", daemon=True).start()
        count_also([process.pid for process in self._processes])

    def _watch(self, number: int) -> None:
        """Take a follower's answers, and end this process where the follower ends before it is told to."""
        process = self._processes[number]
        try:
            while True:
                message = pickle.loads(self._pipes[number].recv_bytes())
                if isinstance(message, Unfinished):
                    self._end_with(number, message)
                self._answers[number].put(message)
        except (EOFError, OSError):
            if self._is_over:
                return
        process.join()
        code = process.exitcode or 0
        self._end_with(number, Unfinished("died", f"exit code {code}", exit_signal=-code if code < 0 else None))

    def _end_with(self, number: int, end: Unfinished) -> NoReturn:
        assert self.link is not None, "it was given with the followers"
        how = end.problem if end.exit_signal is None else f"signal {end.exit_signal}"
        with suppress(OSError):  # straight into the log: the main thread may hold the lock of sys.stderr
            os.write(
                2, f"the process of the trial's device {number + 1} ended ({how}), and the trial with it\n".encode()
            )
        self.link.end(end)

    def settle(self) -> None:
        """To be called where this process has an error: if that of a follower is behind it, it ends here."""
        if self._pipes:
            threading.Event().wait(_SETTLED_S)

    def end(self) -> None:
        """Let the followers end, and wait until they have."""
        self._is_over = True
        for number in range(len(self._pipes)):
            self._send(number, _THE_END)
        for process in self._processes:
            process.join(_END_TIMEOUT_S)
            if process.is_alive():
                process.kill()
                process.join()
        for pipe in self._pipes:
            pipe.close()
        count_also([])


@dataclass(frozen=True)
class LargestMemory:
    """The memory of a trial's processes around its phases: the peaks are those of the device that had most."""

    own: ProcessMemory
    followers: Followers

    def begin(self) -> str | None:
        """As `ProcessMemory.begin`, in every process."""
        self.followers.begin_phase()
        return self.own.begin()

    def peaks(self) -> Peaks:
        """The largest of each, since `begin`."""
        every = [self.own.peaks(), *self.followers.peaks()]
        names = Peaks.__dataclass_fields__
        return Peaks(**{name: _largest([getattr(one, name) for one in every]) for name in names})


def _largest(values: Sequence[int | None]) -> int | None:
    return max((value for value in values if value is not None), default=None)


@contextmanager
def followers_of(devices: int, link: Link, follow: Follow) -> Iterator[Followers]:
    """Within this context there is a process for each further device, which runs `follow`.

    To be entered before torch is used: a process that has used a GPU or computed with threads cannot be forked.
    """
    if devices == 1:
        yield Followers()
        return
    place = Path(tempfile.mkdtemp(prefix="howlow-devices-"))
    followers = Followers(DeviceGroup(0, devices, place / "meeting"), link)
    try:
        followers.start(follow)
        yield followers
        sharding.leave()  # not after an error: it would wait for a process that no longer answers
    except (StoppedError, ClaimLostError):
        raise
    except Exception:
        followers.settle()
        raise
    finally:
        followers.end()
        shutil.rmtree(place, ignore_errors=True)


# -- in a follower --------------------------------------------------------------------------------------------------


class Inbox:
    """A follower's end of its pipe: commands come in, answers go out. When the pipe breaks, the process ends."""

    def __init__(self, pipe: "_Pipe[Any, Any]") -> None:
        self._pipe = pipe
        self._commands: SimpleQueue[bytes] = SimpleQueue()
        threading.Thread(target=self._listen, name="howlow-lifeline", daemon=True).start()

    def commands(self) -> Iterator[Any]:
        """Every command, as it comes; it has no end, because this process ends with the leading one."""
        while True:
            yield pickle.loads(self._commands.get())

    def answer(self, value: object) -> None:
        """Send a value back."""
        self._pipe.send_bytes(pickle.dumps(value))

    def _listen(self) -> None:
        try:
            while message := self._pipe.recv_bytes():
                self._commands.put(message)
        except (EOFError, OSError):
            pass
        os._exit(0)


def _follower(
    follow: Follow, group: DeviceGroup, pipe: "_Pipe[Any, Any]", inherited: Sequence["_Pipe[Any, Any]"]
) -> None:
    """What the process of a further device runs. inherited: the other ends of pipes, which a fork has copied."""
    for other in inherited:
        other.close()
    inbox = Inbox(pipe)
    try:
        follow(inbox, group)
    except BaseException as error:
        with suppress(OSError):  # the log's disk may be the full one
            traceback.print_exc()
            sys.stderr.flush()
        inbox.answer(unfinished(error, Path.cwd()))
    threading.Event().wait()  # the leading process ends it: an exit now would look like an error of its own
