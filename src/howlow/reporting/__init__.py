"""Records -> table, results.csv, figures and page; the only place that formats numbers.

`write_report` reads run directories and writes what people look at. Everything can be rebuilt from the records alone.
Importing this package is cheap: rich, altair, vl_convert and jinja2 are imported where they are used.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from howlow.analysis import Comparison, compare, rows
from howlow.errors import UserError, naming, path_of, reason

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["Report", "place_of_report", "read_report", "write_report"]
DECOMPOSITION_CSV = "decomposition.csv"


@dataclass(frozen=True)
class Report:
    """What a report says, and the files that it wrote."""

    comparison: Comparison
    files: tuple[Path, ...] = ()

    def table(self, width: int = 100) -> "RenderableType":
        """The table with its notes and warnings, for a terminal of that width."""
        from howlow.reporting.decomposition import decomposition_lines
        from howlow.reporting.summary import summarize
        from howlow.reporting.tables import terminal_table

        return terminal_table(summarize(self.comparison), width, decomposition_lines(self.comparison))

    def table_text(self, width: int = 100) -> str:
        """The same as plain text."""
        from howlow.reporting.tables import terminal_text

        return terminal_text(self.table(width), width)

    def json_text(self) -> str:
        """The document that `howlow report --json` prints."""
        from howlow.reporting.results import json_text

        return json_text(self.comparison)

    def written(self, out: Path, export: Iterable[str] = ()) -> "Report":
        """The same once its files are in the folder `out`.

        export: further forms of the results (csv, parquet, latex, markdown). Those that an earlier report left in the
        folder are written anew, so that they never show older results.

        Raises:
            UserError: they cannot be written, there is no such form, or `out` is the folder of another sweep.
        """
        from howlow.reporting.exports import EXPORT_FILES, checked_exports, exported

        forms = checked_exports(export)
        _refuse_another_sweep(self.comparison.results.folders, out)
        forms += tuple(form for form, name in EXPORT_FILES.items() if form not in forms and (out / name).is_file())
        files, stale = _files(self.comparison)
        try:
            return Report(self.comparison, tuple(_write(out, files | exported(self.comparison, forms), stale)))
        except OSError as error:
            raise UserError(
                f"{path_of(error) or out}: the report cannot be written: {reason(error)}; --out DIR writes it elsewhere"
            ) from None


def _refuse_another_sweep(folders: Sequence[Path], out: Path) -> None:
    is_run_directory = (out / "trials").is_dir() or (out / "sweep.toml").exists()
    if is_run_directory and out.resolve() not in {folder.resolve() for folder in folders}:
        raise UserError(f"--out {out}: is the run directory of another sweep; give another folder for this report")


def read_report(folders: Sequence[Path | str], *, accept_different: Sequence[str] = ()) -> Report:
    """Read run directories; nothing is written.

    accept_different: keys that may differ between records (`howlow.records.comparability`).

    Raises:
        UserError: a folder is no run directory or is given twice, or its records cannot stand in one table.
    """
    paths = [Path(folder) for folder in folders]
    _refuse_twice(paths)
    return Report(compare(rows(paths, accept_different)))


def _refuse_twice(folders: Sequence[Path]) -> None:
    there: dict[Path, Path] = {}
    for folder in folders:
        first = there.setdefault(folder.resolve(), folder)
        if first is not folder:
            also = f" (as {first})" if str(first) != str(folder) else ""
            raise UserError(f"{folder}: is given twice{also}; name each run directory once")


def place_of_report(folders: Sequence[Path | str], out: Path | str | None) -> Path | None:
    """The folder into which a report goes: that of its only sweep unless another is given; None where none is."""
    if out is not None and not str(out).strip():
        raise UserError("--out is empty: give the folder into which the report goes")
    if out is None:
        return Path(folders[0]) if len(folders) == 1 else None
    if len(folders) > 1 and Path(out).resolve() in [Path(folder).resolve() for folder in folders]:
        raise UserError(f"--out {out}: {NO_PLACE}, and this is one of them; give another folder")
    return Path(out)


def write_report(
    folders: Sequence[Path | str],
    into: Path | str | None = None,
    *,
    accept_different: Sequence[str] = (),
    export: Sequence[str] = (),
) -> Report:
    """Read run directories and write results.csv, report.html and figures/ into `into`, or into the only one of them.

    export: further forms of the results: parquet, latex, markdown.

    Raises:
        UserError: as `read_report`; the files cannot be written; there are several run directories and no `into`.
    """
    report, out = read_report(folders, accept_different=accept_different), place_of_report(folders, into)
    if out is None:
        raise UserError(f"{NO_PLACE}; give it as into=")
    return report.written(out, export)


NO_PLACE = "the report of several run directories goes into none of them: it needs a folder of its own"


def _files(comparison: Comparison) -> tuple[dict[str, str | bytes], set[str]]:
    """The contents of the report's files by their names, and the names of files that no data supports any more."""
    from howlow.reporting.charts import figures
    from howlow.reporting.decomposition import decomposition_csv
    from howlow.reporting.figure import FIGURE_NAMES, render_png, render_svg
    from howlow.reporting.page import page
    from howlow.reporting.results import csv_text

    drawn = [(figure, render_svg(figure.spec)) for figure in figures(comparison)]
    files: dict[str, str | bytes] = {}
    for figure, svg in drawn:
        files |= {f"figures/{figure.name}.svg": svg, f"figures/{figure.name}.png": render_png(svg)}
    files |= {"results.csv": csv_text(comparison.results), "report.html": page(comparison)}
    stale = {f"figures/{name}.{kind}" for name in FIGURE_NAMES for kind in ("svg", "png")} - files.keys()
    if (parts := decomposition_csv(comparison)) is None:
        return files, stale | {DECOMPOSITION_CSV}
    return files | {DECOMPOSITION_CSV: parts}, stale


def _write(out: Path, files: Mapping[str, str | bytes], stale: Iterable[str]) -> Iterator[Path]:
    (out / "figures").mkdir(parents=True, exist_ok=True)
    for name in stale:  # left by an earlier report
        (out / name).unlink(missing_ok=True)
    for name, content in files.items():
        _write_atomically(out / name, content.encode("utf-8") if isinstance(content, str) else content)
        yield out / name


def _write_atomically(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with naming(path), temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        _put(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _put(temporary: Path, path: Path) -> None:
    """Rename; an error names the file that cannot be replaced."""
    try:
        temporary.replace(path)
    except OSError as error:
        error.filename = str(path)
        raise
