"""What only a GPU can tell: CUDA graphs, FlexAttention, bf16, peaks, NVML's readings, out of memory by the cap.

What matters first comes first. No test begins when `LAST_BEGINS_S` have passed since the first one, so that all of them
take 150 s at most; a test that is left out says so, and runs when it is asked for by its name.
"""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import loaded, squad_document, tiny_config

import howlow
from howlow import load_settings as load
from howlow.engine.adapter import attach_lora
from howlow.settings import merge

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.slow,
    # torch and triton warn of each other's doings when they compile: only our own warnings are failures here.
    pytest.mark.filterwarnings("default", "error:::howlow"),
    pytest.mark.timeout(90),
]
LAST_BEGINS_S = 125.0


@pytest.fixture(scope="module", autouse=True)
def _began_s() -> float:
    import torch

    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return time.monotonic()


@pytest.fixture(autouse=True)
def _within_the_time(_began_s: float) -> None:
    if time.monotonic() - _began_s > LAST_BEGINS_S:
        pytest.skip(f"{LAST_BEGINS_S:g} s have passed; run it by its name")


@pytest.fixture(autouse=True)
def _nothing_left_on_the_device() -> Iterator[None]:
    import torch

    from howlow.engine.cuda.graphs import drop_unused

    yield
    drop_unused(torch.device("cuda"))


@pytest.fixture(scope="module")
def wide_model(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any) -> Path:
    """The tiny model with heads of 16, the fewest that FlexAttention's kernel takes."""
    import torch
    from transformers import LlamaForCausalLM

    folder = tmp_path_factory.mktemp("model") / "wide"
    torch.manual_seed(0)
    LlamaForCausalLM(tiny_config(hidden_size=64, head_dim=16)).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def wide_table(tiny_table: dict[str, Any], wide_model: Path) -> dict[str, Any]:
    return tiny_table | {"model": str(wide_model)}


def adapted(folder: Path, precision: Any, rank: int = 4) -> Any:
    """The model with an adapter whose B is not 0, as a trial stores it on a GPU."""
    import torch

    from howlow.engine import model as models
    from howlow.engine.execution import decide

    device = torch.device("cuda")
    storage = decide(device=device, precision=precision).storage
    base = loaded(folder, dtype=storage, device=device).requires_grad_(False)
    chosen: dict[str, Any] = {"rank": rank, "alpha": 2 * rank, "scaling": "standard", "dropout": 0.0, "seed": 0}
    modules = ["q_proj", "k_proj", "v_proj", "o_proj"]
    model = attach_lora(base, target_modules=modules, **chosen).to(device)
    torch.manual_seed(0)
    for name, parameter in models.trainable(model).items():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def test_work_goes_on_after_a_recording_that_failed() -> None:
    import torch

    from howlow.engine.cuda.graphs import CudaGraphs, drop_unused

    device = torch.device("cuda")
    number = torch.ones((), device=device)
    graphs, held = CudaGraphs(device), torch.cuda.memory_reserved()
    torch.manual_seed(5)
    expected = [torch.rand(4, device=device) for _ in range(2)]
    torch.manual_seed(5)
    assert torch.equal(torch.rand(4, device=device), expected[0])
    with pytest.raises(Exception, match=r"not permitted|unsupported|captur"):
        graphs.record(lambda: (torch.empty(64 << 20, device=device), number.item()))
    assert torch.cuda.current_stream() == torch.cuda.default_stream()
    assert torch.equal(torch.rand(4, device=device), expected[1]), "random numbers go on as if nothing was recorded"
    del expected
    drop_unused(device)
    assert torch.cuda.memory_reserved() <= held + (4 << 20), "what the recording took is given back"
    graphs = CudaGraphs(device)
    graphs.warm_up(lambda: number + 1)
    again = graphs.record(lambda: number + 1)
    number.fill_(4)
    assert again().item() == 5.0


def test_a_recording_in_which_memory_ran_out_gives_back_what_it_took() -> None:
    """CUDA can end it, and the graph of all that had been recorded would hold its memory."""
    import torch

    from howlow.engine.cuda.graphs import CudaGraphs, drop_unused

    def full() -> None:
        torch.empty(64 << 20, device=device).fill_(1)
        raise torch.OutOfMemoryError("CUDA out of memory")

    device = torch.device("cuda")
    graphs, held = CudaGraphs(device), torch.cuda.memory_reserved()
    with pytest.raises(torch.OutOfMemoryError):
        graphs.record(full)
    drop_unused(device)
    assert torch.cuda.memory_reserved() <= held + (4 << 20)
    number, graphs = torch.ones((), device=device), CudaGraphs(device)
    again = graphs.record(lambda: number + 1)
    number.fill_(4)
    assert again().item() == 5.0


