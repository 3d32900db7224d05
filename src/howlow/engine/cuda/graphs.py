"""CUDA graphs: work on the GPU that is recorded once and repeated with one call."""

import gc
from collections.abc import Callable
from typing import Any, TypeVar

import torch

T = TypeVar("T")
_broken: list[Any] = []  # recordings that could not be ended: torch's allocator of pinned memory still asks them
_WARM_UPS = 3  # compiling, choosing algorithms and first allocations must not be recorded


class CudaGraphs:
    """Records into graphs that share one pool of memory; a `howlow.engine.step_graphs.Recorder`.

    To be used within `howlow.engine.execution.running`: torch records on the current device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()

    def warm_up(self, work: Callable[[], object]) -> None:
        """See `Recorder`. It runs on a stream of its own, as torch asks for before a recording."""
        torch.cuda.empty_cache()  # blocks that the allocator keeps for one stream are of no use to another
        stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(self._device))
        try:
            with torch.cuda.stream(stream):
                for _ in range(_WARM_UPS):
                    work()
        finally:  # plainer steps that follow a failure use the memory that these kernels may still write to
            torch.cuda.current_stream(self._device).wait_stream(stream)
        torch.cuda.synchronize(self._device)

    def record(self, work: Callable[[], T]) -> Callable[[], T]:
        """See `Recorder`."""
        graph, current = torch.cuda.CUDAGraph(), torch.cuda.current_stream(self._device)
        own: BaseException | None = None
        try:
            with torch.cuda.graph(graph, pool=self._pool):  # which empties the allocator's cache first
                try:
                    result = work()
                except BaseException as error:
                    own = error
                    raise
        except BaseException as error:
            torch.cuda.set_stream(current)  # torch leaves the stream of the recording in place
            self._give_up(graph)
            raise own or error from None  # its end fails, too, and tells only that something had failed before

        def again() -> T:
            graph.replay()
            return result

        return again

    def _give_up(self, graph: torch.cuda.CUDAGraph) -> None:
        """Tell torch that a recording is over, which it finds out by itself only for one that could be ended.

        Otherwise its allocator never empties its cache again, and its generator gives no random numbers: both are
        errors while something is recorded. A recording that could be ended, as after a lack of memory, holds the memory
        of all that was recorded until it is reset.
        """
        device = torch.cuda.current_device()
        try:
            torch._C._cuda_endAllocateToPool(device, self._pool)
        except RuntimeError:  # it was told, because the recording could be ended
            graph.reset()
        else:
            torch._C._cuda_releasePool(device, self._pool)
            _broken.append(graph)
        drawn, afresh = torch.cuda.default_generators[device], torch.Generator(self._device)
        afresh.set_state(drawn.get_state())
        drawn.graphsafe_set_state(afresh)


def drop_unused(device: torch.device) -> None:
    """Free what nothing refers to on a GPU, and what torch's allocator keeps of it.

    Recordings are part of circles of references, so without this their memory would be held beside that of the next.
    """
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
