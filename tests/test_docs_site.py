"""The site: it builds without a network, every link leads somewhere, and no page fetches anything from elsewhere."""

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from chromium import browser, missing

ROOT = Path(__file__).parent.parent


def module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


@pytest.fixture(scope="module", autouse=True)
def _docs_on_path() -> Iterator[None]:
    """The scripts in docs/ import each other, as they do when one of them is run."""
    sys.path.insert(0, str(ROOT / "docs"))
    yield
    sys.path.remove(str(ROOT / "docs"))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site; whoever asks the network meanwhile fails."""
    folder = tmp_path_factory.mktemp("site")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
            patch.setenv(name, "http://127.0.0.1:9")
        module("build_site").main(folder)  # ends with an error at a warning, a dead link or a foreign request
    return folder / "site"


def test_the_site_builds_and_its_links_lead_somewhere(site: Path) -> None:
    for page in ("index.html", "docs/tutorial.html", "docs/reference/columns.html", "benchmarks/RESULTS.html"):
        assert (site / page).is_file()
    assert "train_samples_per_s" in (site / "docs/reference/columns.html").read_text(encoding="utf-8")


@pytest.mark.skipif(missing() is not None, reason=f"no browser: {missing()}")
def test_a_browser_asks_no_other_host(site: Path) -> None:
    asked: list[str] = []
    with browser() as started:
        page = started.new_context(offline=True).new_page()
        page.on("request", lambda request: asked.append(request.url))
        for name in ("index.html", "docs/architecture.html", "docs/reference/record.html"):
            page.goto((site / name).as_uri(), wait_until="networkidle")
    assert len(asked) > 6
    assert not [url for url in asked if not url.startswith(("file:", "data:", "blob:"))]


def test_every_page_has_a_place_in_the_navigation() -> None:
    named = set(module("build_site").navigated())
    pages = {path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert pages <= named, pages - named
    assert named - pages == {"benchmarks/RESULTS.md", "CHANGELOG.md"}


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ('<a href="gone.html">x</a>', "the link gone.html leads nowhere"),
        ('<a href="other.html#gone">x</a>', "the link other.html#gone leads nowhere"),
        ('<a href="#gone">x</a>', "the link #gone leads nowhere"),
        ('<img src="gone.png">', "gone.png is missing"),
        ('<script src="https://cdn.example/x.js"></script>', "fetches https://cdn.example/x.js from another host"),
        ('<link rel="stylesheet" href="//fonts.example/a.css">', "fetches //fonts.example/a.css from another host"),
        ('<link rel="canonical" href="https://example.org/">', None),
        ('<a href="https://example.org/">x</a>', None),
        ('<a href="other.html#here">x</a><a href="#top">x</a><p id="top">', None),
    ],
)
def test_the_check_sees_dead_links_and_foreign_requests(tmp_path: Path, body: str, problem: str | None) -> None:
    (tmp_path / "page.html").write_text(f"<html><body>{body}</body></html>", encoding="utf-8")
    (tmp_path / "other.html").write_text('<h1 id="here">x</h1>', encoding="utf-8")
    found = module("site_check").problems_of_site(tmp_path)
    assert found == ([] if problem is None else [f"page.html: {problem}"])


def test_the_check_sees_requests_of_style_sheets(tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text("<html></html>", encoding="utf-8")
    (tmp_path / "a.css").write_text("body{background:url(https://cdn.example/x.png)}", encoding="utf-8")
    assert module("site_check").problems_of_site(tmp_path) == [
        "a.css: fetches https://cdn.example/x.png from another host"
    ]


def test_a_site_without_pages_is_a_problem(tmp_path: Path) -> None:
    assert module("site_check").problems_of_site(tmp_path) == [f"{tmp_path}: no page was written"]
