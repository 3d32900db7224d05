"""The checks of `gpu.py` that time training steps: the forms of a step in each layout, and the curve over the rank."""

from pathlib import Path
from typing import Any, NamedTuple

import peers
from gpu_subject import LARGE, SMALL, Subject, attention_of, loaded, model_name, questions, steps_of
from gpu_timings import freed, peak_tflops, timed_form, timed_trainer
from peers import RANK, STEP_SIZE, Reply

RANKS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


class Cell(NamedTuple):
    """A field of the table: four times as many questions a step or not, the layout, and the form of the step."""

    is_large: bool
    layout: str
    form: str

    @property
    def steps(self) -> int:
        """How many different steps are timed; in `padded` they are alike."""
        return 1 if self.layout == "padded" else 2 if self.is_large or self.layout == "packed" else 4


TABLE = (
    Cell(False, "shared", "graphed"),
    Cell(True, "shared", "graphed"),
    Cell(False, "shared", "plain"),
    Cell(False, "padded", "plain"),
    Cell(False, "packed", "graphed"),
    Cell(False, "padded", "recorded"),
    Cell(True, "packed", "graphed"),
    Cell(True, "shared", "plain"),
    Cell(True, "padded", "plain"),
    Cell(True, "padded", "recorded"),
    Cell(False, "shared", "compiled"),
    Cell(True, "shared", "compiled"),
    Cell(False, "padded", "graphed"),
    Cell(True, "padded", "graphed"),
)
"""The most important first. What is compiled for `shared` serves `packed`; `padded` takes a compilation of its own."""


def engine_small(work: Path, is_dry: bool, keep: Any) -> Reply:
    """Time steps of LLaMA-3.2-1B's architecture."""
    return engine(work, SMALL, is_dry, keep)


def engine_large(work: Path, is_dry: bool, keep: Any) -> Reply:
    """Time steps of LLaMA-3.1-8B's architecture."""
    return engine(work, LARGE, is_dry, keep)


def engine(work: Path, name: str, is_dry: bool, keep: Any) -> Reply:
    """Time transformers' Trainer, and then every cell of the table, on one model that stays on the device."""
    small = 8 if is_dry else STEP_SIZE
    found: Reply = {"data": questions(work)[2], "bf16_peak_tflops": peak_tflops(256 if is_dry else 8192)}
    subject = loaded(work, model_name(name, work, is_dry), train=2 * 4 * small, test=8)
    model = peers.adapted(subject.base).to(subject.device).train()
    initial = _trained(model)
    found["trainer padded"] = timed_trainer(model, subject.train[: 2 * small], work, small)
    keep(found)
    for cell in TABLE:
        _put_back(model, initial)
        size = 4 * small if cell.is_large else small
        timed = timed_cell(model, subject, cell, size, found["bf16_peak_tflops"])
        if "samples_per_s" in timed:
            timed["of_trainer"] = round(timed["samples_per_s"] / found["trainer padded"]["samples_per_s"], 2)
        # By the cell's name and not its size, so that a dry run fills the same fields.
        questions_a_step = "160" if cell.is_large else "40"
        found.setdefault(questions_a_step, {}).setdefault(cell.layout, {})[cell.form] = timed
        print(name, size, cell.layout, cell.form, timed, flush=True)
        keep(found)
    return found


def timed_cell(model: Any, subject: Subject, cell: Cell, size: int, peak: float) -> Reply:
    """Time one form of a step, or say why it failed."""
    plain = steps_of(subject.train, cell.layout, size, cell.steps, "plain")
    steps = plain if cell.form == "plain" else steps_of(subject.train, cell.layout, size, cell.steps, cell.form)
    try:
        timed = timed_form(model, cell.form, steps, attention_of(cell.layout, subject.device), subject.device)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"[:2000]}
    rate = peers.linear_flops(model, [batch for step in plain for batch in step])[1] / timed["pass_s"] / 1e12
    return timed | {"tflops_in_products": round(rate, 4), "share_of_peak": round(rate / peak, 4)}


def _trained(model: Any) -> Reply:
    from howlow.engine import model as models

    return {name: value.detach().clone() for name, value in models.trainable(model).items()}


def _put_back(model: Any, initial: Reply) -> None:
    for name, value in initial.items():
        model.get_parameter(name).data.copy_(value)


def ranks(work: Path, is_dry: bool, keep: Any) -> Reply:
    """Time steps of 40 questions in `shared` over the rank: at all ranks recorded, and compiled at both ends.

    A rank is filled up to a multiple of 8, so r = 1 takes the compilation of r = 8; larger ones take one each.
    """
    found: Reply = {"data": questions(work)[2], "recorded": {}, "graphed": {}}
    size = 8 if is_dry else STEP_SIZE
    subject = loaded(work, model_name(SMALL, work, is_dry), train=4 * size, test=8)
    for form, wanted in (("recorded", (1, 512, *RANKS[1:-1])), ("graphed", (1, 512))):
        for rank in (1, 8) if is_dry else wanted:
            found[form][str(rank)] = timed = _timed_rank(subject, rank, size, form)
            first = found[form]["1"]
            if "pass_s" in timed and "pass_s" in first:
                timed["of_rank_1"] = round(timed["pass_s"] / first["pass_s"], 4)
            print(form, rank, timed, flush=True)
            keep(found)
    return found


def _timed_rank(subject: Subject, rank: int, size: int, form: str) -> Reply:
    """A step's time with an adapter of this rank, which is taken off again."""
    model = peers.adapted(subject.base, rank).to(subject.device).train()
    try:
        return timed_cell(model, subject, Cell(False, "shared", form), size, 1.0)
    finally:
        model.unload()
        del model
        freed(subject.device)


assert RANK in RANKS, "the table's rank is one of the curve's"
