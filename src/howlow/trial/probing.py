"""Probing: a batch's heaviest part run for real, and the memory's peak read, to find the largest batch that fits.

The process is a trial's in everything that takes memory: the same meters, model, adapter and optimizer with its
moments. What is run is the heaviest micro-batch of the trial's own seeded schedule: the one with the most computed
tokens, and the one with the most targets where that is another. For inference it is the heaviest batch of each phase,
generating all of the new tokens that the settings allow, with the adapter attached and then, where the trial merges
it, merged.

On a CPU the process is held to what may be used (`RLIMIT_DATA` at the limit less the margin), so whether a batch fits
is not a matter of how often VmData is looked at; the peak, from those looks, serves the record and the prediction.
There every probe has a process of its own: what an earlier one left in the heap would count as the next one's. On CUDA,
where the allocator's cache can be emptied, a process goes on while batches grow; after an allocation that failed, and
to confirm, a fresh one is taken there too.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch

from howlow.engine import inference, layouts
from howlow.engine import model as models
from howlow.engine.batch_size import Found, Known, Line, Other, Probe, Question, expected_line, next_step
from howlow.engine.model import Precision
from howlow.engine.tokens import TokenizedExample
from howlow.engine.training import MAX_SKIPPED_STEPS, DivergedError, Trainer
from howlow.errors import UserError
from howlow.executors import StoppedError
from howlow.meters import memory
from howlow.meters.machine import choose_device
from howlow.meters.session import Session
from howlow.meters.sources import open_meters
from howlow.preparation import Prepared, read_prepared
from howlow.records import LayoutChoice, clear_temporaries
from howlow.settings import Settings
from howlow.trial import asked_of, load, settle
from howlow.trial.choices import choose_precision, is_out_of_memory, limit_memory, unlimit_memory
from howlow.trial.fine_tuning import as_it_trains, lay_out, make_trainer, schedule_of
from howlow.trial.scoring import Scorer
from howlow.trial.state import SweepLink, TrialState, split

T = TypeVar("T")
_LOOKED_AT = 200_000
"""Examples that are laid out in thought, at most, to look for lighter schedules among batches that lie side by side."""
_SHAPES = 8
"""Light steps of so many shapes fill the cache of compiled kernels (`memory.bound_heap`)."""
_ROWS = 12
"""Likewise light evaluations of so many numbers of rows, each with half a dozen shapes of products."""


def probe_entry(payload: Mapping[str, Any], link: SweepLink) -> dict[str, Any] | None:
    """Probe until the largest batch is found, or until it takes a fresh process to go on (None).

    Told on the way: "limit", what holds for the whole search; "probes", what an earlier start of it left, judged by
    that limit; "known", what is certain of this rank; "probing" before and "probe" after every probe, so that one that
    ends the process is known too.
    """
    settle()
    memory.bound_heap()
    state = _state(payload, link)
    device = choose_device(state.settings.run.device)
    limit = payload["limit"] or _limit(payload["setting"], state.settings, device)
    link.report("limit", limit)
    prepared = read_prepared(state.data_folder)
    work = (_Training if payload["setting"] == "training.batch_size" else _Inference)(state, prepared)
    probes = [Probe(**probe) for probe in payload["probes"]]
    if payload["limit"] is None and probes:
        probes = judged(probes, payload["earlier_limit"], limit)
        link.report("probes", [asdict(probe) for probe in probes])
    beyond = limit["enforced_bytes"] or limit["limit_bytes"]
    question = Question(work.largest, limit["budget_bytes"], beyond, cache(work.load), probes=probes)
    question = replace(question, beyond=_LOOKED_AT // work.examples, is_fresh=device.type == "cpu")
    step = next_step(question)
    if isinstance(step, Found):
        return {"batch": step.batch, "largest": work.largest}
    # What fails for want of memory from here on, in loading or in the probe, is a batch that does not fit.
    begun = Probe(step.batch, question.load(step.batch), None, False)
    link.report("probing", {"batch": begun.batch, "load": begun.load})
    limit_memory(limit["enforced_bytes"], device)
    try:
        return _within_limit(question, begun, work, partial(_bench, state, device, prepared), payload, link)
    finally:
        unlimit_memory()


def _within_limit(
    question: Question,
    begun: Probe,
    work: "_Work",
    opened: Callable[[], AbstractContextManager["_Bench"]],
    payload: Mapping[str, Any],
    link: SweepLink,
) -> dict[str, Any] | None:
    """Load, and probe; a load that takes too much is the end of the probe that it was for."""
    with ExitStack() as stack:
        bench = _unless_out_of_memory(lambda: stack.enter_context(opened()))
        if bench is None:
            link.report("probe", asdict(begun))
            return None
        known = bench.known(payload["setting"])
        link.report("known", asdict(known))
        others = [_other(other) for other in payload["others"]]
        return _probe_on(replace(question, expected=expected_line(known, others)), work, bench)


def _state(payload: Mapping[str, Any], link: SweepLink) -> TrialState:
    folder = Path(payload["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    clear_temporaries(folder)
    (folder / "timeline.jsonl").unlink(missing_ok=True)
    settings, choice = Settings.model_validate_json(payload["settings"]), LayoutChoice(**payload["layout"])
    taken = settings.training.model_copy(update={"layout": choice.layout})
    settings = settings.model_copy(update={"training": taken})
    return TrialState("probe", payload["kind"], {}, settings, folder, Path(payload["data"]), link, choice)


def _limit(setting: str, settings: Settings, device: torch.device) -> dict[str, Any]:
    """The limit, what of it may be used, and where it comes from; enforced_bytes: what this process is held to.

    Raises:
        UserError: nothing tells here what a process has taken, or the margin leaves nothing to take.
    """
    if not memory.Taken.is_known(device):
        raise UserError(f'{setting} = "max": nothing tells on {device} here what a process has taken; give a number')
    given, is_on_cpu = settings.run.memory_limit_bytes, device.type == "cpu"
    available, whole = memory.available_bytes(device)
    limit = given or available
    spared = round(settings.run.memory_margin * (given or whole))
    where = "of the machine" if is_on_cpu else "on the device"
    if (budget := limit - spared) <= 0:
        free = f"run.memory_limit_bytes = {given}" if given else f"{limit / 1e9:.3f} GB {where} are free"
        raise UserError(
            f'{setting} = "max": {free}, and run.memory_margin = {settings.run.memory_margin:g} spares '
            f"{spared / 1e9:.3f} GB: nothing is left for a batch; set a smaller margin, or give the memory more room"
        )
    return {
        "limit_bytes": limit,
        "budget_bytes": budget,
        "enforced_bytes": budget if is_on_cpu else given,
        "limit": "run.memory_limit_bytes" if given else f"memory {where} that was free when the search began",
        "memory": "VmData" if is_on_cpu else "memory reserved by torch",
    }


def judged(probes: Sequence[Probe], then: Mapping[str, Any], now: Mapping[str, Any]) -> list[Probe]:
    """Probes made under one limit as they count under another, as where less memory is free than was.

    A peak fits or does not; that memory ran out counts as long as there is not more of it.
    """
    held_then, held_now = (limit["enforced_bytes"] or limit["limit_bytes"] for limit in (then, now))
    return [
        replace(probe, fits=probe.peak_bytes is not None and probe.peak_bytes <= now["budget_bytes"])
        for probe in probes
        if probe.peak_bytes is not None or held_now <= held_then
    ]


def _other(plain: Mapping[str, Any]) -> Other:
    known = Known(plain["known"]["rank"], Line(**plain["known"]["line"]))
    return Other(known, tuple(Probe(**probe) for probe in plain["probes"]))


def _unless_out_of_memory(work: Callable[[], T]) -> T | None:
    try:
        return work()
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return None


def _probe_on(question: Question, work: "_Work", bench: "_Bench") -> dict[str, Any] | None:
    """Probe as long as this process may."""
    link, last = bench.state.link, 0
    while not isinstance(step := next_step(question), Found):
        if last and (bench.device.type == "cpu" or work.merges or step.confirms or step.batch <= last):
            return None
        if link.stop_requested:
            raise StoppedError
        last, load = step.batch, question.load(step.batch)
        link.report("probing", {"batch": last, "load": load})
        peak = _unless_out_of_memory(partial(_peak_bytes, work, bench, last))
        probe = Probe(last, load, peak, peak is not None and peak <= question.budget_bytes)
        question.probes.append(probe)
        link.report("probe", asdict(probe))
        if peak is None:
            return None
    return {"batch": step.batch, "largest": question.largest}


def _peak_bytes(work: "_Work", bench: "_Bench", batch: int) -> int:
    with memory.Taken(bench.device) as taken:
        work.run(bench, batch)
    return taken.highest_bytes


# -- a trial's process ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Bench:
    """A loaded model, and the meters of a trial."""

    state: TrialState
    device: torch.device
    prepared: Prepared
    session: Session
    model: Any
    tokenizer: Any
    precision: Precision
    pad_id: int

    def known(self, setting: str) -> Known:
        """What is certain of the rank: what its weights take (with gradients and two moments) and its activations."""
        trained = models.trainable(self.model)
        size = 4 * sum(parameter.numel() for parameter in trained.values())
        rank = self.state.settings.lora.rank if self.state.kind == "lora" else 0
        if setting == "inference.batch_size":
            return Known(rank, Line(size, 0))
        places = sum(".lora_A." in name for name in trained)
        return Known(rank, Line(4 * size, places * rank * (4 if self.precision == "fp32" else 2)))


@contextmanager
def _bench(state: TrialState, device: torch.device, prepared: Prepared) -> Iterator[_Bench]:
    meters, precision = open_meters(asked_of(state.settings, device)), choose_precision(state.settings, device)
    rate_hz = state.settings.meters.rate_hz
    with Session(
        state.folder, device, meters.energy, rate_hz, 0.0, cpu_energy=meters.cpu_energy, views=meters.views
    ) as session:
        with session.phase("load"):
            model, tokenizer, eos = load(state, device, precision, prepared.tokenizer_name)
        yield _Bench(state, device, prepared, session, model, tokenizer, precision, min(eos, default=0))


# -- what is run ----------------------------------------------------------------------------------------------------


class _Work(Protocol):
    """What a batch is for."""

    @property
    def largest(self) -> int:
        """The largest batch that makes sense."""

    @property
    def examples(self) -> int:
        """Of the whole schedule, which is laid out in thought to know a batch's load."""

    @property
    def merges(self) -> bool:
        """Whether a probe merges the adapter, after which the process cannot probe again."""

    def load(self, batch: int) -> int:
        """The computed tokens of the heaviest part of the schedule."""

    def run(self, bench: _Bench, batch: int) -> None:
        """Run the heaviest parts."""