@pytest.mark.parametrize(("precision", "layout"), [("bf16", "shared"), ("fp16-autocast", "padded")])
def test_every_form_of_a_step_is_the_plain_one(
    wide_model: Path, precision: Any, layout: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check before the first trial trusts joined, compiled and recorded steps, and they train as plain ones do."""
    import torch

    from howlow.engine import buckets, layouts, step_check
    from howlow.engine import model as models
    from howlow.engine.cuda.graphs import CudaGraphs
    from howlow.engine.execution import decide, running
    from howlow.engine.step_graphs import kept_weights
    from howlow.engine.tokens import TokenizedExample
    from howlow.engine.training import Optimization, Trainer

    monkeypatch.setattr(step_check, "PAYS", 1e9)  # whether a step of two tiny layers gains anything is not asked
    device, chance = torch.device("cuda"), torch.Generator().manual_seed(0)

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(0, 250, (count,), generator=chance).tolist())

    stems = [tokens(length) for length in (150, 160, 170, 40, 50, 60)]
    parts = [
        [TokenizedExample(f"{n}-{m}", str(n), stem + tokens(9 + m), (*tokens(3), 257)) for m in range(4)]
        for n, stem in enumerate(stems)
    ]
    sizes = [buckets.size_of(part, layout, 256, "completion") for part in parts]
    shapes, batches = buckets.choose_shapes(sizes, fills_rows=layout != "padded"), []
    for part, size in zip(parts, sizes, strict=True):
        bucket = shapes.of(size)
        assert bucket is not None
        batches.append(buckets.fill(layouts.lay_out(part, layout, 256, 0, "completion"), bucket, 0).pinned())
    options: dict[str, Any] = {"attention": "own" if layout == "padded" else "flex", "full_row": 256}
    plain = decide(device=device, precision=precision, **options)
    whole = decide(device=device, precision=precision, **options, joins_adapters=True, compiles=True, graphs=True)
    model = adapted(wide_model, precision).train()
    assert step_check.trusted(model, whole, *batches[:2], lambda: CudaGraphs(device)) == (whole, ())
    losses = []
    for execution in (plain, whole):
        with running(model, execution) as run, kept_weights(list(models.trainable(model).values())):
            trainer = Trainer(run, Optimization(learning_rate=1e-2))
            if execution.graphed:
                trainer.record(CudaGraphs(device), list({one.input_ids.shape: one for one in batches}.values()))
            steps = [batches[:2], batches[2:4], batches[4:]]
            losses.append([trainer.outcome(trainer.step(step)).loss for step in steps])
    assert losses[1] == pytest.approx(losses[0], rel=2e-2)


@pytest.mark.parametrize("compiles", [True, False])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_recorded_token_steps_write_what_plain_ones_do(
    wide_model: Path, tiny_tokenizer: Any, precision: Any, compiles: bool
) -> None:
    """In bf16 the many near ties of random weights write other texts; there the logits are compared alone."""
    import torch

    from howlow.engine import generation
    from howlow.engine.cuda.graphs import CudaGraphs
    from howlow.engine.decode_check import trusted_graphs
    from howlow.engine.decode_graphs import decode_shapes
    from howlow.engine.execution import decide, running
    from howlow.engine.tree_generation import lay_out_prompts

    device, new = torch.device("cuda"), 12
    execution = decide(device=device, precision=precision, attention="flex", compiles=True).for_generation()
    model = adapted(wide_model, precision).eval()
    batches = [[(*range(40, 60 + start), 65 + end) for end in range(9)] for start in (0, 150)]
    rows = [lay_out_prompts(one, share=True, max_new_tokens=new, keeps_paths=True) for one in batches]
    limits: dict[str, Any] = {"max_new_tokens": new, "stop": None, "eos": frozenset({257}), "pad_id": 0}
    with running(model, execution) as run, run.autocast():
        shapes = decode_shapes(batches, new)
        assert len(shapes) == 2
        given: dict[str, Any] = {"max_new_tokens": new, "recorder": lambda: CudaGraphs(device), "compiles": compiles}
        graphs, problems = trusted_graphs(run, shapes, rows, **given)
        assert problems == ()
        assert graphs is not None
        assert graphs.is_compiled is compiles
        for prompts, row in zip(batches, rows, strict=True):
            plain, recorded = (
                generation.generate(
                    run,
                    tiny_tokenizer,
                    prompts,
                    layout="shared",
                    prompt_length=256,
                    laid_out=row,
                    recorded=one,
                    **limits,
                )[0]
                for one in (None, graphs)
            )
            assert len(recorded) == len(plain)
            assert precision == "bf16" or recorded == plain


@pytest.mark.parametrize("stem_length", [150, 20])
@pytest.mark.parametrize("layout", ["packed", "shared"])
@pytest.mark.parametrize("kernel", ["flex", "sdpa"])
def test_layouts_on_cuda_have_the_losses_and_gradients_of_padded(
    wide_model: Path, layout: Any, kernel: Any, stem_length: int
) -> None:
    """FlexAttention's kernel and backward pass exist on a GPU only. The short stem's row is shorter than a block."""
    import torch

    from howlow.engine.execution import decide
    from howlow.engine.layout_check import problem_with, truth_about
    from howlow.engine.tokens import TokenizedExample

    model = loaded(wide_model, device=torch.device("cuda")).requires_grad_(False).eval()
    generator = torch.Generator().manual_seed(0)
    stem = tuple(torch.randint(0, 250, (stem_length,), generator=generator).tolist())
    examples = [
        TokenizedExample(str(n), "g", stem + tuple(torch.randint(0, 250, (9 + n,), generator=generator).tolist()), (5,))
        for n in range(5)
    ]
    own, execution = (
        decide(device=torch.device("cuda"), precision="fp32", attention=one, full_row=256) for one in ("own", kernel)
    )
    truth = truth_about(model, examples, own)
    assert problem_with(model, layout, truth, execution=execution, pad_id=0) is None


@pytest.mark.parametrize(
    ("heads", "key_heads", "width", "window", "softcap"), [(6, 2, 24, None, None), (7, 1, 96, 40, 30.0)]
)
def test_flex_attention_of_unusual_heads_is_sdpas(
    heads: int, key_heads: int, width: int, window: int | None, softcap: float | None
) -> None:
    """Widths, and queries for a key head, that are no powers of two; windows and caps; rows of one block and more."""
    import torch

    from howlow.engine.attention import tree_attention
    from howlow.engine.attention_context import Limits
    from howlow.engine.prefix_tree import build_prefix_tree

    chance, limits = torch.Generator("cuda").manual_seed(0), Limits(width**-0.5, window, None, softcap)
    for stem in (30, 200):
        tree, ids, _ = build_prefix_tree([(*range(stem), 500 + n, *range(9 + n)) for n in range(5)], share=True)
        shapes = [(1, count, ids.numel(), width) for count in (heads, key_heads, key_heads)]
        given = [torch.randn(shape, device="cuda", generator=chance).requires_grad_() for shape in shapes]
        upstream, found = torch.randn(shapes[0], device="cuda", generator=chance), []
        for kernel in ("flex", "sdpa"):
            context = tree_attention(tree.to(torch.device("cuda")), kernel, 0, {(window, None)})
            result = context.attend(*given, limits)
            found.append((result, *torch.autograd.grad(result, given, upstream)))
        for one, other in zip(*found, strict=True):
            assert float((one - other).norm()) <= 5e-3 * float(other.norm())


def test_a_steps_masks_are_recorded_with_it(tmp_path: Path) -> None:
    """Layers with a sliding window are given a mask of transformers' own in `padded`."""
    import torch
    from transformers import MistralConfig, MistralForCausalLM

    from howlow.engine import buckets, layouts, step_check
    from howlow.engine.cuda.graphs import CudaGraphs
    from howlow.engine.execution import decide
    from howlow.engine.tokens import TokenizedExample

    sizes: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 64, "vocab_size": 256, "num_hidden_layers": 2}
    heads: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2, "sliding_window": 40}
    MistralForCausalLM(MistralConfig(**sizes, **heads)).save_pretrained(tmp_path)
    examples = [TokenizedExample(str(n), "", tuple(range(3, 90 + n)), (7, 8, 9)) for n in range(4)]
    given = [layouts.lay_out(part, "padded", 128, 0, "completion") for part in (examples[:2], examples[2:])]
    shapes = buckets.choose_shapes([buckets.size_of_batch(batch) for batch in given], fills_rows=False)
    batches = [buckets.fill(batch, shapes.shapes[0], 0).pinned() for batch in given]
    device = torch.device("cuda")
    execution = decide(device=device, precision="bf16", attention="own", full_row=128, joins_adapters=True, graphs=True)
    found = step_check.trusted(
        adapted(tmp_path, "bf16").train(), execution, *batches, lambda: CudaGraphs(device), has_to_pay=False
    )
    assert found == (execution, ())


