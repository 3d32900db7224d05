"""Compare our training with common libraries, in the same run, on the same examples and optimizer steps.

    python benchmarks/training.py [--passes N] [--examples N] [--only squad|wikitext|ranks|gemm] [--quick]

SmolLM2-135M in fp32, LoRA r = 8 and alpha = 16 on q, k, v, o, AdamW at 5e-5, 40 examples a step, real data. Contenders:

    trainer padded   PEFT and transformers' Trainer, every row padded to 512 (the paper's way)
    trl sorted       TRL's SFTTrainer, dynamic padding, the examples sorted by length
    trl packed       TRL's SFTTrainer, best-fit-decreasing packing into rows of 512, one row a micro-batch (by default
                     it flattens a step's rows into one, which squares the attention's work on a CPU)
    howlow packed    in rows of 8 examples, accumulated as the peers do
    howlow shared    a step's examples in one row
    howlow shared 8  the same examples in steps of 8, which split paragraphs and therefore share less
    ... bf16         the same in bf16, where the CPU has AMX

The peers accumulate batches of 8. TRL computes the head at target positions only. Its two contenders use the same
examples and number of optimizer steps, in the order that suits them. `trainer padded` and ours have identical steps
(except `howlow shared 8`), and their losses and gradient norms must be equal. As installed, only `trainer padded` and
`howlow shared` are timed.

The share of the peak is useful FLOPs / time / the machine's fp32 matrix-multiplication rate of the same round:

    linear      4 * (linear parameters without the head) * tokens computed     y = x W^T and dx = dy W: W is frozen
    head        4 * vocabulary * width * positions with a target
    attention   12 * heads * dimension * layers * (query, key) pairs that are not masked    2 products forward, 4 back

The adapter's products and recomputation do not count as useful. The rank curve is the step time of `shared` at each
rank, divided by that of the frozen model without an adapter: forward, and backward down to the embeddings.

The last line is one JSON document.
"""

import json
import math
import os
import random
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import peers
from peers import BATCH_SIZE, INSTALLED, LENGTH, STEP_SIZE, WARM, Reply, ratio, spread, talk

PEERS = ("trainer padded", "trl sorted", "trl packed")
OURS = ("howlow packed", "howlow shared", "howlow shared 8")
CONTENDERS = {
    ("squad", WARM): (*PEERS, *OURS),
    ("squad", INSTALLED): (PEERS[0], "howlow shared"),
    ("wikitext", WARM): (*PEERS, "howlow packed"),
}
IN_BF16 = ("trainer padded bf16", "howlow shared bf16")
"""Where the CPU has AMX. The base's weights are stored in bf16, products run under autocast, adapters are fp32."""
RANKS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
LEARNING_RATE = 5e-5


def examples_of(data: str, count: int, step_size: int = STEP_SIZE) -> list[list[Any]]:
    """Return the examples of every optimizer step, in the default order of training."""
    from howlow.engine import order

    examples = (peers.squad(count, 8) if data == "squad" else peers.wikitext(count)).train
    plan = order.steps([example.group for example in examples], "groups", 0, 1, step_size)
    return [[examples[index] for index in step] for step in plan]


# -- peers ------------------------------------------------------------------------------------------------------------


def peer(name: str, column: str, count: int) -> Callable[[Reply], Reply]:
    """Make a worker that trains through a Trainer of transformers or TRL."""
    base, tokenizer = peers.base_model("bfloat16" if name.endswith("bf16") else "float32")
    model, heap, trainers, examples_by_data = peers.adapted(base), peers.Heap(column, ours=False), {}, {}
    initial = {name: value.detach().clone() for name, value in model.named_parameters() if value.requires_grad}

    def answer(request: Reply) -> Reply:
        data, warm_up = request["data"], request["warm_up"]
        if data not in trainers:
            trainers.clear()
            examples_by_data[data] = examples_of(data, count)
            trainers[data] = _trainer(name, model, tokenizer, examples_by_data[data])
        trainer, timer = trainers[data]
        for parameter, value in initial.items():
            model.get_parameter(parameter).data.copy_(value)
        trainer.optimizer = trainer.lr_scheduler = None
        trainer.args.max_steps = 1 if warm_up else -1
        accumulated = trainer.args.gradient_accumulation_steps
        trainer.args.gradient_accumulation_steps = 1 if warm_up else accumulated
        heap.before(warm_up)
        timer.losses.clear()
        timer.norms.clear()
        trainer.train()
        trainer.optimizer = trainer.lr_scheduler = None
        trainer.args.gradient_accumulation_steps = accumulated
        losses = [float(loss) for loss in timer.losses]
        per_step = trainer.args.gradient_accumulation_steps
        steps = [sum(losses[first : first + per_step]) for first in range(0, len(losses), per_step)]
        usage, samples = heap.after(warm_up), sum(map(len, examples_by_data[data]))
        norms = [float(norm) for norm in timer.norms]
        return {"time_s": timer.end_s - timer.start_s, "samples": samples, "losses": steps, "norms": norms, **usage}

    return answer


