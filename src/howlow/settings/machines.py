"""Where and in which order trials run: the section `[run]`."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from howlow.settings.fields import Positive, Section, Seed, affects


class RunSettings(Section):
    """Where and in which order trials run."""

    of_whole_sweep: ClassVar[bool] = True

    device: str = Field(
        "auto",
        pattern=r"^(auto|cpu|mps|cuda(:\d{1,2})?|(GPU|MIG)-[0-9A-Fa-f-]+)$",
        description="auto: CUDA, then MPS, then CPU; a GPU also by its UUID (GPU-...)",
        json_schema_extra=affects("layout", "execution", "memory"),
    )
    gemm_library: Literal["auto", "onednn", "blas"] = Field(
        "auto",
        description="which library multiplies by the base's frozen fp32 weights and in attention on a CPU; blas: the "
        "one that torch was built with, such as MKL; auto: the faster one for each shape, measured before the first "
        "trial and the same for all trials. The two round differently: name one for losses that are equal to the bit "
        "in other sweeps",
        json_schema_extra=affects("layout", "execution", "memory"),
    )
    executor: Literal["local", "ray", "slurm"] = Field(
        "local",
        description="local: each trial in a process of this machine; ray: one Ray task a trial; slurm: one element of "
        "a job array a trial. All machines have to see the run directory",
        json_schema_extra=affects(),
    )
    workers: Positive | None = Field(
        None,
        description="trials that run at the same time on this machine; absent: one a GPU, or one. What it costs a "
        "trial is compared by its threads; its record says what ran beside it, and its costs are marked. With Ray or "
        "SLURM: the most on all machines together; absent: as many as there is room for",
        json_schema_extra=affects(),
    )
    exclusive: bool = Field(
        False,
        description="whether all trials of the first seed run alone on their machine; further seeds are for quality",
        json_schema_extra=affects(),
    )
    devices_per_trial: Annotated[int, Field(ge=1, le=64)] = Field(
        1,
        description="devices over which a trial's base is sharded, layer by layer, for a model that is larger than one "
        "of them; a batch's examples are split over them. On a CPU: processes, each with its part of the cores",
        json_schema_extra=affects("layout", "execution", "memory", "cost"),
    )
    order_seed: Seed = Field(
        0,
        description="shuffles the trials, baselines included, so that heat does not follow the rank",
        json_schema_extra=affects(),
    )
    repeats: Annotated[int, Field(ge=1, le=1000)] = Field(
        1,
        description="how often each trial is measured, each time by a process of its own and at another place of the "
        "shuffled order; the spread between these processes is then the error of its costs",
        json_schema_extra=affects(),
    )
    cooldown_s: float = Field(
        0.0,
        ge=0.0,
        description="rest between trials: until the temperature is steady, at most this many seconds",
        json_schema_extra=affects("cost"),
    )
    memory_limit_bytes: Annotated[int, Field(gt=0, le=2**63 - 1)] | None = Field(  # setrlimit takes no more
        None,
        description="the most a trial may take: RLIMIT_DATA on a CPU (trials then give freed memory back at once, "
        "which takes time), the allocator's cap on CUDA",
        json_schema_extra=affects("memory", "cost"),
    )
    memory_margin: float = Field(
        0.03,
        ge=0.0,
        lt=1.0,
        description="batch_size = max leaves this share of the limit free; without a limit, of the device's memory. "
        "Equal processes differ by up to 0.5 %: with less room a trial may run out of memory",
        json_schema_extra=affects("memory"),
    )
