"""CUDA graphs: work on the GPU that is recorded once and repeated with one call."""

import gc
from collections.abc import Callable
from typing import TypeVar

import torch

T = TypeVar("T")
_WARM_UPS = 3  # compiling, choosing algorithms and first allocations must not be recorded


class CudaGraphs:
    """Records into graphs that share one pool of memory; a `howlow.engine.step_graphs.Recorder`."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()

    def warm_up(self, work: Callable[[], object]) -> None:
        """See `Recorder`. It runs on a stream of its own, as torch asks for before a recording."""
        torch.cuda.empty_cache()  # blocks that the allocator keeps for one stream are of no use to another
        stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UPS):
                work()
        torch.cuda.current_stream(self._device).wait_stream(stream)
        torch.cuda.synchronize(self._device)

    def record(self, work: Callable[[], T]) -> Callable[[], T]:
        """See `Recorder`."""
        graph, current = torch.cuda.CUDAGraph(), torch.cuda.current_stream(self._device)
        try:
            with torch.cuda.graph(graph, pool=self._pool):  # which empties the allocator's cache first
                result = work()
        finally:  # where a recording fails, torch leaves the stream of the recording in place
            torch.cuda.set_stream(current)

        def again() -> T:
            graph.replay()
            return result

        return again


def drop_unused(device: torch.device) -> None:
    """Free what nothing refers to on a GPU, and what torch's allocator keeps of it.

    Recordings are part of circles of references, so without this their memory would be held beside that of the next.
    """
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
