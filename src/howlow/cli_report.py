"""`howlow report`: the table, files and page of one or several sweeps, from their records alone."""

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from howlow.errors import UserError

if TYPE_CHECKING:
    from howlow.reporting import Report
    from howlow.tracking import Tracker

AcceptDifferent = Annotated[
    list[str] | None,
    typer.Option("--accept-different", metavar="KEY", help="compare although this key differs; costs: any cost key"),
]


def report_command(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR...", help="run directories", readable=False)],
    out: Annotated[
        str | None, typer.Option("--out", metavar="DIR", help="where the files go; needed with several run directories")
    ] = None,
    export: Annotated[
        list[str] | None,
        typer.Option("--export", metavar="FORM", help="also as csv, parquet, latex or markdown; several with commas"),
    ] = None,
    track: Annotated[
        str | None, typer.Option("--track", metavar="TRACKER", help="send each trial to mlflow, wandb or trackio")
    ] = None,
    project: Annotated[str, typer.Option("--project", help="the tracker's project, or MLflow's experiment")] = "howlow",
    accept_different: AcceptDifferent = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the rows as one JSON document")] = False,
) -> None:
    """Write the table, results.csv, figures and page anew from the records alone; several sweeps side by side."""
    from howlow.reporting import NO_PLACE, place_of_report
    from howlow.reporting.exports import checked_exports

    forms = checked_exports(export or [])
    if place_of_report(folders, out) is None and (forms or track):
        asked = f"--export {','.join(forms)}" if forms else f"--track {track}"
        raise UserError(f"{asked}: {NO_PLACE}; add --out DIR")
    tracker = None if track is None else _tracker(track)
    report = print_report(folders, accept_different or [], as_json, out=out, export=forms)
    if tracker is not None:
        _send(report, tracker, project)


def _tracker(name: str) -> "Tracker":
    """The tracker that was named; a mistake shows before anything is read."""
    from howlow.tracking import checked_tracker

    return checked_tracker(name)


def _send(report: "Report", tracker: "Tracker", project: str) -> None:
    from howlow.tracking import send

    sent = send(report, tracker, project)
    print(f"sent to {tracker}, project {project}: {sent.new} trials; there already: {sent.old}", file=sys.stderr)


def print_report(
    folders: Sequence[Path],
    accept_different: Sequence[str],
    as_json: bool = False,
    *,
    out: str | None = None,
    export: Sequence[str] = (),
) -> "Report":
    """Print the table or the JSON document, then write the files."""
    from howlow.reporting import NO_PLACE, place_of_report, read_report

    report, place = read_report(folders, accept_different=accept_different), place_of_report(folders, out)
    print(report.json_text() if as_json else report.table_text(shutil.get_terminal_size((100, 24)).columns))
    if place is None:
        print(f"nothing written: {NO_PLACE}; add --out DIR", file=sys.stderr)
        return report
    report = report.written(place, export)  # the table is there even if the files cannot be written
    places = dict.fromkeys(str(path if path.parent.name != "figures" else path.parent) for path in report.files)
    print(f"written: {', '.join(places)}", file=sys.stderr)
    return report
