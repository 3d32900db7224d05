"""The scores of predictions made elsewhere, in words: the lines of `howlow score`."""

from collections.abc import Mapping

from howlow.reporting import formatting


def scores_text(figures: Mapping[str, int | float | None]) -> str:
    """One line a figure: counts as they are, fractions as percentages."""
    return "\n".join(f"{name:26} {_shown(value)}" for name, value in figures.items())


def _shown(value: int | float | None) -> str:
    if value is None:
        return formatting.ABSENT
    return f"{value:.4%}" if isinstance(value, float) else str(value)
