"""Check every claim that only a GPU can check, in under nine minutes. Run this first where a GPU is available.

    python benchmarks/gpu.py [--only CHECK ...] [--dry-run] [--work DIR]

Each check is a process of its own with a time limit, so one that fails or hangs does not stop the others.
In this order:

    machine   `howlow env`
    engine    steps of LLaMA-3.2-1B's and 3.1-8B's architecture in `shared`, 40 and 160 questions: plain, with compiled
              layers, and as CUDA graphs; what compiling and recording take once
    tests     pytest -m gpu: losses and gradients of the layouts with FlexAttention's kernels, the allocator's cap, the
              device found by its UUID, the energy counter against the integrated power (within 3 %)
    meters    meter_overhead.py at 4 and 20 Hz: what questions to NVML take, and the meters' share of the steps' time
              (at 4 Hz at most 0.5 %) and of a core (at most 1 %)
    layouts   fine-tuning LLaMA-3.2-1B's architecture (random weights, bf16, r = 8): PEFT with transformers' Trainer
              padded to 512 against `padded`, `packed` and `shared`: samples/s, and the share of the bf16 peak
    systems   the paper's systems study on LLaMA-3.1-8B's architecture (random weights): ranks 1 and 512 padded to 512,
              with the head at every position, and one rank in `shared`: throughput, energy, power, memory, utilisation
    batch     training.batch_size = "max" until a probe really runs out of memory, with every probe
    search    the same for two ranks of LLaMA-3.1-8B's architecture: the seconds of each search, split into starting
              processes, choosing batches, loading, compiling, probing and confirming; at most 90 s for the first rank
              and 30 s for the next

Data: SQuAD from `HOWLOW_TEST_DATA` (default ../shared/data), else questions that this script makes up; the document
says which. `--dry-run` uses tiny models and few steps on any device, to see whether the script runs. The last line is
one JSON document. What a check could not do is an error in it, never a number, and the exit code is 1.
"""

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import peers
from peers import BATCH_SIZE, LENGTH, STEP_SIZE, Reply

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
LIMITS_S = {"machine": 30, "engine": 240, "tests": 140, "meters": 60, "layouts": 90, "systems": 130}
LIMITS_S |= {"batch": 85, "search": 200}
TOKENIZER = "HOWLOW_BENCHMARK_TOKENIZER"
SMALL, LARGE = "llama-3.2-1b", "llama-3.1-8b"
LAYOUTS = ("padded", "packed", "shared")
SEARCH_S = (90.0, 30.0)  # what a search may take for the first rank, and for the next
STEP_SHARE, CORE_SHARE = 0.005, 0.01  # what the meters may take at 4 Hz


# -- the parent -------------------------------------------------------------------------------------------------------


