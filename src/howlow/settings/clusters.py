"""The settings of the two clusters that may run trials: Ray and SLURM. No figure changes with them."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from howlow.settings.fields import Names, Positive, Section, Text, affects

_CPUS = "CPU cores that each trial is given, and with them its threads; absent: "


class RaySettings(Section):
    """For `run.executor = "ray"`: one Ray task a trial, on the cluster of RAY_ADDRESS or on this machine alone."""

    of_whole_sweep: ClassVar[bool] = True

    cpus_per_trial: Positive | None = Field(
        None,
        description=_CPUS + "all of the smallest node, or on GPUs a node's cores divided by its GPUs",
        json_schema_extra=affects(),
    )


class SlurmSettings(Section):
    """For `run.executor = "slurm"`: a job that prepares the sweep, then a job array with one element a trial."""

    of_whole_sweep: ClassVar[bool] = True

    partition: Text | None = Field(
        None, description="sbatch --partition; absent: the cluster's default", json_schema_extra=affects()
    )
    account: Text | None = Field(None, description="sbatch --account", json_schema_extra=affects())
    qos: Text | None = Field(None, description="sbatch --qos", json_schema_extra=affects())
    gres: Text | None = Field(
        None,
        description='sbatch --gres, as "gpu:1" or "gpu:h100:1"; absent: one GPU where run.device is "cuda", else none',
        json_schema_extra=affects(),
    )
    cpus_per_trial: Positive | None = Field(
        None, description=_CPUS + "as SLURM decides (sbatch --cpus-per-task)", json_schema_extra=affects()
    )
    mem: Text | None = Field(None, description='sbatch --mem, as "64G"', json_schema_extra=affects())
    time_limit_min: Positive = Field(
        240,
        description="sbatch --time, in minutes: a trial that needs longer writes a checkpoint, is requeued and resumes",
        json_schema_extra=affects(),
    )
    options: Names | None = Field(
        None, description='further options of sbatch, as ["--reservation=night"]', json_schema_extra=affects()
    )
    setup: Names | None = Field(
        None,
        description='shell lines that each job runs first, as ["module load cuda"]',
        json_schema_extra=affects(),
    )
    notice_s: Annotated[int, Field(ge=10, le=3600)] = Field(
        120,
        description="seconds before its time limit at which a trial is told to write a checkpoint",
        json_schema_extra=affects(),
    )
    through: Literal["slurm", "processes"] = Field(
        "slurm",
        description="processes: processes of this machine in the place of SLURM's jobs, to try the settings without it",
        json_schema_extra=affects(),
    )
