"""The model and its adapter: references, weights, tokenizers, target modules, scaling, PEFT's format."""

import json
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from conftest import loaded, tiny_config
from safetensors.torch import load_file

from howlow import hub
from howlow.engine import model as models
from howlow.engine.adapter import attach_lora, matched_layers, save_adapter
from howlow.engine.references import PACKAGED, ModelReference, from_hub, locate
from howlow.errors import UserError

CPU = torch.device("cpu")
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
ENDS = "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj"
IDS = torch.arange(40, 60)[None]


def adapted(model: Any, rank: int = 4, **changes: Any) -> Any:
    options = {"alpha": 8.0, "scaling": "standard", "target_modules": ATTENTION, "dropout": 0.0, "seed": 0}
    return attach_lora(model, rank=rank, **options | changes)


def spread(model: Any) -> Any:
    """The adapter with a B that is not zero."""
    torch.manual_seed(5)
    for name, parameter in models.trainable(model).items():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    return model.eval()


def refusal(action: Any, *arguments: Any, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        action(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def gpt2() -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=264, n_positions=64, n_embd=32, n_layer=2, n_head=4, bos_token_id=256, eos_token_id=257)
    )


# -- the adapter ----------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_an_adapter_begins_as_the_base_model(tiny_model: Path):
    base = loaded(tiny_model)
    expected = base(IDS).logits
    assert torch.equal(adapted(base).eval()(IDS).logits, expected)


def test_only_the_adapter_trains_and_its_size_is_known_beforehand(tiny_model: Path):
    base = loaded(tiny_model)
    shapes = models.linear_shapes(base)
    matched = matched_layers(shapes, ATTENTION)
    names = models.trainable(adapted(base, rank=3))
    assert len(names) == 2 * len(matched) == 2 * 2 * len(ATTENTION)
    assert all(".lora_A." in name or ".lora_B." in name for name in names)
    assert sum(parameter.numel() for parameter in names.values()) == 3 * sum(sum(shapes[name]) for name in matched)


@pytest.mark.parametrize(
    ("rank", "alpha", "scaling", "factor"),
    [
        (4, 8.0, "standard", 2.0),
        (4, 8.0, "rank_stabilized", 4.0),
        (1, 3.5, "standard", 3.5),
        (16, 0.5, "standard", 1 / 32),
    ],
)
@torch.no_grad()
def test_the_adapter_adds_its_scaled_product(tiny_model: Path, rank: int, alpha: float, scaling: str, factor: float):
    model = spread(adapted(loaded(tiny_model), rank=rank, alpha=alpha, scaling=scaling))
    layer = model.get_base_model().model.layers[0].self_attn.q_proj
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    assert (tuple(a.shape), tuple(b.shape)) == ((rank, 32), (32, rank))
    x = torch.randn(5, 32)
    expected = x @ layer.base_layer.weight.T + factor * (x @ a.T) @ b.T
    assert torch.allclose(layer(x), expected, rtol=1e-5, atol=1e-5)
    config = model.peft_config["default"]
    assert (config.r, config.lora_alpha, config.use_rslora) == (rank, alpha, scaling == "rank_stabilized")


def test_the_seed_alone_decides_where_an_adapter_begins(tiny_model: Path):
    def begun(seed: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(123 + seed)
        found = models.trainable(adapted(loaded(tiny_model), seed=seed))
        return {name: parameter.detach() for name, parameter in found.items()}

    first, again, other = begun(0), begun(0), begun(1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first if "lora_A" in name)


def test_an_adapter_is_kept_in_fp32_over_a_base_in_bf16(tiny_model: Path):
    model = adapted(loaded(tiny_model, dtype=torch.bfloat16))
    assert {parameter.dtype for parameter in models.trainable(model).values()} == {torch.float32}
    assert {parameter.dtype for parameter in model.parameters() if not parameter.requires_grad} == {torch.bfloat16}


@torch.no_grad()
def test_a_rank_above_its_matrix_works(tiny_model: Path):
    model = spread(adapted(loaded(tiny_model), rank=40))
    assert model.get_base_model().model.layers[0].self_attn.k_proj.lora_A["default"].weight.shape == (40, 32)
    assert torch.isfinite(model(IDS).logits).all()


@torch.no_grad()
@pytest.mark.parametrize("scaling", ["standard", "rank_stabilized"])
def test_a_saved_adapter_gives_plain_peft_the_same_logits(tiny_model: Path, tmp_path: Path, scaling: str):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = spread(adapted(loaded(tiny_model), scaling=scaling))
    folder = tmp_path / "adapter"
    size = save_adapter(model, folder, str(tiny_model), "card")
    base = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    theirs = PeftModel.from_pretrained(base, folder).eval()
    assert torch.equal(theirs(IDS).logits, model(IDS).logits)
    assert size == (folder / "adapter_model.safetensors").stat().st_size
    assert {tensor.dtype for tensor in load_file(folder / "adapter_model.safetensors").values()} == {torch.float32}


def test_a_saved_adapter_is_whole_names_its_base_and_holds_no_pickle(tiny_model: Path, tmp_path: Path):
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "left over").write_text("")
    save_adapter(adapted(loaded(tiny_model)), folder, str(tiny_model), "the card")
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    assert list(tmp_path.iterdir()) == [folder]
    assert (folder / "README.md").read_text() == "the card"
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == str(tiny_model)


