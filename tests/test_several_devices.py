"""A trial over several devices computes what it computes on one: its losses, its adapter, its answers.

Two processes on the CPU, which meet through gloo, with the layers of the base sharded between them.
"""

import pickle
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from test_resuming import Stopper, measure_job, run, told_at_every_step  # noqa: F401  (a fixture)

import howlow
from howlow import load_settings as load
from howlow.engine.layouts import Batch, Layout, lay_out
from howlow.engine.sharding import leave
from howlow.engine.shares import DevicePart, SplitBatch, in_order, shares_of, split_batch
from howlow.engine.tokens import TokenizedExample
from howlow.errors import UserError
from howlow.jobs import LayoutJob
from howlow.records import LayoutChoice, read_lines
from howlow.records.identity import OF_COSTS, OF_QUALITY
from howlow.settings import effects, merge
from howlow.trial.entries import choose_entry

# A killed process leaves its files to the system.
pytestmark = [
    pytest.mark.filterwarnings("ignore:unclosed file"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning"),
]


@pytest.fixture(scope="module", autouse=True)
def one_thread_a_process() -> Iterator[None]:
    """A process that has computed with several threads must not be forked; outside of tests none has when it is."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def table_of(table: dict[str, Any], devices: int, **changes: Any) -> dict[str, Any]:
    return merge(table, merge({"run": {"devices_per_trial": devices}, "grid": {"lora.rank": [4]}}, changes))


def lines(out: Path, name: str) -> list[dict[str, Any]]:
    return list(read_lines(next((out / "trials").iterdir()) / name))


def losses(out: Path, phase: str) -> list[float]:
    return [line["loss"] for line in lines(out, "steps.jsonl") if line["phase"] == phase]


def texts(out: Path) -> list[tuple[Any, ...]]:
    return [(line["id"], line["generated"], line["new_tokens"]) for line in lines(out, "predictions.jsonl")]


def adapter(out: Path) -> dict[str, torch.Tensor]:
    return load_file(next((out / "trials").iterdir()) / "adapter" / "adapter_model.safetensors")


CHOICES = [
    LayoutChoice(layout="shared", kernel="sdpa"),
    LayoutChoice(layout="packed", kernel="sdpa", generation="padded"),
    LayoutChoice(layout="padded", generation="single"),
]


@pytest.fixture(scope="module", params=CHOICES, ids=lambda choice: choice.layout)
def both(
    request: pytest.FixtureRequest, tiny_table: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """A trial on one device and the same on two."""
    outs = []
    for devices in (1, 2):
        outs.append(tmp_path_factory.mktemp(f"{request.param.layout}-{devices}"))
        record = run(table_of(tiny_table, devices), outs[-1], Stopper(), layout=request.param)
        assert record is not None
        assert record.status == "done", record.error
        assert record.resolved.devices == (None, ("cpu", "cpu"))[devices - 1]
    return outs[0], outs[1]


def test_every_loss_is_that_of_one_device(both: tuple[Path, Path]) -> None:
    for phase in ("train", "evaluate"):
        one, two = (losses(out, phase) for out in both)
        assert len(one) > 1
        assert two == pytest.approx(one, rel=1e-5)


def test_the_saved_adapter_is_whole_and_that_of_one_device(both: tuple[Path, Path]) -> None:
    one, two = map(adapter, both)
    assert {name: part.shape for name, part in one.items()} == {name: part.shape for name, part in two.items()}
    for name, part in one.items():
        torch.testing.assert_close(two[name], part, rtol=1e-3, atol=1e-5)


def test_the_answers_are_those_of_one_device(both: tuple[Path, Path]) -> None:
    one, two = map(texts, both)
    assert len(one) > 1
    assert one == two


def test_steps_count_the_examples_of_all_devices(both: tuple[Path, Path]) -> None:
    for one, two in zip(*(lines(out, "steps.jsonl") for out in both), strict=True):
        for name in ("phase", "step", "samples", "tokens", "target_tokens"):
            assert one[name] == two[name]


@pytest.mark.parametrize("kind", ["base", "lora"])
def test_fewer_groups_than_devices_change_nothing(tiny_table: dict[str, Any], tmp_path: Path, kind: str) -> None:
    """With one example a batch, one of the two devices never has an example of its own."""
    general = tmp_path / "general.txt"
    general.write_text("a text that has nothing to do with the task\n" * 20, encoding="utf-8")
    changes = {
        "training": {"batch_size": 1, "effective_batch_size": 2, "max_steps": 2, "gradient_checkpointing": True},
        "inference": {"batch_size": 1},
        "task": {"test_examples": 3, "general_text": str(general), "general_windows": 3},
    }
    records = []
    for devices in (1, 2):
        out = tmp_path / str(devices)
        records.append(run(table_of(tiny_table, devices, **changes), out, Stopper(), kind, layout=CHOICES[0]))
    one, two = records
    assert one is not None
    assert two is not None
    assert two.status == "done", two.error
    for phase in ("train", "evaluate") if kind == "lora" else ("evaluate",):
        found = [losses(tmp_path / str(devices), phase) for devices in (1, 2)]
        assert found[1] == pytest.approx(found[0], rel=1e-5)
    assert texts(tmp_path / "1") == texts(tmp_path / "2")
    for name in ("general_loss_before", "general_loss_after"):
        expected = getattr(one.scores, name)
        assert getattr(two.scores, name) == (expected if expected is None else pytest.approx(expected, rel=1e-5))


def test_a_resumed_trial_is_that_of_an_unbroken_one_bit_for_bit(tiny_table: dict[str, Any], tmp_path: Path) -> None:
    """Dropout included: the devices draw other masks, but the same ones after an interruption."""
    table = table_of(tiny_table, 2, training={"checkpoint_every_s": 1e-9}, lora={"dropout": 0.1})
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run(table, whole, Stopper(), layout=CHOICES[1])
    assert run(table, broken, Stopper("train", 3), layout=CHOICES[1]) is None
    leave()  # what the end of a process does
    record = run(table, broken, Stopper(), layout=CHOICES[1])
    assert record is not None
    assert (record.status, record.resumed) == ("done", 1)
    for phase in ("train", "evaluate"):
        assert losses(broken, phase) == losses(whole, phase)
    assert texts(broken) == texts(whole)
    ours, theirs = adapter(broken), adapter(whole)
    assert all(torch.equal(ours[name], part) for name, part in theirs.items())


def test_the_layout_is_chosen_by_all_devices_together(tiny_table: dict[str, Any], tmp_path: Path) -> None:
    choices = []
    for devices in (1, 2):
        job = measure_job(table_of(tiny_table, devices), tmp_path / str(devices))
        asked = LayoutJob(settings=job.trial.settings, data_folder=tmp_path / str(devices) / "data")
        choices.append(choose_entry(asked, Stopper()))
    assert choices[0].model_copy(update={"gemms": ()}) == choices[1]
    assert choices[1].layout == "shared"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"baselines": ["full"]}, 'baselines = ["full"]: only a frozen base is sharded; leave full out'),
        ({"training": {"batch_size": "max"}}, 'training.batch_size = "max": the search'),
        ({"inference": {"batch_size": "max"}}, 'inference.batch_size = "max": the search'),
        ({"grid": {"training.batch_size": [4, "max"]}}, 'training.batch_size = "max": the search'),
        ({"inference": {"adapter": "merged"}}, 'inference.adapter = "merged": a sharded matrix takes no adapter'),
        ({"training": {"compile": True}}, "training.compile = true: sharded layers run plain"),
        ({"quantization": "nf4"}, 'quantization = "nf4": its packed weights cannot be sharded'),
        ({"grid": {"quantization": ["none", "int8"]}}, 'quantization = "int8": its packed weights cannot be sharded'),
        ({"run": {"device": "mps"}}, 'run.device = "mps": such a machine has one device'),
        ({"run": {"devices_per_trial": 0}}, "run.devices_per_trial = 0: input should be greater than or equal to 1"),
    ],
)
def test_what_cannot_be_combined_is_refused_in_one_line(
    tiny_table: dict[str, Any], changes: dict[str, Any], told: str
) -> None:
    with pytest.raises(UserError, match=re.escape(told)):
        load(None, [table_of(tiny_table, 2, **changes)])


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"devices_per_trial": 64}, "run.devices_per_trial = 64: this machine has"),
        (
            {"devices_per_trial": 2, "workers": 1000},
            "run.workers = 1000 with run.devices_per_trial = 2: they need 2000",
        ),
    ],
)
def test_more_devices_than_there_are_are_refused_before_the_first_trial(
    tiny_table: dict[str, Any], tmp_path: Path, asked: dict[str, int], told: str
) -> None:
    with pytest.raises(UserError, match=re.escape(told)):
        measure_job(table_of(tiny_table, 2, run=asked), tmp_path)


def test_costs_of_other_numbers_of_devices_are_not_compared_and_quality_is() -> None:
    affected = effects()["run.devices_per_trial"]
    assert affected & OF_COSTS
    assert not affected & OF_QUALITY


@pytest.mark.gpu
@pytest.mark.slow
def test_two_gpus_compute_what_one_does(tiny_table: dict[str, Any], tmp_path: Path) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    outs = [tmp_path / str(devices) for devices in (1, 2)]
    for devices, out in enumerate(outs, start=1):
        table = table_of(tiny_table, devices, run={"device": "cuda"}, training={"precision": "fp32"}, baselines=[])
        (record,) = (one for one in howlow.sweep(load(None, [table]), out).records)
        assert record.status == "done", record.error
        if devices == 2:
            assert record.resolved.devices == ("cuda:0", "cuda:1")
            assert record.energy is not None
            assert record.energy.name is None or record.energy.devices == ("cuda:0", "cuda:1")
    assert losses(outs[1], "train") == pytest.approx(losses(outs[0], "train"), rel=1e-4)


# -- shares ---------------------------------------------------------------------------------------------------------


examples = st.lists(st.tuples(st.integers(0, 4), st.integers(1, 30)), min_size=1, max_size=24).map(
    lambda pairs: [
        TokenizedExample(str(row), str(group), (1,) * length, (2,)) for row, (group, length) in enumerate(pairs)
    ]
)


@given(examples, st.integers(1, 5), st.booleans(), st.booleans())
def test_each_example_counts_on_one_device_and_every_device_has_one_to_run(
    batch: list[TokenizedExample], devices: int, keeps_groups: bool, equal: bool
) -> None:
    shares = shares_of(batch, devices, keeps_groups=keeps_groups, equal=equal)
    assert len(shares) == devices
    assert sorted(row for share in shares for row in share.counted) == list(range(len(batch)))
    assert all(share.rows for share in shares)
    assert shares[0].counted
    assert not equal or len({len(share.rows) for share in shares}) == 1
    if keeps_groups:
        homes = {(batch[row].group, number) for number, share in enumerate(shares) for row in share.counted}
        assert len(homes) == len({example.group for example in batch})
    else:
        sizes = [sum(batch[row].length for row in share.counted) for share in shares]
        assert max(sizes) - min(sizes) <= max(example.length for example in batch)
    assert in_order(shares, [share.rows for share in shares]) == list(range(len(batch)))


@given(examples, st.sampled_from(["shared", "packed", "padded"]))
def test_one_device_gets_the_batch_itself(batch: list[TokenizedExample], layout: Layout) -> None:
    def laid_out(some: Sequence[TokenizedExample]) -> Batch:
        return lay_out(some, layout, 32, 0, "completion")

    found = split_batch(batch, 1, laid_out, keeps_groups=layout == "shared")
    assert isinstance(found, Batch)
    assert torch.equal(found.input_ids, laid_out(batch).input_ids)


@given(examples, st.integers(2, 4), st.booleans())
def test_a_split_batch_counts_what_the_whole_one_counts(
    batch: list[TokenizedExample], devices: int, keeps_groups: bool
) -> None:
    def laid_out(some: Sequence[TokenizedExample]) -> Batch:
        return lay_out(some, "packed", 32, 0, "completion")

    found, whole = split_batch(batch, devices, laid_out, keeps_groups=keeps_groups), laid_out(batch)
    assert isinstance(found, SplitBatch)
    assert (found.samples, found.tokens, found.target_tokens) == (whole.samples, whole.tokens, whole.target_tokens)
    parts: list[DevicePart[Batch]] = [DevicePart(found.own), *map(pickle.loads, found.others)]
    assert sum(part.batch.computed_tokens for part in parts) == found.computed_tokens
    assert sum(part.batch.target_tokens for part in parts if part.counts) == whole.target_tokens
