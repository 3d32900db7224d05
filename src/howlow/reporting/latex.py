"""Tables in LaTeX, with the rules of booktabs; text from outside cannot be read as a command."""

from collections.abc import Iterator, Sequence

from howlow.reporting.paper_tables import ColumnHead, PaperCell, PaperTable

_ESCAPES = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "_": r"\_",
    "%": r"\%",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "[": "{[}",
    "]": "{]}",
    "±": r"$\pm$",
    "×": r"$\times$",
    "°": r"\textdegree{}",
}
_PREAMBLE = "% Tables by howlow, made from a sweep's records. They need \\usepackage{booktabs}."


def latex_text(tables: Sequence[PaperTable]) -> str:
    """A file for \\input: every table as a float of its own."""
    return "\n\n".join([_PREAMBLE, *("\n".join(_lines(table)) for table in tables)]) + "\n"


def escaped_latex(text: str) -> str:
    """Text as LaTeX prints it, on one line; characters that LaTeX reads as commands are escaped."""
    visible = "".join(character if character.isprintable() else " " for character in text)
    return "".join(_ESCAPES.get(character, character) for character in " ".join(visible.split()))


def _lines(table: PaperTable) -> Iterator[str]:
    yield "\\begin{table}"
    yield "\\centering"
    yield f"\\caption{{{escaped_latex(table.caption)}}}"
    yield f"\\label{{tab:howlow-{table.name}}}"
    yield f"\\begin{{tabular}}{{{'r' * len(table.heads)}}}"
    yield "\\toprule"
    yield _row([_head(head) for head in table.heads])
    yield "\\midrule"
    yield from (_row([_cell(cell) for cell in row]) for row in table.rows)
    yield "\\bottomrule"
    yield "\\end{tabular}"
    for note in table.notes:
        yield f"\\par{{\\footnotesize {escaped_latex(note)}}}"
    yield "\\end{table}"


def _row(cells: Sequence[str]) -> str:
    return f"{' & '.join(cells)} \\\\"


def _head(head: ColumnHead) -> str:
    label = escaped_latex(head.label)
    return f"\\shortstack{{{label}\\\\({escaped_latex(head.unit)})}}" if head.unit else label


def _cell(cell: PaperCell) -> str:
    value = escaped_latex(cell.value) if cell.error is None else f"${cell.value} \\pm {cell.error}$".replace(",", "{,}")
    return f"{value}$^{{{cell.marks}}}$" if cell.marks else value