@dataclass(frozen=True)
class _Training:
    """Steps of the fine-tuning."""

    state: TrialState
    prepared: Prepared

    @property
    def largest(self) -> int:
        """All examples, or those of an optimizer step."""
        examples = len(self.prepared.train)
        return min(examples, self.state.settings.training.effective_batch_size or examples)

    @property
    def examples(self) -> int:
        """In all epochs, though a number of steps may end them sooner."""
        return len(self.prepared.train) * self.state.settings.training.epochs

    @property
    def merges(self) -> bool:
        """Never."""
        return False

    def load(self, batch: int) -> int:
        """Of the heaviest micro-batch."""
        return max(map(self._computed, self._micro_batches(batch)))

    def _micro_batches(self, batch: int) -> list[list[TokenizedExample]]:
        examples = self.prepared.train
        schedule = schedule_of(self.state.settings, examples, batch)
        return [[examples[index] for index in part] for step in schedule for part in split(step, batch)]

    def _computed(self, part: Sequence[TokenizedExample]) -> int:
        return layouts.computed_tokens(part, self.state.choice.layout, self.state.settings.training.sequence_length)

    def _targets(self, part: Sequence[TokenizedExample]) -> int:
        return sum(layouts.count_targets(example, self.state.settings.training.loss_on) for example in part)

    def _heaviest(self, batch: int) -> list[list[TokenizedExample]]:
        """The micro-batch with the most computed tokens, and the one with the most targets where that is another."""
        parts = self._micro_batches(batch)
        most = max(parts, key=lambda part: (self._computed(part), self._targets(part)))
        most_targets = max(parts, key=lambda part: (self._targets(part), self._computed(part)))
        return [most] if self._targets(most) == self._targets(most_targets) else [most, most_targets]

    def run(self, bench: _Bench, batch: int) -> None:
        """A step of each heaviest micro-batch, with moments, and with gradients where a step has several."""
        state, training = self.state, self.state.settings.training
        chosen = self._heaviest(batch)
        times = 2 if (training.effective_batch_size or 0) > batch else 1
        trainer = make_trainer(state, bench.session, bench.model, bench.precision, 1)
        trainer.optimization = replace(trainer.optimization, learning_rate=0.0)
        # What matters is the memory that a step takes, not whether its loss is finite.
        with (
            as_it_trains(state, bench.model, bench.precision),
            bench.session.phase("train"),
            suppress(DivergedError),
        ):
            self._make_moments_and_kernels(trainer, bench)
            for part in chosen:
                trainer.step([lay_out(state, part, bench.pad_id)] * times)

    def _make_moments_and_kernels(self, trainer: Trainer, bench: _Bench) -> None:
        """Steps of the lightest examples make the optimizer's moments (fp16 may skip the first) and the kernels.

        On a CPU they differ in shape, padded ones by being as short as they are: as many kernels are compiled as may be
        kept, which in the course of a trial its last micro-batches, or all of them, would add. torch's own compiler
        has to see the trial's shapes alone, or it compiles another graph.
        """
        by_length = {example.length: example for example in self.prepared.train}
        lightest = [by_length[length] for length in sorted(by_length)]
        layout, training = self.state.choice.layout, self.state.settings.training
        is_varied = bench.device.type == "cpu" and (layout != "padded" or not training.compile)
        for example in lightest[: _SHAPES if is_varied else 1]:
            length = example.length if is_varied else training.sequence_length
            batch = layouts.lay_out([example], layout, length, bench.pad_id, training.loss_on)
            for _ in range(MAX_SKIPPED_STEPS):
                if not trainer.step([batch]).skipped:
                    break


