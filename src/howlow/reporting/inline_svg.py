"""A chart's SVG as a part of the page: colours that follow the page's theme, names of its own, and nothing that runs.

Vega writes colours as numbers. Those of our style become CSS variables, so that `style.css` decides what they are on a
light and on a dark page. Names (of clips and gradients) get a prefix, because a page has one set of names for all.
"""

import re
from collections.abc import Mapping
from xml.etree import ElementTree

from howlow.reporting.figure import AXIS, GRID, INK, PALETTE, RULE, SOFT

_SHAPES = {"svg", "g", "path", "text", "tspan", "rect", "line", "defs", "clipPath", "linearGradient", "stop", "title"}
_NAMESPACE = "{http://www.w3.org/2000/svg}"
_VARIABLES: Mapping[str, str] = {
    INK: "ink",
    SOFT: "soft",
    RULE: "rule",
    GRID: "grid",
    AXIS: "axis",
    "white": "page",
    **{color: f"series-{number}" for number, color in enumerate(PALETTE, 1)},
}


def themed(color: str) -> str:
    """A colour of our style as the variable that the page's theme sets; any other one as it is."""
    return f"var(--{_VARIABLES[color]})" if color in _VARIABLES else color


def inlined(svg: str, name: str, label: str) -> str:
    """An SVG document as an element of HTML.

    Args:
        svg: what Vega drew.
        name: a prefix for its names, that no other SVG of the page has.
        label: a text for those who cannot see it.
    """
    root = ElementTree.fromstring(svg)
    for element in root.iter():
        element.tag = element.tag.removeprefix(_NAMESPACE)
        assert element.tag in _SHAPES, f"a chart holds shapes and texts, not <{element.tag}>"
        for key, value in list(element.attrib.items()):
            assert not key.startswith("on"), f"a chart runs nothing: {key}"
            element.set(key, _attribute(key, value, name))
    root.attrib = {"viewBox": root.attrib["viewBox"], "role": "group", "aria-label": label}
    return ElementTree.tostring(root, encoding="unicode")


def _attribute(key: str, value: str, name: str) -> str:
    if key == "id":
        return f"{name}-{value}"
    return themed(re.sub(r"url\(#(.+?)\)", rf"url(#{name}-\1)", value)) if key != "aria-label" else value
