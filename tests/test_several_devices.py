"""A trial over several devices computes what it computes on one: its losses, its adapter, its answers.

Two processes on the CPU, which meet through gloo, with the layers of the base sharded between them.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import howlow
from howlow import load_settings as load
from howlow.records import read_lines
from howlow.settings import merge
from howlow.sweeping.sweep import SweepResult

pytestmark = pytest.mark.filterwarnings("ignore:unclosed file")


def table_of(table: dict[str, Any], devices: int, **changes: Any) -> dict[str, Any]:
    return merge(table, merge({"run": {"devices_per_trial": devices}, "grid": {"lora.rank": [4]}}, changes))


def run(table: dict[str, Any], out: Path, **options: Any) -> SweepResult:
    return howlow.sweep(load(None, [table]), out, **options)


def lines(out: Path, trial: str, name: str) -> list[dict[str, Any]]:
    return list(read_lines(out / "trials" / trial / name))


def losses(out: Path, trial: str, phase: str) -> list[float]:
    return [line["loss"] for line in lines(out, trial, "steps.jsonl") if line["phase"] == phase]


@pytest.fixture(scope="module", params=["shared", "padded"])
def both(
    request: pytest.FixtureRequest, tiny_table: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """A sweep on one device and the same on two."""
    outs = []
    for devices in (1, 2):
        outs.append(tmp_path_factory.mktemp(f"{request.param}-{devices}") / "out")
        found = run(table_of(tiny_table, devices, training={"layout": request.param}), outs[-1])
        assert {record.status for record in found.records} == {"done"}, [record.error for record in found.records]
    return outs[0], outs[1]


def test_every_loss_is_that_of_one_device(both: tuple[Path, Path]) -> None:
    for trial, phases in (("r0004-s0", ("train", "evaluate")), ("base-s0", ("evaluate",))):
        for phase in phases:
            one, two = (losses(out, trial, phase) for out in both)
            assert len(one) > 1
            assert two == pytest.approx(one, rel=1e-5)


def test_the_saved_adapter_is_whole_and_that_of_one_device(both: tuple[Path, Path]) -> None:
    one, two = (load_file(out / "trials" / "r0004-s0" / "adapter" / "adapter_model.safetensors") for out in both)
    assert {name: part.shape for name, part in one.items()} == {name: part.shape for name, part in two.items()}
    for name, part in one.items():
        torch.testing.assert_close(two[name], part, rtol=1e-3, atol=1e-5)


def test_the_answers_are_those_of_one_device(both: tuple[Path, Path]) -> None:
    for trial in ("r0004-s0", "base-s0"):
        one, two = (lines(out, trial, "predictions.jsonl") for out in both)
        texts = [[(line["id"], line["generated"], line["new_tokens"]) for line in side] for side in (one, two)]
        assert texts[0] == texts[1]
