"""What `gpu_checks.py` times: steps, transformers' Trainer, `generate`, and our generation, all on a loaded model."""

import gc
import time
from pathlib import Path
from typing import Any

import peers
from peers import BATCH_SIZE, LENGTH, STEP_SIZE, Reply


def synchronize() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


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
    """Samples a second of our generation, all prompts in one row, the time of a token step, and the texts."""
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
    execution = decide(device=device, precision="bf16", attention=attention).for_generation()
    with running(model, execution) as run, run.autocast():
        row = lay_out_prompts(prompts, share=True, max_new_tokens=new, keeps_paths=True)
        started_s = time.perf_counter()
        if form == "graphed":
            recorder: Any = (lambda: CudaGraphs(device)) if device.type == "cuda" else Afresh
            given: Reply = {"max_new_tokens": new, "recorder": recorder}
            recorded, problem = trusted_graphs(run, decode_shapes([prompts], new), [row, row], **given)
            if recorded is None:
                raise RuntimeError(problem)
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
        "step_s": round(decode_s / (new - 1), 6),
        "once_s": round(once_s, 2),
        "peak_reserved_gb": round(torch.cuda.max_memory_reserved() / 1e9, 2) if device.type == "cuda" else None,
    }, [one.text for one in rows]