def _trainer(name: str, model: Any, tokenizer: Any, steps: Sequence[Sequence[Any]]) -> tuple[Any, Any]:
    import tempfile

    from transformers import TrainerCallback

    class Timer(TrainerCallback):
        """Times from the request for the first batch to the end of the last step."""

        losses: list[Any] = []  # noqa: RUF012
        norms: list[Any] = []  # noqa: RUF012
        start_s = end_s = 0.0

        def on_epoch_begin(self, *_: Any, **__: Any) -> None:
            self.start_s = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.end_s = time.perf_counter()

    timer, examples = Timer(), [example for step in steps for example in step]
    arguments = {
        "output_dir": tempfile.mkdtemp(prefix="howlow-benchmark-"),
        "per_device_train_batch_size": BATCH_SIZE,
        "gradient_accumulation_steps": STEP_SIZE // BATCH_SIZE,
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "num_train_epochs": 1,
        "train_sampling_strategy": "sequential",
        "optim": "adamw_torch",
        "use_cpu": True,
        "bf16": name.endswith("bf16"),
        "gradient_checkpointing": False,
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
    }
    if name.startswith("trainer padded"):
        trainer = _padded_trainer(model, arguments, examples, timer)
    else:
        trainer = _trl_trainer(name, model, tokenizer, arguments, steps, timer)
    inner = trainer.training_step

    def training_step(*args: Any, **options: Any) -> Any:
        loss = inner(*args, **options)
        timer.losses.append(loss)
        return loss

    clip_inner = trainer.accelerator.clip_grad_norm_

    def clip(*args: Any, **options: Any) -> Any:
        norm = clip_inner(*args, **options)
        timer.norms.append(norm)
        return norm

    trainer.training_step, trainer.accelerator.clip_grad_norm_ = training_step, clip
    return trainer, timer


def _padded_trainer(model: Any, arguments: dict[str, Any], examples: Sequence[Any], timer: Any) -> Any:
    from transformers import Trainer, TrainingArguments

    settings = TrainingArguments(**arguments, remove_unused_columns=False)
    rows = [peers.row(example) for example in examples]
    return Trainer(model=model, args=settings, train_dataset=rows, data_collator=peers.padded, callbacks=[timer])


def _trl_trainer(
    name: str, model: Any, tokenizer: Any, arguments: dict[str, Any], steps: Sequence[Sequence[Any]], timer: Any
) -> Any:
    from datasets import Dataset, disable_progress_bars
    from trl import SFTConfig, SFTTrainer
    from trl.data_utils import pack_dataset

    disable_progress_bars()
    examples = [example for step in steps for example in step]
    if name == "trl sorted":
        examples.sort(key=lambda example: example.length)
    rows = Dataset.from_list([peers.row(example) for example in examples])
    if name == "trl packed":
        packed_rows = len(pack_dataset(rows, LENGTH, "bfd"))
        arguments |= {
            "packing": True,
            "packing_strategy": "bfd",
            "per_device_train_batch_size": 1,
            "gradient_accumulation_steps": math.ceil(packed_rows / len(steps)),
        }
    settings = SFTConfig(**arguments, max_length=LENGTH)
    return SFTTrainer(model=model, args=settings, train_dataset=rows, processing_class=tokenizer, callbacks=[timer])


# -- ours -------------------------------------------------------------------------------------------------------------


