"""Weights that do not fit are found by their headers alone; a file is hashed whole, and only once."""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import loaded
from safetensors.torch import load_file, save_file

from howlow.engine import model as models
from howlow.engine import weights
from howlow.engine.references import locate
from howlow.errors import UserError


@pytest.fixture
def copied(tiny_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "copied"))


def check(folder: Path) -> list[str]:
    return weights.check_fit(folder, models.load_config(locate(str(folder)), None, False), False)


def refusal(folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        check(folder)
    return str(caught.value)


def with_config(folder: Path, **changes: Any) -> Path:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    return folder


def in_shards(folder: Path) -> Path:
    """The same weights in two files with an index."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    index = {name: f"model-0000{1 + number % 2}-of-00002.safetensors" for number, name in enumerate(tensors)}
    for shard in set(index.values()):
        save_file({name: tensors[name] for name in tensors if index[name] == shard}, folder / shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    return folder


def test_whole_weights_fit_in_one_file_or_in_shards(tiny_model: Path, copied: Path) -> None:
    assert check(tiny_model) == []
    assert check(in_shards(copied)) == []


def test_weights_of_the_model_without_its_head_are_renamed_as_the_loader_does(copied: Path) -> None:
    tensors = load_file(copied / "model.safetensors")
    bare = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    save_file(bare, copied / "model.safetensors", metadata={"format": "pt"})
    assert check(copied) == []


def test_tied_weights_need_no_head_and_others_do(tiny_model: Path, copied: Path) -> None:
    tensors = load_file(copied / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, copied / "model.safetensors", metadata={"format": "pt"})
    assert "lack 1 of the model's tensors (lm_head.weight)" in refusal(copied)
    assert check(with_config(copied, tie_word_embeddings=True)) == []


def test_a_shard_that_is_not_there_is_named(copied: Path) -> None:
    in_shards(copied)
    (copied / "model-00002-of-00002.safetensors").unlink()
    assert "1 of the 2 shards in model.safetensors.index.json are not there (model-00002-of" in refusal(copied)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {}}'])
def test_a_broken_index_is_named(copied: Path, text: str) -> None:
    in_shards(copied)
    (copied / "model.safetensors.index.json").write_text(text)
    assert "model.safetensors.index.json" in refusal(copied)


def test_missing_tensors_and_other_shapes_are_named(copied: Path) -> None:
    assert "lack 9 of the model's tensors (model.layers.2." in refusal(with_config(copied, num_hidden_layers=3))
    message = refusal(with_config(copied, num_hidden_layers=2, intermediate_size=64))
    assert "model.layers.0.mlp.down_proj.weight has shape [32, 48], not [32, 64] (6 such tensors)" in message


def test_tensors_without_a_place_are_told(copied: Path) -> None:
    left = check(with_config(copied, num_hidden_layers=1))
    assert len(left) == 9
    assert all(name.startswith("model.layers.1.") for name in left)


@pytest.mark.parametrize(("value", "what"), [(float("nan"), "NaN"), (float("-inf"), "infinite values")])
def test_weights_that_are_no_numbers_are_named(tiny_model: Path, value: float, what: str) -> None:
    model = loaded(tiny_model)
    weights.refuse_broken("m", model)
    broken = [name for name, _ in model.named_parameters()][2:4]
    for name in broken:
        model.get_parameter(name).data.flatten()[-1] = value
    with pytest.raises(UserError) as caught:
        weights.refuse_broken("m", model)
    assert str(caught.value).startswith(f"model m: its weights hold {what}: {broken[0]} (2 such tensors); copy")


def test_an_adapter_is_no_model_and_not_called_a_pickle(copied: Path) -> None:
    (copied / "model.safetensors").rename(copied / "adapter_model.safetensors")
    message = refusal(copied)
    assert "adapter_model.safetensors is not model.safetensors" in message
    assert "pickle" not in message


# -- hashes ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(weights, "user_cache_path", lambda name: tmp_path / "cache" / name)
    return tmp_path / "cache" / "howlow" / "hashes"


def aged(path: Path, content: bytes, age_s: float = 100.0) -> Path:
    """A file that was last written a while ago."""
    path.write_bytes(content)
    written_s = path.stat().st_mtime - age_s
    os.utime(path, (written_s, written_s))
    return path


def test_an_unchanged_file_is_hashed_once(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = aged(tmp_path / "model.safetensors", b"weights")
    assert weights.file_sha256(path) == hashlib.sha256(b"weights").hexdigest()
    assert len(list(cache.iterdir())) == 1
    monkeypatch.setattr(hashlib, "file_digest", lambda *_: pytest.fail("hashed again"))
    assert weights.file_sha256(path) == hashlib.sha256(b"weights").hexdigest()


def test_every_byte_of_the_weights_counts(cache: Path, tmp_path: Path) -> None:
    """Samples of a file would miss the byte in its middle."""
    content = bytearray(5_000_000)
    before = weights.weights_sha256(aged(tmp_path / "model.safetensors", content).parent)
    content[2_345_678] = 1
    assert weights.weights_sha256(aged(tmp_path / "model.safetensors", content, 50.0).parent) != before


def test_a_file_that_was_written_just_now_is_hashed_again(cache: Path, tmp_path: Path) -> None:
    path = aged(tmp_path / "model.safetensors", b"one", 0.0)
    seen = path.stat()
    weights.file_sha256(path)
    path.write_bytes(b"two")
    os.utime(path, ns=(seen.st_atime_ns, seen.st_mtime_ns))
    assert weights.file_sha256(path) == hashlib.sha256(b"two").hexdigest()


def test_without_a_cache_that_can_be_written_a_file_is_hashed_all_the_same(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("in the way")
    path = aged(tmp_path / "model.safetensors", b"weights")
    assert weights.file_sha256(path) == hashlib.sha256(b"weights").hexdigest()
