"""What the documents say is so."""

import importlib.util
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_settings_page_is_what_the_settings_say() -> None:
    spec = importlib.util.spec_from_file_location("write_settings", ROOT / "docs" / "write_settings.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (ROOT / "docs" / "settings.md").read_text(encoding="utf-8") == module.document(), "run: make docs"


def test_the_bare_loop_is_short() -> None:
    assert len((ROOT / "examples" / "bare_loop.py").read_text(encoding="utf-8").splitlines()) < 120