def ours(name: str, column: str, count: int) -> Callable[[Reply], Reply]:
    """Make a worker that trains as a trial does (`howlow.trial.fine_tuning`)."""
    import torch

    from howlow.engine import layouts
    from howlow.engine import model as models

    heap, layout, is_bf16 = peers.Heap(column, ours=True), name.split()[1], name.endswith("bf16")
    step_size = 8 if name.endswith(" 8") else STEP_SIZE
    base, _ = peers.base_model("bfloat16" if is_bf16 else "float32")
    model, plans = peers.adapted(base), {}
    initial = {name: value.detach().clone() for name, value in models.trainable(model).items()}
    model.train()

    def answer(request: Reply) -> Reply:
        data, warm_up = request["data"], request["warm_up"]
        if data not in plans:
            plans[data] = examples_of(data, count, step_size)
        steps = plans[data][: 1 if warm_up else None]
        for parameter, value in initial.items():
            model.get_parameter(parameter).data.copy_(value)
        heap.before(warm_up)
        losses, norms, work = [], [], []
        with heap.running(model, "bf16" if is_bf16 else "fp32") as run:
            trainer = _our_trainer(run)
            start_s = time.perf_counter()
            for step in steps:
                size = BATCH_SIZE if layout == "packed" else len(step)
                parts = [step[start : start + size] for start in range(0, len(step), size)]
                batches = [layouts.lay_out(part, layout, LENGTH, 0, "completion") for part in parts]
                outcome = trainer.outcome(trainer.step(batches))
                losses.append(outcome.loss)
                norms.append(outcome.gradient_norm)
                work += batches
            time_s = time.perf_counter() - start_s
        usage = heap.after(warm_up)
        return {"time_s": time_s, "losses": losses, "norms": norms, **usage, **_counts(model, work)}

    torch.manual_seed(0)
    return answer


def _our_trainer(run: Any) -> Any:
    from howlow.engine.training import Optimization, Trainer

    return Trainer(run, Optimization(learning_rate=LEARNING_RATE))


def _counts(model: Any, work: Sequence[Any]) -> Reply:
    """Count the tokens and useful FLOPs of a pass."""
    from howlow.engine import model as models

    config = models.base_of(model).config
    linear, linear_flops = peers.linear_flops(model, work)
    dimension = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    tokens, positions = sum(batch.computed_tokens for batch in work), sum(batch.predictors.numel() for batch in work)
    pairs = sum(_pairs(batch) for batch in work)
    return {
        "real_tokens": sum(batch.tokens for batch in work),
        "computed_tokens": tokens,
        "target_positions": positions,
        "samples": sum(batch.samples for batch in work),
        "attention_pairs": pairs,
        "linear_parameters": linear,
        "linear_flops": linear_flops,
        "head_flops": 4 * config.vocab_size * config.hidden_size * positions,
        "attention_flops": 12 * config.num_attention_heads * dimension * config.num_hidden_layers * pairs,
    }


def _pairs(batch: Any) -> int:
    """Count the (query, key) pairs that are not masked: key j is visible to itself and all up to `visible_until[j]`."""
    import torch

    until = batch.tree.visible_until
    return int((until - torch.arange(until.numel())).sum())


# -- the machine's peak -----------------------------------------------------------------------------------------------


def gemm(_: str, __: str, ___: int) -> Callable[[Reply], Reply]:
    """Make a worker that measures the best rate of matrix multiplication by torch and by oneDNN."""
    import torch

    def rate(product: Callable[[], Any], flops: int, repeats: int) -> float:
        best = math.inf
        for _ in range(repeats):
            start_s = time.perf_counter()
            product()
            best = min(best, time.perf_counter() - start_s)
        return flops / best / 1e9

    def linear(x: Any, weight: Any) -> Any:
        return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")

    size, rows = 2048, (512, 1024)
    shapes = ((576, 576), (576, 192), (576, 1536), (1536, 576), (576, 49152))  # (in, out) of SmolLM2-135M
    kinds = [("fp32", torch.float32), *([("bf16", torch.bfloat16)] if peers.has_amx() else [])]
    squares = {kind: [torch.randn(size, size).to(dtype) for _ in range(2)] for kind, dtype in kinds}
    weights = {shape: torch.randn(shape[1], shape[0]) for shape in shapes}

    def answer(request: Reply) -> Reply:
        start_s, found = time.perf_counter(), {}
        for kind, (one, other) in squares.items():
            found[f"{kind}_mm_2048_gflops"] = rate(lambda one=one, other=other: one @ other, 2 * size**3, 8)
        for (inside, outside), weight in weights.items():
            best = 0.0
            for count in rows if outside < size else (256,):
                x = torch.randn(count, inside)
                flops = 2 * count * inside * outside
                best = max(best, rate(lambda x=x, weight=weight: linear(x, weight), flops, 12))
            found[f"fp32_onednn_{inside}x{outside}_gflops"] = best
        found["fp32_peak_gflops"] = max(value for key, value in found.items() if key.startswith("fp32"))
        return found | {"time_s": time.perf_counter() - start_s}

    return answer


# -- ranks ------------------------------------------------------------------------------------------------------------


