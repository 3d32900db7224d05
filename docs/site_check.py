"""Check a built site: links and anchors that lead nowhere, and anything that a browser would fetch from elsewhere."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

_FETCHED = {"script": "src", "img": "src", "source": "src", "iframe": "src", "link": "href"}
"""What a browser loads by itself, by tag. A link of `rel=canonical` and its like is not loaded."""
_LOADED_RELATIONS = {"stylesheet", "icon", "preload", "preconnect", "dns-prefetch", "modulepreload", "manifest"}
_IN_STYLES = re.compile(r"(?:url\(\s*['\"]?|@import\s+['\"])((?:https?:)?//[^'\")\s]+)")


@dataclass
class Page:
    """What one HTML page links to, fetches, and can be linked to by."""

    links: list[str] = field(default_factory=list)
    fetched: list[str] = field(default_factory=list)
    anchors: set[str] = field(default_factory=set)


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.page = Page()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note the anchors and addresses of one tag."""
        values = {name: value or "" for name, value in attrs}
        self.page.anchors |= {values[name] for name in ("id", "name") if values.get(name)}
        address = values.get(_FETCHED.get(tag, ""))
        if tag == "link" and not _LOADED_RELATIONS & set(values.get("rel", "").split()):
            address = None
        if address:
            self.page.fetched.append(address)
        if tag == "a" and values.get("href"):
            self.page.links.append(values["href"])


def problems_of_site(site: Path) -> list[str]:
    """One line for each link that leads nowhere and for each request to another host; empty if all is well."""
    pages = sorted(site.rglob("*.html"))
    if not pages:
        return [f"{site}: no page was written"]
    found = [problem for page in pages if page.name != "404.html" for problem in _of_page(page, site)]
    return [*found, *(problem for sheet in sorted(site.rglob("*.css")) for problem in _of_styles(sheet, site))]


def _of_page(path: Path, site: Path) -> Iterator[str]:
    page, name = _read(path), path.relative_to(site)
    for address in page.fetched:
        if urlsplit(address).netloc:
            yield f"{name}: fetches {address} from another host"
        elif not _target(path, address).is_file():
            yield f"{name}: {address} is missing"
    for address in page.links:
        if _leads_nowhere(path, address):
            yield f"{name}: the link {address} leads nowhere"


def _leads_nowhere(path: Path, address: str) -> bool:
    parts = urlsplit(address)
    if parts.scheme or parts.netloc:
        return False
    target = _target(path, address)
    if not target.is_file():
        return True
    anchor = unquote(parts.fragment)
    return bool(anchor) and target.suffix == ".html" and anchor not in _read(target).anchors


def _target(path: Path, address: str) -> Path:
    """The file that an address within the site means."""
    inner = unquote(urlsplit(address).path)
    target = (path.parent / inner).resolve() if inner else path
    return target / "index.html" if target.is_dir() else target


@cache
def _read(path: Path) -> Page:
    reader = _Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    return reader.page


def _of_styles(sheet: Path, site: Path) -> Iterator[str]:
    for address in _IN_STYLES.findall(sheet.read_text(encoding="utf-8")):
        yield f"{sheet.relative_to(site)}: fetches {address} from another host"
