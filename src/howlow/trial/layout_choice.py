"""Which layout a sweep's trials take: the one that was asked for, if the model can take it.

It is chosen once for all trials that share model, data and schedule, on the loaded model, before the first one starts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import chain
from typing import Any, Literal

from torch import nn

from howlow.engine import order
from howlow.engine.alone import Truth
from howlow.engine.cpu.gemm import GemmChoice
from howlow.engine.cpu.libraries import choose_libraries
from howlow.engine.execution import Execution
from howlow.engine.generation import Way
from howlow.engine.layout_check import UnfitError, draws_at_random, problem_with, truth_about, writing_problem
from howlow.engine.layouts import Layout
from howlow.engine.prefix_tree import length_of
from howlow.engine.rotary import depends_on_length
from howlow.engine.sharding import ALONE, DeviceGroup
from howlow.engine.tokens import TokenizedExample
from howlow.engine.weights import refuse_broken
from howlow.errors import UserError
from howlow.memory.heap import kernels_kept
from howlow.memory.limits import is_out_of_memory
from howlow.meters.machine import choose_device
from howlow.records import GemmRecord, LayoutChoice, LayoutRecord, LayoutTokens, read_lines
from howlow.settings import Settings
from howlow.tasks import task_named
from howlow.trial.loading import decide_execution, load_base
from howlow.trial.state import TrialState

_Kernel = Literal["sdpa", "flex"]
_OF_LONGEST_ROW = "the model's rotary frequencies depend on a batch's longest row"
_SMALLEST_SAVING = 0.05
_STEPS_LOOKED_AT = 50
_SUPPOSED_BATCH = 8
"""Stands in for the largest batch, which is not known yet: it is searched for in the chosen layout."""


def choose(
    settings: Settings,
    train: Sequence[TokenizedExample],
    test: Sequence[TokenizedExample],
    gemms: Sequence[GemmRecord] = (),
    group: DeviceGroup = ALONE,
) -> LayoutChoice:
    """The layout for these trials, how they write answers, and which libraries multiply.

    gemms: the libraries that other trials of the sweep have. group: the processes over whose devices the base is
        sharded; each of them makes the same choice.

    Raises:
        UserError: the model cannot be trained or cannot write answers, or cannot take the layout that was asked for.
    """
    device = group.own(choose_device(settings.run.device, group.count))
    execution = decide_execution(settings, device, kernels_kept(), attention="own")
    try:
        model = load_base(settings, execution)
        refuse_broken(settings.model, model)
        model = group.place(model, device)
        choice = _Choosing(settings, model, [*train, *test], execution).choice(_wanted(settings, model, train))
        rows = _tokens_of_step(settings, train, choice.layout)
        return choice.model_copy(update={"gemms": _gemms(settings, model, execution, rows, gemms)})
    except UnfitError as error:
        raise UserError(f"model {settings.model}: {error}; howlow fine-tunes causal language models") from error
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return _unchecked(settings)


def _gemms(
    settings: Settings, model: Any, execution: Execution, rows: int, known: Sequence[GemmRecord]
) -> tuple[GemmRecord, ...]:
    """The libraries for the model's products; none where its layers do not run fused."""
    if not execution.for_evaluation().fused:
        return ()
    asked = None if settings.run.gemm_library == "auto" else settings.run.gemm_library
    kept = [GemmChoice(**dict(one)) for one in known]
    return tuple(GemmRecord(**asdict(one)) for one in choose_libraries(model, rows, kept, asked))


def _unchecked(settings: Settings) -> LayoutChoice:
    """What is left where memory runs out in the check: a trial says what it takes, and whether it ends."""
    asked = settings.training.layout
    layout: Layout = "padded" if asked == "auto" else asked
    kernel: _Kernel | None = None if layout == "padded" else "sdpa"
    return LayoutChoice(layout=layout, kernel=kernel, problem="memory ran out while the model was checked")