def ranks(_: str, column: str, count: int) -> Callable[[Reply], Reply]:
    """Make a worker that times one `shared` step at each rank, and without an adapter."""
    from howlow.engine import layouts, loss

    heap, shuffled = peers.Heap(column, ours=True), random.Random(0)
    base, _ = peers.base_model()
    batch = layouts.lay_out(examples_of("squad", count)[0], "shared", LENGTH, 0, "completion")

    def frozen_step() -> None:
        """Run forward, and backward to the embeddings' output, which is set to require a gradient."""
        hook = base.get_input_embeddings().register_forward_hook(lambda _, __, output: output.requires_grad_())
        with heap.running(base) as run, run.batch(batch):
            _, total = loss.target_losses(base, batch, "targets", 1 / batch.target_tokens)
            total.backward()
        hook.remove()

    def timed(rank: int) -> float:
        if rank == 0:
            return min(_seconds(frozen_step) for _ in range(2))
        model = peers.adapted(base, rank)
        model.train()
        with heap.running(model) as run:
            trainer = _our_trainer(run)
            step = partial(trainer.step, [batch])
            found = min(_seconds(lambda: trainer.outcome(step())) for _ in range(2))  # the first makes AdamW's state
        model.unload()
        return found

    def answer(request: Reply) -> Reply:
        warm_up = request["warm_up"]
        heap.before(warm_up)
        start_s = time.perf_counter()
        order = [0, 8] if warm_up else [0, *RANKS]
        shuffled.shuffle(order)
        step_s = {str(rank): timed(rank) for rank in order}
        return {"step_s": step_s, "time_s": time.perf_counter() - start_s, **heap.after(warm_up)}

    return answer


def _seconds(work: Callable[[], Any]) -> float:
    start_s = time.perf_counter()
    work()
    return time.perf_counter() - start_s


# -- report -----------------------------------------------------------------------------------------------------------


def compare(data: str, column: str, passes: int, count: int) -> Reply:
    """Compare the contenders on one data set in one column, and print one table."""
    names = [*CONTENDERS[data, column], *(IN_BF16 if peers.has_amx() and data == "squad" else [])]
    ours_names = ["gemm", *(name for name in names if name.startswith("howlow"))]

    def start_one(name: str) -> peers.Worker:
        return peers.start(__file__, [name], column, "--examples", str(count), ours=ours_names)[name]

    # A pass of `trainer padded` takes 12 GiB: beside seven loaded models it would not fit into 16.
    found = peers.turns(start_one, [*names, "gemm"], passes, {"data": data}, cold=["gemm"])
    return _report(data, column, count, names, found)


def _report(data: str, column: str, count: int, names: Sequence[str], found: dict[str, list[Reply]]) -> Reply:
    rates = {name: [one["samples"] / one["time_s"] for one in found[name]] for name in names}
    trl = max((name for name in names if name in PEERS[1:]), key=lambda name: spread(rates[name]).median, default=None)
    reference = found[PEERS[0]][0]
    rows = [["", "samples/s", f"x {PEERS[0]}", f"x {trl or 'TRL'}", "peak RSS GiB", "loss, gradient norm"]]
    document: Reply = {"data": data, "column": column, "examples": count, "best_trl": trl, "contenders": {}}
    for name in names:
        same = name == PEERS[0] or name in ("howlow packed", "howlow shared")
        apart = [_apart(found[name][0][key], reference[key], same) for key in ("losses", "norms")]
        peak = max(one["peak_bytes"] for one in found[name])
        to_padded = ratio(rates[name], rates[PEERS[0]])
        to_trl = ratio(rates[name], rates[trl]) if trl else None
        said = "equal within {:.1e}, {:.1e}" if same else "mean within {:.1e}, {:.1e}"
        said = "reference" if name == PEERS[0] else said.format(*apart)
        cells = [str(spread(rates[name])), str(to_padded), str(to_trl) if to_trl else "n/a"]
        rows.append([name, *cells, f"{peak / 2**30:.2f}", said])
        document["contenders"][name] = {
            "samples_per_s": spread(rates[name]).document(),
            "ratio_to_padded": to_padded.document(),
            "ratio_to_best_trl": to_trl.document() if to_trl else None,
            "peak_rss_bytes": peak,
            "loss_difference": apart[0],
            "gradient_norm_difference": apart[1],
            "passes": found[name],
        }
    print(
        f"\n{data}, {column}: {count} examples, {len(reference['losses'])} optimizer steps a pass, "
        f"{len(found['gemm'])} passes"
    )
    peers.table(rows)
    if set(IN_BF16) <= set(names):
        in_bf16 = ratio(*(rates[name] for name in reversed(IN_BF16)))
        print(f"in bf16, howlow shared over trainer padded: {in_bf16}")
        document["ratio_to_padded_in_bf16"] = in_bf16.document()
    document["gemm"] = found["gemm"]
    document["peak_share"] = {
        name: _share(name, found) for name in names if name.startswith("howlow") and "bf16" not in name
    }
    return document


