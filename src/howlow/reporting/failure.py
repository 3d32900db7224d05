"""Why a trial failed, in one line: its error and, where memory ran out, what it had and what it asked for."""

from howlow.records import MemoryShortage, Record
from howlow.reporting.formatting import size


def failure_words(record: Record) -> str:
    """The error of a trial that is not done."""
    error, shortage = record.error or "no message", record.shortage
    words = _of_memory(shortage) if shortage is not None else ""
    return f"{error} ({words})" if words else error


def _of_memory(shortage: MemoryShortage) -> str:
    """`in train, peak 1.20 GiB, held 1.90 GiB, asked for 2.00 GiB, limit 3.00 GiB`; what is not known is left out."""
    peak = "last seen with" if shortage.source == "timeline" else "peak"
    known = {
        peak: shortage.peak_memory_bytes or shortage.peak_reserved_bytes,
        "held": shortage.held_bytes,
        "asked for": shortage.requested_bytes,
        "limit": shortage.limit_bytes,
    }
    parts = [f"{what} {size(value)}" for what, value in known.items() if value is not None]
    return ", ".join([*([f"in {shortage.phase}"] if shortage.phase else []), *parts])
