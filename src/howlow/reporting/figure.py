"""A figure as Vega-Lite: its frame, its style, and how it becomes SVG and PNG."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from howlow.analysis.comparison import Comparison
from howlow.analysis.rows import layout_of
from howlow.reporting.evidence import averaged_over
from howlow.reporting.points import MOST_POINTS, drawn_ranks, drawn_series, ranks_of

FIGURE_NAMES = ("fine_tuning", "inference", "loss", "spectra")
INK, SOFT, RULE, GRID, AXIS = "#1f2933", "#5f6b7a", "#9aa5b1", "#e6e9ee", "#b8c0cc"
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#56b4e9", "#7a4fa3", "#6b6b6b")
"""After Okabe and Ito, whose colours people with any kind of colour vision tell apart."""
_RAMP = ((0x54, 0x70, 0xC6), (0x2A, 0x8F, 0x9E), (0x7F, 0xAE, 0x4D), (0xD9, 0xA6, 0x2E))
FILE_SIZE, PAGE_SIZE = (400, 190), (310, 170)
"""Width and height of a panel; on the page it is as wide as a phone."""
Datum = dict[str, Any]


@dataclass(frozen=True)
class Figure:
    """A figure: the stem of its files, a title, a text for those who cannot see it, and its specification."""

    name: str
    title: str
    description: str
    spec: dict[str, Any]


@dataclass(frozen=True)
class PagePanel:
    """A panel of the page: texts that HTML holds, and the specification of its chart."""

    title: str
    subtitle: str
    spec: dict[str, Any]


@dataclass(frozen=True)
class LegendEntry:
    """What a colour means."""

    label: str
    color: str


@dataclass(frozen=True)
class PageFigure:
    """A figure of the page: its name, title, notes, panels, and what their colours mean."""

    name: str
    title: str
    notes: tuple[str, ...]
    panels: tuple[PagePanel, ...]
    legend: tuple[LegendEntry, ...] = ()


@dataclass(frozen=True)
class DrawnPanel:
    """A chart of one quantity, without the title and the subtitle that stand above it."""

    title: str
    subtitle: str
    chart: Any

    def titled(self, offset: int) -> Any:
        """The chart with its title, as a figure's file shows it."""
        return self.chart.properties(title=panel_title(self.title, self.subtitle, offset))


@dataclass
class Datasets:
    """The data of a figure under names. Without names altair copies the data into every layer of a chart."""

    values: dict[str, list[Datum]] = field(default_factory=dict)

    def add(self, values: list[Datum]) -> Any:
        """A chart that draws these values."""
        import altair as alt

        name = f"data-{len(self.values)}"
        self.values[name] = values
        return alt.Chart(alt.NamedData(name))


@dataclass(frozen=True)
class Canvas:
    """Where a panel is drawn: in a figure's file, or on the page.

    The page holds titles and legends as HTML. There each point has a label, which is shown on hovering over it.
    """

    data: Datasets
    width: int
    height: int
    is_on_page: bool = False

    def marked(self, chart: Any, **mark: Any) -> Any:
        """The chart's points; on the page with the label in their data."""
        import altair as alt

        points = chart.mark_point(**mark, aria=self.is_on_page)
        return points.encode(description=alt.Description("label:N")) if self.is_on_page else points

    def shaded(self, chart: Any) -> Any:
        """The chart's cells; labelled as points are."""
        import altair as alt

        cells = chart.mark_rect(aria=self.is_on_page)
        return cells.encode(description=alt.Description("label:N")) if self.is_on_page else cells


def page_canvas() -> Canvas:
    """A canvas for one panel of the page."""
    return Canvas(Datasets(), *PAGE_SIZE, is_on_page=True)


def render_svg(spec: Mapping[str, Any]) -> str:
    """A specification as SVG, without any request to the network."""
    import altair as alt
    import vl_convert

    version = vega_lite_version(alt.SCHEMA_VERSION, vl_convert.get_vegalite_versions())
    svg: str = vl_convert.vegalite_to_svg(dict(spec), vl_version=version, allowed_base_urls=[])
    return svg


def render_png(svg: str) -> bytes:
    """An SVG as PNG, two pixels for each of its points."""
    import vl_convert

    png: bytes = vl_convert.svg_to_png(svg, scale=2)
    return png


def vega_lite_version(schema: str, known: Sequence[str]) -> str | None:
    """altair's Vega-Lite version as vl_convert names it; None, which means its newest, where it does not know it."""
    version = ".".join(schema.lstrip("v").split(".")[:2])
    return version if version in known else None


# -- what stands above the panels -----------------------------------------------------------------------------------


def context_lines(comparison: Comparison) -> list[str]:
    """What was run on what, how seeds are shown, and what was left out of the drawing."""
    return [_what_ran(comparison), *_spread_line(comparison), *_left_out(comparison)]


