"""What `gpu_checks.py` times: steps, transformers' Trainer, `generate`, and our generation, all on a loaded model."""

import gc
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peers
from gpu_subject import FORMS
from peers import BATCH_SIZE, LENGTH, STEP_SIZE, Reply

PASSES, PASSES_S = 5, 3.0


def synchronize() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak_tflops(size: int) -> float:
    """Measure the device's bf16 peak, by five products at a time."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    one, other = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))

    def multiply() -> None:
        for _ in range(5):
            one @ other

    return round(5 * 2 * size**3 / _shortest_s(multiply) / 1e12, 3)


def copied_bytes_per_s(device: Any) -> float:
    """Measure the rate at which the device's memory copies, read and written bytes added up."""
    import torch

    source = torch.ones(1 << (31 if device.type == "cuda" else 24), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() / _shortest_s(lambda: target.copy_(source))


def _shortest_s(work: Callable[[], object]) -> float:
    """The best of ten."""
    times = []
    for _ in range(10):
        synchronize()
        started_s = time.perf_counter()
        work()
        synchronize()
        times.append(time.perf_counter() - started_s)
    return min(times)


def freed(device: Any) -> None:
    """Free what nothing refers to, on the device, too."""
    import torch

    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def timed_form(model: Any, form: str, steps: Any, attention: Any, device: Any) -> Reply:
    """Samples a second of one form of the step; what is done once is timed apart.

    steps: micro-batches of some steps, which each pass runs. There are five passes, or fewer if they take long.
    """
    import torch

    from howlow.engine.cuda.graphs import CudaGraphs
    from howlow.engine.execution import decide, running
    from howlow.engine.training import Optimization, Trainer

    freed(device)
    chosen = FORMS[form] | {"compiles": "compiles" in FORMS[form] and device.type == "cuda"}
    execution = decide(device=device, precision="bf16", attention=attention, full_row=LENGTH, **chosen)
    started_s, batches = time.perf_counter(), [batch for step in steps for batch in step]
    with running(model, execution) as run:
        trainer = Trainer(run, Optimization(learning_rate=1e-5))
        if execution.graphed:
            by_shape = {batch.input_ids.shape: batch for batch in batches}
            largest_first = sorted(by_shape.values(), key=lambda batch: -batch.computed_tokens)
            trainer.record(CudaGraphs(device), largest_first)
        losses = [trainer.outcome(trainer.step(step)).loss for step in steps]
        synchronize()
        once_s, passes = time.perf_counter() - started_s, []
        most = PASSES if device.type == "cuda" else 1  # on a CPU it is only seen whether it runs
        while len(passes) < most and sum(passes) < PASSES_S:
            passes.append(_pass_s(trainer, steps))
    passes.sort()
    pass_s = passes[(len(passes) - 1) // 2]
    return {
        "samples_per_s": round(sum(batch.samples for batch in batches) / pass_s, 1),
        "step_s": round(pass_s / len(steps), 5),
        "pass_s": round(pass_s, 5),
        "passes_s": [round(one, 5) for one in passes],
        "computed_tokens": sum(batch.computed_tokens for batch in batches),
        "once_s": round(once_s, 2),
        "losses": losses,
        "peak_reserved_gb": round(torch.cuda.max_memory_reserved() / 1e9, 2) if device.type == "cuda" else None,
    }


def _pass_s(trainer: Any, steps: Any) -> float:
    """The time of each step, from one synchronisation to the next, added up."""
    times = []
    for step in steps:
        synchronize()
        started_s = time.perf_counter()
        trainer.outcome(trainer.step(step))
        synchronize()
        times.append(time.perf_counter() - started_s)
    return sum(times)


def timed_trainer(model: Any, examples: Any, work: Path, size: int = STEP_SIZE) -> Reply:
    """Time transformers' Trainer on PEFT's model, in steps of this size: every row padded to 512, in bf16 on CUDA."""
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
        gradient_accumulation_steps=size // BATCH_SIZE,
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
    return {"samples_per_s": round(size / time_s, 3), "step_s": [round(one, 4) for one in times]}


def timed_generate(model: Any, prompts: Any, batch_size: int) -> Reply:
    """Samples a second of transformers' `generate` on left-padded prompts; one batch is a warm-up."""
    import torch

    from howlow.engine import layouts

    options: Reply = {"max_new_tokens": peers.NEW_TOKENS, "min_new_tokens": peers.NEW_TOKENS}
    options |= {"do_sample": False, "pad_token_id": 0}
    parts = [prompts[start : start + batch_size] for start in range(0, len(prompts), batch_size)]

    def run(part: Any) -> None:
        ids, mask = (one.to(model.device) for one in layouts.left_padded(part, max(map(len, part)), 0))
        with torch.inference_mode():
            model.generate(input_ids=ids, attention_mask=mask, **options)

    run(parts[0])
    synchronize()
    started_s = time.perf_counter()
    for part in parts:
        run(part)
    synchronize()
    return {"samples_per_s": round(len(prompts) / (time.perf_counter() - started_s), 2)}


class Afresh:
    """Stands for a recorder where there are no graphs: the work is run again."""

    def warm_up(self, work: Any) -> None:
        """Nothing is made once."""

    def record(self, work: Any) -> Any:
        """The work itself."""
        return work


def timed_continuation(model: Any, tokens: Any, prompts: Any, form: str, device: Any) -> tuple[Reply, list[str]]:
    """Our generation, all prompts in one row: samples a second, the times of reading and of a token step, the texts.

    form: `plain`, `recorded` (token steps as CUDA graphs), or `graphed` (compiled as well, as trials do).
    """
    import torch

    from howlow.engine import generation as writing
    from howlow.engine.cuda.graphs import CudaGraphs
    from howlow.engine.decode_check import trusted_graphs
    from howlow.engine.decode_graphs import decode_shapes
    from howlow.engine.execution import decide, running
    from howlow.engine.tree_generation import lay_out_prompts

    new, recorded, read_s = peers.NEW_TOKENS, None, [0.0]

    def on_prompts_read(_: int) -> None:
        synchronize()
        read_s[0] = time.perf_counter()

    attention: Any = "flex" if device.type == "cuda" else "sdpa"
    execution = decide(device=device, precision="bf16", attention=attention, joins_adapters=True).for_generation()
    with running(model, execution) as run, run.autocast():
        row = lay_out_prompts(prompts, share=True, max_new_tokens=new, keeps_paths=True)
        started_s = time.perf_counter()
        if form != "plain":
            recorder: Any = (lambda: CudaGraphs(device)) if device.type == "cuda" else Afresh
            given: Reply = {"max_new_tokens": new, "recorder": recorder, "compiles": form == "graphed"}
            given["has_to_pay"] = device.type == "cuda"  # elsewhere nothing is recorded, and no time saved
            recorded, problems = trusted_graphs(run, decode_shapes([prompts], new), [row, row], **given)
            if problems:
                raise RuntimeError("; ".join(problems))
        once_s, times = time.perf_counter() - started_s, []
        for _ in range(4):  # the first is a warm-up
            synchronize()
            started_s = time.perf_counter()
            rows, _ = writing.generate(
                run,
                tokens,
                prompts,
                layout="shared",
                prompt_length=LENGTH - new,
                pad_id=0,
                max_new_tokens=new,
                stop=None,
                eos=frozenset(),
                laid_out=row,
                recorded=recorded,
                on_prompts_read=on_prompts_read,
            )
            synchronize()
            ended_s = time.perf_counter()
            times.append((ended_s - started_s, ended_s - read_s[0]))
    whole_s, decode_s = (sorted(one)[1] for one in zip(*times[1:], strict=True))
    return {
        "samples_per_s": round(len(prompts) / whole_s, 2),
        "pass_s": round(whole_s, 5),
        "read_s": round(whole_s - decode_s, 5),
        "step_s": round(decode_s / (new - 1), 6),
        "once_s": round(once_s, 2),
        "peak_reserved_gb": round(torch.cuda.max_memory_reserved() / 1e9, 2) if device.type == "cuda" else None,
    }, [one.text for one in rows]
