"""Shared by the benchmarks against other libraries: workers that take turns, the two heaps, the data, the arithmetic.

Each contender has a process of its own, which loads, warms up, and then runs one *pass* whenever the parent asks. The
parent asks one contender after the other, round by round, so that a slow minute of the machine hits all of them. Ratios
are taken within a round. Every pass is in the JSON document, not only an average.

Where passes are small, the processes stay for all rounds (`rounds`). Where one pass takes more than half of a machine's
memory, each pass has a new process, and no other one is there meanwhile (`turns`).

There are two columns. `warm heap`: the process starts with MALLOC_MMAP_MAX_=0 and a large MALLOC_TRIM_THRESHOLD_.
Before each pass as much heap is touched as the warm-up needed, so that the timed part has no page faults. Afterwards
the heap is released, because all heaps at once would not fit. `as installed`: glibc's defaults, as `pip install`
leaves them. Our processes get a plain environment in both columns; like a trial, they call `keep_heap`. As a trial's
heap is kept from step to step, theirs is touched before each pass and released afterwards in both columns.
"""

import argparse
import ctypes
import json
import math
import os
import platform
import resource
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WARM, INSTALLED = "warm heap", "as installed"
ENVIRONMENTS = {WARM: {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40)}, INSTALLED: {}}
MODEL, RANK, ALPHA, TARGETS = "smollm2-135m", 8, 16, ("q_proj", "k_proj", "v_proj", "o_proj")
LENGTH, BATCH_SIZE, NEW_TOKENS, STOP = 512, 8, 32, "\n"
STEP_SIZE = 40
"""Examples in an optimizer step. The peers accumulate batches of 8: 16 padded rows would need 20 GiB."""
TOKENS = 2400
"""About the tokens of a step in `shared`, with which the libraries of products are timed."""
Reply = dict[str, Any]


def data_folder() -> Path:
    here = Path(__file__).resolve().parents[1]
    return Path(os.environ.get("HOWLOW_TEST_DATA") or here.parent / "shared" / "data")


def talk(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# -- workers ----------------------------------------------------------------------------------------------------------


class Worker:
    """A contender's process, which answers each JSON line with one JSON line."""

    def __init__(self, script: str, name: str, column: str, *options: str, ours: bool) -> None:
        keep = {key: value for key, value in os.environ.items() if not key.startswith("MALLOC_")}
        environment = keep | ({} if ours else ENVIRONMENTS[column])
        environment |= {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}
        command = [sys.executable, script, "--worker", name, "--column", column, *options]
        self.name = name
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True
        )

    def ask(self, **request: Any) -> Reply:
        """Return the worker's answer; end the benchmark if the worker has died."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self.answer()

    def answer(self) -> Reply:
        """Read the worker's next line."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            sys.exit(f"{self.name}: its process ended with status {self._process.wait()}; what it said stands above")
        reply: Reply = json.loads(line)
        return reply

    def end(self) -> None:
        """Close the worker's input and wait until it has ended."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def start(script: str, names: Sequence[str], column: str, *options: str, ours: Sequence[str]) -> dict[str, Worker]:
    """Start all workers, which load in parallel, and wait until each is ready."""
    workers = {name: Worker(script, name, column, *options, ours=name in ours) for name in names}
    for worker in workers.values():
        worker.answer()
    return workers


def serve(answer: Callable[[Reply], Reply]) -> None:
    """Run a worker's loop. What libraries print goes to stderr."""
    sys.stdout.flush()
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    print(json.dumps({"ready": True}), file=channel, flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), file=channel, flush=True)


def rounds(workers: dict[str, Worker], passes: int, request: Reply) -> dict[str, list[Reply]]:
    """Warm up every worker, then run `passes` rounds of one pass each, contender by contender."""
    warm_up = {name: worker.ask(**request, warm_up=True) for name, worker in workers.items()}
    found: dict[str, list[Reply]] = {name: [] for name in workers}
    for number in range(passes):
        for name, worker in workers.items():
            found[name].append(worker.ask(**request, warm_up=False))
            _tell(name, number, passes, found[name][-1])
    for name, reply in warm_up.items():
        found[name][0]["warm_up_s"] = reply["time_s"]
    return found


def turns(
    start_one: Callable[[str], Worker], names: Sequence[str], passes: int, request: Reply, *, cold: Sequence[str] = ()
) -> dict[str, list[Reply]]:
    """Run `passes` rounds of one pass each, contender by contender, each in a process that ends before the next starts.

    cold: the contenders that are not warmed up.
    """
    found: dict[str, list[Reply]] = {name: [] for name in names}
    for number in range(passes):
        for name in names:
            worker = start_one(name)
            warm = {} if name in cold else {"warm_up_s": worker.ask(**request, warm_up=True)["time_s"]}
            found[name].append(worker.ask(**request, warm_up=False) | warm)
            worker.end()
            _tell(name, number, passes, found[name][-1])
    return found


