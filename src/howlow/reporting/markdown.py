"""Tables in Markdown, as GitHub and pandoc read them; text from outside cannot end a cell or begin a tag."""

from collections.abc import Iterator, Sequence

from howlow.reporting.paper_tables import ColumnHead, PaperCell, PaperTable

_ESCAPES = {"<": "&lt;", ">": "&gt;", "&": "&amp;"} | {mark: f"\\{mark}" for mark in "\\`*_[]|~$"}


def markdown_text(tables: Sequence[PaperTable]) -> str:
    """Every table below its caption."""
    return "\n\n".join("\n".join(_lines(table)) for table in tables) + "\n"


def escaped_markdown(text: str) -> str:
    """Text as Markdown prints it, on one line."""
    visible = "".join(character if character.isprintable() else " " for character in text)
    return "".join(_ESCAPES.get(character, character) for character in " ".join(visible.split()))


def _lines(table: PaperTable) -> Iterator[str]:
    yield f"**{escaped_markdown(table.caption)}**"
    yield ""
    yield _row([_head(head) for head in table.heads])
    yield _row(["---:"] * len(table.heads))
    yield from (_row([_cell(cell) for cell in row]) for row in table.rows)
    if table.notes:
        yield ""
        yield from (f"* {escaped_markdown(note)}" for note in table.notes)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _head(head: ColumnHead) -> str:
    label = escaped_markdown(head.label)
    return f"{label} ({escaped_markdown(head.unit)})" if head.unit else label


def _cell(cell: PaperCell) -> str:
    value = escaped_markdown(cell.value)
    value = value if cell.error is None else f"{value} ± {cell.error}"
    return f"{value}<sup>{cell.marks}</sup>" if cell.marks else value
