"""Draw the study of scalings (`scaling.py`) for `docs/studies/scaling.md`.

    python benchmarks/scaling_figure.py [DOCUMENT.json] [FOLDER]

DOCUMENT.json is the last line of `scaling.py` (default benchmarks/scaling.json). FOLDER gets one scaling-TASK.svg for
each task: the test loss at each learning rate, a line a rank with the range over seeds, a panel a scaling.
"""

import json
import sys
from pathlib import Path
from typing import Any

import altair as alt
from scaling import SCALINGS, factor_of

ROOT = Path(__file__).parent.parent


def points(trials: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each trial in every scaling that gives its rank its factor."""
    return [
        {"scaling": scaling, "rank": str(trial["rank"]), "rate": trial["rate"], "loss": trial["test"]["loss"]}
        for scaling in SCALINGS
        for trial in trials
        if trial["factor"] == factor_of(scaling, trial["rank"]) and trial["test"]["loss"] is not None
    ]


def chart(trials: list[dict[str, Any]]) -> alt.FacetChart:
    ranks = [str(rank) for rank in sorted({trial["rank"] for trial in trials})]
    x = alt.X("rate:Q", title="learning rate", scale=alt.Scale(type="log"), axis=alt.Axis(format="~g"))
    colour = alt.Color("rank:N", title="rank", sort=ranks, scale=alt.Scale(scheme="viridis"))
    loss = alt.Y("mean(loss):Q", title="test loss, nats a target token", scale=alt.Scale(zero=False))
    base = alt.Chart(alt.Data(values=points(trials))).encode(x=x, color=colour)
    lines = base.mark_line(point=True).encode(y=loss)
    ranges = base.mark_rule().encode(y=alt.Y("min(loss):Q"), y2=alt.Y2("max(loss):Q"))
    panels = alt.layer(lines, ranges).properties(width=200, height=220)
    return panels.facet(column=alt.Column("scaling:N", title=None, sort=list(SCALINGS)))


def main() -> None:
    source = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "benchmarks" / "scaling.json"
    folder = Path(sys.argv[2]) if len(sys.argv) > 2 else ROOT / "docs" / "images"
    document = json.loads(source.read_text())
    for task in ("squad", "wikitext"):
        if task in document:
            chart(document[task]).save(folder / f"scaling-{task}.svg")


if __name__ == "__main__":
    main()