@dataclass(frozen=True)
class _Choosing:
    """A loaded model, and what it is held against."""

    settings: Settings
    model: Any
    examples: Sequence[TokenizedExample]
    execution: Execution

    def choice(self, wanted: Layout) -> LayoutChoice:
        """The layout that was wanted if it holds, else `padded`, which must hold; then the way to write answers."""
        asked, name = self.settings.training.layout, self.settings.model
        layout, kernel, problem = self._first_that_holds(wanted)
        if problem is not None and wanted == asked != "padded":
            raise UserError(f'training.layout = "{asked}": {name} cannot take it ({problem}); use auto or padded')
        generation, reason = self._way_to_write(layout, kernel)
        return LayoutChoice(
            layout=layout,
            kernel=kernel,
            problem=None if problem is None else f"{name} cannot take {wanted}: {problem}",
            generation=generation,
            generation_problem=reason,
            idle_layers=self._truth.idle_layers,
        )

    @cached_property
    def _truth(self) -> Truth:
        return truth_about(self.model, self.examples, self.execution)

    def _first_that_holds(self, wanted: Layout) -> tuple[Layout, _Kernel | None, str | None]:
        """The layout with its kernel, and why it is not the one that was wanted."""
        problem = None
        if wanted != "padded":
            problem = _router_losses(self.model)
            for kernel in self._kernels() if problem is None else ():
                problem = self._problem_with(wanted, kernel)
                if problem is None:
                    return wanted, kernel, None
        if wanted != "padded" and wanted == self.settings.training.layout:
            return wanted, None, problem
        in_padded = self._problem_with("padded", "own")
        if in_padded is not None:
            raise UnfitError(f"it cannot be trained ({in_padded})")
        return "padded", None, problem

    def _kernels(self) -> tuple[_Kernel, ...]:
        takes_flex = self.execution.device.type == "cuda" and not _dropout(self.settings, self.model)
        return ("flex", "sdpa") if takes_flex else ("sdpa",)

    def _problem_with(self, layout: Layout, kernel: _Kernel | Literal["own"]) -> str | None:
        return problem_with(self.model, layout, self._truth, execution=self._with(kernel), pad_id=0)

    def _with(self, kernel: _Kernel | Literal["own"]) -> Execution:
        return decide_execution(self.settings, self.execution.device, kernels_kept(), attention=kernel)

    def _way_to_write(
        self, layout: Layout, kernel: _Kernel | None
    ) -> tuple[Literal["padded", "single"] | None, str | None]:
        """How answers are written where that is not the layout, and why; the first way that holds is taken."""
        if not task_named(self.settings.task.name).generates:
            return None, None
        # Frequencies that follow a batch's longest row are right for that row only.
        is_dependent = depends_on_length(self.model, self.settings.training.sequence_length)
        first = _OF_LONGEST_ROW if is_dependent else self._writing_problem(layout, kernel)
        if first is None:
            return None, None
        if layout != "padded" and not is_dependent and self._writing_problem("padded", None) is None:
            return "padded", first
        last = self._writing_problem("single", None, as_alone=not is_dependent)
        if last is not None:
            raise UnfitError(f"it cannot write answers ({last})")
        return "single", first

    def _writing_problem(self, way: Way, kernel: _Kernel | None, *, as_alone: bool = True) -> str | None:
        execution = self._with(kernel or "own")
        return writing_problem(self.model, way, self._truth, execution=execution, pad_id=0, as_alone=as_alone)


def _wanted(settings: Settings, model: Any, train: Sequence[TokenizedExample]) -> Layout:
    """The layout that was asked for, or the one that saves most."""
    asked = settings.training.layout
    if asked == "padded":
        return "padded"
    dropout = _dropout(settings, model)
    if asked == "shared" and dropout:
        raise UserError(f'training.layout = "shared": {dropout}, and a shared prefix would get one mask; set "packed"')
    if asked != "auto":
        return asked
    return "packed" if dropout or not _prefixes_pay(settings, train) else "shared"


def layout_record(state: TrialState) -> LayoutRecord:
    """The layout of a trial, and the tokens that it saved."""
    length = state.settings.training.sequence_length
    lines = list(read_lines(state.steps_path))
    found = {}
    for phase in ("train", "evaluate"):
        steps = [line for line in lines if line["phase"] == phase]
        if steps:
            found[phase] = _tokens(steps, length, state.choice.layout)
    generated = [line for line in lines if line["phase"] == "generate"]
    if generated:
        tokens, computed = (sum(step[key] for step in generated) for key in ("tokens", "computed_tokens"))
        found["generate"] = LayoutTokens(tokens=tokens, computed_tokens=computed)
    return LayoutRecord(problem=state.choice.problem, **found)


def _tokens(steps: Sequence[Mapping[str, Any]], length: int, layout: Layout) -> LayoutTokens:
    tokens, computed, samples = (sum(step[key] for step in steps) for key in ("tokens", "computed_tokens", "samples"))
    padded = samples * length
    return LayoutTokens(
        tokens=tokens,
        computed_tokens=computed,
        padded_tokens=padded,
        padding_share=1 - tokens / computed if layout == "padded" else 0.0,
        saved_share=1 - computed / padded,
    )


def _dropout(settings: Settings, model: nn.Module) -> str | None:
    """Why activations are dropped while training, in a few words; None where they are not."""
    if settings.lora.dropout:
        return "lora.dropout is above 0"
    if any(isinstance(module, nn.Dropout) and module.p > 0 for module in model.modules()):
        return "the model has dropout of its own"
    config: Any = model.config
    if getattr(config, "attention_dropout", 0.0):
        return "the model's attention has dropout"
    return "the model draws at random while it trains" if draws_at_random(model) else None


def _router_losses(model: nn.Module) -> str | None:
    config: Any = model.config
    return "its router losses depend on the rows" if getattr(config, "output_router_logits", False) else None


def _prefixes_pay(settings: Settings, examples: Sequence[TokenizedExample]) -> bool:
    """Whether sharing saves tokens in the first steps of the training as it would run with seed 0."""
    steps = _first_steps(settings, examples, _STEPS_LOOKED_AT)
    computed = sum(length_of(step, share=True) for step in steps)
    return computed <= (1 - _SMALLEST_SAVING) * sum(map(len, chain.from_iterable(steps)))


def _tokens_of_step(settings: Settings, examples: Sequence[TokenizedExample], layout: Layout) -> int:
    """The tokens of the first step that are computed together."""
    steps = _first_steps(settings, examples, 1)
    if layout == "padded":
        return sum(map(len, steps)) * settings.training.sequence_length
    return sum(length_of(step, share=layout == "shared") for step in steps)


def _first_steps(settings: Settings, examples: Sequence[TokenizedExample], number: int) -> list[list[tuple[int, ...]]]:
    """The texts of the first micro-batches with seed 0, and with a batch that is supposed where it is not known."""
    training = settings.training
    batch = _SUPPOSED_BATCH if training.batch_size == "max" else training.batch_size
    schedule = order.steps(
        [example.group for example in examples],
        training.shuffle,
        0,
        1,
        min(batch, training.effective_batch_size or batch),
        number,
    )
    return [[examples[index].prompt + examples[index].completion for index in step] for step in schedule]