def run_check(name: str, work: Path, is_dry: bool) -> Reply:
    """Run one check in its own process; return its answer, or what went wrong."""
    answer = work / f"{name}.json"
    command = [sys.executable, __file__, "--check", name, "--work", str(work), *(["--dry-run"] if is_dry else [])]
    command += ["--tokenizer", os.environ[TOKENIZER]] if TOKENIZER in os.environ else []
    limit_s = 600 if is_dry else LIMITS_S[name]
    started_s = time.monotonic()
    with (work / f"{name}.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            status: int | str = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.wait()
            status = f"stopped after {limit_s} s"
    found: Reply = {"time_s": round(time.monotonic() - started_s, 1)}
    if answer.exists():  # a check that was stopped has what it found so far
        found |= json.loads(answer.read_text())
    if status != 0 and "error" not in found:
        tail = (work / f"{name}.log").read_text(errors="replace").strip().splitlines()[-8:]
        found["error"] = f"status {status}: " + " | ".join(tail)
    return found


def tell(name: str, found: Reply) -> None:
    print(f"\n{name} ({found['time_s']} s)", flush=True)
    for key, value in found.items():
        if key != "time_s":
            print(f"  {key}: {json.dumps(value) if isinstance(value, dict | list) else value}", flush=True)


# -- what the checks share --------------------------------------------------------------------------------------------


def questions(work: Path) -> tuple[str, str, str]:
    """Return the training file, the test file, and where they come from."""
    folder = peers.data_folder() / "squad"
    train, test = folder / "dev-v1.1.json", folder / "dev-v2.0.json"
    if train.exists() and test.exists():
        return str(train), str(test), "SQuAD's development sets"
    made = work / "questions.json"
    paragraphs = [_paragraph(number) for number in range(200)]
    made.write_text(json.dumps({"version": "1.1", "data": [{"title": "made up", "paragraphs": paragraphs}]}))
    return str(made), str(made), "made-up questions, five to a paragraph of 120 words"


def _paragraph(number: int) -> Reply:
    rooms = [f"Room {number}-{room} holds {room + 2} red balls and {number + room} blue cubes." for room in range(12)]
    context = " ".join(rooms)
    asked = [(f"How many red balls are in room {number}-{room}?", str(room + 2)) for room in range(5)]
    qas = [
        {
            "id": f"{number}-{index}",
            "question": question,
            "answers": [{"text": answer, "answer_start": context.index(answer)}],
        }
        for index, (question, answer) in enumerate(asked)
    ]
    return {"context": context, "qas": qas}


def model_name(name: str, work: Path, is_dry: bool) -> str:
    """Return the known architecture's name or, in a dry run, the config of a tiny one of the same kind."""
    if not is_dry:
        return name
    config = json.loads((ROOT / "src/howlow/model_configs" / f"{name}.json").read_text())
    config |= {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 49152}
    config |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "bos_token_id": 1, "eos_token_id": 2}
    path = work / f"tiny-{name}.json"
    path.write_text(json.dumps(config))
    return str(path)


def sweep(work: Path, name: str, model: str, *options: str) -> Any:
    """Run `howlow sweep` with random weights on the questions; return its records."""
    import howlow

    train, test, _ = questions(work)
    command = [sys.executable, "-m", "howlow", "sweep", "--model", model, "--task", "question_answering"]
    command += ["--train", train, "--test", test, "--baselines", "none", "--set", "random_weights=true"]
    command += [*settings_of(**tokenizer()), "--out", str(work / name), *options]
    subprocess.run(command, check=True, stdout=sys.stderr)
    return howlow.load(work / name).records


def settings_of(**values: Any) -> list[str]:
    """Write settings as `--set` arguments; two underscores stand for a dot."""
    return [
        part for key, value in values.items() for part in ("--set", f"{key.replace('__', '.')}={json.dumps(value)}")
    ]


def tokenizer() -> Reply:
    """The setting that names the tokenizer, where the packaged model is not installed."""
    return {"tokenizer": os.environ[TOKENIZER]} if TOKENIZER in os.environ else {}


def synchronize() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


# -- the checks -------------------------------------------------------------------------------------------------------


def machine(work: Path, *_: Any) -> Reply:
    import torch

    env = subprocess.run([sys.executable, "-m", "howlow", "env"], capture_output=True, text=True, check=True).stdout
    print(env)
    (work / "env.txt").write_text(env)
    return {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "torch": torch.__version__,
        "env": env.splitlines(),
    }


