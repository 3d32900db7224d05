"""Tiny random models of the architectures that transformers has, and what becomes of each of them here.

Every causal language model that the installed transformers maps is built from its config, with the sizes of `TINY`;
`CHANGES` holds what single architectures need. `truth` computes losses, gradients and greedy tokens with transformers
and PEFT alone, each text by itself.
"""

import random
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from howlow.engine import model as models
from howlow.engine.adapter import refuse_unadaptable
from howlow.engine.alone import ids_of
from howlow.engine.execution import Execution, decide, running
from howlow.engine.generation import Way, generate
from howlow.engine.layout_check import UnfitError, problem_with, truth_about, writing_problem
from howlow.engine.layouts import Layout, lay_out
from howlow.engine.loss import Head, per_example, target_losses
from howlow.engine.tokens import TokenizedExample
from howlow.errors import UserError

KINDS = tuple(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
VOCABULARY, RANK = 67, 2
SIZES = {
    ("vocab_size", "n_words", "vocab_size_per_layer_input"): VOCABULARY,
    ("hidden_size", "n_embd", "d_model", "emb_dim", "dim_model"): 32,
    ("intermediate_size", "decoder_ffn_dim", "encoder_ffn_dim", "ffn_dim", "dim_ff", "dff"): 48,
    ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "encoder_layers"): 2,
    ("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads", "encoder_attention_heads"): 4,
    ("num_key_value_heads",): 2,
    ("max_position_embeddings", "n_positions", "n_ctx"): 128,
    ("head_dim", "sliding_window"): 8,
    ("num_local_experts", "num_experts", "n_routed_experts"): 4,
    ("num_experts_per_tok",): 2,
    ("moe_intermediate_size", "shared_expert_intermediate_size"): 24,
    ("kv_lora_rank", "q_lora_rank", "o_lora_rank", "router_hidden_size"): 16,
    ("qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim", "rotary_dim", "linear_head_dim", "index_head_dim"): 8,
    ("index_topk", "state_size", "mamba_d_state"): 8,
    ("index_n_heads", "o_groups"): 2,
    ("linear_num_heads",): 4,
    ("n_group", "topk_group", "n_shared_experts", "first_k_dense_replace"): 1,
    ("pad_token_id",): 0,
    ("bos_token_id",): 1,
    ("eos_token_id",): 2,
}
TINY: dict[str, int] = {name: value for names, value in SIZES.items() for name in names}

CHANGES: dict[str, dict[str, Any]] = {
    "bamba": {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "attn_layer_indices": [1]},
    "cohere_compass_text": {
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": 1e4} for kind in ("full_attention", "sliding_attention")
        }
    },
    "dots1": {"n_routed_experts": 4, "num_experts_per_tok": 2, "first_k_dense_replace": 1},
    "falcon_h1": {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_d_ssm": 64, "mamba_chunk_size": 8},
    "falcon": {"head_dim": None},
    "gemma3n_text": {
        "num_kv_shared_layers": 0,
        "layer_types": ["sliding_attention", "full_attention"],
        "activation_sparsity_pattern": [0.0, 0.0],
        "hidden_size_per_layer_input": 8,
        "laurel_rank": 4,
    },
    "gemma4": {"text_config": {"hidden_size_per_layer_input": 8}},
    "gemma4_text": {"hidden_size_per_layer_input": 8},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 8},
    "granitemoehybrid": {
        "mamba_n_heads": 4,
        "mamba_d_head": 16,
        "mamba_d_state": 8,
        "layer_types": ["mamba", "attention"],
        "shared_intermediate_size": 24,
    },
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 0},
    "lfm3": {"layer_types": ["conv", "full_attention"]},
    "longcat_flash": {"zero_expert_num": 2},
    "minimax": {"block_size": 8},
    "recurrent_gemma": {"num_hidden_layers": 3},
    "lfm2_moe": {"num_dense_layers": 1, "layer_types": ["conv", "full_attention"]},
    "mamba2": {"num_heads": 8, "head_dim": 8, "state_size": 8, "n_groups": 2},
    "prophetnet": {
        "num_hidden_layers": None,
        "num_encoder_layers": 2,
        "num_decoder_layers": 2,
        "num_encoder_attention_heads": 4,
        "num_decoder_attention_heads": 4,
    },
    "reformer": {"is_decoder": True, "axial_pos_embds_dim": [16, 16], "axial_pos_shape": [8, 16]},
    "xlnet": {"max_position_embeddings": None},
    "xlstm": {"v_head_dim": None, "hidden_size": 128},  # what it keeps is as wide as its layers from this size on
    "xmod": {"default_language": "en_XX"},
    "zamba": {
        "num_hidden_layers": 3,
        "layers_block_type": ["mamba", "hybrid", "hybrid"],
        "attention_head_dim": None,
    },
    "zamba2": {"layers_block_type": ["mamba", "hybrid"], "attention_head_dim": None, "num_key_value_heads": 4},
    "zaya": {"num_experts_per_tok": 1},
}
_LATENT = (
    "axk1",
    "axk2",
    "bailing_hybrid",
    "kimi_linear",
    "deepseek_v2",
    "deepseek_v3",
    "deepseek_v32",
    "glm4_moe_lite",
    "glm_moe_dsa",
    "longcat_flash",
)
CHANGES |= {kind: CHANGES.get(kind, {}) | {"num_key_value_heads": 4} for kind in (*_LATENT, "minicpm3", "youtu")}
_HYBRID = {"layer_types": ["linear_attention", "full_attention"]}
CHANGES |= {kind: CHANGES.get(kind, {}) | _HYBRID for kind in ("bailing_hybrid", "kimi_linear", "qwen3_next")}
CHANGES |= {kind: {"text_config": _HYBRID} for kind in ("qwen3_5", "qwen3_5_moe", "qwen4_exp")}
CHANGES |= dict.fromkeys(("qwen3_5_text", "qwen3_5_moe_text", "qwen4_exp_text"), _HYBRID)


