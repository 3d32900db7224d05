"""Are recorded token steps right on this device? They are held against plain ones, on real prompts.

Both are given the same tokens, those that the recorded steps choose, and the logits of each step are compared in the
trial's own precision. So texts differ only where two tokens tie up to rounding.
"""

import statistics
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from time import perf_counter

import torch
from torch import Tensor

from howlow.engine.alone import distance
from howlow.engine.compiled_layers import refusing_more_forms
from howlow.engine.cuda.graphs import drop_unused
from howlow.engine.decode_graphs import DecodeGraphs, DecodeShape
from howlow.engine.execution import Precision, Running
from howlow.engine.sampling import most_likely
from howlow.engine.step_check import LARGEST_DIFFERENCE, PAYS, await_device, failed
from howlow.engine.step_graphs import Recorder
from howlow.engine.tree_generation import Continuation, PromptRow

_CHECKED_STEPS = 16
_IN_WORDS = {
    False: "replaying token steps as CUDA graphs",
    True: "compiling token steps and replaying them as CUDA graphs",
}


@dataclass(frozen=True)
class BesidePlain:
    """Recorded steps beside plain ones.

    apart: the largest distance of a step's logits, relative to the plain ones' norm. chose_other: whether a token was
    written that is not its logits' most likely. seconds, plain_seconds: the median of a step's time; a plain one
    includes the host's reading of its tokens, without which the next one cannot start.
    """

    apart: float
    chose_other: bool
    seconds: float
    plain_seconds: float


@torch.inference_mode()
def trusted_graphs(
    running: Running,
    shapes: Sequence[DecodeShape],
    rows: Sequence[PromptRow],
    *,
    max_new_tokens: int,
    recorder: Callable[[], Recorder],
    compiles: bool = False,
    has_to_pay: bool = True,
) -> tuple[DecodeGraphs | None, tuple[str, ...]]:
    """Recorded token steps that write what plain steps do, or none; and why what was tried before is not used.

    rows: batches of prompts, on the host, that are continued one after the other for the check: with two, a recording
        that keeps anything of an earlier batch is found.
    max_new_tokens: two at least; the first comes from reading the prompts.
    compiles: whether layers are to run compiled; where that does not hold, steps are recorded without.
    has_to_pay: whether recorded steps must also be faster than plain ones, and compiled ones than others recorded.
    """
    problems: list[str] = []
    for compiled in (True, False) if compiles else (False,):
        graphs, problem = _tried(running, shapes, rows, max_new_tokens, recorder, compiled, has_to_pay)
        if graphs is not None:
            return graphs, tuple(problems)
        problems.append(problem)
        drop_unused(running.execution.device)
    return None, tuple(problems)


def _tried(
    running: Running,
    shapes: Sequence[DecodeShape],
    rows: Sequence[PromptRow],
    max_new_tokens: int,
    recorder: Callable[[], Recorder],
    compiled: bool,
    has_to_pay: bool,
) -> tuple[DecodeGraphs | None, str]:
    """Recorded steps in one form, or why they are not used."""
    what = _IN_WORDS[compiled]
    try:
        with refusing_more_forms() if compiled else nullcontext():
            graphs, device_recorder = DecodeGraphs(running, shapes, max_new_tokens, compiles=compiled), recorder()
            graphs.record(device_recorder)
            found = [_compared(running, graphs, row.to(graphs.device), max_new_tokens) for row in rows]
        problem = _problem(found, running.execution.precision, has_to_pay)
        if problem is None and compiled and has_to_pay:
            problem = _slower_than_uncompiled(graphs, device_recorder)
    except Exception as error:  # whatever a compiler or a driver raises, plain steps still run
        return None, failed(what, error)
    return (graphs, "") if problem is None else (None, f"{what} {problem}")


def _problem(found: Sequence[BesidePlain], precision: Precision, has_to_pay: bool) -> str | None:
    apart, bound = max(one.apart for one in found), LARGEST_DIFFERENCE[precision]
    if apart > bound:
        return f"changes the logits by {apart:.2g} of their norm, more than rounding ({bound:g})"
    if any(one.chose_other for one in found):
        return "writes a token that is not the most likely one"
    seconds, plain = (min(times) for times in zip(*((one.seconds, one.plain_seconds) for one in found), strict=True))
    if has_to_pay and seconds > PAYS * plain:
        return f"pays nothing: {1e3 * seconds:.3g} ms a step, {1e3 * plain:.3g} ms without"
    return None


def _slower_than_uncompiled(graphs: DecodeGraphs, recorder: Recorder) -> str | None:
    """Why compiling does not pay beside a recorded step that is not compiled, by the medians of their times."""
    steps, times = (graphs.step, graphs.record_uncompiled(recorder)), list[tuple[float, ...]]()
    for _ in range(_CHECKED_STEPS):
        times.append(tuple(_timed(step, graphs.device)[1] for step in steps))
    compiled_s, uncompiled_s = (statistics.median(one) for one in zip(*times, strict=True))
    if compiled_s <= uncompiled_s:
        return None
    return f"pays nothing: {1e3 * compiled_s:.3g} ms a step, {1e3 * uncompiled_s:.3g} ms recorded without compiling"


def _compared(running: Running, graphs: DecodeGraphs, row: PromptRow, max_new_tokens: int) -> BesidePlain:
    """Continue prompts, on the device, in both ways."""
    plain, count = Continuation(running, row), len(row.order)
    expected, found = plain.read_prompts(), graphs.read_prompts(row)
    apart, chosen, times = [distance(found, expected)], [most_likely(found)[0].tolist()], []
    for _ in range(min(max_new_tokens - 1, _CHECKED_STEPS)):
        plain_step = partial(_read_step, plain, row.order, graphs.newest[:count].clone())
        expected, plain_s = _timed(plain_step, graphs.device)
        logits, recorded_s = _timed(graphs.step, graphs.device)
        apart.append(distance(logits[:count], expected))
        chosen.append(most_likely(logits[:count])[0].tolist())
        times.append((recorded_s, plain_s))
    wrote = [tokens[:count] for tokens, _ in graphs.written(0, len(chosen)).read()]
    seconds, plain_seconds = (statistics.median(one) for one in zip(*times, strict=True))
    return BesidePlain(max(apart), wrote != chosen, seconds, plain_seconds)


def _read_step(plain: Continuation, prompts: Sequence[int], tokens: Tensor) -> Tensor:
    """The logits of a plain step, whose tokens the host reads before it starts the next one."""
    logits = plain.step(prompts, tokens)
    chosen, margins = most_likely(logits)
    torch.stack([chosen.to(margins), margins]).tolist()
    return logits


def _timed(step: Callable[[], Tensor], device: torch.device) -> tuple[Tensor, float]:
    started_s = perf_counter()
    logits = step()
    await_device(device)
    return logits, perf_counter() - started_s