def peak_tflops(size: int) -> float:
    """Measure the device's bf16 peak: the best of ten rounds of products."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    one, other = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    best_s = float("inf")
    for _ in range(10):
        synchronize()
        started_s = time.perf_counter()
        for _ in range(5):
            one @ other
        synchronize()
        best_s = min(best_s, (time.perf_counter() - started_s) / 5)
    return round(2 * size**3 / best_s / 1e12, 3)


def tests(*_: Any) -> Reply:
    command = [sys.executable, "-m", "pytest", "-v", "-m", "gpu", "-rfEs", str(ROOT / "tests" / "test_gpu.py")]
    lines = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line.strip())
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR", "SKIPPED", "E  "))]
    found: Reply = {"summary": lines[-1], "not_passed": failed}
    return found if process.returncode == 0 else found | {"error": f"pytest ended with {process.returncode}"}


def meters(_: Path, is_dry: bool, __: Any) -> Reply:
    steps, seconds = ("80", "2") if is_dry else ("200", "8")
    command = [sys.executable, str(HERE / "meter_overhead.py"), "--steps", steps, "--step_s", "0.05"]
    command += ["--rates", "4", "20", "--seconds", seconds]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: Reply = json.loads(done.stdout.strip().splitlines()[-1])
    at_4_hz = found["sessions"][0]
    is_cheap = at_4_hz["step_share"] <= STEP_SHARE and at_4_hz["core_share"] <= CORE_SHARE
    if found["device"] != "cpu" and not is_cheap:
        found["error"] = f"the meters cost too much at 4 Hz: {at_4_hz}"
    return found


def layouts(work: Path, is_dry: bool, keep: Any) -> Reply:
    """Time optimizer steps of 40 questions in each layout, on one model object that stays on the device."""
    import torch

    from howlow import load_settings
    from howlow.engine import layouts as laying
    from howlow.engine import model as models
    from howlow.engine import order
    from howlow.engine.references import locate
    from howlow.trial import preparation

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    train, test, source = questions(work)
    name = model_name(SMALL, work, is_dry)
    steps = 1 if is_dry else 3
    task = {"name": "question_answering", "train": train, "test": test}
    task |= {"train_examples": STEP_SIZE * steps, "test_examples": 8}
    asked = load_settings(None, [{"model": name, "random_weights": True, "task": task, **tokenizer()}])
    reference = locate(name, True)
    config = models.load_config(reference, None, False)
    examples = preparation.tokenized(asked, reference, config).train
    plan = order.steps([example.group for example in examples], "groups", 0, 1, STEP_SIZE)
    options: Reply = {"random_weights": True, "dtype": torch.bfloat16, "device": device}
    base = models.load_model(reference, config, revision=None, trust_remote_code=False, **options).requires_grad_(False)
    model = peers.adapted(base).to(device).train()
    initial = {name: value.detach().clone() for name, value in models.trainable(model).items()}
    peak = peak_tflops(256 if is_dry else 8192)
    found: Reply = {"data": source, "bf16_peak_tflops": peak}
    for layout in LAYOUTS:
        size = STEP_SIZE if layout != "padded" else BATCH_SIZE
        batches = [
            [
                laying.lay_out([examples[row] for row in step[start : start + size]], layout, LENGTH, 0, "completion")
                for start in range(0, len(step), size)
            ]
            for step in plan
        ]
        for parameter, value in initial.items():
            model.get_parameter(parameter).data.copy_(value)
        found[layout] = timed_steps(model, batches, device, peak)
        keep(found)
    found["trainer padded"] = timed_trainer(model, [examples[row] for step in plan for row in step], work)
    for layout in LAYOUTS:
        found[layout]["of_trainer"] = round(
            found[layout]["samples_per_s"] / found["trainer padded"]["samples_per_s"], 3
        )
    return found


def timed_steps(model: Any, steps: Any, device: Any, peak: float) -> Reply:
    """Measure samples a second of our own loop. The first pass over the steps compiles and is not counted."""
    from howlow.engine.execution import decide, running
    from howlow.engine.training import Optimization, Trainer

    execution = decide(device=device, precision="bf16", attention="flex" if device.type == "cuda" else "sdpa")
    times = []
    with running(model, execution) as run:
        trainer = Trainer(run, Optimization(learning_rate=1e-5))
        losses = [trainer.outcome(trainer.step(step)).loss for step in steps]
        for _ in range(3):
            synchronize()
            started_s = time.perf_counter()
            for step in steps:
                trainer.outcome(trainer.step(step))
            synchronize()
            times.append(time.perf_counter() - started_s)
    time_s, batches = sorted(times)[1], [batch for step in steps for batch in step]
    rate = peers.linear_flops(model, batches)[1] / time_s / 1e12
    return {
        "samples_per_s": round(sum(batch.samples for batch in batches) / time_s, 3),
        "pass_s": [round(one, 4) for one in times],
        "computed_tokens": sum(batch.computed_tokens for batch in batches),
        "tflops_in_products": round(rate, 4),
        "share_of_peak": round(rate / peak, 4),
        "first_loss": losses[0],
    }


def engine(work: Path, is_dry: bool, keep: Any) -> Reply:
    """Time optimizer steps in `shared`: plain, with compiled layers, and as CUDA graphs, for two sizes of a step."""
    found: Reply = {"data": questions(work)[2], "bf16_peak_tflops": peak_tflops(256 if is_dry else 8192)}
    for name in (SMALL, LARGE):
        found[name] = {}
        for size in (8, 16) if is_dry else (STEP_SIZE, 4 * STEP_SIZE):
            found[name][str(size)] = {}
        study(work, model_name(name, work, is_dry), found[name], found["bf16_peak_tflops"], lambda: keep(found))
    return found


def study(work: Path, name: str, found: Reply, peak: float, keep: Any) -> None:
    """Fill in the forms of a step of each size; the model stays on the device."""
    import torch

    from howlow import load_settings
    from howlow.engine import buckets, order
    from howlow.engine import layouts as laying
    from howlow.engine import model as models
    from howlow.engine.references import locate
    from howlow.trial import preparation

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    train, test, _ = questions(work)
    sizes = [int(size) for size in found]  # as given; more keys are filled in below
    task = {"name": "question_answering", "train": train, "test": test}
    task |= {"train_examples": max(sizes) * 4, "test_examples": 8}
    asked = load_settings(None, [{"model": name, "random_weights": True, "task": task, **tokenizer()}])
    config = models.load_config(locate(name, True), None, False)
    examples = preparation.tokenized(asked, locate(name, True), config).train
    options: Reply = {"random_weights": True, "dtype": torch.bfloat16, "device": device}
    base = models.load_model(locate(name, True), config, revision=None, trust_remote_code=False, **options)
    model = peers.adapted(base.requires_grad_(False)).to(device).train()
    initial = {name: value.detach().clone() for name, value in models.trainable(model).items()}
    for size in sizes:
        plan = order.steps([example.group for example in examples], "groups", 0, 1, size)[:4]
        parts = [[examples[row] for row in step] for step in plan]
        shapes = buckets.choose_shapes(
            [buckets.size_of(part, "shared", LENGTH, "completion") for part in parts], fills_rows=True
        )
        plain = [laying.lay_out(part, "shared", LENGTH, 0, "completion") for part in parts]
        filled = []
        for part, batch in zip(parts, plain, strict=True):
            bucket = shapes.of(buckets.size_of(part, "shared", LENGTH, "completion"))
            assert bucket is not None, "the shapes were chosen for these batches"
            filled.append(buckets.fill(batch, bucket, 0).pinned())
        for form in ("plain", "compiled", "graphed"):
            for parameter, value in initial.items():
                model.get_parameter(parameter).data.copy_(value)
            try:
                timed = timed_form(model, form, plain if form == "plain" else filled, device)
            except Exception as error:
                timed = {"error": f"{type(error).__name__}: {error}"[:2000]}
            else:
                rate = peers.linear_flops(model, plain)[1] / timed["pass_s"] / 1e12
                timed["share_of_peak"] = round(rate / peak, 4)
            found[str(size)][form] = timed
            print(name, size, form, timed, flush=True)
            keep()
        if size == min(sizes):
            found["trainer padded"] = timed_trainer(model, examples[: 2 * STEP_SIZE], work)
            keep()


def timed_form(model: Any, form: str, batches: Any, device: Any) -> Reply:
    """Samples a second of one form of the step; what is done once is timed apart."""
    import torch

    from howlow.engine.cuda.graphs import CudaGraphs
    from howlow.engine.execution import decide, running
    from howlow.engine.training import Optimization, Trainer

    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    attention: Any = "flex" if device.type == "cuda" else "sdpa"
    forms = {"compiles": form != "plain" and device.type == "cuda", "graphs": form == "graphed"}
    execution = decide(device=device, precision="bf16", attention=attention, **forms)
    started_s = time.perf_counter()
    with running(model, execution) as run:
        trainer = Trainer(run, Optimization(learning_rate=1e-5))
        if execution.graphed:
            by_shape = {batch.input_ids.shape: batch for batch in batches}
            largest_first = sorted(by_shape.values(), key=lambda batch: -batch.computed_tokens)
            trainer.record(CudaGraphs(device), largest_first)
        losses = [trainer.outcome(trainer.step([batch])).loss for batch in batches]
        once_s = time.perf_counter() - started_s
        passes = []
        for _ in range(5):
            times = []
            for batch in batches:
                synchronize()
                started_s = time.perf_counter()
                trainer.outcome(trainer.step([batch]))
                synchronize()
                times.append(time.perf_counter() - started_s)
            passes.append(sum(times))
    passes.sort()
    return {
        "samples_per_s": round(sum(batch.samples for batch in batches) / passes[2], 1),
        "pass_s": round(passes[2], 5),
        "passes_s": [round(passes[0], 5), round(passes[-1], 5)],
        "computed_tokens": sum(batch.computed_tokens for batch in batches),
        "once_s": round(once_s, 2),
        "losses": losses,
        "peak_reserved_gb": round(torch.cuda.max_memory_reserved() / 1e9, 2) if device.type == "cuda" else None,
    }


def timed_trainer(model: Any, examples: Any, work: Path) -> Reply:
    """Time transformers' Trainer on PEFT's model: every row padded to 512, in bf16 on CUDA."""
    import torch
    from transformers import Trainer, TrainerCallback, TrainingArguments

    class Timer(TrainerCallback):
        starts: list[float] = []  # noqa: RUF012
        times: list[float] = []  # noqa: RUF012

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            synchronize()
            self.starts.append(time.perf_counter())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            synchronize()
            self.times.append(time.perf_counter() - self.starts[-1])

    rows = [peers.row(example) for example in examples]
    timer, on_cuda = Timer(), torch.cuda.is_available()
    arguments = TrainingArguments(
        output_dir=str(work / "trainer"),
        per_device_train_batch_size=BATCH_SIZE,
        gradient_accumulation_steps=STEP_SIZE // BATCH_SIZE,
        num_train_epochs=2,
        learning_rate=1e-5,
        bf16=on_cuda,
        use_cpu=not on_cuda,
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
    )
    Trainer(model=model, args=arguments, train_dataset=rows, data_collator=peers.padded, callbacks=[timer]).train()
    times = timer.times[len(timer.times) // 2 :]  # the second epoch
    time_s = sorted(times)[len(times) // 2]
    return {"samples_per_s": round(STEP_SIZE / time_s, 3), "step_s": [round(one, 4) for one in times]}


def batch(work: Path, is_dry: bool, _: Any) -> Reply:
    """Search until a probe really runs out of memory (dry run: under a limit, on any device)."""
    limit: Reply = {"run__memory_limit_bytes": 1_500_000_000} if is_dry else {}
    options = settings_of(
        training__batch_size="max",
        training__layout="padded",
        training__head="all",
        training__max_steps=2,
        training__sequence_length=128 if is_dry else LENGTH,
        task__train_examples=24 if is_dry else 512,
        task__test_examples=8,
        **limit,
    )
    records = sweep(work, "batch", model_name(SMALL, work, is_dry), "--ranks", "8", *options)
    (record,) = [one for one in records if one.rank == 8]
    if not record.batch_search:
        return {"error": f"no search in the record: {record.status}: {record.error}"}
    return {"status": record.status, "searches": [one.model_dump(mode="json") for one in record.batch_search]}


def search(work: Path, is_dry: bool, _: Any) -> Reply:
    """Search for two ranks, in `shared`; the records say where the time went."""
    limit: Reply = {"run__memory_limit_bytes": 1_500_000_000} if is_dry else {}
    options = settings_of(
        training__batch_size="max",
        training__max_steps=2,
        task__train_examples=24 if is_dry else 4096,
        task__test_examples=8,
        inference__max_new_tokens=2,
        **limit,
    )
    model = model_name(LARGE, work, is_dry)
    records = sweep(work, "search", model, "--ranks", "8,64", "--layout", "shared", *options)
    in_order = sorted((record for record in records if record.batch_search), key=lambda record: record.started_at or "")
    found: Reply = {"data": questions(work)[2], "bounds_s": list(SEARCH_S)}
    for record, bound_s in zip(in_order, SEARCH_S, strict=True):
        (one,) = record.batch_search
        assert one.duration_s is not None, "every new search has its times"
        found[f"rank {record.rank}"] = {
            "status": record.status,
            "total_s": round(one.duration_s.total, 1),
            "is_within_bound": one.duration_s.total <= bound_s,
            **one.model_dump(mode="json"),
        }
    return found


def systems(work: Path, is_dry: bool, keep: Any) -> Reply:
    """Measure the paper's table with its settings, except for precision (bf16) and the number of steps."""
    import howlow

    model, ranks = model_name(LARGE, work, is_dry), "1,8" if is_dry else "1,512"
    common: Reply = {
        "training__head": "all",
        "training__loss_on": "all",
        "training__max_steps": 3 if is_dry else 10,
        "task__train_examples": 80,
        "task__test_examples": 8 if is_dry else 16,
        "inference__max_new_tokens": 4 if is_dry else 16,
    }
    found: Reply = {"data": questions(work)[2]}
    for layout, wanted in (("padded", ranks), ("shared", "8")):
        out = f"systems-{layout}"
        sweep(work, out, model, "--ranks", wanted, "--layout", layout, *settings_of(**common))
        found[layout] = [dict(row) for row in howlow.load(work / out).rows]
        keep(found)
    return found