def _tell(name: str, number: int, passes: int, reply: Reply) -> None:
    said = {key: round(reply.get(key, 0), 1) for key in ("time_s", "user_s", "system_s", "page_faults")}
    talk(f"  round {number + 1}/{passes} {name}: {said}")


# -- memory -----------------------------------------------------------------------------------------------------------


class Heap:
    """Touches the heap before a pass where the column says so, releases it afterwards, and reads the pass's peak."""

    def __init__(self, column: str, ours: bool) -> None:
        from howlow.memory import heap

        self._touches = column == WARM or ours
        self._needed = self._rests_at = 0
        self._used = resource.getrusage(resource.RUSAGE_SELF)
        self._kernels_kept = heap.keep_heap().kernels_kept if ours else heap.kernels_kept()
        self._gemms: Any = None

    def running(self, model: Any, precision: str = "fp32") -> Any:
        """The context in which howlow runs a model, as a trial with this heap does."""
        import torch

        from howlow.engine import execution
        from howlow.engine.cpu.gemm import Gemms
        from howlow.engine.cpu.libraries import choose_libraries

        if self._gemms is None:
            self._gemms = Gemms(choose_libraries(model, TOKENS))
        chosen: dict[str, Any] = {"precision": precision, "kernels_kept": self._kernels_kept, "full_row": LENGTH}
        chosen["gemms"] = self._gemms
        return execution.running(model, execution.decide(device=torch.device("cpu"), **chosen))

    def before(self, warm_up: bool) -> None:
        """Start a pass: prepare the heap for the column, and reset the peak."""
        import torch

        from howlow.memory.heap import release
        from howlow.memory.peaks import reset_peaks

        if warm_up:
            self._needed = 0
            release(torch.device("cpu"))
            self._rests_at = _resident_bytes()
        elif self._touches:
            _touch(self._needed)
        reset_peaks(torch.device("cpu"))
        self._used = resource.getrusage(resource.RUSAGE_SELF)

    def after(self, warm_up: bool) -> Reply:
        """End a pass; return its peak and its CPU time (distrust the pass if that is far below time x threads)."""
        import torch

        from howlow.memory.heap import release
        from howlow.memory.peaks import peaks

        used, before = resource.getrusage(resource.RUSAGE_SELF), self._used
        peak = peaks(torch.device("cpu")).resident_bytes or 0
        if warm_up:
            self._needed = max(0, peak - self._rests_at)
        if self._touches:
            release(torch.device("cpu"))
        return {
            "peak_bytes": peak,
            "user_s": used.ru_utime - before.ru_utime,
            "system_s": used.ru_stime - before.ru_stime,
            "page_faults": used.ru_minflt - before.ru_minflt,
            "involuntary_switches": used.ru_nivcsw - before.ru_nivcsw,
        }


