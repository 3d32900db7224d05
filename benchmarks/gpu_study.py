"""The check of `gpu.py` that measures the paper's fine-tuning study: throughput, energy, power, memory, utilisation."""

import json
import statistics
import time
from pathlib import Path
from typing import Any

import peers
from gpu_subject import LARGE, Subject, loaded, model_name, questions, steps_of
from gpu_timings import freed
from peers import Reply

CELLS = ((1, 8), (512, 8), (2048, 8), (1, 1), (512, 1), (2048, 1))
"""Rank and batch."""
_BURN_IN, _LEAST_STEPS, _LEAST_S = 2, 3, 4.0  # the energy counter moves ten times a second


def study(work: Path, is_dry: bool, keep: Any) -> Reply:
    """Measure the paper's settings, eager, rank by rank and batch by batch, on one base model.

    Padded to 512, fp16 autocast over fp32 weights, the head at every position, the loss on every token. The base is
    loaded once, where a sweep loads it for each trial. A batch that does not fit is a result.
    """
    found: Reply = {"data": questions(work)[2], "settings": "padded, fp16-autocast, head = all, loss_on = all"}
    subject = loaded(work, model_name(LARGE, work, is_dry), train=24, test=8, dtype="float32")
    cells = ((1, 2), (8, 2), (1, 1)) if is_dry else CELLS
    for rank, batch in cells:
        found[f"rank {rank}, batch {batch}"] = timed = cell(work, subject, rank, batch, 0.2 if is_dry else _LEAST_S)
        print(rank, batch, timed, flush=True)
        keep(found)
    return found


def cell(work: Path, subject: Subject, rank: int, batch: int, least_s: float) -> Reply:
    """Train with an adapter of this rank for some seconds; the adapter is taken off again."""
    import torch

    freed(subject.device)
    model = peers.adapted(subject.base, rank).to(subject.device).train()
    folder = work / f"study-{rank}-{batch}"
    folder.mkdir()
    try:
        return _measured(folder, model, subject, batch, least_s)
    except torch.OutOfMemoryError as error:
        return {"out_of_memory": str(error).partition(". GPU")[0]}
    finally:
        model.zero_grad(set_to_none=True)
        model.unload()
        del model
        freed(subject.device)


def _measured(folder: Path, model: Any, subject: Subject, batch: int, least_s: float) -> Reply:
    """Steps under the meters of a trial."""
    from howlow.engine.execution import decide, running
    from howlow.engine.training import Optimization, Trainer
    from howlow.memory.phases import ProcessMemory
    from howlow.meters.session import Session
    from howlow.meters.sources import Asked, open_energy

    steps = steps_of(subject.train, "padded", batch, 3, "plain", loss_on="all")
    meter = open_energy(Asked("auto", subject.device))
    execution = decide(device=subject.device, precision="fp16-autocast", attention="own", head="all")
    with (
        running(model, execution) as run,
        Session(folder, subject.device, meter, 4.0, 0.0, memory=ProcessMemory(subject.device)) as session,
        session.phase("train") as phase,
    ):
        trainer, taken, until_s = Trainer(run, Optimization(learning_rate=5e-5)), list[float](), 0.0
        while len(taken) < _BURN_IN + _LEAST_STEPS or time.perf_counter() < until_s:
            is_measured = len(taken) >= _BURN_IN
            if len(taken) == _BURN_IN:
                until_s = time.perf_counter() + least_s
            with phase.step(is_measured, batch) as timed:
                trainer.outcome(trainer.step(steps[len(taken) % len(steps)]))
            taken.append(timed.duration_s)
        record = phase.end()
        source = session.report(None)
    return _figures(folder, record, taken[_BURN_IN:], meter.name, source.step_share)


def _figures(folder: Path, record: Any, taken: list[float], source: str | None, meters_share: float | None) -> Reply:
    """What the paper shows of a cell; what no sensor read is absent."""
    time_s, samples, energy_j = record.measured_duration_s, record.measured_samples, record.energy_j("measured")
    lines = [json.loads(line) for line in (folder / "timeline.jsonl").read_text().splitlines()]
    used = [line["utilization"] for line in lines if line.get("utilization") is not None]
    return {
        "samples_per_s": round(samples / time_s, 3),
        "step_s": round(statistics.median(taken), 4),
        "steps": len(taken),
        "energy_per_sample_j": None if energy_j is None else round(energy_j / samples, 3),
        "power_w": None if energy_j is None else round(energy_j / time_s, 1),
        "energy_source": source,
        "utilization": round(statistics.mean(used), 3) if used else None,
        "peak_memory_gb": _gb(record.peak_memory_bytes),
        "peak_reserved_gb": _gb(record.peak_reserved_bytes),
        "meters_share_of_steps": meters_share,
    }


def _gb(size: int | None) -> float | None:
    return None if size is None else round(size / 1e9, 2)
