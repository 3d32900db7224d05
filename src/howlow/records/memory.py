"""What is known of a trial that ran out of memory: how much it had, what it asked for, and what there was."""

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
