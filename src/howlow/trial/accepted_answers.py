"""Which accepted answers a generation can give, and how it would write the others.

A prediction is what a generation writes before EOS, before the stop text and within `inference.max_new_tokens`, decoded
without special tokens, and read by the task. An accepted answer that this way changes (it is longer, it holds the stop
text or the text of a special token, the tokenizer cannot write it) can be matched by no generation, however good the
model is. It is counted, and compared as a generation would write it: both sides take the same way. Only where a task's
scores are published ones, an answer that is merely too long is compared whole.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from transformers import GenerationConfig

from howlow.engine import tokens
from howlow.engine.answers import AnswerLimits, before_stop, decoded, written_stop
from howlow.engine.references import ModelReference
from howlow.engine.tokens import TokenizedExample
from howlow.errors import UserError, reason
from howlow.records import RecordWarning, WarningKind
from howlow.settings import Settings
from howlow.tasks import Example, Task, task_named
from howlow.trial.loading import answer_ends


@dataclass(frozen=True)
class AcceptedAnswers:
    """Test examples with their accepted answers as they are compared; equal answers of an example count once.

    The counts are None for texts, which have no answers.
    """

    examples: list[Example]
    count: int | None = None
    num_unmatchable: int | None = None
    """how many no generation can match as they stand"""
    warnings: tuple[RecordWarning, ...] = ()


def accepted_answers(
    settings: Settings,
    reference: ModelReference,
    config: Any,
    tokenizer: Any,
    examples: Sequence[Example],
    tokenized: Sequence[TokenizedExample],
) -> AcceptedAnswers:
    """The answers that predictions are compared with, and which of the data's answers no generation can match.

    config: the model's. tokenized: the same examples' tokens.
    """
    task = task_named(settings.task.name)
    if not task.generates:
        return AcceptedAnswers(list(examples))
    ends = answer_ends(settings, not_loaded(settings, reference, config), tokenizer)
    limits = AnswerLimits(ends, settings.task.stop, settings.inference.max_new_tokens)
    reader = AnswerReader(task, tokenizer, limits, settings.task.template == "chat")
    return reader.accepted(examples, tokenized)


@dataclass(frozen=True)
class Unmatchable:
    """The accepted answers that no generation can match for one reason."""

    count: int = 0
    longest: int = 0
    """tokens of the longest"""
    first: str = ""
    """the id of the first example that has one"""


@dataclass(frozen=True)
class AnswerReader:
    """How tokens become a prediction: the tokenizer, what ends a generation, and the task that reads the text."""

    task: Task
    tokenizer: Any
    limits: AnswerLimits
    chat: bool = False

    def accepted(self, examples: Sequence[Example], tokenized: Sequence[TokenizedExample]) -> AcceptedAnswers:
        """The answers that are compared with predictions, and which of them stand for others."""
        found: dict[WarningKind, Unmatchable] = defaultdict(Unmatchable)
        count, read = 0, []
        for example, tokens_of_it in zip(examples, tokenized, strict=True):
            kept = {}
            for answer in dict.fromkeys(example.references):
                answered = self._answered(example, tokens_of_it, answer)
                text, why = self._read(example, answer, answered)
                kept[answer] = text
                count += 1
                if why is not None:
                    before, length = found[why], len(list(takewhile(self._goes_on, answered.completion)))
                    first = before.first or example.id
                    found[why] = Unmatchable(before.count + 1, max(before.longest, length), first)
            read.append(replace(example, references=tuple(kept[answer] for answer in example.references)))
        unmatchable = sum(one.count for one in found.values())
        warnings = *self._warnings(found, count), *self._warnings_of_stop()
        return AcceptedAnswers(read, count, unmatchable, warnings)

    def _goes_on(self, token: int) -> bool:
        return token not in self.limits.eos

    def _answered(self, example: Example, tokenized: TokenizedExample, answer: str) -> TokenizedExample:
        """The tokens of an answer where it follows the prompt as the completion does."""
        lead = example.completion[: len(example.completion) - len(example.completion.lstrip())]
        if (lead + answer).rstrip() == example.completion.rstrip():
            return tokenized
        return tokens.tokenize(self.tokenizer, replace(example, completion=lead + answer), self.chat)

    def _read(self, example: Example, answer: str, answered: TokenizedExample) -> tuple[str, WarningKind | None]:
        """The answer, or the text that stands for it and the reason why no generation can match the answer."""
        ids, repeated = answered.completion, answered.repeated
        text = self.task.prediction(self.limits.written(self.tokenizer, ids, repeated))
        if self._is_right(example, answer, text):
            return answer, None
        whole = decoded(self.tokenizer, ids, self.limits.eos, repeated)
        for why, reached in (
            (WarningKind.REFERENCES_ALTERED, self._spelled(answer)),
            (WarningKind.REFERENCES_WITH_SPECIAL_TOKENS, whole),
            (WarningKind.REFERENCES_WITH_STOP, before_stop(whole, self.limits.stop)),
        ):
            if not self._is_right(example, answer, self.task.prediction(reached)):
                return text, why
        return answer if self.task.compares_whole_answers else text, WarningKind.REFERENCES_TOO_LONG

    def _spelled(self, answer: str) -> str:
        """The answer encoded and decoded, special tokens included."""
        ids = self.tokenizer(answer, add_special_tokens=False, verbose=False)["input_ids"]
        text: str = self.tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        return text

    def _is_right(self, example: Example, answer: str, text: str) -> bool:
        """Whether a text scores as the answer itself does."""
        if text == answer:
            return True
        alone = replace(example, references=(answer,))
        scores = [self.task.score([alone], {example.id: given}).per_example for given in (text, answer)]
        return scores[0] == scores[1]

    def _warnings(self, found: Mapping[WarningKind, Unmatchable], count: int) -> Iterator[RecordWarning]:
        limits = self.limits
        for kind, one in found.items():
            reasons = {
                WarningKind.REFERENCES_TOO_LONG: f"longer than inference.max_new_tokens = {limits.max_new_tokens} (the "
                f"longest: {one.longest} tokens)",
                WarningKind.REFERENCES_WITH_STOP: f"with task.stop = {limits.stop!r} inside, where generation ends",
                WarningKind.REFERENCES_WITH_SPECIAL_TOKENS: "with the text of EOS or another special token inside",
                WarningKind.REFERENCES_ALTERED: "which the tokenizer cannot write, or the task reads as another",
            }
            is_whole = kind is WarningKind.REFERENCES_TOO_LONG and self.task.compares_whole_answers
            outcome = "they are compared whole all the same" if is_whole else "they are compared as it would write them"
            detail = f"{one.count} of {count} accepted answers {reasons[kind]}, the first of example {one.first!r}"
            yield RecordWarning(kind=kind, detail=f"{detail}: no generation matches them; {outcome}")

    def _warnings_of_stop(self) -> Iterator[RecordWarning]:
        stop = self.limits.stop
        written = written_stop(self.tokenizer, stop) if stop else None
        if written is not None:
            detail = f"task.stop = {stop!r} ends no answer: the tokenizer writes it as {written!r}"
            yield RecordWarning(kind=WarningKind.STOP_NEVER_WRITTEN, detail=detail)


def not_loaded(settings: Settings, reference: ModelReference, config: Any) -> Any:
    """What `howlow.engine.model.stop_tokens` reads of a model, from its files alone."""
    generation = None if settings.random_weights else _generation_config(reference)
    return SimpleNamespace(config=config, generation_config=generation)


def _generation_config(reference: ModelReference) -> Any:
    if reference.is_local and not Path(reference.location).is_dir():
        return None
    try:
        found = GenerationConfig.from_pretrained(reference.location, local_files_only=reference.is_local)
    except OSError:  # there is none: the model takes what its config says
        return None
    except (AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise UserError(
            f"model {reference.name}: generation_config.json cannot be read ({reason(error)}); copy it again, or "
            "remove it"
        ) from None
    given = found.eos_token_id
    ends = [] if given is None else given if isinstance(given, list) else [given]
    if not all(isinstance(end, int) and not isinstance(end, bool) for end in ends):
        raise UserError(
            f"model {reference.name}: eos_token_id in generation_config.json is {found.eos_token_id!r}; a token's "
            "number or a list of such numbers is expected: correct it, or remove the file"
        )
    return found
