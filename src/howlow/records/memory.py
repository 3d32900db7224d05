"""What a record says of memory beside the peaks of phases: the search for the largest batch, and a shortage."""

from typing import Literal

from pydantic import Field

from howlow.records.warnings import Frozen, PhaseName


class MemoryShortage(Frozen):
    """The memory of a trial whose status is `out_of_memory`; None where it is not known."""

    source: Literal["process", "timeline", "probe"] = Field(
        description="process: the trial's own process looked when the allocation failed; timeline: the process was "
        "killed, and the readings that it left are all there is; probe: the search for the largest batch found none"
    )
    phase: PhaseName | None = Field(None, description="the phase in which the memory ran out")
    peak_memory_bytes: int | None = Field(
        None, description="highest of that phase so far: device memory in use on a GPU, resident on a CPU"
    )
    peak_allocated_bytes: int | None = Field(None, description="torch's allocator on a GPU, highest of that phase")
    peak_reserved_bytes: int | None = Field(None, description="torch's allocator on a GPU, highest of that phase")
    held_bytes: int | None = Field(
        None,
        description="what the process held, as a limit counts it: VmData on a CPU, reserved by torch on a GPU",
    )
    requested_bytes: int | None = Field(None, description="what the allocation that failed asked for")
    limit_bytes: int | None = Field(
        None, description="run.memory_limit_bytes; without it, all memory of the device or of the machine"
    )


class BatchProbe(Frozen):
    """One probe of a search for the largest batch."""

    batch: int
    computed_tokens: int = Field(description="tokens that the model ran on in the heaviest batch of the schedule")
    peak_memory_bytes: int | None = Field(description="as the limit counts it; None where the memory ran out")
    fits: bool
    whole: bool | None = Field(
        None,
        description="whether all ran that the trial runs; else nothing was compiled, recorded or merged",
    )
    first_of_process: bool | None = Field(None, description="whether its process had run no other batch")


class SearchDurations(Frozen):
    """Where the time of a search went, in seconds; together the parts are the whole of it."""

    start: float = Field(0.0, description="starting processes, until CUDA can be used")
    choose: float = Field(
        0.0, description="laying out schedules to choose the next batch, giving memory back, ending processes"
    )
    load: float = Field(0.0, description="loading the model and attaching the adapter")
    compile: float = Field(0.0, description="torch's compiler, within probes and confirmations")
    probe: float = Field(0.0, description="running batches")
    confirm: float = Field(0.0, description="running the found batch in a fresh process")

    @property
    def total(self) -> float:
        """All of it."""
        return self.start + self.choose + self.load + self.compile + self.probe + self.confirm


class BatchSearch(Frozen):
    """The search for the largest batch that fits, for a batch size of "max"."""

    setting: Literal["training.batch_size", "inference.batch_size"]
    batch: int | None = Field(description="the largest that fits; None where not even one example fits")
    largest: int = Field(description="the largest that was allowed: the examples, or training.effective_batch_size")
    limit_bytes: int
    budget_bytes: int = Field(description="the limit less the margin; a peak of at most this fits")
    limit: str = Field(description="where the limit comes from")
    memory: str = Field(description="what the peaks count: VmData on a CPU, memory reserved by torch on CUDA")
    probes: tuple[BatchProbe, ...] = Field(description="in their order; one of them confirms the batch that was found")
    duration_s: SearchDurations | None = Field(
        None, description="of the search, which an earlier trial may have waited for; None in older records"
    )
    processes: int | None = Field(None, description="processes that were started; None in older records")
    loads: int | None = Field(None, description="how often the model was loaded; None in older records")
    compilations: int | None = Field(None, description="regions that torch compiled; None in older records")
    whole_takes_more_bytes: int | None = Field(
        None,
        description="by how much the peak of a batch rose (or, below 0, fell) when all ran that the trial runs, "
        "compiled and merged, against the same batch without; None where no batch was run in both ways. If this is at "
        "most the margin, other ranks' searches compile and merge nothing",
    )