def _what_ran(comparison: Comparison) -> str:
    records = comparison.results.records
    where = " and ".join(dict.fromkeys(record.environment.device_name for record in records if record.environment))
    task = records[0].settings.task.name.replace("_", " ")
    model = records[0].settings.model.rstrip("/").rpartition("/")[2]
    layouts = [name for name in dict.fromkeys(map(layout_of, records)) if name != "auto"]
    layout = f"layout {' and '.join(layouts) or 'not chosen'}"
    return " · ".join(part for part in (model, task, layout, where) if part)


def _spread_line(comparison: Comparison) -> list[str]:
    over = averaged_over(comparison)
    if not over:
        return []
    most = max(len(group.trials) for group in comparison.groups)
    trials = sum(group.rank is not None for group in comparison.groups) * most
    dots = ", a dot is a trial" if trials <= MOST_POINTS else ""
    return [f"lines join the means over {over}{dots}"]


def _left_out(comparison: Comparison) -> list[str]:
    lines = []
    ranks, all_ranks = drawn_ranks(comparison), ranks_of(comparison)
    if len(ranks) < len(all_ranks):
        lines.append(f"{len(ranks)} of {len(all_ranks):,} ranks drawn, all are in results.csv")
    series, there = drawn_series(comparison)
    if len(series) < there:
        lines.append(f"{len(series)} of {there} settings drawn, all are in results.csv")
    return lines


# -- style ----------------------------------------------------------------------------------------------------------


def finished(chart: Any, data: Datasets, title: str, subtitle: Sequence[str], offset: int = 40) -> dict[str, Any]:
    """The specification with title and house style."""
    lines = [line for text in subtitle for line in textwrap.wrap(text, 130, max_lines=2, placeholder=" ...")]
    spec = _specification(chart, data)
    return {**spec, "title": _title(title, lines, offset), "padding": 16, "background": "white"}


def on_page(chart: Any, data: Datasets) -> dict[str, Any]:
    """The specification of a panel for the page: no title, no background, and equal room for the axis' labels."""
    spec, padding = _specification(chart, data), {"left": 4, "right": 10, "top": 18, "bottom": 4}
    own = {**_QUIET, "axisLeft": {"minExtent": 34, "maxExtent": 34}}
    return {**spec, "padding": padding, "background": None, "config": {**spec["config"], **own}}


def map_on_page(chart: Any, data: Datasets) -> dict[str, Any]:
    """The same for a heat map, whose axes hold names."""
    spec = _specification(chart, data)
    return {**spec, "padding": 4, "background": None, "config": {**spec["config"], **_QUIET}}


def _specification(chart: Any, data: Datasets) -> dict[str, Any]:
    """The chart with the style of the house; altair's own methods for it copy the whole chart each time."""
    spec: dict[str, Any] = chart.to_dict(validate=False)
    return {**spec, "config": {**spec.get("config", {}), **_CONFIG}, "datasets": data.values}


def ramp(number: int) -> list[str]:
    """Colours of ordered things, from dark blue to amber: their lightness rises, for those who see no hues."""
    found = []
    for index in range(number):
        place = index / max(1, number - 1) * (len(_RAMP) - 1)
        left = min(int(place), len(_RAMP) - 2)
        pairs = zip(_RAMP[left], _RAMP[left + 1], strict=True)
        found.append("#" + "".join(f"{round(a + (b - a) * (place - left)):02x}" for a, b in pairs))
    return found


def colors_of(names: Sequence[str]) -> list[str]:
    """A colour for each of several lines."""
    return list(PALETTE[: len(names)]) if len(names) <= len(PALETTE) else ramp(len(names))


def _title(title: str, subtitle: list[str], offset: int) -> dict[str, Any]:
    sizes = {"fontSize": 20, "subtitleFontSize": 13}
    return {"text": title, "subtitle": subtitle, "anchor": "start", "offset": offset, "subtitlePadding": 6, **sizes}


_CONFIG: Mapping[str, Mapping[str, Any]] = {
    "view": {"stroke": None},
    "mark": {"aria": False},  # the figure has a description; a label for each point would double the file
    "title": {"color": INK, "subtitleColor": SOFT, "fontWeight": 600},
    "axis": {
        "labelColor": SOFT,
        "titleColor": SOFT,
        "titleFontWeight": "normal",
        "labelFontSize": 12,
        "titleFontSize": 12,
        "gridColor": GRID,
        "domainColor": AXIS,
        "tickColor": AXIS,
    },
    "legend": {
        "labelColor": INK,
        "titleColor": SOFT,
        "labelFontSize": 12,
        "titleFontSize": 12,
        "titleFontWeight": 600,
    },
}


_QUIET: Mapping[str, Any] = {
    "axis": {**_CONFIG["axis"], "aria": False},
    "legend": {**_CONFIG["legend"], "aria": False},
}
"""On the page only points and cells have labels."""


def panel_title(title: str, subtitle: str, offset: int) -> Any:
    """A title that begins at the same place whatever the axis' labels."""
    import altair as alt

    text = alt.TitleParams(title, subtitle=subtitle) if subtitle else alt.TitleParams(title)
    text.anchor, text.frame, text.dx, text.offset = "start", "group", -36, offset
    text.fontSize, text.subtitleFontSize = 14, 12
    return text
