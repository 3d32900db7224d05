"""The forms in which `howlow report --export` also writes the results."""

from collections.abc import Callable, Iterable, Mapping
from typing import Literal, get_args

from howlow.analysis.comparison import Comparison
from howlow.errors import UserError
from howlow.reporting.latex import latex_text
from howlow.reporting.markdown import markdown_text
from howlow.reporting.paper_tables import paper_tables
from howlow.reporting.parquet import parquet_bytes

Export = Literal["csv", "parquet", "latex", "markdown"]
EXPORT_FILES: Mapping[Export, str] = {
    "csv": "results.csv",
    "parquet": "results.parquet",
    "latex": "results.tex",
    "markdown": "results.md",
}
_WRITERS: Mapping[Export, Callable[[Comparison], str | bytes]] = {
    "parquet": lambda comparison: parquet_bytes(comparison.results),
    "latex": lambda comparison: latex_text(paper_tables(comparison)),
    "markdown": lambda comparison: markdown_text(paper_tables(comparison)),
}


def checked_exports(names: Iterable[str]) -> tuple[Export, ...]:
    """The forms that these texts name, one or several with commas in each.

    Raises:
        UserError: there is no such form.
    """
    asked = [part.strip() for name in names for part in name.split(",") if part.strip()]
    for name in asked:
        if name not in get_args(Export):
            raise UserError(f"--export {name}: one or more of {', '.join(get_args(Export))} are expected")
    return tuple(form for form in get_args(Export) if form in asked)


def exported(comparison: Comparison, forms: Iterable[Export]) -> dict[str, str | bytes]:
    """The contents of the files of these forms, by name; results.csv is written with every report."""
    return {EXPORT_FILES[form]: _WRITERS[form](comparison) for form in forms if form in _WRITERS}