# -- target modules -------------------------------------------------------------------------------------------------


def test_a_target_that_matches_nothing_is_told_what_would(tiny_model: Path):
    shapes = models.linear_shapes(loaded(tiny_model))
    assert refusal(matched_layers, shapes, ["q_proj", "q_prj"]) == (
        f"lora.target_modules 'q_prj' matched no layer; linear layers here end in: {ENDS}"
    )


def test_targets_match_as_in_peft(tiny_model: Path):
    base = loaded(tiny_model)
    shapes = models.linear_shapes(base)
    assert shapes["model.layers.1.self_attn.k_proj"] == (32, 16)
    assert not any("lm_head" in name for name in shapes)
    targets = ["self_attn.q_proj", "model.layers.1.mlp.up_proj", "down_proj"]
    ours = matched_layers(shapes, targets)
    theirs = adapted(base, target_modules=targets).base_model.targeted_module_names
    assert sorted(ours) == sorted(theirs)
    assert len(ours) == 2 + 1 + 2
    assert "matched no layer" in refusal(matched_layers, shapes, ["proj"])


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_all_linear_adapts_what_peft_adapts(kind: str, tiny_model: Path, tmp_path: Path):
    from peft import LoraConfig, PeftModel, get_peft_model

    def make() -> Any:
        return gpt2() if kind == "gpt2" else loaded(tiny_model)

    config = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules="all-linear", fan_in_fan_out=kind == "gpt2")
    theirs = get_peft_model(make(), config).base_model.targeted_module_names
    ours = spread(adapted(make(), rank=2, target_modules=("all-linear",)))
    assert sorted(ours.base_model.targeted_module_names) == sorted(theirs)
    shapes = models.linear_shapes(make())
    assert sorted(matched_layers(shapes, ("all-linear",))) == sorted(theirs)
    assert not any("lm_head" in name for name in theirs)
    save_adapter(ours, tmp_path / "adapter", "base", "card")
    again = PeftModel.from_pretrained(make(), tmp_path / "adapter").eval()
    with torch.no_grad():
        assert torch.equal(again(IDS).logits, ours(IDS).logits)


def test_a_layer_that_two_targets_name_counts_once(tiny_model: Path):
    shapes = models.linear_shapes(loaded(tiny_model))
    for targets in (["q_proj", "q_proj"], ["q_proj", "self_attn.q_proj"]):
        assert len(matched_layers(shapes, targets)) == 2


def test_gpt2s_layers_take_adapters():
    model = gpt2()
    shapes = models.linear_shapes(model)
    assert shapes["transformer.h.0.attn.c_attn"] == (32, 96)
    assert shapes["transformer.h.1.mlp.c_proj"] == (128, 32)
    matched = matched_layers(shapes, ["c_attn", "c_proj"])
    assert len(matched) == 2 * 3
    with torch.no_grad():
        expected = model.eval()(IDS).logits
    found = adapted(model, rank=2, target_modules=["c_attn", "c_proj"]).eval()
    with torch.no_grad():
        assert torch.equal(found(IDS).logits, expected)
    trained = sum(parameter.numel() for parameter in models.trainable(found).values())
    assert trained == 2 * sum(sum(shapes[name]) for name in matched)


# -- structure ------------------------------------------------------------------------------------------------------