CHECKS = {
    "machine": machine,
    "engine": engine,
    "tests": tests,
    "meters": meters,
    "layouts": layouts,
    "systems": systems,
    "batch": batch,
    "search": search,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=list(CHECKS), nargs="+", default=list(CHECKS))
    parser.add_argument("--dry-run", action="store_true", help="tiny models, few steps, any device")
    parser.add_argument("--work", type=Path, help="keep logs and run directories here")
    parser.add_argument("--tokenizer", type=Path, help="a folder, where the packaged model is not installed")
    parser.add_argument("--check", choices=list(CHECKS), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.tokenizer:
        os.environ[TOKENIZER] = str(asked.tokenizer.resolve())
    if asked.check:
        answer = asked.work / f"{asked.check}.json"

        def keep(found: Reply) -> None:
            new = answer.with_suffix(".new")  # renamed into place: the parent may end this process at any time
            new.write_text(json.dumps(found, default=str))
            new.rename(answer)

        keep(CHECKS[asked.check](asked.work, asked.dry_run, keep))
        return
    with tempfile.TemporaryDirectory() as scratch:
        work = (asked.work or Path(scratch)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        document: Reply = {"dry_run": asked.dry_run}
        for name in asked.only:
            document[name] = run_check(name, work, asked.dry_run)
            tell(name, document[name])
        print(json.dumps(document))
    if any("error" in document[name] for name in asked.only):
        sys.exit(1)


if __name__ == "__main__":
    main()
