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


class BatchSearch(Frozen):
    """The search for the largest batch that fits, for a batch size of "max"."""

    setting: Literal["training.batch_size", "inference.batch_size"]
    batch: int | None = Field(description="the largest that fits; None where not even one example fits")
    largest: int = Field(description="the largest that was allowed: the examples, or training.effective_batch_size")
    limit_bytes: int
    budget_bytes: int = Field(description="the limit less the margin; a peak of at most this fits")
    limit: str = Field(description="where the limit comes from")
    memory: str = Field(description="what the peaks count: VmData on a CPU, memory reserved by torch on CUDA")
    probes: tuple[BatchProbe, ...] = Field(description="in their order; the last confirms the batch that was found")
