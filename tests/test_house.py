"""The house: which room may import which, who may use torch, who may print, and what importing does."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "howlow"
HEAVY = {"torch", "transformers", "peft", "safetensors"}


def table() -> dict[str, tuple[set[str], bool]]:
    """Room -> the rooms that it may import, and whether it may import torch: the table of docs/architecture.md."""
    found: dict[str, tuple[set[str], bool]] = {}
    for line in (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 4 and cells[0].startswith("`"):
            allowed = set() if cells[2] == "-" else {name.strip() for name in cells[2].split(",")}
            for room in re.findall(r"`(\w+)`", cells[0]):
                found[room] = allowed, cells[3] != "no"
    return found


ROOMS = table()


def modules() -> list[Path]:
    return sorted(SOURCE.rglob("*.py"))


def room_of(path: Path) -> str:
    name = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    return "cli" if name.startswith("cli_") else name  # a command in a file of its own


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module == "howlow":
            found.update(f"howlow.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(SOURCE)))
def test_rooms_import_only_what_they_may(path: Path) -> None:
    room = room_of(path)
    if room in ("__init__", "__main__", "cli"):
        return
    for name in imports(path):
        if name.startswith("howlow."):
            inner = name.removeprefix("howlow.")
            allowed = inner.split(".")[0] in ROOMS[room][0] | {room} or inner in ROOMS[room][0]
            assert allowed, f"{path} imports {name}"
        if name.split(".")[0] in HEAVY:
            assert ROOMS[room][1], f"{path} imports {name}"


def test_every_room_stands_in_the_table() -> None:
    rooms = {room_of(path) for path in modules()} - {"__init__", "__main__"}
    assert rooms == set(ROOMS), rooms ^ set(ROOMS)


def test_no_file_holds_two_ideas() -> None:
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in modules()}
    assert not {path: length for path, length in lengths.items() if length > 400}


# Where a function imports from our own rooms: so that the door and the report load only what the command needs.
LAZY = {"__init__.py", "cli.py", "cli_recommend.py", "cli_report.py", "cli_until.py", "reporting/__init__.py"}


def test_functions_import_our_own_rooms_only_where_it_is_agreed() -> None:
    for path in modules():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
        inner = {
            name.module for function in functions for name in ast.walk(function) if isinstance(name, ast.ImportFrom)
        }
        ours = {name for name in inner if name and name.startswith("howlow")}
        assert not ours or str(path.relative_to(SOURCE)) in LAZY, f"{path}: {ours}"


# Names that stand in several places because each place has to have one: what a task says of itself, and type variables.
SHARED_NAMES = {"T", "TASK"}


def public_names(path: Path) -> Iterator[str]:
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign):
            yield from (target.id for target in node.targets if isinstance(target, ast.Name))
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id


def test_no_two_public_things_have_one_name() -> None:
    homes: dict[str, list[str]] = {}
    for path in modules():
        for name in public_names(path):
            if not name.startswith("_"):
                homes.setdefault(name, []).append(str(path.relative_to(SOURCE)))
    assert not {name: places for name, places in homes.items() if len(places) > 1 and name not in SHARED_NAMES}


def test_the_engine_knows_of_a_task_only_its_examples() -> None:
    for path in (SOURCE / "engine").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("howlow.tasks"):
                assert {alias.name for alias in node.names} <= {"Example"}, path


def test_only_the_records_room_writes_a_record() -> None:
    for path in modules():
        if room_of(path) != "records":
            assert '"record.json"' not in path.read_text(encoding="utf-8"), path


def test_only_the_door_prints() -> None:
    for path in modules():
        if room_of(path) == "cli":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            called = node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ""
            assert called != "print", path


def test_only_the_meters_look_at_a_clock_for_timing() -> None:
    for path in modules():
        if room_of(path) == "meters":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "time":
                assert node.attr == "sleep", path


def test_the_package_and_the_command_line_load_without_torch() -> None:
    code = "import sys, howlow, howlow.cli, howlow.reporting, howlow.progress; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_package_gives_its_functions_lazily_and_for_good() -> None:
    code = """
import sys
import howlow
assert not [name for name in sys.modules if name.startswith("howlow.")], sys.modules
import howlow.sweeping, howlow.reporting.charts
from howlow import load_settings as load
for name in howlow.__all__:
    assert callable(getattr(howlow, name)), name
assert howlow.sweep.__module__ == "howlow.sweeping.sweep"
assert set(howlow.__all__) <= set(dir(howlow))
assert not hasattr(howlow, "no_such_name")
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_fork_server_preload_imports_and_nothing_more() -> None:
    code = """
import os
import howlow.trial.entries
import torch, pynvml
assert len(os.listdir("/proc/self/task")) == 1, os.listdir("/proc/self/task")
assert not torch.cuda.is_initialized()
assert pynvml.nvmlLib is None
"""
    if sys.platform != "linux":
        pytest.skip("the fork server is Linux's")
    import os

    preloaded = "import gc, howlow.executors.preloaded\nassert gc.isenabled()\nprint('imported')"
    for what in (code, preloaded):
        environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, "-c", what], check=True, env=environment, stdout=subprocess.PIPE, text=True
        )
    assert done.stdout == "imported\n", "it ends without clearing up, whatever ended it"
