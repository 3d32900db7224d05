"""The checks of `gpu.py`: each runs in a process of its own, and keeps what it has found so far."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import peers
from gpu_timings import (
    peak_tflops,
    timed_continuation,
    timed_form,
    timed_generate,
    timed_steps,
    timed_trainer,
)
from peers import BATCH_SIZE, LENGTH, STEP_SIZE, Reply

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
TOKENIZER = "HOWLOW_BENCHMARK_TOKENIZER"
SMALL, LARGE = "llama-3.2-1b", "llama-3.1-8b"
LAYOUTS = ("padded", "packed", "shared")
READS_BYTES_PER_S = 3.0e12  # an H100's memory
SEARCH_S = (90.0, 30.0)  # what a search may take for the first rank, and for the next
STEP_SHARE, CORE_SHARE = 0.005, 0.01  # what the meters may take at 4 Hz


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


def generation(work: Path, is_dry: bool, keep: Any) -> Reply:
    """Time the continuation of the same prompts. Weights are random, so no text ends before its last token."""
    found: Reply = {"data": questions(work)[2]}
    for name in (SMALL, LARGE):
        found[name] = {}
        continuations(work, model_name(name, work, is_dry), found[name], 8 if is_dry else 64, lambda: keep(found))
    return found


def continuations(work: Path, name: str, found: Reply, count: int, keep: Any) -> None:
    """Fill in each way of continuing `count` prompts; the model stays on the device."""
    import torch

    from howlow import load_settings
    from howlow.engine import model as models
    from howlow.engine.references import locate
    from howlow.trial import preparation

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    train, test, _ = questions(work)
    task = {"name": "question_answering", "train": train, "test": test, "train_examples": 8, "test_examples": count}
    asked = load_settings(None, [{"model": name, "random_weights": True, "task": task, **tokenizer()}])
    reference = locate(name, True)
    config = models.load_config(reference, None, False)
    tokens, _, _ = models.load_tokenizer(reference, os.environ.get(TOKENIZER), None, False)
    prompts = [example.prompt for example in preparation.tokenized(asked, reference, config).test]
    options: Reply = {"random_weights": True, "dtype": torch.bfloat16, "device": device}
    base = models.load_model(reference, config, revision=None, trust_remote_code=False, **options)
    model = peers.adapted(base.requires_grad_(False)).to(device).eval()
    size = sum(one.numel() * one.element_size() for one in model.parameters())
    found |= {"prompts": len(prompts), "weights_bytes": size}
    for batch_size in sorted({8, count}):
        found[f"generate {batch_size}"] = timed_generate(model, prompts, batch_size)
        keep()
    best, texts = max(found[f"generate {batch_size}"]["samples_per_s"] for batch_size in {8, count}), {}
    for form in ("plain", "graphed"):
        try:
            timed, texts[form] = timed_continuation(model, tokens, prompts, form, device)
        except Exception as error:
            timed = {"error": f"{type(error).__name__}: {error}"[:2000]}
        else:
            timed["of_reading_weights"] = round(timed["step_s"] * READS_BYTES_PER_S / size, 3)
            timed["of_generate"] = round(timed["samples_per_s"] / best, 2)
        found[form] = timed
        print(name, form, timed, flush=True)
        keep()
    if len(texts) == 2:  # in bf16 many tokens nearly tie
        pairs = zip(texts["plain"], texts["graphed"], strict=True)
        found["texts_that_differ"] = sum(one != other for one, other in pairs)


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


def search(work: Path, is_dry: bool, keep: Any) -> Reply:
    """Search for one rank, and then for another, in `shared`; the records say where the time went."""
    limit: Reply = {"run__memory_limit_bytes": 1_500_000_000} if is_dry else {}
    options = settings_of(
        training__batch_size="max",
        training__max_steps=2,
        task__train_examples=24 if is_dry else 4096,
        task__test_examples=8,
        inference__max_new_tokens=2,
        **limit,
    )
    found: Reply = {"data": questions(work)[2], "bounds_s": list(SEARCH_S)}
    model = model_name(LARGE, work, is_dry)
    for rank, ranks, bound_s in zip((8, 64), ("8", "8,64"), SEARCH_S, strict=True):
        records = sweep(work, "search", model, "--ranks", ranks, "--layout", "shared", *options)
        (record,) = [one for one in records if one.rank == rank]
        found[f"rank {rank}"] = searched(record, bound_s)
        keep(found)
    return found


def searched(record: Any, bound_s: float) -> Reply:
    """What a trial's search took, and whether that is within the bound."""
    if not record.batch_search:
        return {"error": f"no search in the record: {record.status}: {record.error}"}
    (one,) = record.batch_search
    assert one.duration_s is not None, "every new search has its times"
    whole = {"total_s": round(one.duration_s.total, 1), "is_within_bound": one.duration_s.total <= bound_s}
    return {"status": record.status, **whole, **one.model_dump(mode="json")}


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
    "generation": generation,
    "tests": tests,
    "search": search,
    "systems": systems,
    "layouts": layouts,
    "meters": meters,
    "batch": batch,
}
