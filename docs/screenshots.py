"""Writes the pictures of report.html in docs/images: python docs/screenshots.py DIR.

DIR is a run directory with an answer. The page is opened in a real Chromium (tests/chromium.py says how it is found).
"""

import sys
from pathlib import Path

from howlow.reporting import write_report

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))
from chromium import browser, missing, opened  # noqa: E402

SHOTS = (
    ("page-light", 1240, 1000, "light", "#answer"),
    ("page-dark", 1240, 1000, "dark", "#figure-fine_tuning"),
    ("page-phone", 420, 1000, "light", "#answer"),
)
"""Name, width, height, theme, and what stands at the top."""


def main(folder: Path) -> None:
    """Write the report of a run directory and take its pictures."""
    write_report([folder])
    with browser() as started:
        for name, width, height, theme, top in SHOTS:
            page, heard = opened(started, folder / "report.html", width=width, color_scheme=theme)
            assert not heard.complaints, heard.complaints
            page.set_viewport_size({"width": width, "height": height})
            if top != "#answer":
                page.evaluate("top => document.querySelector(top).scrollIntoView()", top)
            page.screenshot(path=ROOT / "docs" / "images" / f"{name}.png")
            page.context.close()


if __name__ == "__main__":
    if (reason := missing()) is not None:
        raise SystemExit(reason)
    main(Path(sys.argv[1]))
