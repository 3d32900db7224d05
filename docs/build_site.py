"""Build the site: copy the pages to build/pages, run Zensical on them, and check every link of what it wrote.

    python docs/build_site.py [--into DIR]

The pages are plain Markdown. They link to each other, and to other files of the repository, by relative paths. So the
copy has the same folders as the repository; the README is the first page. `zensical.toml` has the navigation.
"""

import argparse
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from site_check import problems_of_site

ROOT = Path(__file__).parent.parent
CONFIG = "zensical.toml"
_LINK = re.compile(r"\]\(([^)#\s]+)[^)]*\)")


def main(into: Path) -> None:
    """Build the site in a folder, and end with an error where a link leads nowhere."""
    shutil.rmtree(into, ignore_errors=True)
    copy_pages(into / "pages")
    shutil.copy(ROOT / CONFIG, into / CONFIG)
    (into / CONFIG).write_text(config_within(into), encoding="utf-8")
    zensical = Path(sys.executable).parent / "zensical"
    done = subprocess.run([zensical, "build", "--strict", "-f", CONFIG], cwd=into, check=False)
    problems = problems_of_site(into / "site")
    if done.returncode or problems:
        raise SystemExit("\n".join([*problems, "the site has problems"]))
    print(f"written: {into / 'site' / 'index.html'}")


def config_within(into: Path) -> str:
    """The configuration with paths as they are within the build folder."""
    return (ROOT / CONFIG).read_text(encoding="utf-8").replace('"build/', '"')


def copy_pages(pages: Path) -> None:
    """Copy every page, the pictures, and the files that pages link to."""
    waiting = [ROOT / page for page in ("README.md", *navigated())]
    waiting += (ROOT / "docs").rglob("*.md")
    copied: set[Path] = set()
    while waiting:
        source = waiting.pop()
        if source in copied:
            continue
        copied.add(source)
        copy_page(source, pages)
        if source.suffix == ".md" and source.is_file():
            waiting += linked_files(source)


def copy_page(source: Path, pages: Path) -> None:
    """Copy one file to its place."""
    name = source.relative_to(ROOT).as_posix()
    target = pages / ("index.md" if name == "README.md" else name)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, target)


def navigated() -> list[str]:
    """The pages that the navigation names, the first page left out."""
    nav = tomllib.loads((ROOT / CONFIG).read_text(encoding="utf-8"))["project"]["nav"]
    return [page for page in leaves(nav) if page != "index.md"]


def leaves(entry: Any) -> Iterator[str]:
    """The paths within a part of the navigation."""
    if isinstance(entry, str):
        yield entry
        return
    for inner in entry.values() if isinstance(entry, dict) else entry:
        yield from leaves(inner)


def linked_files(page: Path) -> Iterator[Path]:
    """The files of the repository that a page links to; the site's check tells which are missing."""
    for target in _LINK.findall(page.read_text(encoding="utf-8")):
        found = (page.parent / target).resolve()
        if "://" not in target and found.is_file() and found.is_relative_to(ROOT):
            yield found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Build the site and check its links.")
    parser.add_argument("--into", type=Path, default=ROOT / "build", help="the folder for pages and site")
    main(parser.parse_args().into.resolve())
