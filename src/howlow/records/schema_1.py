"""Records of schema 1, read as records of today.

Schema 1 wrote what was decided over what was asked: the layout and the batch sizes in the settings. It kept the
precision with the model and the attention kernel with the layout. It said nothing about the heap, the variables or the
sources, nor which form of the kernel "sdpa" ran: these stay None. Such records are read and reported; their trials are
not continued.
"""

from collections.abc import Mapping
from typing import Any

_LAYOUT = ("layout", "kernel", "generation")


def as_schema_2(document: Mapping[str, Any]) -> dict[str, Any]:
    """A record of schema 1 in the form of schema 2; `schema_version` stays 1."""
    settings, model, layout = document["settings"], document.get("model"), document.get("layout")
    return {
        **document,
        "settings": _as_asked(settings, document.get("batch_search", ())),
        "resolved": _resolved(document),
        "model": model and {key: value for key, value in model.items() if key != "precision"},
        "layout": layout and {key: value for key, value in layout.items() if key not in _LAYOUT},
    }


def _as_asked(settings: Mapping[str, Any], searches: Any) -> dict[str, Any]:
    """A batch size that was searched for was asked for as "max"; whether a layout was chosen cannot be known."""
    asked = {**settings}
    for search in searches:
        section, _, name = search["setting"].partition(".")
        asked[section] = {**asked[section], name: "max"}
    return asked


def _resolved(document: Mapping[str, Any]) -> dict[str, Any]:
    settings, layout = document["settings"], document.get("layout") or {}
    training, environment = settings["training"], document.get("environment") or {}
    is_bounded = settings["run"]["memory_limit_bytes"] is not None or bool(document.get("batch_search"))
    taken = None if training["layout"] == "auto" else training["layout"]
    return {
        "layout": taken,
        "generation_layout": layout.get("generation") or taken,
        "attention_kernel": {"flex": "flex", None: "own"}.get(layout.get("kernel")) if layout else None,
        "precision": (document.get("model") or {}).get("precision"),
        "train_batch_size": None if document["kind"] == "base" else _number(training["batch_size"]),
        "inference_batch_size": _number(settings["inference"]["batch_size"]),
        "heap": "bounded" if is_bounded else None,  # another trial's limit may have bounded this one's heap
        "quantization": "none",
        "threads": environment.get("threads"),
    }


def _number(batch_size: Any) -> int | None:
    return batch_size if isinstance(batch_size, int) else None
