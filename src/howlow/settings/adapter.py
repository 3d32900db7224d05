"""The settings of the adapter, and of the saved adapter that it may start from.

An adapter starts from zero (B = 0), or from the update of a saved adapter, cut to its rank (`lora.start`). A cut update
is scaled as the saved one was: at rank r, alpha is chosen so that s stays what it is at the saved adapter's rank.
"""

import re
from typing import Literal, Self

from pydantic import Field, model_validator

from howlow.settings.fields import NonNegative, Positive, Section, Targets, Text, affects


class LoraSettings(Section):
    """The adapter: h = W x + s B A x with A of shape (rank, in) and B of shape (out, rank), as PEFT writes it."""

    rank: Positive = Field(
        8, description="the adapter's inner dimension", json_schema_extra=affects("memory", "quality", "cost")
    )
    alpha: float | str = Field(
        32.0,
        description='the numerator of the scaling: a number, or a multiple of r as "2r", with which the best learning '
        "rate falls as r grows (docs/studies/scaling.md)",
        json_schema_extra=affects("quality"),
    )
    scaling: Literal["standard", "rank_stabilized"] = Field(
        "standard",
        description="s = alpha / r (standard) or alpha / sqrt(r) (rank_stabilized)",
        json_schema_extra=affects("quality"),
    )
    target_modules: Targets = Field(
        ("q_proj", "k_proj", "v_proj", "o_proj"),
        description='the ends of the names of the linear layers to adapt, or "all-linear": all but the vocabulary head',
        json_schema_extra=affects("memory", "quality", "cost"),
    )
    variant: Literal["lora", "dora", "pissa"] = Field(
        "lora",
        description="PEFT's variants: dora trains the size of each row apart from its direction; pissa starts from the "
        "base's largest singular directions, and is saved as plain LoRA of twice the rank",
        json_schema_extra=affects("memory", "quality", "cost"),
    )
    dropout: float = Field(
        0.0,
        ge=0.0,
        lt=1.0,
        description="dropout before A while training",
        json_schema_extra=affects("layout", "memory", "quality", "cost"),
    )
    start: Text | None = Field(
        None,
        description="the folder of a trained adapter: each trial cuts its update to lora.rank instead of training one "
        "(howlow shrink sets it)",
        json_schema_extra=affects("quality"),
    )
    start_rank: Positive | None = Field(
        None,
        description="the rank of the adapter in lora.start; its scaling is kept: lora.alpha counts at this rank",
        json_schema_extra=affects("quality"),
    )
    continue_steps: NonNegative = Field(
        0,
        description="optimizer steps of further training after the cut, in place of training.epochs and max_steps",
        json_schema_extra=affects("memory", "quality", "cost"),
    )

    @model_validator(mode="after")
    def _alpha_is_readable(self) -> Self:
        if isinstance(self.alpha, str) and not re.fullmatch(r"\d+(\.\d+)?r", self.alpha):
            raise ValueError(f'lora.alpha {self.alpha!r} must be a number or a multiple of the rank such as "2r"')
        if self.alpha_value <= 0:
            raise ValueError(f"lora.alpha {self.alpha!r} must be greater than 0")
        return self

    @model_validator(mode="after")
    def _start_is_whole(self) -> Self:
        if (self.start is None) != (self.start_rank is None):
            raise ValueError("lora.start = FOLDER and lora.start_rank = ITS RANK go together; give both")
        if self.start_rank is None and self.continue_steps:
            raise ValueError(
                f"lora.continue_steps = {self.continue_steps} needs lora.start, the adapter to continue; "
                "training.max_steps limits a training from zero"
            )
        if self.start_rank is not None and self.variant != "lora":
            raise ValueError(
                f'lora.variant = "{self.variant}" with lora.start: a cut update is continued as plain LoRA; set "lora"'
            )
        if self.start_rank is not None and self.rank > self.start_rank:
            raise ValueError(
                f"lora.rank {self.rank} is above the rank of the adapter in lora.start, {self.start_rank}; "
                "an update is cut to smaller ranks only"
            )
        return self

    @property
    def alpha_value(self) -> float:
        """Alpha as a number for this rank."""
        asked = self.start_rank or self.rank
        alpha = float(self.alpha[:-1]) * asked if isinstance(self.alpha, str) else self.alpha
        return alpha if asked == self.rank else alpha / self._divisor(asked) * self._divisor(self.rank)

    @property
    def scaling_factor(self) -> float:
        """s in h = W x + s B A x."""
        return self.alpha_value / self._divisor(self.rank)

    @property
    def saved_rank(self) -> int:
        """The rank of the adapter as it is saved: PiSSA's difference from its start has twice the rank."""
        return 2 * self.rank if self.variant == "pissa" else self.rank

    @property
    def saved_alpha(self) -> float:
        """Alpha of the adapter as it is saved: at that rank the scaling factor is the same."""
        if self.saved_rank == self.rank:
            return self.alpha_value  # divided and multiplied again, it would be another number of the same size
        return self.alpha_value / self._divisor(self.rank) * self._divisor(self.saved_rank)

    def _divisor(self, rank: int) -> float:
        return rank if self.scaling == "standard" else rank**0.5
