"""Which library computes each of a model's products on a CPU: those with frozen weights, and those of attention."""

from collections.abc import Sequence
from typing import Any

from howlow.engine.cpu.attention import choose_attention
from howlow.engine.cpu.gemm import GemmChoice, GemmLibrary, choose_gemms


def choose_libraries(
    model: Any, rows: int, known: Sequence[GemmChoice] = (), library: GemmLibrary | None = None
) -> tuple[GemmChoice, ...]:
    """All choices that a run of the model needs; the arguments are those of `choose_gemms`."""
    return (*choose_gemms(model, rows, known, library), *choose_attention(model.config, known, library))