def config_of(kind: str) -> Any:
    """A config of tiny sizes."""
    made = type(AutoConfig.for_model(kind))
    usual = made()
    changes = CHANGES.get(kind, {})
    sizes = {name: value for name, value in TINY.items() if _has(usual, name)} | changes
    for part in ("text_config", "vision_config", "audio_config"):
        inner = getattr(usual, part, None)
        if inner is not None and not isinstance(inner, dict):
            sizes = {name: value for name, value in sizes.items() if name not in TINY or name.endswith("_token_id")}
            small = TINY | {"image_size": 16, "patch_size": 8} | changes.get(part, {})
            sizes[part] = {name: value for name, value in small.items() if _has(inner, name)}
    return made(**{name: value for name, value in sizes.items() if value is not None})


def _has(config: Any, name: str) -> bool:
    try:
        return hasattr(config, name)
    except Exception:
        return False


def build(kind: str) -> Any:
    """A model with random weights, spread so that its predictions differ."""
    torch.manual_seed(0)
    made = AutoModelForCausalLM.from_config(config_of(kind)).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.dim() > 1:
                parameter.mul_(5)
    return made.requires_grad_(False)


# -- transformers alone -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Truth:
    """What transformers and PEFT give for each text by itself.

    losses: (texts,) float64. gradients: of the summed loss, by the names of the adapters' weights. tokens: each text's
    greedy continuation, every token chosen from a forward pass over the whole text so far.
    """

    losses: torch.Tensor
    gradients: dict[str, torch.Tensor]
    tokens: list[list[int]]


def truth(model: Any, texts: Sequence[tuple[int, ...]], completion: int, new: int) -> Truth:
    """completion: how many tokens at the end of each text are targets."""
    losses = []
    for parameter in model.parameters():
        parameter.grad = None
    for text in texts:
        logits = model(input_ids=torch.tensor([text]), use_cache=False).logits[0]
        targets = torch.tensor(text[-completion:])
        loss = torch.nn.functional.cross_entropy(logits[-completion - 1 : -1], targets, reduction="sum")
        loss.backward()
        losses.append(loss.detach().double())
    return Truth(torch.stack(losses), gradients_of(model), [greedy(model, text, new) for text in texts])


def gradients_of(model: Any) -> dict[str, torch.Tensor]:
    """The gradients of everything that trains; a weight that no text has reached has zeros."""
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    return {
        name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()
        for name, parameter in trained.items()
    }


@torch.no_grad()
def greedy(model: Any, text: Sequence[int], new: int) -> list[int]:
    """The most likely tokens, without anything kept between them."""
    found = list(text)
    for _ in range(new):
        found.append(int(model(input_ids=torch.tensor([found]), use_cache=False).logits[0, -1].argmax()))
    return found[len(text) :]


