"""What the documents say is so."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def test_the_reference_is_what_the_code_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    from write_reference import documents

    written = documents()
    assert ROOT / "docs" / "settings.md" in written
    for path, text in written.items():
        assert path.read_text(encoding="utf-8") == text, f"{path.relative_to(ROOT)} is old; run: make docs"


def test_the_settings_page_is_what_the_settings_say() -> None:
    spec = importlib.util.spec_from_file_location("write_settings", ROOT / "docs" / "write_settings.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (ROOT / "docs" / "settings.md").read_text(encoding="utf-8") == module.document(), "run: make docs"


def test_the_reference_leaves_nothing_out() -> None:
    from howlow import __all__ as names
    from howlow.analysis.columns import COLUMNS
    from howlow.records import REMEDIES, Record

    def page(name: str) -> str:
        return (ROOT / "docs" / "reference" / f"{name}.md").read_text(encoding="utf-8")

    assert not [column.name for column in COLUMNS if f"| `{column.name}` |" not in page("columns")]
    assert not [kind for kind in REMEDIES if f"| `{kind.value}` |" not in page("warnings")]
    assert not [field for field in Record.model_fields if f"| `{field}` |" not in page("record")]
    assert not [name for name in names if f"## howlow.{name}\n" not in page("python")]


def test_the_bare_loop_is_short() -> None:
    assert len((ROOT / "examples" / "bare_loop.py").read_text(encoding="utf-8").splitlines()) < 120