def test_the_structure_is_known_without_weights(tiny_model: Path):
    found = models.structure(models.load_config(locate(str(tiny_model)), None, False), False)
    base = loaded(tiny_model)
    assert found.architecture == "LlamaForCausalLM"
    assert found.total_parameters == sum(parameter.numel() for parameter in base.parameters())
    assert found.linear_shapes == models.linear_shapes(base)
    assert (found.vocabulary, found.max_positions, found.learned_positions) == (264, 512, False)


def test_learned_positions_are_recognised():
    found = models.structure(gpt2().config, False)
    assert (found.max_positions, found.learned_positions) == (64, True)


def test_the_papers_model_has_the_papers_adapter_size():
    """851,968 parameters a rank: 3.4 MB at r = 1 in fp32, 218 MB at r = 64 (the paper, section IV)."""
    config = models.load_config(locate("llama-3.1-8b", random_weights=True), None, False)
    shapes = models.structure(config, False).linear_shapes
    assert sum(sum(shapes[name]) for name in matched_layers(shapes, ATTENTION)) == 851_968


def test_random_weights_are_the_same_for_every_trial(tiny_model: Path):
    def made(seed: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(seed)
        state: dict[str, torch.Tensor] = loaded(tiny_model, random_weights=True).state_dict()
        return state

    first, second = made(1), made(2)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_model_is_loaded_as_it_is_saved(tiny_model: Path):
    model = loaded(tiny_model)
    assert not model.training
    saved = load_file(tiny_model / "model.safetensors")
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in saved.items())
    assert {parameter.dtype for parameter in loaded(tiny_model, dtype=torch.bfloat16).parameters()} == {torch.bfloat16}


def test_every_eos_ends_a_generation(tiny_model: Path, tiny_tokenizer: Any):
    model = loaded(tiny_model)
    assert models.stop_tokens(model, tiny_tokenizer) == {257}
    model.generation_config.eos_token_id = [3, 4]
    model.config.eos_token_id = 5
    assert models.stop_tokens(model, tiny_tokenizer) == {3, 4, 5, 257}
    model.generation_config.eos_token_id = model.config.eos_token_id = None
    assert models.stop_tokens(model, tiny_tokenizer) == {257}


# -- tokenizers -----------------------------------------------------------------------------------------------------


def test_a_models_own_tokenizer_is_taken(tiny_model: Path):
    tokenizer, name, substituted = models.load_tokenizer(locate(str(tiny_model)), None, None, False)
    assert (tokenizer.eos_token_id, name, substituted) == (257, str(tiny_model), False)