def adapted(kind: str, layers: Sequence[str]) -> Any:
    """The architecture's model with an adapter of `RANK` in these layers, its values drawn at random."""
    from peft import LoraConfig, get_peft_model

    model = build(kind)
    config = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=list(layers), task_type="CAUSAL_LM")
    with warnings.catch_warnings(action="ignore"):  # PEFT says that it has understood Conv1D
        made = get_peft_model(model, config).eval()
    torch.manual_seed(1)
    for parameter in made.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    return made


# -- what becomes of them here ------------------------------------------------------------------------------------

_EVERY = "padded packed shared; writes padded packed shared single"
_ROWS = "padded; writes padded single"
_ALONE = "padded; writes single"
_AHEAD = "refused: it is not causal: a later token changes what it predicts from earlier ones"
EXPECTED: dict[str, str] = {
    # attention by position, which takes our masks
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "smollm3", "phi", "phi3", "gemma", "gemma2"), _EVERY),
    **dict.fromkeys(("gemma3_text", "gemma3", "granite", "olmo2", "starcoder2", "stablelm", "cohere", "glm4"), _EVERY),
    **dict.fromkeys(("gpt2", "gpt_neox", "opt", "biogpt", "exaone4", "helium", "arcee", "apertus"), _EVERY),
    **dict.fromkeys(("mixtral", "qwen3_moe", "deepseek_v3", "afmoe"), _EVERY),
    # attention of their own, biases that follow the row, sinks, or a mask of their own
    **dict.fromkeys(("gptj", "gpt_neo", "bloom", "mpt", "falcon", "gpt_oss", "llama4_text", "codegen"), _ROWS),
    # a state along the row
    **dict.fromkeys(("mamba", "falcon_mamba", "jamba", "bamba", "minimax"), _ROWS),
    # positions that follow the row, or nothing kept that can be padded: one prompt at a time
    **dict.fromkeys(("bart", "mbart", "blenderbot-small", "openai-gpt", "rwkv", "recurrent_gemma", "xlstm"), _ALONE),
    # every token sees every other
    **dict.fromkeys(("bert", "roberta", "electra", "camembert"), _AHEAD),
    # a sparse attention whose ties between scores are broken by the length of the row, in transformers' own code
    "deepseek_v32": "refused: padded losses with the model's own attention differ from those of the model alone",
}
SLOW = ("afmoe", "apertus", "arcee", "bamba", "blenderbot-small", "camembert", "codegen", "deepseek_v3", "gemma3_text")
SLOW += ("phi3", "qwen2", "smollm3")
"""The benchmark alone examines these."""
# What these give is scaled by weights that are zero in a model that was not trained: a gradient of zeros is one.
IDLE: dict[str, tuple[str, ...]] = {
    "gemma3n_text": ("per_layer_input_gate", "per_layer_projection", "per_layer_model_projection"),
    "zaya": ("qkv_proj.q_proj", "qkv_proj.k_proj"),
    "doge": ("dt_proj",),  # it bends the attention only of texts longer than its window
}
TOO_LARGE = {
    "blt": "its config has parts of fixed size, with 4.6 billion parameters",
    "git": "its vision tower of 86 million parameters has a config of its own",
    "phi4_multimodal": "its towers of 870 million parameters have configs of their own",
}
LAYOUTS: tuple[Layout, ...] = ("padded", "packed", "shared")
WAYS: tuple[Way, ...] = ("padded", "packed", "shared", "single")
COMPLETION, NEW, WIDTH = 5, 4, 48


def texts() -> list[TokenizedExample]:
    """Texts of unequal length, two with a common beginning."""
    draw = random.Random(0)
    longest = tuple(draw.randint(3, VOCABULARY - 1) for _ in range(30))
    starts = [longest, (*longest[:20], 7, 9), longest[5:14], longest[3:20]]
    ends = [tuple(draw.randint(3, VOCABULARY - 1) for _ in range(COMPLETION)) for _ in starts]
    return [TokenizedExample(str(index), "g", *both) for index, both in enumerate(zip(starts, ends, strict=True))]


def examine(kind: str) -> "Examined":
    """What the check says of an architecture, and what of it is wrong."""
    return Examined(kind)


