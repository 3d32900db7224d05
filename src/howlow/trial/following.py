"""What the process of a trial's further device does: load as the leading one does, then run its commands.

It reads no checkpoint and writes no file. The weights that train come from the leading process.
"""

import sys
from collections.abc import Callable
from functools import partial

from howlow.engine.sharding import DeviceGroup
from howlow.jobs import JobEvent, LayoutJob, MeasureJob
from howlow.locks import locked
from howlow.memory.heap import bound_heap, keep_heap
from howlow.memory.limits import limit_memory, map_pages
from howlow.memory.phases import ProcessMemory
from howlow.meters.machine import choose_device
from howlow.trial.device_commands import Follower
from howlow.trial.fine_tuning import set_to_training
from howlow.trial.followers import Followers, Inbox
from howlow.trial.layout_choice import choose
from howlow.trial.lease import own_lock
from howlow.trial.loading import execution_of, load_trial_model
from howlow.trial.prepared import read_prepared
from howlow.trial.state import state_of

Settle = Callable[[int], None]
"""What every process does first, which a fork has from the leading one."""


class _Silent:
    """The link of a process that reports to nobody."""

    stop_requested = False

    def report(self, event: JobEvent) -> None:
        """Say nothing."""

    def end(self, *_: object) -> None:
        """Not called: the leading process ends this one."""


def follow_choice(job: LayoutJob, settle: Settle, inbox: Inbox, group: DeviceGroup) -> None:
    """Make the choice that the leading process makes: it runs the model, whose layers all processes gather."""
    _settle(settle, job.cores_shared_by)
    prepared = read_prepared(job.data_folder)
    choose(job.settings, prepared.train, prepared.test, job.gemms, group)


def follow_trial(job: MeasureJob, settle: Settle, inbox: Inbox, group: DeviceGroup) -> None:
    """Load the trial's model, and run the commands of the leading process."""
    _settle(settle, job.trial.cores_shared_by)
    with locked(
        job.run_directory / job.trial.folder / f"{own_lock()}-{group.index}"
    ):  # one of before may still be ending
        follower = _loaded(job, group)
        for command in inbox.commands():
            answer = command.of(follower)
            if answer is not None:
                inbox.answer(answer)


def _loaded(job: MeasureJob, group: DeviceGroup) -> Follower:
    settings = job.trial.settings
    state = state_of(job, _Silent(), Followers(group))  # type: ignore[arg-type]
    state.found.data = job.trial.data
    device = group.own(choose_device(state.device or settings.run.device, group.count))
    heap = bound_heap() if state.is_bounded else keep_heap()
    if state.is_bounded:
        map_pages(device)
    limit_memory(settings.run.memory_limit_bytes, device)
    memory = ProcessMemory(device)
    memory.begin()
    model, tokenizer, eos = load_trial_model(state, execution_of(state, device, heap.kernels_kept), "")
    training = partial(set_to_training, settings)
    return Follower(group.index, device, settings.seed, model, tokenizer, eos, training, memory)


def _settle(settle: Settle, cores_shared_by: int) -> None:
    if sys.platform != "linux":
        settle(cores_shared_by)