@pytest.fixture(scope="module")
def trials(wide_table: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[Any, Any], Path]:
    """The records of a plain and of a compiled trial, by their setting, and their folder."""
    changes = {
        "grid": {"lora.rank": [4], "training.compile": [False, "auto"]},
        "baselines": [],
        "training": {"epochs": 40, "layout": "shared"},
    }
    out = tmp_path_factory.mktemp("trials") / "out"
    records = howlow.sweep(load(None, [merge(wide_table, changes)]), out).records
    return {record.settings.training.compile: record for record in records}, out


@pytest.mark.timeout(120)
def test_compiled_and_recorded_trials_are_the_plain_ones(trials: tuple[dict[Any, Any], Path]) -> None:
    from howlow.records import WarningKind, read_lines

    (records, out), found = trials, {}
    for compiled, record in records.items():
        assert record.status == "done", record.error
        assert WarningKind.PLAINER_STEPS not in [warning.kind for warning in record.warnings], record.warnings
        resolved = record.resolved
        assert (resolved.joined_adapters, resolved.compiled, resolved.graphed) == (bool(compiled),) * 3
        assert (resolved.generation_compiled, resolved.generation_graphed) == (bool(compiled),) * 2
        assert resolved.attention_kernel == "flex"
        steps = read_lines(out / "trials" / record.trial / "steps.jsonl")
        found[compiled] = [step["loss"] for step in steps if step["phase"] == "train"][:20]
    assert found["auto"] == pytest.approx(found[False], rel=1e-2)


