"""What a shrunk adapter was cut from."""

from pydantic import Field

from howlow.records.warnings import Frozen


class ShrunkRecord(Frozen):
    """What a shrunk adapter was cut from, and how much of that update it kept."""

    start: str = Field(description="the folder of the adapter that was cut")
    start_rank: int
    start_sha256: str = Field(description="of its weights")
    energy_kept: float | None = Field(
        description="sum of the squared singular values that were kept / of all, over all modules, 0..1; None where "
        "the update is zero"
    )
    continued_steps: int = Field(description="optimizer steps of further training after the cut; 0: none")
