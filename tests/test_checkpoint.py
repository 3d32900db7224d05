"""Checkpoints: what is saved is read, and whenever the process dies a whole one is there."""

import os
import random
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from howlow.engine import checkpoint

CPU = torch.device("cpu")


def tensors(number: int) -> dict[str, torch.Tensor]:
    return {"parameter.a": torch.full((3, 2), float(number)), "optimizer.step.a": torch.tensor(float(number))}


def plain(number: int) -> dict[str, Any]:
    return {"steps_done": number, "scaler": {}, "loss": 0.1 + number}


def number_of(folder: Path) -> int | None:
    """Which checkpoint is found, all of its parts looked at."""
    loaded = checkpoint.read(folder)
    if loaded is None:
        return None
    number: int = loaded[1]["steps_done"]
    assert loaded[1] == plain(number)
    assert {name: tensor.tolist() for name, tensor in loaded[0].items()} == {
        name: tensor.tolist() for name, tensor in tensors(number).items()
    }
    return number


def test_what_is_saved_is_loaded(tmp_path: Path):
    folder = tmp_path / "checkpoint"
    assert checkpoint.read(folder) is None
    for number in (1, 2, 3):
        checkpoint.save(folder, tensors(number), plain(number))
        assert number_of(folder) == number
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_tensors_keep_their_type_shape_and_bits(tmp_path: Path):
    given = {
        "bf16": torch.randn(3).to(torch.bfloat16),
        "transposed": torch.randn(3, 5).T,
        "scalar": torch.tensor(1e-30),
        "bytes": torch.arange(7, dtype=torch.uint8),
        "empty": torch.empty(0),
    }
    checkpoint.save(tmp_path / "checkpoint", given, {})
    loaded = checkpoint.read(tmp_path / "checkpoint")
    assert loaded is not None
    assert loaded[0].keys() == given.keys()
    for name, tensor in given.items():
        assert loaded[0][name].dtype == tensor.dtype
        assert torch.equal(loaded[0][name], tensor)


def test_plain_values_keep_their_bits(tmp_path: Path):
    document = {"loss": 0.1 + 0.2, "tiny": 5e-324, "text": "é\u2028", "large": 2**80, "absent": None}
    checkpoint.save(tmp_path / "checkpoint", {}, document)
    loaded = checkpoint.read(tmp_path / "checkpoint")
    assert loaded is not None
    assert loaded[1] == document


def test_nothing_is_pickled(tmp_path: Path):
    checkpoint.save(tmp_path / "checkpoint", *everything())
    files = sorted((tmp_path / "checkpoint").iterdir())
    assert [file.name for file in files] == ["state.json", "state.safetensors"]
    assert not any(file.read_bytes().startswith((b"\x80", b"PK")) for file in files)


# -- dying ----------------------------------------------------------------------------------------------------------

_watched: dict[str, Any] = {"folder": None, "copies": None}
_installed: list[bool] = []


def _copy_before_each_operation(event: str, arguments: tuple[Any, ...]) -> None:
    folder = _watched["folder"]
    if folder is None or event not in ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree"):
        return
    _watched["folder"] = None  # what the copying itself does is not looked at
    try:
        copies: list[Path] = _watched["copies"]
        target = folder.with_name(f"copy-{len(copies)}")
        shutil.copytree(folder, target)
        copies.append(target)
    finally:
        _watched["folder"] = folder


@contextmanager
def copied_before_each_operation(folder: Path) -> Iterator[list[Path]]:
    """What a process that dies would leave: the folder as it was before every single operation on files."""
    if not _installed:  # an audit hook stays for as long as the process lives
        sys.addaudithook(_copy_before_each_operation)
        _installed.append(True)
    copies: list[Path] = []
    _watched.update(folder=folder, copies=copies)
    try:
        yield copies
    finally:
        _watched["folder"] = None


@pytest.mark.parametrize("state", ["one before", "none before", "died between the two moves"])
def test_whenever_the_process_dies_a_whole_checkpoint_is_found(tmp_path: Path, state: str):
    home = tmp_path / "trial"
    home.mkdir()
    folder, before = home / "checkpoint", None if state == "none before" else 1
    if before is not None:
        checkpoint.save(folder, tensors(1), plain(1))
    if state.startswith("died"):
        folder.rename(home / "checkpoint.old")
    with copied_before_each_operation(home) as copies:
        checkpoint.save(folder, tensors(2), plain(2))
    found = [number_of(copy / "checkpoint") for copy in copies]
    assert len(found) >= (4 if state == "none before" else 7)
    assert set(found) <= {before, 2}
    assert found == sorted(found, key=lambda number: number or 0), "a newer checkpoint is never lost again"
    assert (found[0], number_of(folder)) == (before, 2)

    for copy in copies:  # and the process that goes on from there saves as ever
        checkpoint.save(copy / "checkpoint", tensors(3), plain(3))
        assert number_of(copy / "checkpoint") == 3
        assert not (copy / "checkpoint.old").exists()
        checkpoint.remove(copy / "checkpoint")
        assert list(copy.iterdir()) == []


@pytest.mark.parametrize("fails", ["save_file", "json.dump", "os.fsync"])
def test_a_full_disk_leaves_the_checkpoint_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str):
    folder = tmp_path / "checkpoint"
    checkpoint.save(folder, tensors(1), plain(1))

    def full(*arguments: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(f"howlow.engine.checkpoint.{fails}", full)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(folder, tensors(2), plain(2))
    monkeypatch.undo()
    assert number_of(folder) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_removing_takes_all_that_saving_left_and_nothing_else(tmp_path: Path):
    for name in ("checkpoint", "checkpoint.old", f".checkpoint.{os.getpid()}.tmp", "adapter"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("")
    (tmp_path / "steps.jsonl").write_text("")
    checkpoint.remove(tmp_path / "checkpoint")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "steps.jsonl"]
    checkpoint.remove(tmp_path / "checkpoint")


# -- generators -----------------------------------------------------------------------------------------------------


def everything() -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    states, numbers = checkpoint.generator_states(CPU)
    return states, {"generators": numbers}


def drawn() -> tuple[Any, ...]:
    """Something of every generator, with normal deviates, of which Python and NumPy keep one back."""
    return torch.rand(3).tolist(), random.gauss(0, 1), random.random(), np.random.standard_normal(3).tolist()


def test_every_generator_goes_on_where_it_was(tmp_path: Path):
    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)
    drawn()
    checkpoint.save(tmp_path / "checkpoint", *everything())
    expected = [drawn() for _ in range(3)]
    torch.manual_seed(8)
    random.seed(8)
    np.random.seed(8)
    drawn()
    loaded = checkpoint.read(tmp_path / "checkpoint")
    assert loaded is not None
    checkpoint.restore_generators(loaded[0], loaded[1]["generators"])
    assert [drawn() for _ in range(3)] == expected