def _apart(ours: Sequence[float], theirs: Sequence[float], same: bool) -> float:
    """Compute the largest relative difference over the steps or, where the steps differ, that of the means."""
    if same:
        return max(abs(one - other) / abs(other) for one, other in zip(ours, theirs, strict=True))
    return abs(sum(ours) / len(ours) / (sum(theirs) / len(theirs)) - 1)


def _share(name: str, found: dict[str, list[Reply]]) -> Reply:
    """Compute the share of the peak, each round against its own peak."""
    parts = ("linear", "head", "attention")
    one = found[name][0]
    flops = {part: one[f"{part}_flops"] for part in parts}
    rates = [sum(flops.values()) / run["time_s"] / 1e9 for run in found[name]]
    shares = ratio(rates, [run["fp32_peak_gflops"] for run in found["gemm"]])
    told = ", ".join(f"{part} {value / 1e9:.0f}" for part, value in flops.items())
    print(
        f"{name}: {one['real_tokens']} tokens as {one['computed_tokens']} computed; useful GFLOP: {told}; "
        f"{spread(rates)} GFLOP/s = {shares} of the peak"
    )
    return {"useful_flops": flops, "gflops": spread(rates).document(), "share": shares.document()}


def show_gemm(readings: Sequence[Reply]) -> Reply:
    """Print the machine's rates over all rounds."""
    keys = [key for key in readings[0] if key.endswith("_gflops")]
    found = {key: spread([reading[key] for reading in readings]) for key in keys}
    print("\nmatrix multiplication, GFLOP/s")
    peers.table([["", "median (range)"], *([key.removesuffix("_gflops"), str(value)] for key, value in found.items())])
    if not peers.has_amx():
        print("bf16: absent, this CPU has no AMX")
    return {key: value.document() for key, value in found.items()}


def show_ranks(passes: int, count: int) -> Reply:
    worker = peers.start(__file__, ["ranks"], WARM, "--examples", str(count), ours=["ranks"])
    found = peers.rounds(worker, passes, {})["ranks"]
    worker["ranks"].end()
    frozen = [one["step_s"]["0"] for one in found]
    print("\nthe rank curve, howlow shared: step time over the frozen model's without an adapter")
    rows, document = [["rank", "step s", "x no adapter"]], {}
    for rank in (0, *RANKS):
        times = [one["step_s"][str(rank)] for one in found]
        rows.append([str(rank) if rank else "none", str(spread(times)), str(ratio(times, frozen))])
        document[str(rank)] = {"step_s": times, "ratio": ratio(times, frozen).document()}
    peers.table(rows)
    return document


# -- entries ----------------------------------------------------------------------------------------------------------


def work(name: str, column: str, count: int) -> None:
    """Run as a worker process."""
    import warnings

    import torch

    warnings.filterwarnings("ignore")
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or torch.get_num_threads()))
    special = {"gemm": gemm, "ranks": ranks}
    make = special.get(name, ours if name.startswith("howlow") else peer)
    peers.serve(make(name, column, count))


def main() -> None:
    parser = peers.parser(__doc__)
    parser.add_argument("--examples", type=int, default=STEP_SIZE, help=f"examples a pass; {STEP_SIZE} make a step")
    parser.add_argument("--only", choices=["squad", "wikitext", "ranks", "gemm"], help="only this part")
    asked = parser.parse_args()
    if asked.worker:
        work(asked.worker, asked.column, asked.examples)
        return
    passes, count = (1, min(8, asked.examples)) if asked.quick else (asked.passes, asked.examples)
    start_s, document = time.perf_counter(), {"benchmark": "training", "machine": peers.machine(), "comparisons": []}
    readings: list[Reply] = []
    for data, column in CONTENDERS:
        if asked.only in (None, data) and asked.column in (None, column):
            talk(f"{data}, {column}")
            found = compare(data, column, passes if (data, column) == ("squad", WARM) else max(1, passes - 1), count)
            document["comparisons"].append(found)
            readings += found["gemm"]
    if asked.only == "gemm":
        meter = peers.start(__file__, ["gemm"], WARM, ours=["gemm"])["gemm"]
        readings = [meter.ask(warm_up=False) for _ in range(passes)]
        meter.end()
    if readings:
        document["gemm"] = show_gemm(readings)
    if asked.only in (None, "ranks"):
        document["ranks"] = show_ranks(passes, min(STEP_SIZE, count))
    document["wall_s"] = round(time.perf_counter() - start_s, 1)
    print(json.dumps(document))


if __name__ == "__main__":
    sys.exit(main())
