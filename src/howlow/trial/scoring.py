"""The inference phases: the loss of the test's targets, and greedy generation for tasks with answers."""

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

from howlow.engine import generation, layouts
from howlow.engine.decode_graphs import DecodeGraphs
from howlow.engine.execution import Execution, Precision, Running
from howlow.engine.generation import Generated, Way
from howlow.engine.shares import in_order, shares_of
from howlow.engine.tokens import TokenizedExample
from howlow.meters.clock import now_s
from howlow.meters.phase import PhaseMeter, Timed
from howlow.meters.session import Session
from howlow.meters.totals import PhaseTotals
from howlow.records import Part, PhaseName, Scores, WarningKind, read_lines
from howlow.tasks import Example, Task, task_named
from howlow.trial.checkpointing import Saved, save_inference
from howlow.trial.decoding import recorded_steps
from howlow.trial.device_commands import Generate
from howlow.trial.lines import PredictionLines, StepLines
from howlow.trial.merged_check import agreement, with_merged
from howlow.trial.prefetch import prefetched, steps_ahead
from howlow.trial.prepared import Prepared
from howlow.trial.saved_batches import SavedBatches, summed_loss
from howlow.trial.state import TrialState, split, step_line

NEAR_TIE: Mapping[Precision, float] = {"fp32": 1e-4, "bf16": 0.125, "fp16-autocast": 0.02}
"""Logits nearer than this tie within floating point: another order of the same sums may choose the other token."""
LARGEST_EXPONENT = 700.0  # exp of more than this is no longer a finite float64


@dataclass(frozen=True)
class BatchResult:
    """What one batch of inference gave: counts and loss for its step; `lines` makes the lines of the predictions.

    Scoring and writing the answers is not inference, so `lines` is called in a pause or at the phase's end.
    """

    tokens: int
    target_tokens: int
    computed_tokens: int
    loss: float | None
    lines: Callable[[], list[str]]


RunBatch = Callable[[Running, Callable[[int], None]], BatchResult]
"""Runs a batch; calls its second argument, with the tokens computed so far, when a generation's prompts are read."""