def test_a_tokenizer_asked_for_needs_no_weights(tiny_model: Path, tmp_path: Path):
    model = ModelReference("m", "m", True, False)
    folder = tmp_path / "tokenizer"
    shutil.copytree(tiny_model, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    tokenizer, name, substituted = models.load_tokenizer(model, str(folder), None, False)
    assert (tokenizer.eos_token_id, name, substituted) == (257, str(folder), False)
    for file in folder.glob("tokenizer*"):
        file.unlink()
    bare = tmp_path / "bare"
    folder.rename(bare)
    message = refusal(models.load_tokenizer, model, str(bare), None, False)
    assert message.startswith(f"tokenizer {bare}: none of tokenizer.json, ")


def test_a_tokenizer_folder_needs_no_config(tiny_model: Path, tmp_path: Path):
    for file in tiny_model.glob("tokenizer*"):
        shutil.copy(file, tmp_path)
    tokenizer, _, _ = models.load_tokenizer(ModelReference("m", "m", True, False), str(tmp_path), None, False)
    assert tokenizer.eos_token_id == 257


def test_what_is_no_tokenizer_is_called_one(tmp_path: Path):
    model = ModelReference("m", "m", True, True)
    for name in ("/no/such", str(tmp_path), "llama-3.1-8b"):
        assert refusal(models.load_tokenizer, model, name, None, False).startswith(f"tokenizer {name}: ")


# -- references -----------------------------------------------------------------------------------------------------


@pytest.fixture
def copied(tiny_model: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model's folder, to be damaged."""
    return Path(shutil.copytree(tiny_model, tmp_path / "copied"))


def test_a_folder_is_found_with_what_it_has(tiny_model: Path, copied: Path):
    assert locate(str(tiny_model)) == ModelReference(str(tiny_model), str(tiny_model), True, True)
    for file in copied.glob("tokenizer*"):
        file.unlink()
    assert not locate(str(copied)).has_tokenizer


@pytest.mark.parametrize("name", ["tokenizer.model", "vocab.json", "tokenizer.json"])
def test_every_usual_kind_of_tokenizer_is_the_models_own(copied: Path, name: str):
    for file in copied.glob("tokenizer*"):
        file.unlink()
    (copied / name).write_text("{}")
    assert locate(str(copied)).has_tokenizer


@pytest.mark.parametrize("name", ["/no/such/folder", "./no-such", "~/no-such-folder", "a/b/c"])
def test_a_folder_that_is_not_there(name: str):
    assert refusal(locate, name) == f"model {name}: no such folder or file"


def test_a_file_that_is_no_model(tmp_path: Path):
    file = tmp_path / "model.txt"
    file.write_text("")
    assert refusal(locate, str(file)) == (
        f"model {file}: a folder, a .gguf file or a hub id is expected, and this is another kind of file"
    )
    missing = tmp_path / "no.gguf"
    assert refusal(locate, str(missing)) == f"model {missing}: No such file or directory"


def test_a_broken_gguf_file_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file = tmp_path / "broken.gguf"
    file.write_bytes(b"GGUF, but no more")
    assert refusal(locate, str(file)).startswith(f"model {file}: cannot be read as a GGUF model: ")
    assert [path.suffix for path in (tmp_path / "cache" / "howlow" / "models").iterdir()] in ([], [".lock"])


def test_a_folder_without_a_config(copied: Path):
    (copied / "config.json").unlink()
    assert refusal(locate, str(copied)) == f"model {copied}: the folder has no config.json"


def test_a_folder_with_an_adapter_is_not_a_model(copied: Path):
    """transformers would load the adapter with the model, so that `base` and the ranks were of two models."""
    (copied / "adapter_config.json").write_text("{}")
    assert "it holds an adapter (adapter_config.json) beside the model; move it away" in refusal(locate, str(copied))
    (copied / "config.json").unlink()
    assert "without its model; give the model that it belongs to" in refusal(locate, str(copied))


def test_a_tokenizer_that_cannot_read_a_text_is_refused_in_one_line(copied: Path):
    written = json.loads((copied / "tokenizer_config.json").read_text())
    (copied / "tokenizer_config.json").write_text(json.dumps(written | {"model_max_length": {}}))
    message = refusal(models.load_tokenizer, locate(str(copied)), None, None, False)
    assert message.startswith(f"tokenizer {copied}: its files cannot be loaded (")


def test_an_eos_of_minus_one_is_none():
    from types import SimpleNamespace

    from howlow.engine.model import stop_tokens

    model = SimpleNamespace(config=SimpleNamespace(eos_token_id=-1), generation_config=None)
    assert stop_tokens(model, SimpleNamespace(eos_token_id=3)) == {3}


def test_a_config_that_cannot_be_read(copied: Path):
    (copied / "config.json").write_text("{")
    assert refusal(locate, str(copied)).startswith(f"model {copied}: config.json cannot be read: ")


def test_pickled_weights_are_refused(copied: Path):
    (copied / "model.safetensors").unlink()
    (copied / "pytorch_model.bin").write_bytes(b"\x80\x04N.")
    assert refusal(locate, str(copied)) == (
        f"model {copied}: pytorch_model.bin holds pickled weights, which can run code and are refused; "
        "convert them to safetensors (save_pretrained does)"
    )


def test_a_folder_without_weights_is_a_model_only_for_random_ones(copied: Path):
    (copied / "model.safetensors").unlink()
    assert refusal(locate, str(copied)) == (
        f"model {copied}: no weights (*.safetensors) next to config.json; add them, or set random_weights = true"
    )
    assert locate(str(copied), random_weights=True).is_local


@pytest.mark.parametrize("size", [0, 4, 100, -1])
def test_truncated_weights_are_refused(copied: Path, size: int):
    weights = copied / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:size])
    message = refusal(locate, str(copied))
    assert message.startswith(f"model {copied}: model.safetensors cannot be read (")
    assert message.endswith("; copy it again")


