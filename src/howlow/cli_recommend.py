"""`howlow recommend`: which rank is enough, from a run directory's records alone."""

from pathlib import Path
from typing import Annotated

import typer

from howlow.errors import UserError

_Folder = Annotated[Path, typer.Argument(metavar="DIR", help="a run directory", readable=False)]


def recommend_command(
    folder: _Folder,
    metric: Annotated[str | None, typer.Option("--metric", help="a score; the task's main one by default")] = None,
    margin: Annotated[
        float | None,
        typer.Option("--margin", help="how much worse than the best is enough: 0.02 of a score, 0.01 of a perplexity"),
    ] = None,
    confidence: Annotated[
        float | None, typer.Option("--confidence", metavar="P", help="of every claim; 0.95 by default")
    ] = None,
    max_memory: Annotated[float | None, typer.Option("--max-memory", metavar="BYTES", help="peak memory")] = None,
    max_energy: Annotated[float | None, typer.Option("--max-energy", metavar="J", help="of a fine-tuning")] = None,
    max_time: Annotated[float | None, typer.Option("--max-time", metavar="S", help="of a fine-tuning")] = None,
    min_throughput: Annotated[
        float | None, typer.Option("--min-throughput", metavar="X", help="training samples/s")
    ] = None,
    where: Annotated[
        list[str] | None, typer.Option("--where", metavar="KEY=VALUE", help="of a further grid axis, which to judge")
    ] = None,
    accept_different: Annotated[
        list[str] | None, typer.Option("--accept-different", metavar="KEY", help="compare although this key differs")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON document")] = False,
) -> None:
    """Say which rank is enough: the smallest that is shown to be no worse than the best by more than the margin."""
    from howlow.analysis.constraints import CostLimits
    from howlow.analysis.recommendation import recommend
    from howlow.reporting.recommendation import recommendation_json, recommendation_text

    limits = CostLimits(
        max_memory_bytes=max_memory,
        max_energy_j=max_energy,
        max_time_s=max_time,
        min_throughput_per_s=min_throughput,
    )
    found = recommend(
        folder,
        metric=metric,
        margin=margin,
        confidence=confidence,
        limits=limits,
        where=dict(map(_axis_value, where or [])),
        accept_different=accept_different or [],
    )
    print(recommendation_json(found) if as_json else recommendation_text(found))


def _axis_value(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise UserError(f"--where {text}: KEY=VALUE is expected, such as --where training.batch_size=1")
    return key.strip(), value.strip()
