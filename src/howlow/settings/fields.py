"""What a field of the settings is made of: the kinds of values, and what the setting affects.

Every field declares its effects (`json_schema_extra=affects("memory", "cost")`). The list of effects is closed. Cache
keys, "may this sweep continue" and "may these trials be compared" derive from it (`howlow.settings.keys`,
`howlow.records.comparability`), so a new setting needs no entry in any other list.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, StrictStr

Effect = Literal["data", "layout", "execution", "memory", "quality", "cost"]
EFFECTS: Mapping[Effect, str] = {
    "data": "the examples, their tokens, or the model; every figure follows from these, so no other effect is named",
    "layout": "which layout is chosen, and with it every cost",
    "execution": "how the model runs, and with it every cost",
    "memory": "how much memory a trial takes or may take, so which batch is the largest that fits",
    "quality": "losses and scores",
    "cost": "time, energy, power and peak memory as they are reported",
}


def affects(*effects: Effect) -> dict[str, JsonValue]:
    """What a field declares about its effects; none at all: no figure of any trial changes with it."""
    return {"affects": list(effects)}


_LARGEST = 2**31 - 1  # torch counts in 64 bits; what is larger than this is a slip of the keyboard
Positive = Annotated[int, Field(gt=0, le=_LARGEST)]
NonNegative = Annotated[int, Field(ge=0, le=_LARGEST)]
Seed = Annotated[int, Field(ge=0, le=2**63 - 1)]  # torch and TOML take no more
BatchSize = Positive | Literal["max"]
Text = Annotated[str, Field(min_length=1)]
Name = Annotated[StrictStr, Field(min_length=1)]
Names = Annotated[tuple[Name, ...], Field(strict=False, min_length=1)]
_ALL_LINEAR = "all-linear"
"""Stands for every linear layer that a text reaches, as in PEFT: the vocabulary head is none of them."""


def _named(value: Any) -> Any:
    return (value,) if value == _ALL_LINEAR else value


def _alone(names: tuple[str, ...]) -> tuple[str, ...]:
    if _ALL_LINEAR in names and len(names) > 1:
        others = [name for name in names if name != _ALL_LINEAR]
        raise ValueError(f'lora.target_modules: "{_ALL_LINEAR}" already takes {", ".join(others)}; give it alone')
    return names


Targets = Annotated[Names, BeforeValidator(_named), AfterValidator(_alone)]


class Section(BaseModel):
    """A frozen table of settings that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    of_whole_sweep: ClassVar[bool] = False
    """Whether the table's settings are the same for all trials of a sweep, so that none of them can be an axis."""
