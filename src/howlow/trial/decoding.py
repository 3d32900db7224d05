"""How a trial's token steps run on a GPU: compiled, and recorded for the few shapes of its batches of prompts.

Compiled layers and recorded steps (CUDA graphs) are checked on the loaded model and the device itself, against plain
steps on the longest prompts of the trial's own test. What does not hold is left out, with a warning.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from howlow.engine.cuda.graphs import CudaGraphs, drop_unused
from howlow.engine.decode_check import trusted_graphs
from howlow.engine.decode_graphs import DecodeGraphs, decode_shapes
from howlow.engine.execution import Running
from howlow.engine.tree_generation import lay_out_prompts
from howlow.records import WarningKind
from howlow.trial.state import TrialState

Prompts = Sequence[Sequence[int]]


@contextmanager
def recorded_steps(state: TrialState, run: Running, batches: Sequence[Prompts]) -> Iterator[DecodeGraphs | None]:
    """Within this context there are recorded steps for these batches of prompts; None where steps run as they are.

    What was decided goes into the record.
    """
    new, layout = state.settings.inference.max_new_tokens, state.choice.generation or state.choice.layout
    if not run.execution.graphed or layout not in ("packed", "shared") or new < 2:
        state.resolve(generation_compiled=False, generation_graphed=False)
        yield None
        return
    with run.autocast():  # the dtype in which steps are compiled and recorded
        shapes, share = decode_shapes(batches, new), layout == "shared"
        rows = [
            lay_out_prompts(prompts, share=share, max_new_tokens=new, keeps_paths=True)
            for prompts in _to_be_checked(batches)
        ]
        device = run.execution.device
        drop_unused(device)  # such as the steps of a test before its adapter was merged
        graphs, problems = trusted_graphs(
            run,
            shapes,
            rows,
            max_new_tokens=new,
            recorder=lambda: CudaGraphs(device),
            compiles=device.type == "cuda",  # where training compiles: nothing else lets steps be recorded
        )
        for problem in problems:
            state.warn(WarningKind.PLAINER_STEPS, problem, "generate")
        is_compiled = graphs is not None and graphs.is_compiled
        state.resolve(generation_compiled=is_compiled, generation_graphed=graphs is not None)
        yield graphs


def _to_be_checked(batches: Sequence[Prompts]) -> list[Prompts]:
    """The batch of the longest prompt, another one (the last, or the first where it is the last), and the smallest.

    Rows of few tokens are compiled in a form of their own, which must not happen first in the middle of the test.
    """
    numbers = range(len(batches))
    longest = max(numbers, key=lambda number: max(map(len, batches[number])))
    smallest = min(numbers, key=lambda number: sum(map(len, batches[number])))
    other = numbers[-1 if longest + 1 < len(batches) else 0]
    return [batches[number] for number in (longest, other, *({smallest} - {longest, other}))]
