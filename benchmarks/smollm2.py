"""The settings of the sweeps of SmolLM2-135M on real data that several benchmarks run, and where the data are."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import howlow
from howlow.settings import merge

DATA = Path(os.environ.get("HOWLOW_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))
SQUAD: Mapping[str, Any] = {
    "name": "question_answering",
    "train": str(DATA / "squad" / "dev-v1.1.json"),
    "test": str(DATA / "squad" / "dev-v2.0.json"),
}
WIKITEXT: Mapping[str, Any] = {
    "name": "language_modeling",
    "train": str(DATA / "wikitext-2" / "valid.txt"),
    "test": str(DATA / "wikitext-2" / "test.txt"),
}


def smollm2_settings(
    grid: Mapping[str, Sequence[Any]], task: Mapping[str, Any], baselines: Sequence[str] = ("base",), **sections: Any
) -> howlow.Settings:
    """Settings with steps of 8 examples of up to 512 tokens; `sections` (training, lora, ...) add to them."""
    table = {
        "model": "smollm2-135m",
        "baselines": list(baselines),
        "grid": dict(grid),
        "task": dict(task),
        "training": {"batch_size": 8, "sequence_length": 512},
        "inference": {"batch_size": 20, "max_new_tokens": 24},
    }
    return howlow.load_settings(None, [merge(table, sections)])