def test_weights_that_lack_tensors_are_refused(copied: Path):
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    assert f"model {copied}: its weights lack 9 of the model's tensors (model.layers.2." in refusal(loaded, copied)


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("config.json", "{}"),
        ("config.json", '{"model_type": "nonsense"}'),
        ("config.json", '{"model_type": "llama", "hidden_size": "wide"}'),
        ("config.json", '{"model_type": "llama", "hidden_size": 32, "num_attention_heads": 5}'),
        ("tokenizer.json", "{"),
        ("tokenizer.json", "{}"),
        ("tokenizer.json", '{"added_tokens": [], "model": {"type": "BPE", "vocab": [], "merges": []}}'),
    ],
)
def test_a_broken_file_of_a_folder_is_no_matter_of_the_hub(copied: Path, file: str, text: str):
    (copied / file).write_text(text)
    reference = locate(str(copied))
    load, what = (models.load_config, "model") if file == "config.json" else (models.load_tokenizer, "tokenizer")
    arguments = (None, False) if what == "model" else (None, None, False)
    message = refusal(load, reference, *arguments)
    assert message.startswith(f"{what} {copied}: its files cannot be loaded (")
    assert "hub" not in message


def test_weights_of_other_sizes_are_a_users_error_and_an_allocation_is_not():
    def mismatched() -> None:
        raise RuntimeError("size mismatch: see ignore_mismatched_sizes")

    def too_large() -> None:
        raise RuntimeError("can't allocate memory")

    assert refusal(from_hub, "model", "m", mismatched) == (
        "model m: its weights do not fit its config; the files belong to two models"
    )
    with pytest.raises(RuntimeError, match="allocate"):
        from_hub("model", "m", too_large)


def test_a_known_config_is_a_model_only_for_random_weights():
    found = locate("llama-3.1-8b", random_weights=True)
    assert (found.name, found.is_local, found.has_tokenizer) == ("llama-3.1-8b", True, False)
    assert Path(found.location).is_file()
    assert refusal(locate, "llama-3.1-8b") == (
        "model llama-3.1-8b: only its architecture is known here; give a folder or hub id with its weights, "
        "or random_weights = true for a study of the costs"
    )


def test_a_config_file_is_a_model_for_random_weights(tmp_path: Path):
    tiny_config().save_pretrained(tmp_path)
    found = locate(str(tmp_path / "config.json"), random_weights=True)
    assert models.load_config(found, None, False).hidden_size == 32
    assert "this is another kind of file" in refusal(locate, str(tmp_path / "config.json"))


def test_an_unknown_hub_name_without_a_network_says_what_works_without(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    hub.is_reachable.cache_clear()
    try:
        for name in ("no-such-owner/no-such-model", "no-such-model"):
            reference = locate(name)
            assert (reference.location, reference.is_local) == (name, False)
            message = refusal(models.load_config, reference, None, False)
            assert message.startswith(f"model {name}: not found here or on the hub (")
            assert message.endswith(f"without a network give a folder, a GGUF file or {PACKAGED}")
            message = refusal(models.load_tokenizer, reference, None, None, False)
            assert message.startswith(f"tokenizer {name}: not found here")
    finally:
        hub.is_reachable.cache_clear()


def test_code_of_its_own_is_refused_unless_allowed(copied: Path):
    config = json.loads((copied / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.MyConfig", "AutoModelForCausalLM": "mine.My"}}
    (copied / "config.json").write_text(json.dumps(config))
    (copied / "mine.py").write_text("raise SystemExit('this must not run')")
    assert refusal(models.load_config, locate(str(copied)), None, False) == (
        f"model {copied}: it needs its own code; set trust_remote_code = true to run it"
    )


@pytest.mark.parametrize("ends", ["</s>", 2.5, [2, "</s>"], [None], True, {"id": 2}])
def test_an_eos_that_is_no_number_is_told_with_its_value(copied: Path, ends: Any):
    """In config.json transformers itself refuses it, with a message of several lines."""
    from howlow import load_settings
    from howlow.trial.accepted_answers import not_loaded

    task = {"name": "completion", "train": "a.jsonl", "test": "b.jsonl"}
    asked = load_settings(None, [{"model": str(copied), "task": task}])
    (copied / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    message = refusal(not_loaded, asked, locate(str(copied)), None)
    assert message.startswith(f"model {copied}: eos_token_id in generation_config.json is {ends!r}; a token's number")
    (copied / "config.json").write_text(
        json.dumps(json.loads((copied / "config.json").read_text()) | {"eos_token_id": ends})
    )
    if not isinstance(ends, bool):
        message = refusal(models.load_config, locate(str(copied)), None, False)
        assert "field 'eos_token_id': " in message
        assert repr(ends)[:4] in message.partition("eos_token_id': ")[2]
