"""The inference phases: the loss of the test's targets, and greedy generation for tasks that have answers."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

from howlow.engine import inference, layouts
from howlow.engine.layouts import Layout
from howlow.engine.model import Precision
from howlow.engine.rotary import as_in_a_full_row, depends_on_length
from howlow.engine.tokens import TokenizedExample
from howlow.meters.clock import now_s
from howlow.meters.session import Session
from howlow.preparation import Prepared
from howlow.records import LineWriter, PhaseName, Scores, WarningKind, read_lines
from howlow.tasks import Example, Task, task_named
from howlow.trial.resuming import Saved, save_inference
from howlow.trial.state import TrialState, split, write_step

LARGEST_EXPONENT = 700.0  # exp of more than this is no longer a finite float64


@dataclass(frozen=True)
class BatchResult:
    """What one batch of inference gave: counts and loss for its step; `lines` makes those for the predictions.

    Scoring and writing the answers is not inference: `lines` is called when the batch's time has been taken.
    """

    tokens: int
    target_tokens: int
    computed_tokens: int
    loss: float | None
    lines: Callable[[], list[str]]


Work = Callable[[Callable[[int], None]], BatchResult]
"""Runs a batch; calls what it is given, with the tokens computed so far, when the prompts of a generation are read."""


@dataclass(frozen=True)
class Scorer:
    """A loaded model and what it is scored on."""

    state: TrialState
    session: Session
    model: Any
    tokenizer: Any
    prepared: Prepared
    precision: Precision
    pad_id: int
    eos: frozenset[int]
    saved: Saved | None = None

    @property
    def task(self) -> Task:
        """How answers are scored."""
        return task_named(self.state.settings.task.name)

    def phases(self) -> dict[PhaseName, Callable[[list[TokenizedExample]], Work]]:
        """The phases that the task asks for, and what makes work of a batch in each."""
        found: dict[PhaseName, Callable[[list[TokenizedExample]], Work]] = {"evaluate": self._evaluation}
        return found | ({"generate": self._generation} if self.task.generates else {})

    def score(self) -> Scores:
        """Run the phases that the task asks for."""
        self._run("evaluate", self._evaluation)
        total, targets = self._summed_loss()
        if not self.task.generates:
            return self._text_scores(total, targets)
        self._run("generate", self._generation)
        found = {line["id"]: line["prediction"] for line in read_lines(self.state.predictions_path)}
        overall = self.task.score(self.prepared.test_examples, found).overall
        return Scores(**_loss(total, targets), **overall)

    def _run(self, phase: PhaseName, prepare: Callable[[list[TokenizedExample]], Work]) -> None:
        """Run a phase's batches in their order, or those that an interrupted process left of them."""
        state, test = self.state, self.prepared.test
        if any(ended.phase == phase for ended in state.found.phases):
            return
        batches = list(split(range(len(test)), state.inference_batch_size))
        running = self.saved.running if self.saved else {}
        running = running if running.get("phase") == phase else {}
        first, saved_at_s = running.get("batches", 0), now_s()
        parts = state.parts(phase, first, len(batches))
        steps, predictions = LineWriter(state.steps_path), LineWriter(state.predictions_path)
        with self.session.phase(phase, running.get("totals")) as meter:
            for index in range(first, len(batches)):
                work = prepare([test[row] for row in batches[index]])
                samples = len(batches[index])
                state.note_first_step()
                with meter.step(parts[index] == "measured", samples) as timed:
                    result = work(partial(meter.mark_prefill, timed))
                for line in result.lines():
                    predictions.append(line)
                write_step(
                    steps,
                    timed,
                    phase=phase,
                    part=parts[index],
                    step=index,
                    micro_batches=1,
                    samples=samples,
                    tokens=result.tokens,
                    target_tokens=result.target_tokens,
                    computed_tokens=result.computed_tokens,
                    loss=result.loss,
                )
                state.report_progress(phase, index + 1, len(batches))
                is_due = now_s() - saved_at_s >= state.settings.training.checkpoint_every_s
                if index + 1 < len(batches) and (is_due or state.link.stop_requested):
                    totals = meter.pause()
                    save_inference(state, self.session, {"phase": phase, "batches": index + 1, "totals": totals})
                    saved_at_s = now_s()
                    state.stop_if_asked()
            state.found.phases.append(meter.end())
        save_inference(state, self.session)
        steps.close()
        predictions.close()

    # -- loss -------------------------------------------------------------------------------------------------------

    def _evaluation(self, chosen: list[TokenizedExample]) -> Work:
        training = self.state.settings.training
        choice, length = self.state.choice, training.sequence_length
        batch = layouts.lay_out(chosen, choice.layout, length, self.pad_id, "completion")
        options: dict[str, Any] = {
            "precision": self.precision,
            "head": training.head,
            "kernel": choice.kernel or "sdpa",
        }

        def work(_: Callable[[int], None]) -> BatchResult:
            with as_in_a_full_row(self.model, length):
                sums = inference.evaluate(self.model, batch, **options)
            loss = _finite(math.fsum(sums) / batch.target_tokens)
            lines = list[str] if self.task.generates else partial(_text_lines, chosen, sums)
            return BatchResult(batch.tokens, batch.target_tokens, batch.computed_tokens, loss, lines)

        return work

    def _summed_loss(self) -> tuple[float, int]:
        """The test's summed negative log-likelihood and its target tokens, from the raw steps."""
        lines = [line for line in read_lines(self.state.steps_path) if line["phase"] == "evaluate"]
        total = math.fsum(line.get("loss", math.inf) * line["target_tokens"] for line in lines)
        return total, sum(line["target_tokens"] for line in lines)

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
            bits_per_byte=_finite(total / math.log(2) / size),
            words=words,
            bytes=size,
        )

    # -- answers ----------------------------------------------------------------------------------------------------

    def _generation(self, chosen: list[TokenizedExample]) -> Work:
        settings = self.state.settings
        new = settings.inference.max_new_tokens
        prompts = [example.prompt for example in chosen]
        length, choice = settings.training.sequence_length, self.state.choice
        # Frequencies that follow the longest row would differ from those of a batch that is padded.
        layout: Layout = "padded" if depends_on_length(self.model, length) else choice.layout

        def work(on_prompts_read: Callable[[int], None]) -> BatchResult:
            rows, computed = inference.generate(
                self.model,
                self.tokenizer,
                prompts,
                layout=layout,
                prompt_length=length - new,
                pad_id=self.pad_id,
                kernel=choice.kernel or "sdpa",
                on_prompts_read=on_prompts_read,
                precision=self.precision,
                max_new_tokens=new,
                stop=settings.task.stop,
                eos=self.eos,
            )
            written = sum(row.new_tokens for row in rows)
            lines = partial(self._answer_lines, chosen, rows)
            return BatchResult(sum(map(len, prompts)) + written, written, computed, None, lines)

        return work

    def _answer_lines(self, chosen: list[TokenizedExample], rows: list[inference.Generated]) -> list[str]:
        return [self._answer_line(*pair) for pair in zip(chosen, rows, strict=True)]

    @cached_property
    def _examples(self) -> dict[str, Example]:
        return {example.id: example for example in self.prepared.test_examples}

    def _answer_line(self, tokenized: TokenizedExample, row: inference.Generated) -> str:
        prediction, example = self.task.prediction(row.text), self._examples[tokenized.id]
        scores = self.task.score([example], {example.id: prediction}).per_example[example.id]
        return _line(
            id=tokenized.id,
            prompt=self.tokenizer.decode(tokenized.prompt),
            generated=row.text,
            prediction=prediction,
            new_tokens=row.new_tokens,
            smallest_margin=row.smallest_margin,
            scores=scores,
        )


def _line(**fields: Any) -> str:
    return json.dumps(fields, ensure_ascii=False)


def _text_lines(examples: list[TokenizedExample], sums: list[float]) -> list[str]:
    return [_text_line(example, nll) for example, nll in zip(examples, sums, strict=True)]


def _text_line(example: TokenizedExample, nll: float) -> str:
    return _line(
        id=example.id,
        log_likelihood=_finite(-nll),
        tokens=len(example.completion),
        words=example.words,
        bytes=example.bytes,
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _loss(total: float, targets: int) -> dict[str, Any]:
    return {"loss": _finite(total / targets), "target_tokens": targets}


def _bounded_exp(exponent: float) -> float | None:
    """e to the power, or None where it is no finite number."""
    return math.exp(exponent) if exponent < LARGEST_EXPONENT else None
