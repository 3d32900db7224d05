"""What ran beside a trial on its machine, so that its costs can be judged."""

from typing import Literal

from pydantic import Field

from howlow.records.warnings import Frozen, PhaseName


class Neighbour(Frozen):
    """A process of howlow that worked on the same machine at the same time as this trial."""

    trial: str
    work: Literal["trial", "search", "idle reading"] = Field(
        description="search: a probe for the trial's largest batch; idle reading: of the device's power at rest"
    )
    run_directory: str | None = Field(None, description="where it is another one than this trial's")
    device: str = Field(description="cpu, cuda:0, mps, or a GPU's UUID")
    device_uuid: str | None = None
    phases: tuple[PhaseName, ...] = Field(description="the phases of this trial during which it worked")
    overlap_s: float = Field(description="how long it worked during these phases")