@dataclass(frozen=True)
class Scorer:
    """A loaded model, how it runs, and the data on which it is scored.

    recorded: the token steps of generation, within the context of `recording`.
    """

    state: TrialState
    session: Session
    model: Any
    tokenizer: Any
    prepared: Prepared
    execution: Execution
    pad_id: int
    eos: frozenset[int]
    saved: Saved | None = None
    attached: SavedBatches | None = None
    recorded: DecodeGraphs | None = None

    @property
    def task(self) -> Task:
        """How answers are scored."""
        return task_named(self.state.settings.task.name)

    @property
    def phases(self) -> dict[PhaseName, Callable[[list[TokenizedExample]], RunBatch]]:
        """The phases that the task asks for, in its order."""
        found: dict[PhaseName, Callable[[list[TokenizedExample]], RunBatch]] = {"evaluate": self._evaluation}
        return found | {"generate": self._generation} if self.task.generates else found

    def score(self) -> Scores:
        """Run the phases that the task asks for, measured, and score what came out."""
        for phase in self.phases:
            self._run(phase)
        steps = [line for line in read_lines(self.state.steps_path) if line["phase"] == "evaluate"]
        total, targets = measured = summed_loss(steps)
        if self.attached:
            self.state.found.merged = agreement(self.state.predictions_path, measured)
            total, targets = self.attached.loss()
        if not self.task.generates:
            return self._text_scores(total, targets)
        lines = list(read_lines(self.state.predictions_path))
        self._warn_of_near_ties(lines)
        return self._answer_scores(total, targets, {line["id"]: line["prediction"] for line in lines})

    def score_unmeasured(self, saved: SavedBatches) -> Scores:
        """Score the test without measuring it."""
        self.save_unmeasured(saved)
        total, targets = saved.loss()
        if not self.task.generates:
            return self._text_scores(total, targets)
        return self._answer_scores(total, targets, saved.predictions())

    def save_unmeasured(self, saved: SavedBatches) -> None:
        """Run the test without measuring it; batches that are in `saved` are not run again."""
        saved.cut()
        parts = self._parts()
        for phase in self.phases:
            with self.running(phase) as run, self.recording(phase, run, parts) as recorded:
                prepare = replace(self, recorded=recorded).phases[phase]
                for index, part in enumerate(parts[len(saved.batches(phase)) :], len(saved.batches(phase)) + 1):
                    result = prepare(part)(run, lambda _: None)
                    saved.add(phase, result.loss, result.target_tokens, result.lines())
                    self.state.report_progress(phase, index, len(parts))
                    self.state.stop_if_asked()

    def running(self, phase: PhaseName) -> AbstractContextManager[Running]:
        """The context in which the model runs in an inference phase."""
        is_generation = phase == "generate"
        execution = self.execution.for_generation() if is_generation else self.execution.for_evaluation()
        return self.state.followers.running(self.model, execution)

    def recording(
        self, phase: PhaseName, run: Running, parts: Sequence[Sequence[TokenizedExample]]
    ) -> AbstractContextManager[DecodeGraphs | None]:
        """The context in which a phase of these batches has recorded steps, if it generates and the trial records."""
        if phase != "generate":
            return nullcontext()
        return recorded_steps(self.state, run, [[example.prompt for example in part] for part in parts])

    def _parts(self) -> list[list[TokenizedExample]]:
        test = self.prepared.test
        return [[test[row] for row in batch] for batch in split(range(len(test)), self.state.inference_batch_size)]

    def _warn_of_near_ties(self, lines: list[dict[str, Any]]) -> None:
        near = sum(line.get("smallest_margin", math.inf) < NEAR_TIE[self.execution.precision] for line in lines)
        if near:
            detail = f"{near} of {len(lines)} answers have a token whose logit ties with another's, up to rounding"
            self.state.warn(WarningKind.NEAR_TIES, detail)

    def _run(self, phase: PhaseName) -> None:
        """Run a phase's batches in their order; a phase that was interrupted goes on with the batches that are left."""
        state = self.state
        if any(ended.phase == phase for ended in state.found.phases):
            return
        interrupted = self.saved.running if self.saved else {}
        first, totals = 0, None
        if interrupted.get("phase") == phase:
            first, totals = interrupted["batches"], PhaseTotals(**interrupted["totals"])
        parts = self._parts()
        with (
            self.running(phase) as run,
            self.recording(phase, run, parts) as recorded,
            self.session.phase(phase, totals) as meter,
            StepLines(state.steps_path) as steps,
            PredictionLines(state.predictions_path) as predictions,
        ):
            replace(self, recorded=recorded)._run_batches(phase, parts, first, run, meter, steps, predictions)
            state.found.phases.append(meter.end())
        save_inference(state, self.session)

    def _run_batches(
        self,
        phase: PhaseName,
        batches: Sequence[list[TokenizedExample]],
        first: int,
        run: Running,
        meter: PhaseMeter,
        steps: StepLines,
        predictions: PredictionLines,
    ) -> None:
        state, prepare, saved_at_s = self.state, self.phases[phase], now_s()
        parts = state.burn_in(phase, [len(batch) for batch in batches[first:]])
        attached = self.attached.batches(phase) if self.attached else None
        ahead = steps_ahead(state.inference_batch_size, state.settings.training.sequence_length)
        with prefetched(prepare, batches[first:], ahead) as laid_out_ahead:
            for index, work in enumerate(laid_out_ahead, first):
                state.note_first_step()
                part, samples = parts.of_next, len(batches[index])
                with meter.step(part == "measured", samples) as timed:
                    result = work(run, partial(meter.mark_prefill, timed))
                parts.ended(part, timed, result.computed_tokens)
                predictions.add(partial(_with_attached, attached[index], result) if attached else result.lines)
                steps.append(partial(_step_line, timed, phase, part, index, samples, result))
                state.report_progress(phase, index + 1, len(batches))
                is_due = now_s() - saved_at_s >= state.settings.training.checkpoint_every_s
                if index + 1 < len(batches) and (is_due or state.link.stop_requested):
                    kept = meter.pause().model_dump()
                    steps.flush()
                    predictions.flush()
                    save_inference(state, self.session, {"phase": phase, "batches": index + 1, "totals": kept})
                    saved_at_s = now_s()
                    state.stop_if_asked()

    # -- loss -------------------------------------------------------------------------------------------------------

    def _evaluation(self, chosen: list[TokenizedExample]) -> RunBatch:
        training = self.state.settings.training
        layout, length, followers = self.state.choice.layout, training.sequence_length, self.state.followers
        shares = shares_of(chosen, followers.count, keeps_groups=layout == "shared")
        batches = [
            layouts.lay_out([chosen[row] for row in share.rows], layout, length, self.pad_id, "completion")
            for share in shares
        ]
        targets = sum(len(example.completion) for example in chosen)
        tokens = sum(example.length for example in chosen)
        computed = sum(batch.computed_tokens for batch in batches)

        def work(run: Running, _: Callable[[int], None]) -> BatchResult:
            sums = in_order(shares, followers.evaluate(run, batches))
            loss = _finite(math.fsum(sums) / targets) if targets else None
            lines = list[str] if self.task.generates else partial(self._text_lines, chosen, sums)
            return BatchResult(tokens, targets, computed, loss, lines)

        return work

    def _text_scores(self, total: float, targets: int) -> Scores:
        """Perplexity = exp(total / target tokens); the same per word, and bits per byte, of exactly the scored text."""
        words = sum(example.words for example in self.prepared.test)
        size = sum(example.bytes for example in self.prepared.test)
        by_token, by_word = _bounded_exp(total / targets), _bounded_exp(total / words) if words else None
        if by_token is None or (words and by_word is None):
            detail = f"a loss of {total / targets:.4g} nats a token over {targets} tokens and {words} words"
            self.state.warn(WarningKind.PERPLEXITY_OVERFLOW, detail)
        return Scores(
            **_loss(total, targets),
            perplexity=by_token,
            word_perplexity=by_word,
            bits_per_byte=_finite(total / math.log(2) / size) if size else None,
            words=words,
            bytes=size,
        )

    # -- answers ----------------------------------------------------------------------------------------------------

    def _answer_scores(self, total: float, targets: int, predictions: Mapping[str, str]) -> Scores:
        return Scores(**_loss(total, targets), **self.task.score(self.prepared.test_examples, predictions).overall)

    def _generation(self, chosen: list[TokenizedExample]) -> RunBatch:
        choice, followers = self.state.choice, self.state.followers
        way: Way = choice.generation or choice.layout
        shares = shares_of(chosen, followers.count, keeps_groups=way == "shared", equal=way == "single")
        commands = [self._generate([chosen[row] for row in share.rows], way) for share in shares]
        read_elsewhere = sum(command.prompt_tokens for command in commands[1:])

        def work(run: Running, on_prompts_read: Callable[[int], None]) -> BatchResult:
            found = followers.generate(
                run,
                self.tokenizer,
                self.eos,
                commands,
                on_prompts_read=lambda own: on_prompts_read(own + read_elsewhere),
                recorded=self.recorded,
            )
            rows, computed = in_order(shares, [rows for rows, _ in found]), sum(tokens for _, tokens in found)
            written = sum(row.new_tokens for row in rows)
            lines = partial(self._answer_lines, chosen, rows)
            read = sum(len(example.prompt) for example in chosen)
            return BatchResult(read + written, written, computed, None, lines)

        return work

    def _generate(self, chosen: Sequence[TokenizedExample], way: Way) -> Generate:
        """What one device is to generate, its prompts laid out."""
        settings = self.state.settings
        new, prompts = settings.inference.max_new_tokens, [example.prompt for example in chosen]
        length = settings.training.sequence_length - new
        laid_out = generation.lay_out_ahead(
            prompts,
            layout=way,
            prompt_length=length,
            pad_id=self.pad_id,
            max_new_tokens=new,
            keeps_paths=self.recorded is not None,
        )
        return Generate(
            prompts=prompts,
            layout=way,
            prompt_length=length,
            pad_id=self.pad_id,
            max_new_tokens=new,
            stop=settings.task.stop,
            repeated=[example.repeated for example in chosen],
            laid_out=laid_out,
        )

    def _answer_lines(self, chosen: list[TokenizedExample], rows: list[Generated]) -> list[str]:
        return [self._answer_line(*pair) for pair in zip(chosen, rows, strict=True)]

    def _text_lines(self, chosen: list[TokenizedExample], sums: list[float]) -> list[str]:
        return [
            _line(
                id=example.id,
                cluster=self._cluster(example),
                log_likelihood=_finite(0.0 - nll),
                tokens=len(example.completion),
                words=example.words,
                bytes=example.bytes,
            )
            for example, nll in zip(chosen, sums, strict=True)
        ]

    def _cluster(self, tokenized: TokenizedExample) -> str:
        """Equal for examples that go together: the questions on one paragraph, the paragraphs of one document."""
        example = self._examples.get(tokenized.id)
        name = example.document if example is not None and example.document is not None else tokenized.group
        return hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:16]

    @cached_property
    def _examples(self) -> dict[str, Example]:
        return {example.id: example for example in self.prepared.test_examples}

    def _answer_line(self, tokenized: TokenizedExample, row: Generated) -> str:
        prediction, example = self.task.prediction(row.text), self._examples[tokenized.id]
        scores = self.task.score([example], {example.id: prediction}).per_example[example.id]
        return _line(
            id=tokenized.id,
            cluster=self._cluster(tokenized),
            prompt=self.tokenizer.decode(tokenized.prompt),
            generated=row.text,
            prediction=prediction,
            new_tokens=row.new_tokens,
            smallest_margin=row.smallest_margin,
            scores=scores,
        )


def _step_line(timed: Timed, phase: PhaseName, part: Part, step: int, samples: int, result: BatchResult) -> str:
    return step_line(
        timed,
        phase=phase,
        part=part,
        step=step,
        micro_batches=1,
        samples=samples,
        tokens=result.tokens,
        target_tokens=result.target_tokens,
        computed_tokens=result.computed_tokens,
        loss=result.loss,
    )


def _with_attached(attached: dict[str, Any], result: BatchResult) -> Iterator[str]:
    return with_merged(attached, result.lines())


def _line(**fields: Any) -> str:
    return json.dumps(fields, ensure_ascii=False)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _loss(total: float, targets: int) -> dict[str, Any]:
    return {"loss": _finite(total / targets), "target_tokens": targets}


def _bounded_exp(exponent: float) -> float | None:
    """e to the power, or None where it is no finite number."""
    return math.exp(exponent) if exponent < LARGEST_EXPONENT else None