@pytest.mark.parametrize("compiled", ["auto", False])
def test_a_trial_on_cuda_has_peaks_power_and_energy(trials: tuple[dict[Any, Any], Path], compiled: Any) -> None:
    record = trials[0][compiled]
    assert record.status == "done", record.error
    assert record.environment is not None
    assert record.environment.device.startswith("cuda")
    assert record.environment.device_uuid
    assert record.resolved.precision == "bf16"
    train = record.phase("train")
    assert train is not None
    assert train.peak_allocated_bytes
    assert train.peak_reserved_bytes
    assert train.peak_memory_bytes
    assert record.energy is not None
    if record.energy.name is None:
        pytest.skip(f"no energy here: {record.energy.detail}")
    assert (train.energy_j("measured") or 0) > 0


def test_the_trials_own_device_is_found_by_its_uuid(tmp_path: Path) -> None:
    import torch

    from howlow.meters.nvml import device_uuids
    from howlow.meters.sources import Asked, open_energy, own_uuid

    device = torch.device("cuda:0")
    assert own_uuid(device) in device_uuids()[0]
    meter = open_energy(Asked("auto", device))
    assert [instrument.device for instrument in meter.instruments] == ["cuda:0"]


def test_the_counter_agrees_with_the_integrated_power(tmp_path: Path) -> None:
    import torch

    from howlow.meters.energy import EnergyMeter, window_energy
    from howlow.meters.energy_bounds import BoundedEnergy
    from howlow.meters.session import Session
    from howlow.meters.sources import Asked, open_energy

    device = torch.device("cuda:0")
    meter = open_energy(Asked("nvml", device))
    if meter.kind != "counter":
        pytest.skip("this GPU has no energy counter")
    power = EnergyMeter("nvml power", "the same device", "power", meter.instruments)
    matrix = torch.randn(8192, 8192, device=device)
    with Session(tmp_path, device, meter, 20.0, 0.0) as session, session.phase("train") as phase:
        for step in range(40):
            with phase.step(measured=step >= 4, samples=1) as timed:
                for _ in range(20):
                    torch.mm(matrix, matrix)
            if step == 4:
                start_s = timed.start_s
        end_s = timed.start_s + timed.duration_s
        record = phase.end()
        traces = [reader.readings for reader in session.sensors.of(meter)]
        report = session.report(None)
    integrated = window_energy(power, traces, start_s, end_s)
    assert isinstance(integrated, BoundedEnergy)
    assert record.energy_j("measured") == pytest.approx(integrated.energy_j, rel=0.03)
    assert report.step_share is not None
    assert report.step_share < 0.005


