"""A base that is larger than one device: its layers are sharded over the devices of one trial (torch's FSDP2).

Each device has a process of its own. Of every frozen matrix of the decoder's layers each process keeps a part
(`torch.distributed.fsdp.fully_shard`). Before a layer runs, forward or backward, its parts are gathered; afterwards
they are dropped. Everything else is whole in every process: embeddings, norms, the vocabulary head, which runs once a
chunk of the loss, and the adapters.

The process with index 0 leads. Only its adapter has an optimizer: before a step the others get its weights
(`broadcast`), and after the backward passes it gets the sum of all gradients (`add_up`). So the clipped norm is the
whole one, a checkpoint and a saved adapter are whole, and no two processes can drift apart.

Every forward pass gathers layers, so all processes have to run the same number of them, in the same order.
"""

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from howlow.engine.model import decoder_of
from howlow.errors import UserError

_LOOPBACK = "lo" if sys.platform == "linux" else "lo0"
_INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
_BUCKET_BYTES = 1 << 26
"""Small tensors travel together, up to about this size."""


@dataclass(frozen=True)
class DeviceGroup:
    """The processes of one trial, one a device: which of them this is, how many there are, and where they meet.

    meeting: a file of this machine that does not exist before; None for a process that is alone.
    """

    index: int = 0
    count: int = 1
    meeting: Path | None = None

    def devices(self, first: torch.device) -> tuple[torch.device, ...]:
        """The device of each process, when the leading one has `first`; on a CPU each has its part of the cores."""
        if first.type == "cpu" or self.count == 1:
            return (first,) * self.count
        return tuple(torch.device(first.type, (first.index or 0) + number) for number in range(self.count))

    def own(self, first: torch.device) -> torch.device:
        """The device of this process."""
        return self.devices(first)[self.index]

    def join(self, device: torch.device) -> None:
        """Meet the other processes; `device` is this process's own."""
        if self.meeting is None or dist.is_initialized():
            return
        for name in _INTERFACES:  # all of them are on this machine
            os.environ.setdefault(name, _LOOPBACK)
        backend = "gloo"
        if device.type == "cuda":
            torch.cuda.set_device(device)
            backend = "cpu:gloo,cuda:nccl"
        store = dist.FileStore(str(self.meeting), self.count)  # type: ignore[attr-defined]
        dist.init_process_group(backend, store=store, rank=self.index, world_size=self.count)

    def place(self, model: Any, device: torch.device) -> Any:
        """A model as its process needs it: moved to the device, or with its layers sharded over all devices.

        The model is on the CPU where the group has several processes: no device can hold it whole.
        """
        if self.count == 1:
            return model.to(device)
        self.join(device)
        _shard(model, device, self.count)
        return model


ALONE = DeviceGroup()


def leave() -> None:
    """Leave the other processes, if this one has joined any."""
    if dist.is_initialized():
        dist.destroy_process_group()


def _shard(model: Any, device: torch.device, count: int) -> None:
    decoder = decoder_of(model)
    layers = [layer for stack in _outermost_stacks(decoder) for layer in stack]
    matrices = {
        parameter
        for layer in layers
        for parameter in layer.parameters()
        if parameter.ndim > 1 and not parameter.requires_grad
    }
    if not matrices:
        problem = "its decoder has no list of layers that could be sharded"
        raise UserError(f"run.devices_per_trial = {count}: {type(decoder).__name__} cannot use several ({problem})")
    whole = {parameter for parameter in model.parameters() if parameter not in matrices}
    mesh = init_device_mesh(device.type, (count,))
    for module in (*layers, decoder):  # the decoder is the root, with nothing of its own: it ties its layers together
        fully_shard(module, mesh=mesh, ignored_params=whole)
    for tensor in (*whole, *model.buffers()):
        tensor.data = tensor.data.to(device)


def _outermost_stacks(module: nn.Module) -> Iterator[nn.ModuleList]:
    """The lists of layers that are in no other list."""
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield child
        else:
            yield from _outermost_stacks(child)


@contextmanager
def gathered(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Within this context those of these modules that are sharded are whole; all processes enter it together."""
    sharded = [module for module in modules if isinstance(module, FSDPModule)]
    for module in sharded:
        module.unshard()
    try:
        yield
    finally:
        for module in sharded:
            module.reshard()


# -- what processes tell each other -------------------------------------------------------------------------------


def anyone(is_so: bool, devices: int) -> bool:
    """Whether it is so in any of the processes."""
    return is_so if devices == 1 else bool(_largest([is_so])[0])


def _largest(flags: Sequence[bool]) -> list[bool]:
    """For each flag, whether it is set in any process; through the hosts, so that no device is waited for."""
    found = torch.tensor(flags, dtype=torch.uint8)
    dist.all_reduce(found, op=dist.ReduceOp.MAX)
    return [bool(flag) for flag in found.tolist()]


@torch.no_grad()
def broadcast(tensors: Sequence[Tensor]) -> None:
    """Give every process the leading one's values."""
    _in_buckets(tensors, lambda flat: dist.broadcast(flat, src=0), changes_own=dist.get_rank() != 0)


@torch.no_grad()
def add_up(parameters: Sequence[nn.Parameter], losses: Tensor) -> None:
    """Add the gradients and the losses of all processes up in the leading one; those of the others are spent.

    A parameter that has no gradient in any process keeps none.
    """
    has_gradient = _largest([parameter.grad is not None for parameter in parameters])
    moved = [parameter for parameter, is_set in zip(parameters, has_gradient, strict=True) if is_set]
    for parameter in moved:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    gradients = [parameter.grad for parameter in moved if parameter.grad is not None]
    _in_buckets([*gradients, losses], lambda flat: dist.reduce(flat, dst=0), changes_own=dist.get_rank() == 0)


def _in_buckets(tensors: Sequence[Tensor], exchange: Callable[[Tensor], object], *, changes_own: bool) -> None:
    """Exchange tensors of one dtype, many at once; changes_own: whether this process takes what came of it."""
    for bucket in _buckets(tensors):
        flat = torch.cat([tensor.detach().flatten() for tensor in bucket])
        exchange(flat)
        if not changes_own:
            continue
        for tensor, part in zip(bucket, torch.split(flat, [tensor.numel() for tensor in bucket]), strict=True):
            tensor.copy_(part.view_as(tensor))


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    for tensor in tensors:
        bucket.append(tensor)
        if sum(one.nbytes for one in bucket) >= _BUCKET_BYTES:
            yield bucket
            bucket = []
    if bucket:
        yield bucket