class Examined:
    """The check of one architecture; whatever it lets through is held against transformers alone.

    verdict: why it is refused, or in which layouts and ways it may run. wrong: where what runs is not the model's own.
    """

    def __init__(self, kind: str) -> None:
        self.kind, self.model, self.examples = kind, build(kind), texts()
        self.structure = models.structure(config_of(kind), False)
        self.head: Head = "targets" if self.structure.names_decoder else "all"
        self.wrong: list[str] = []
        try:
            self.verdict = self._examine()
        except (UnfitError, UserError) as error:
            self.verdict = f"refused: {error}"

    def _examine(self) -> str:
        found = truth_about(self.model, self.examples, self._execution("padded"))
        problems = {
            one: problem_with(self.model, one, found, execution=self._execution(one), pad_id=0) for one in LAYOUTS
        }
        taken = [one for one in LAYOUTS if problems[one] is None]
        if "padded" not in taken:
            raise UnfitError(problems["padded"])
        failures = {
            one: writing_problem(self.model, one, found, execution=self._execution(one), pad_id=0) for one in WAYS
        }
        ways = [one for one in WAYS if failures[one] is None]
        self._hold_against_truth(taken, ways, found.idle_layers)
        written = " ".join(ways) or f"nothing ({failures['single']})"
        return f"{' '.join(taken)}; writes {written}"

    def _execution(self, way: Way) -> Execution:
        attention = "own" if way in ("padded", "single") else "sdpa"
        return decide(device=torch.device("cpu"), precision="fp32", attention=attention, head=self.head, full_row=WIDTH)

    def _hold_against_truth(self, layouts: Sequence[Layout], ways: Sequence[Way], idle_layers: Sequence[str]) -> None:
        layers = _adaptable(self.kind, list(self.structure.linear_shapes))
        model = adapted(self.kind, layers)
        foretold = RANK * refuse_unadaptable(config_of(self.kind), False, layers)
        trained = sum(parameter.numel() for parameter in models.trainable(model).values())
        if foretold != trained:
            self.wrong.append(f"an adapter has {trained} parameters, {foretold} were foretold")
        alone = truth(model, [ids_of(example) for example in self.examples], COMPLETION, NEW)
        idle = (*idle_layers, *IDLE.get(self.kind, ()))
        for name, gradient in alone.gradients.items():
            is_idle = any(f".{end}.lora_" in name for end in idle)
            if is_idle == bool(gradient.any()):
                self.wrong.append(f"{name} {'trains' if is_idle else 'never trains'}")
        for layout in layouts:
            self._hold_losses(model, layout, alone)
        for way in ways:
            self._hold_tokens(model, way, alone)

    def _hold_losses(self, model: Any, layout: Layout, alone: Truth) -> None:
        batch = lay_out(self.examples, layout, WIDTH, 0, "completion")
        model.zero_grad()
        with running(model, self._execution(layout)) as run, run.batch(batch):
            losses, total = target_losses(model, batch, self.head)
            total.backward()
        if not torch.allclose(per_example(losses, batch), alone.losses, rtol=1e-4, atol=1e-5):
            self.wrong.append(f"{layout}: losses {per_example(losses, batch)} for {alone.losses}")
        largest = max(float(gradient.norm()) for gradient in alone.gradients.values())
        for name, gradient in gradients_of(model).items():
            expected = alone.gradients[name]
            if float((gradient - expected).norm()) > 1e-3 * float(expected.norm()) + 1e-5 * largest:
                self.wrong.append(f"{layout}: the gradient of {name}")

    def _hold_tokens(self, model: Any, way: Way, alone: Truth) -> None:
        with running(model, self._execution(way).for_generation()) as run:
            rows, _ = generate(
                run,
                Ids(),
                [ids_of(example) for example in self.examples],
                layout=way,
                prompt_length=WIDTH,
                pad_id=0,
                max_new_tokens=NEW,
                stop=None,
                eos=frozenset(),
            )
        for row, expected in zip(rows, alone.tokens, strict=True):
            if row.text != Ids().decode(expected) and row.smallest_margin > 1e-3:
                self.wrong.append(f"{way}: writes {row.text} for {expected}")


class Ids:
    """A tokenizer whose text is the token ids."""

    def decode(self, ids: Sequence[int], **_: Any) -> str:
        return " ".join(map(str, ids))


def _adaptable(kind: str, layers: list[str]) -> list[str]:
    """The layers that PEFT adapts."""
    if _peft_allows(kind, layers):
        return layers
    one_of = {layer.rpartition(".")[2]: layer for layer in layers}
    refused = {end for end, layer in one_of.items() if not _peft_allows(kind, [layer])}
    return [layer for layer in layers if layer.rpartition(".")[2] not in refused]


def _peft_allows(kind: str, layers: list[str]) -> bool:
    try:
        refuse_unadaptable(config_of(kind), False, layers)
    except UserError:
        return False
    return True