def _touch(size: int) -> None:
    """Fault in pages, in blocks that are small enough for the holes that the last pass left in the heap."""
    libc = ctypes.CDLL("libc.so.6")
    libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = (
        ctypes.c_void_p,
        [ctypes.c_size_t],
        [ctypes.c_void_p],
    )
    block = 256 * 1024
    found = [libc.malloc(block) for _ in range(size // block)]
    for address in found:
        ctypes.memset(address, 0, block)
    for address in found:
        libc.free(address)


def _resident_bytes() -> int:
    import psutil

    return int(psutil.Process().memory_info().rss)


# -- data and model ---------------------------------------------------------------------------------------------------


def squad(train_examples: int, test_examples: int) -> Any:
    """Prepare SQuAD's questions with howlow's own code; every contender gets these token ids."""
    folder = data_folder() / "squad"
    task = {
        "name": "question_answering",
        "train": str(folder / "dev-v1.1.json"),
        "test": str(folder / "dev-v2.0.json"),
        "answerable_only": True,
    }
    return _prepared(task | {"train_examples": train_examples, "test_examples": test_examples})


def wikitext(train_examples: int) -> Any:
    """Prepare WikiText-2, with each paragraph as an example."""
    folder = data_folder() / "wikitext-2"
    task = {"name": "language_modeling", "unit": "paragraph", "test_examples": 8, "train_examples": train_examples}
    return _prepared(task | {"train": str(folder / "valid.txt"), "test": str(folder / "test.txt")})


def _prepared(task: dict[str, Any]) -> Any:
    from howlow import load_settings
    from howlow.engine.model import load_config
    from howlow.engine.references import locate
    from howlow.trial import preparation

    asked = load_settings(None, [{"model": MODEL, "task": task, "training": {"sequence_length": LENGTH}}])
    reference = locate(MODEL)
    return preparation.tokenized(asked, reference, load_config(reference, None, False))


def base_model(dtype_name: str = "float32") -> tuple[Any, Any]:
    """Load the frozen base model and its tokenizer."""
    import torch
    import transformers

    from howlow.engine import model as models
    from howlow.engine.references import locate

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    reference = locate(MODEL)
    config = models.load_config(reference, None, False)
    model = models.load_model(
        reference,
        config,
        random_weights=False,
        dtype=getattr(torch, dtype_name),
        device=torch.device("cpu"),
        revision=None,
        trust_remote_code=False,
    )
    tokenizer, _, _ = models.load_tokenizer(reference, None, None, False)
    return model.requires_grad_(False), tokenizer


def adapted(model: Any, rank: int = RANK) -> Any:
    """Attach PEFT's adapter, the same for every contender: A from seed 0, B zero."""
    from howlow.engine.adapter import attach_lora

    return attach_lora(model, rank=rank, alpha=ALPHA, scaling="standard", target_modules=TARGETS, dropout=0.0, seed=0)


def row(example: Any) -> dict[str, list[int]]:
    """Convert an example to the Trainers' form, in which the prompt's labels are -100."""
    ids = [*example.prompt, *example.completion]
    return {"input_ids": ids, "labels": [-100] * len(example.prompt) + list(example.completion)}


def padded(rows: Sequence[dict[str, list[int]]]) -> dict[str, Any]:
    """Collate rows as the paper does: each is padded to `LENGTH`."""
    import torch

    ids, labels = (torch.full((len(rows), LENGTH), fill, dtype=torch.int64) for fill in (0, -100))
    mask = torch.zeros((len(rows), LENGTH), dtype=torch.int64)
    for index, one in enumerate(rows):
        length = len(one["input_ids"])
        ids[index, :length], mask[index, :length] = torch.tensor(one["input_ids"]), 1
        labels[index, :length] = torch.tensor(one["labels"])
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def linear_flops(model: Any, work: Sequence[Any]) -> tuple[int, int]:
    """Count the frozen linear layers' parameters, and their products' FLOPs, forward and backward, over batches.

    Where examples share rows, the last MLP runs only for the tokens that are read (`howlow.engine.last_layer`).
    """
    from howlow.engine import model as models

    base = models.base_of(model)
    sizes = {
        name: math.prod(shape)
        for name, shape in models.linear_shapes(base).items()
        if "lora_" not in name.rpartition("layers")[2]
    }
    linear, last_mlp = sum(sizes.values()), f"layers.{base.config.num_hidden_layers - 1}.mlp."
    for_read_alone = sum(size for name, size in sizes.items() if last_mlp in name)
    unread = sum(batch.computed_tokens - batch.predictors.numel() for batch in work if batch.tree is not None)
    return linear, 4 * (linear * sum(batch.computed_tokens for batch in work) - for_read_alone * unread)


# -- arithmetic -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Spread:
    """The median and range over the rounds."""

    median: float
    lowest: float
    highest: float

    def __str__(self) -> str:
        return f"{self.median:.3g} ({self.lowest:.3g}..{self.highest:.3g})"

    def document(self) -> dict[str, float]:
        """Return the values for the JSON document."""
        return {name: round(getattr(self, name), 6) for name in ("median", "lowest", "highest")}


def spread(values: Sequence[float]) -> Spread:
    return Spread(statistics.median(values), min(values), max(values))


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
    """Divide round by round."""
    return spread([one / other for one, other in zip(ours, theirs, strict=True)])


def table(rows: Sequence[Sequence[str]]) -> None:
    """Print rows of text in columns; the first row is the head."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(text.rjust(width) for text, width in zip(row[1:], widths[1:], strict=True))]
        print("  ".join(cells), flush=True)


def has_amx() -> bool:
    try:
        return "amx_bf16" in Path("/proc/cpuinfo").read_text().split()
    except OSError:
        return False


def machine() -> dict[str, Any]:
    """Describe the machine and libraries, on which the figures depend."""
    from importlib.metadata import version

    libraries = ("torch", "transformers", "peft", "trl", "accelerate")
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    return {
        "cpu": names[0].partition(":")[2].strip() if names else platform.processor(),
        "cores": os.cpu_count(),
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "amx_bf16": has_amx(),
        "versions": {name: version(name) for name in libraries},
    }


def parser(description: str | None) -> argparse.ArgumentParser:
    """Make a parser with the options that the benchmarks share."""
    found = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--passes", type=int, default=3, help="rounds in the first table; one less in the others")
    found.add_argument("--column", choices=[WARM, INSTALLED], help="only this column")
    found.add_argument("--quick", action="store_true", help="one pass over few examples: does it run at all")
    found.add_argument("--worker", help=argparse.SUPPRESS)
    return found
