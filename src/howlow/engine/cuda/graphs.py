"""CUDA graphs: work on the GPU that is recorded once and repeated with one call."""

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

    def record(self, work: Callable[[], T]) -> Callable[[], T]:
        """See `Recorder`."""
        self._warm_up(work)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            result = work()

        def again() -> T:
            graph.replay()
            return result

        return again

    def _warm_up(self, work: Callable[[], object]) -> None:
        stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UPS):
                work()
        torch.cuda.current_stream(self._device).wait_stream(stream)
        torch.cuda.synchronize(self._device)