@dataclass(frozen=True)
class _Inference:
    """Batches of evaluation and, where the task has answers, of generation."""

    state: TrialState
    prepared: Prepared

    @property
    def largest(self) -> int:
        """All test examples."""
        return len(self.prepared.test)

    @property
    def examples(self) -> int:
        """The test's."""
        return len(self.prepared.test)

    @property
    def merges(self) -> bool:
        """As the trial does, when the test has run with the adapter attached."""
        return self.state.kind == "lora" and self.state.settings.inference.adapter == "merged"

    def load(self, batch: int) -> int:
        """Of the heaviest batch, prompts with all their new tokens or prompts with completions."""
        return max(max(self._read(part), self._written(part)) for part in self._parts(batch))

    def _parts(self, batch: int) -> list[list[TokenizedExample]]:
        test = self.prepared.test
        return [[test[index] for index in part] for part in split(range(len(test)), batch)]

    def _read(self, part: Sequence[TokenizedExample]) -> int:
        return layouts.computed_tokens(part, self.state.choice.layout, self.state.settings.training.sequence_length)

    def _written(self, part: Sequence[TokenizedExample]) -> int:
        new = self.state.settings.inference.max_new_tokens
        prompts = [replace(example, completion=()) for example in part]
        length = self.state.settings.training.sequence_length - new
        return layouts.computed_tokens(prompts, self.state.choice.layout, length) + new * len(part)

    def run(self, bench: _Bench, batch: int) -> None:
        """The heaviest batch of each phase, to the last of its new tokens."""
        settings = self.state.settings
        endless = settings.model_copy(update={"task": settings.task.model_copy(update={"stop": None})})
        state, parts = replace(self.state, settings=endless), self._parts(batch)
        bench.model.eval()
        given = (bench.tokenizer, self.prepared, bench.precision, bench.pad_id)
        scorer = Scorer(state, bench.session, bench.model, *given, eos=frozenset())
        if bench.device.type == "cpu":
            self._fill_kernels(scorer, bench)
        self._run_heaviest(scorer, parts)
        if self.merges:
            self._run_heaviest(replace(scorer, model=models.merged(bench.model)), parts)

    def _fill_kernels(self, scorer: Scorer, bench: _Bench) -> None:
        """Let oneDNN compile as many kernels as it keeps, as in the course of a test, whose batches differ in shape."""
        lightest, head = min(self.prepared.train, key=lambda example: example.length), self.state.settings.training.head
        with scorer.frozen_layers():
            for rows in range(1, _ROWS + 1):
                batch = layouts.lay_out([lightest] * rows, "padded", lightest.length, bench.pad_id, "completion")
                inference.evaluate(bench.model, batch, precision=bench.precision, head=head)
        memory.release(bench.device)

    def _run_heaviest(self, scorer: Scorer, parts: Sequence[list[TokenizedExample]]) -> None:
        for phase, prepare in scorer.phases.items():
            with scorer.frozen_layers(), scorer.session.phase(phase):
                prepare(max(parts, key=self._written if phase == "generate" else self._read))(lambda _: None)
