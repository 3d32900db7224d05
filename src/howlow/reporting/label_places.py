"""Where the labels of points stand: none covers another label, a point or the edge of its chart, and each is nearest to
its own point.

Labels are placed one after the other, the most important first: each at the place around its point that covers the
least. A label that fits nowhere is left out; the point still says its name on hovering and by keys.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

_LETTER, _LINE = 6.6, 12.0
"""The width of a letter and the height of a line at 11 pixels, rounded up."""
_POINT = 9.0
_AWAY = (9.0, 17.0)
_SIDES = ((1, -1), (-1, -1), (1, 1), (-1, 1), (0, -1), (0, 1), (1, 0), (-1, 0))


@dataclass(frozen=True)
class Box:
    """A rectangle in pixels; y grows downwards."""

    left: float
    top: float
    right: float
    bottom: float

    def covers(self, other: "Box") -> float:
        """The area that both have in common."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.bottom, other.bottom) - max(self.top, other.top)
        return max(0.0, width) * max(0.0, height)

    def away(self, point: tuple[float, float]) -> float:
        """How far a point is from it."""
        x, y = point
        return math.hypot(max(self.left - x, 0.0, x - self.right), max(self.top - y, 0.0, y - self.bottom))

    @property
    def area(self) -> float:
        """Its area."""
        return (self.right - self.left) * (self.bottom - self.top)


def box_around(x: float, y: float, width: float, height: float) -> Box:
    """The rectangle with this middle."""
    return Box(x - width / 2, y - height / 2, x + width / 2, y + height / 2)


def label_places(
    points: Sequence[tuple[float, float]],
    texts: Sequence[str],
    bars: Sequence[Box],
    size: tuple[float, float],
) -> list[tuple[float, float] | None]:
    """The middle of each label, in pixels; None: there is no room for it.

    points: the most important first. bars: may be covered where nothing else is free. size: of the chart.
    """
    marks = [box_around(x, y, _POINT, _POINT) for x, y in points]
    chart, placed, found = Box(0, 0, *size), list[Box](), list[tuple[float, float] | None]()
    for point, text in zip(points, texts, strict=True):
        nearest = [box for box in _boxes(*point, text) if all(box.away(point) <= box.away(other) for other in points)]
        free = [box for box in nearest if _is_free(box, [*marks, *placed], chart)]
        best = min(free, key=lambda box: sum(box.covers(bar) for bar in bars), default=None)
        placed += [] if best is None else [best]
        found.append(None if best is None else ((best.left + best.right) / 2, (best.top + best.bottom) / 2))
    return found


def _boxes(x: float, y: float, text: str) -> list[Box]:
    """The places around a point, the nearest and most usual first."""
    width, height = _LETTER * len(text), _LINE
    return [
        box_around(x + right * (width / 2 + away - 3), y + down * (height / 2 + away - 3), width, height)
        for away, (right, down) in product(_AWAY, _SIDES)
    ]


def _is_free(box: Box, taken: Sequence[Box], chart: Box) -> bool:
    return box.covers(chart) >= box.area - 1e-6 and not any(box.covers(other) for other in taken)
