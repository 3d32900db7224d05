"""What is found before the first trial: defects of data and model, and which data and model they are."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tokenizer_kinds import DROPPED, KINDS

from howlow import load_settings as load
from howlow.engine.references import ModelReference
from howlow.errors import UserError
from howlow.settings import merge
from howlow.trial import preparation
from howlow.trial.prepared import read_prepared


def prepared(table: dict[str, Any], folder: Path) -> dict[str, str]:
    """The details of the warnings, by their kind."""
    report = preparation.prepare(load(None, [table]), [], folder / "prepared")
    return {warning["kind"]: warning["detail"] for warning in report["warnings"]}


def test_a_prompt_cut_for_the_answers_room_names_the_setting(tiny_table: dict[str, Any], tmp_path: Path) -> None:
    changes = {"training": {"sequence_length": 100}, "inference": {"max_new_tokens": 40}}
    assert prepared(merge(tiny_table, changes), tmp_path)["text_cut"] == (
        "12 test prompts cut: training.sequence_length = 100 holds prompt and completion, or prompt and "
        "inference.max_new_tokens = 40"
    )


def test_a_text_that_is_cut_names_the_sequence_length_alone(tiny_table: dict[str, Any], tmp_path: Path) -> None:
    for name in ("train", "test"):
        (tmp_path / f"{name}.txt").write_text(f"A {name} of some twenty characters.\nShort {name}.\n")
    task = {"name": "language_modeling", "train": str(tmp_path / "train.txt"), "test": str(tmp_path / "test.txt")}
    table = merge({**tiny_table, "task": task}, {"training": {"sequence_length": 20}})
    assert prepared(table, tmp_path)["text_cut"] == "2 texts cut to training.sequence_length = 20 tokens"


@pytest.fixture
def dropping_model(tiny_model: Path, tmp_path: Path) -> Path:
    """The tiny model with a tokenizer that drops control characters and ends texts itself."""
    folder = Path(shutil.copytree(tiny_model, tmp_path / "dropping"))
    (folder / "tokenizer.json").unlink()
    KINDS["unigram that ends texts"]().save_pretrained(folder)
    return folder


def of_texts(tiny_table: dict[str, Any], model: Path, train: str, test: str) -> dict[str, Any]:
    for name, text in (("train", train), ("test", test)):
        (model.parent / f"{name}.txt").write_text(text)
    sides = {name: str(model.parent / f"{name}.txt") for name in ("train", "test")}
    return {**tiny_table, "model": str(model), "task": {"name": "language_modeling", **sides}}


def test_texts_without_tokens_are_left_out_of_training_and_kept_in_the_test(
    tiny_table: dict[str, Any], dropping_model: Path, tmp_path: Path
) -> None:
    table = of_texts(tiny_table, dropping_model, f"ab\n{DROPPED}\n{DROPPED * 2}\nabc\n", f"{DROPPED * 3}\nbab\nWhy\n")
    assert prepared(table, tmp_path) == {
        "text_without_tokens": "the tokenizer makes no token of 2 training texts, which are left out and of 1 test "
        "texts, which are kept and add nothing to the loss"
    }
    found = read_prepared(tmp_path / "prepared")
    assert (found.data.train_examples, found.data.without_tokens) == (2, 2)
    assert (found.data.test_examples, found.data.test_without_tokens) == (3, 1)
    assert all(example.completion for example in found.train)
    silent, *others = sorted(found.test, key=lambda one: len(one.completion))
    assert (silent.completion, silent.words, silent.bytes) == ((), 0, 0)
    assert [(one.words, one.bytes) for one in others] == [(1, 3), (1, 3)]


@pytest.mark.parametrize("side", ["train", "test"])
def test_data_without_any_token_are_refused(
    tiny_table: dict[str, Any], dropping_model: Path, tmp_path: Path, side: str
) -> None:
    texts = {"train": "ab\n", "test": "bab\n", side: f"{DROPPED}\n"}
    with pytest.raises(
        UserError, match=f"^task.{side} .*{side}.txt: the tokenizer makes no token of any of its 1 texts"
    ):
        prepared(of_texts(tiny_table, dropping_model, **texts), tmp_path)


def test_completions_without_tokens_are_left_out_of_training_and_kept_in_the_test(
    tiny_table: dict[str, Any], dropping_model: Path, tmp_path: Path
) -> None:
    for name in ("train", "test"):
        rows = [{"prompt": f"{name} a:", "completion": DROPPED}, {"prompt": f"{name} b:", "completion": " ab"}]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    sides = {name: str(tmp_path / f"{name}.jsonl") for name in ("train", "test")}
    table = {**tiny_table, "model": str(dropping_model), "task": {"name": "completion", **sides}}
    assert prepared(table, tmp_path)["text_without_tokens"].endswith(
        "1 training texts, which are left out and of 1 test texts, which are kept with EOS as their only target"
    )
    found = read_prepared(tmp_path / "prepared")
    assert (len(found.train), {len(one.completion) for one in found.test}) == (1, {1, 2})


def test_the_end_of_a_prompt_that_its_answer_repeats_is_stored(tiny_table: dict[str, Any], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_table["model"], tmp_path / "merging"))
    KINDS["byte level"]().save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 400}))
    for name in ("train", "test"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"prompt": f"{name} New Yor", "completion": "k"}))
    sides = {name: str(tmp_path / f"{name}.jsonl") for name in ("train", "test")}
    prepared(
        {**tiny_table, "model": str(folder), "random_weights": True, "task": {"name": "completion", **sides}}, tmp_path
    )
    assert read_prepared(tmp_path / "prepared").test[0].repeated.strip() == "Yor"


def test_weights_that_do_not_fit_are_found_and_those_without_a_place_are_told(
    tiny_table: dict[str, Any], tiny_model: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "copied"))
    config = json.loads((folder / "config.json").read_text())
    table = merge(tiny_table, {"model": str(folder)})
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 1}))
    assert prepared(table, tmp_path)["weights_left_out"].startswith(
        f"9 tensors of {folder} have no place in the model:"
    )
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(UserError, match="lack 9 of the model's tensors"):
        prepared(table, tmp_path)
    assert "weights_left_out" not in prepared({**table, "random_weights": True}, tmp_path)


# -- which data, and which model ------------------------------------------------------------------------------------


def hashes(table: dict[str, Any], folder: Path) -> dict[str, Any]:
    data: dict[str, Any] = preparation.prepare(load(None, [table]), [], folder / "prepared")["data"]
    return {name: value for name, value in data.items() if name.endswith("sha256")}


def test_accepted_answers_are_part_of_the_data(tiny_table: dict[str, Any], tmp_path: Path) -> None:
    """More accepted answers give a higher score for the same texts: F1 6 % and 60 % once stood in one table."""
    document = json.loads(Path(tiny_table["task"]["test"]).read_text())
    more = tmp_path / "test.json"
    table = merge(tiny_table, {"task": {"test": str(more)}})
    more.write_text(json.dumps(document))
    before = hashes(table, tmp_path)
    for paragraph in document["data"][0]["paragraphs"]:
        paragraph["qas"][0]["answers"].append({"text": "Box", "answer_start": 0})
    more.write_text(json.dumps(document))
    after = hashes(table, tmp_path)
    assert {name for name in before if before[name] != after[name]} == {"answers_sha256"}


def test_other_weights_are_another_model(tiny_table: dict[str, Any], tiny_model: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = Path(shutil.copytree(tiny_model, tmp_path / "copied"))
    table = merge(tiny_table, {"model": str(folder)})
    before = hashes(table, tmp_path)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][-1] += 1.0
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    after = hashes(table, tmp_path)
    assert {name for name in before if before[name] != after[name]} == {"model_sha256"}


def test_a_model_of_the_hub_is_known_by_the_commit_that_was_loaded() -> None:
    class Config:
        _commit_hash = "c" * 40

    hub = ModelReference("owner/name", "owner/name", is_local=False, has_tokenizer=True)
    assert preparation._model(hub, Config()) == {"model_sha256": None, "model_commit": "c" * 40}


def test_a_trial_loads_the_commit_that_was_prepared(
    tiny_table: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from howlow.engine.execution import decide
    from howlow.trial import loading

    asked: list[Any] = []

    class Model:
        def requires_grad_(self, trains: bool) -> None:
            pass

    hub = ModelReference("owner/name", "owner/name", is_local=False, has_tokenizer=True)
    monkeypatch.setattr(loading, "locate", lambda *_: hub)
    monkeypatch.setattr(loading.models, "load_config", lambda reference, revision, trust: asked.append(revision))
    monkeypatch.setattr(loading.models, "load_model", lambda *_, revision, **options: asked.append(revision) or Model())
    settings = load(None, [merge(tiny_table, {"revision": "main"})])
    execution = decide(device=torch.device("cpu"), precision="fp32")
    loading.load_base(settings, execution, commit="c" * 40)
    loading.load_base(settings, execution)
    assert asked == ["c" * 40, "c" * 40, "main", "main"]


# -- what was read --------------------------------------------------------------------------------------------------


def test_the_record_lists_what_was_read_and_what_was_not(tiny_table: dict[str, Any], tmp_path: Path) -> None:
    for side in ("train", "test"):
        for name in ("a.txt", "B.TXT", "notes.md", ".ipynb_checkpoints/a.txt"):
            (tmp_path / side / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / side / name).write_text(f"The {side} text of {name}.\n")
    task = {"name": "language_modeling", "train": str(tmp_path / "train"), "test": str(tmp_path / "test")}
    report = preparation.prepare(load(None, [{**tiny_table, "task": task}]), [], tmp_path / "prepared")
    train, test = report["data"]["sources"]
    assert (train["side"], test["side"], train["source"]) == ("train", "test", str(tmp_path / "train"))
    assert (train["format"], train["files_read"], train["files"]) == ("folder", 2, ("B.TXT", "a.txt"))
    assert (train["files_left_out"], train["left_out"]) == (2, (".ipynb_checkpoints/", "notes.md"))
    (told,) = [warning for warning in report["warnings"] if warning["kind"] == "files_left_out"]
    assert told["detail"].startswith("2 files or linked folders are not read")
    assert str(tmp_path / "train" / "notes.md") in told["detail"]
    assert ".ipynb" not in told["detail"]


def test_a_hidden_file_changes_no_tokens(tiny_table: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.txt").write_text("One.\nTwo.\nThree.\n")
    both = {"train": str(tmp_path / "data"), "test": str(tmp_path / "data"), "test_examples": 1}
    table = {**tiny_table, "task": {"name": "language_modeling", **both}}
    before = hashes(table, tmp_path)
    (tmp_path / "data" / ".a.txt").write_text("Four.\n")
    assert hashes(table, tmp_path) == before


# -- the tokenizer --------------------------------------------------------------------------------------------------


def test_a_token_beyond_the_vocabulary_names_the_remedy_that_is_left(
    tiny_table: dict[str, Any], tiny_model: Path, tmp_path: Path
) -> None:
    small = Path(shutil.copytree(tiny_model, tmp_path / "small"))
    config = json.loads((small / "config.json").read_text())
    (small / "config.json").write_text(json.dumps(config | {"vocab_size": 100}))
    table = merge(tiny_table, {"model": str(small), "random_weights": True})
    with pytest.raises(UserError, match="it is the model's own, so the folder's files belong to two models"):
        prepared(table, tmp_path)
    with pytest.raises(UserError, match="give the model's own with the setting tokenizer"):
        prepared({**table, "tokenizer": str(tiny_model)}, tmp_path)


def test_a_sentencepiece_model_alone_names_the_packages_that_read_it(
    tiny_table: dict[str, Any], tiny_model: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "copied"))
    for left in folder.glob("token*"):
        left.unlink()
    (folder / "tokenizer.model").write_bytes(b"\n\x0e\n\x05<unk>\x15\0\0\0\0\x18\x02")
    with pytest.raises(UserError, match=r"pip install (sentencepiece|tiktoken|protobuf)") as caught:
        prepared({**tiny_table, "model": str(folder)}, tmp_path)
    assert f"tokenizer {folder}: " in str(caught.value)