def test_the_allocators_cap_gives_out_of_memory(tiny_table: dict[str, Any], tmp_path: Path) -> None:
    changes = {
        "grid": {"lora.rank": [1]},
        "baselines": [],
        "training": {"sequence_length": 512, "head": "all", "batch_size": 24},
        "run": {"memory_limit_bytes": 20_000_000},
    }
    (record,) = howlow.sweep(load(None, [merge(tiny_table, changes)]), tmp_path / "out").records
    assert record.status == "out_of_memory"


def test_the_largest_batches_are_found_up_to_real_out_of_memory(tiny_table: dict[str, Any], tmp_path: Path) -> None:
    data = tmp_path / "many.json"
    data.write_text(json.dumps(squad_document(2000, name="many")), encoding="utf-8")
    limit_bytes = 600_000_000
    changes = {
        "grid": {"lora.rank": [4]},
        "baselines": [],
        "task": {"train": str(data)},
        "training": {"batch_size": "max", "layout": "padded", "head": "all", "max_steps": 2},
        "inference": {"batch_size": "max"},
        "run": {"memory_limit_bytes": limit_bytes},
    }
    (record,) = howlow.sweep(load(None, [merge(tiny_table, changes)]), tmp_path / "out").records
    assert record.status == "done", record.error
    training, inference = record.batch_search
    assert (training.setting, inference.setting) == ("training.batch_size", "inference.batch_size")
    assert training.batch == record.resolved.train_batch_size
    failed = [probe.batch for probe in training.probes if not probe.fits]
    assert min(failed) == (training.batch or 0) + 1, "one more does not fit"
    for phase in record.phases:
        assert (phase.peak_reserved_bytes or 0) <= limit_bytes
    assert sum(probe.peak_memory_bytes is None for probe in training.probes) >= 1, "memory really ran out"
    assert (training.processes or 0) <= 3, "one that probes, one that confirms, and once more if that fails"


def test_the_next_ranks_search_compiles_nothing(tiny_table: dict[str, Any], tmp_path: Path) -> None:
    data = tmp_path / "many.json"
    data.write_text(json.dumps(squad_document(2000, name="many")), encoding="utf-8")
    changes = {
        "grid": {"lora.rank": [4, 8]},
        "baselines": [],
        "task": {"train": str(data)},
        "training": {"batch_size": "max", "layout": "padded", "head": "all", "max_steps": 2, "compile": True},
        "run": {"memory_limit_bytes": 600_000_000, "order_seed": 0},
    }
    records = howlow.sweep(load(None, [merge(tiny_table, changes)]), tmp_path / "out").records
    assert [record.status for record in records] == ["done", "done"], [record.error for record in records]
    searches = [record.batch_search[0] for record in records]
    first, next_one = sorted(searches, key=lambda search: -(search.compilations or 0))
    assert sum(bool(probe.whole) for probe in first.probes) == 1
    assert first.compilations
    assert first.whole_takes_more_bytes is not None
    margin = first.limit_bytes - first.budget_bytes
    if first.whole_takes_more_bytes <= margin:
        assert next_one.compilations == 0
        assert (next_one.processes or 0) <= 2
    for search in searches:
        assert search.duration_s is not None
        assert (search.duration_s.compile > 0) == (search is first)


def test_segments_expand_where_memory_is_bounded() -> None:
    code = """
import torch
from howlow.memory.limits import give_back, limit_memory, map_pages
device = torch.device("cuda:0")
map_pages(device)
limit_memory(400 << 20, device)
kept = torch.empty(8 << 20, dtype=torch.uint8, device=device)
before = give_back(device)
for _ in range(3):
    try:
        parts = [torch.empty(32 << 20, dtype=torch.uint8, device=device) for _ in range(64)]
    except torch.OutOfMemoryError:
        pass
    assert give_back(device) == before, (give_back(device), before)
assert all(segment["is_expandable"] for segment in torch.cuda.memory_snapshot())
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_losses_on_cuda_are_those_on_the_cpu(tiny_table: dict[str, Any], tmp_path: Path) -> None:
    from howlow.records import read_lines

    found = {}
    for device in ("cpu", "cuda"):
        changes = {"grid": {"lora.rank": [4]}, "baselines": [], "training": {"precision": "fp32"}}
        table = merge(merge(tiny_table, changes), {"run": {"device": device}})
        howlow.sweep(load(None, [table]), tmp_path / device)
        steps = read_lines(tmp_path / device / "trials/r0004-s0/steps.jsonl")
        found[device] = [step["loss"] for step in steps if step["phase"] == "train"]
    assert found["cuda"] == pytest.approx(found["cpu"], rel=1e-3)
