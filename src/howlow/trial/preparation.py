"""What does not depend on the trial and is done once a sweep: choosing and tokenising examples, checking the model.

Every mistake that a user can make in naming data, model, tokenizer or target modules is found here, before the first
trial. The result is a folder that the trials read (`howlow.trial.prepared`), so that all of them see the same tokens.
"""

import hashlib
import os
from collections.abc import Collection, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from howlow.engine import model as models
from howlow.engine import tokens
from howlow.engine.chat_template import changed_prompt
from howlow.engine.references import PACKAGED, ModelReference, locate, locate_tokenizer
from howlow.engine.tokens import TokenizedExample
from howlow.engine.weights import check_fit, file_sha256, weights_sha256
from howlow.errors import UserError, about
from howlow.meters.machine import choose_device, environment, refuse_crowd
from howlow.records import DataRecord, RecordWarning, WarningKind
from howlow.records.own_sources import code_sha256
from howlow.settings import Settings, preparation_key, workers_here
from howlow.tasks import DataFiles, Example, Purpose, Selection, files_of, select, task_named
from howlow.trial.accepted_answers import accepted_answers, not_loaded
from howlow.trial.data_sources import left_out_of, source_read, told_of
from howlow.trial.forgetting import general_facts, general_windows, warning_of_leak
from howlow.trial.loading import parameters_a_rank
from howlow.trial.prepared import Prepared, stored, write_prepared
from howlow.trial.starting import check_start, refuse_other_base

_TOKENIZER_FILES = ("*token*", "*vocab*", "*merges*", "*.jinja", "*.model", "*.tiktoken")
# Found anew at each start: the stored tokens may have been prepared for another model.
_OF_MODEL = (WarningKind.WEIGHTS_LEFT_OUT, WarningKind.LONGER_THAN_MODEL)


def prepare(
    settings: Settings, adapters: Sequence[tuple[int, tuple[str, ...]]], folder: Path, heads: Collection[str] = ()
) -> dict[str, Any]:
    """Prepare the data and check the model for trials with these settings.

    Args:
        adapters: rank and target modules of each trial's adapter.
        heads: the values of `training.head`.

    Returns:
        What a person wants to know before starting: counts, warnings, the longest example.

    Raises:
        UserError: anything wrong with the data, the model, the tokenizer or the target modules.
    """
    device = choose_device(settings.run.device, settings.run.devices_per_trial)
    refuse_crowd(device, workers_here(settings), settings.run.devices_per_trial)
    reference, config = _base(settings)
    structure = models.structure(config, settings.trust_remote_code)
    warnings = _weights(settings, reference, config)
    sizes = parameters_a_rank(settings, config, structure, {targets for _, targets in adapters})
    content = _content(settings, reference, config)
    earlier = stored(folder, content)
    prepared = earlier or tokenized(settings, reference, config)
    facts = _model(reference, config) | {"start_sha256": check_start(settings, structure)}
    refuse_other_base(settings, facts["model_sha256"])
    prepared = replace(prepared, data=prepared.data.model_copy(update=facts))
    _check_against_model(settings, structure, prepared)
    if "targets" in heads and not structure.names_decoder:
        raise UserError(f'training.head = "targets": {settings.model} does not name its decoder; set it to "all"')
    if structure.max_positions is not None and settings.training.sequence_length > structure.max_positions:
        detail = f"sequence length {settings.training.sequence_length}, made for {structure.max_positions} positions"
        warnings.append(RecordWarning(kind=WarningKind.LONGER_THAN_MODEL, detail=detail))
    before = list(prepared.warnings)
    is_new = earlier is None or earlier.data != prepared.data
    of_data = [warning for warning in before if warning.kind not in _OF_MODEL]
    prepared.warnings[:] = [*of_data, *warnings]
    if is_new or prepared.warnings != before:
        write_prepared(prepared, folder, content)
    return {
        "data": prepared.data.model_dump(),
        "warnings": [warning.model_dump(mode="json") for warning in prepared.warnings],
        "tokenizer": prepared.tokenizer_name,
        "architecture": structure.architecture,
        "total_parameters": structure.total_parameters,
        "adapter_parameters": [rank * sizes[targets] for rank, targets in adapters],
        "environment": environment(device).model_dump(),
    }


def _base(settings: Settings) -> tuple[ModelReference, Any]:
    """The model and its config."""
    try:
        reference = locate(settings.model, settings.random_weights)
        return reference, models.load_config(reference, settings.revision, settings.trust_remote_code)
    except UserError as error:
        if settings.lora.start is None:
            raise
        raise UserError(f"{error}; it is the base of the adapter {settings.lora.start}: give it with --model") from None


def _weights(settings: Settings, reference: ModelReference, config: Any) -> list[RecordWarning]:
    """Refuse weights that do not fit; weights of the hub may not be here yet, and their loader finds it."""
    if settings.random_weights or not reference.is_local:
        return []
    left = check_fit(Path(reference.location), config, settings.trust_remote_code)
    detail = f"{len(left)} tensors of {settings.model} have no place in the model: {', '.join(left[:3])}"
    return [RecordWarning(kind=WarningKind.WEIGHTS_LEFT_OUT, detail=detail)] if left else []


def _model(reference: ModelReference, config: Any) -> dict[str, str | None]:
    """Which model it is: a hash of a local one's config and weights, the commit of one from the hub."""
    if not reference.is_local:
        return {"model_sha256": None, "model_commit": getattr(config, "_commit_hash", None)}
    digest = hashlib.sha256(config.to_json_string(use_diff=False).encode())
    if Path(reference.location).is_dir():
        digest.update(weights_sha256(Path(reference.location)).encode())
    return {"model_sha256": digest.hexdigest(), "model_commit": None}


def model_sha256(settings: Settings) -> str | None:
    """The same hash of the model that this machine sees."""
    return _model(*_base(settings))["model_sha256"]


def _check_against_model(settings: Settings, structure: models.Structure, prepared: Prepared) -> None:
    highest = max(max(example.prompt + example.completion) for example in prepared.everything)
    if highest >= structure.vocabulary:
        raise UserError(
            f"tokenizer {prepared.tokenizer_name}: it gives token {highest}, the model {settings.model} has "
            f"{structure.vocabulary}; {_tokenizer_remedy(settings, prepared)}"
        )
    length = settings.training.sequence_length
    if structure.learned_positions and structure.max_positions and length > structure.max_positions:
        raise UserError(
            f"training.sequence_length = {length}: {settings.model} has learned positions for "
            f"{structure.max_positions} tokens; lower it to that"
        )


def _tokenizer_remedy(settings: Settings, prepared: Prepared) -> str:
    is_own = not any(warning.kind is WarningKind.TOKENIZER_SUBSTITUTED for warning in prepared.warnings)
    if is_own and settings.tokenizer in (None, settings.model):
        return (
            "it is the model's own, so the folder's files belong to two models, or tokens were added to the tokenizer "
            "only; resize the model's embeddings (resize_token_embeddings), or give another with the setting tokenizer"
        )
    return "give the model's own with the setting tokenizer"


# -- examples -> tokens ---------------------------------------------------------------------------------------------


def tokenized(settings: Settings, reference: ModelReference, config: Any) -> Prepared:
    """Load, select, tokenise and cut the examples."""
    tokenizer, tokenizer_name, substituted = models.load_tokenizer(
        reference, settings.tokenizer, settings.revision, settings.trust_remote_code
    )
    warnings: list[RecordWarning] = []
    if substituted:
        detail = f"{settings.model} comes without a tokenizer; {tokenizer_name}'s is used"
        warnings.append(RecordWarning(kind=WarningKind.TOKENIZER_SUBSTITUTED, detail=detail))
    has_prompts = task_named(settings.task.name).generates
    with about(f"tokenizer {tokenizer_name}"):
        selection, train, test, validation = (_prompts if has_prompts else _texts)(settings, tokenizer)
        changed = changed_prompt(tokenizer) if settings.task.template == "chat" else None
    if changed is not None:
        warnings.append(RecordWarning(kind=WarningKind.CHAT_PROMPT_CHANGED, detail=changed))
    accepted = accepted_answers(settings, reference, config, tokenizer, selection.test, test)
    validated = accepted_answers(settings, reference, config, tokenizer, selection.validation, validation).examples
    general = general_windows(settings, tokenizer)
    told, test_told = _with_tokens(settings, "train", train), _with_tokens(settings, "test", test)
    kept = _that_fit(settings, told)
    data = DataRecord(
        train_sha256=tokens.fingerprint(kept),
        test_sha256=tokens.fingerprint(test),
        answers_sha256=_answers_sha256(accepted.examples, test),
        references=accepted.count,
        unmatchable_references=accepted.num_unmatchable,
        train_examples=len(kept),
        train_groups=len({example.group for example in kept}),
        test_examples=len(test),
        test_groups=len({example.group for example in test}),
        train_tokens=sum(example.length for example in kept),
        test_tokens=sum(example.length for example in test),
        longest_tokens=max(example.length for example in kept),
        overlap_left_out=selection.overlap_left_out,
        dropped=len(told) - len(kept),
        cut=sum(example.cut for example in [*kept, *test]),
        cut_in_training=sum(example.cut for example in kept),
        train_completion_tokens=sum(len(example.completion) for example in kept),
        without_tokens=len(train) - len(told),
        test_without_tokens=len(test) - len(test_told),
        sources=tuple(source_read(side, source) for side, source in _sources(settings)),
        **general_facts([window for _, window in general]),
        **_validation_facts(validated, validation),
    )
    warnings += [*_left_out(settings), *_data_warnings(data, settings), *accepted.warnings]
    leak = warning_of_leak([window for window, _ in general], selection.train)
    warnings += [leak] if leak else []
    return Prepared(
        kept,
        test,
        accepted.examples,
        data,
        warnings,
        tokenizer_name,
        general=[window for _, window in general],
        validation=validation,
        validation_examples=validated,
    )


def _sources(settings: Settings) -> list[tuple[Purpose, str]]:
    """The sources of data that the settings name, each with what it is for."""
    sides: tuple[Purpose, ...] = ("train", "test", "general_text")
    named = [(side, getattr(settings.task, side)) for side in sides]
    return [(side, source) for side, source in named if source is not None]


def _validation_facts(examples: Sequence[Example], tokenized: Sequence[TokenizedExample]) -> dict[str, Any]:
    if not tokenized:
        return {}
    hashes = tokens.fingerprint(tokenized) + _answers_sha256(examples, tokenized)
    return {
        "validation_sha256": hashlib.sha256(hashes.encode()).hexdigest(),
        "validation_examples": len(tokenized),
    }


def _left_out(settings: Settings) -> list[RecordWarning]:
    """A warning of what the task leaves out of either side because of the settings."""
    left_out = task_named(settings.task.name).left_out
    if left_out is None:
        return []
    sides: tuple[Purpose, ...] = ("train", "test")
    found = [left_out(getattr(settings.task, side), settings.task, side) for side in sides]
    told = list(dict.fromkeys(words for words in found if words is not None))
    return [RecordWarning(kind=WarningKind.UNANSWERABLE_LEFT_OUT, detail="; ".join(told))] if told else []


def _with_tokens(settings: Settings, side: Purpose, examples: Sequence[TokenizedExample]) -> list[TokenizedExample]:
    """The examples whose text has tokens: a tokenizer may drop characters, and a completion's EOS is not its text.

    Training leaves the others out. The test keeps them, so that no score is of fewer examples than the data has: such a
    text has no target and adds nothing to the loss, and an answer of that kind has its end as its only target.
    """
    of_its_own = 1 if task_named(settings.task.name).generates else 0
    found = [example for example in examples if len(example.completion) > of_its_own]
    if not found:
        raise UserError(
            f"task.{side} {getattr(settings.task, side)}: the tokenizer makes no token of any of its {len(examples)} "
            "texts; give another tokenizer with the setting tokenizer"
        )
    return found


def _that_fit(settings: Settings, train: Sequence[TokenizedExample]) -> list[TokenizedExample]:
    length = settings.training.sequence_length
    kept = [example for example in train if example.length <= length]
    if not kept:
        raise UserError(
            f"no training example of {settings.task.train} fits into training.sequence_length = {length} "
            f"(the shortest has {min(example.length for example in train)} tokens); raise it"
        )
    return kept


def _answers_sha256(examples: Sequence[Example], test: Sequence[TokenizedExample]) -> str:
    """A hash of what the scores depend on beyond the tokens: accepted answers, and the units of loss a word or byte."""
    scored = [(one.id, one.references, tokens.words, tokens.bytes) for one, tokens in zip(examples, test, strict=True)]
    return hashlib.sha256(repr(scored).encode()).hexdigest()


def _data_warnings(data: DataRecord, settings: Settings) -> list[RecordWarning]:
    length, new = settings.training.sequence_length, settings.inference.max_new_tokens
    kept = "which are kept and add nothing to the loss"
    cut = f"{data.cut} texts cut to training.sequence_length = {length} tokens"
    if task_named(settings.task.name).generates:
        of_training = data.cut_in_training or 0
        whose = f"{of_training} training and {data.cut - of_training} test" if of_training else f"{data.cut} test"
        cut = (
            f"{whose} prompts cut: training.sequence_length = {length} holds prompt and completion, or prompt "
            f"and inference.max_new_tokens = {new}"
        )
        kept = "which are kept with EOS as their only target"
    sides = [
        (data.without_tokens, "training texts, which are left out"),
        (data.test_without_tokens, f"test texts, {kept}"),
    ]
    silent = " and of ".join(f"{count} {what}" for count, what in sides if count)
    left_out = left_out_of(data)
    found = [
        (WarningKind.FILES_LEFT_OUT, len(left_out), told_of(left_out)),
        (
            WarningKind.TRAIN_TEST_OVERLAP,
            data.overlap_left_out,
            f"{data.overlap_left_out} training examples left out: their text is in the test data, or set aside for it",
        ),
        (
            WarningKind.EXAMPLES_DROPPED,
            data.dropped,
            f"{data.dropped} training examples dropped: longer than {length} tokens",
        ),
        (
            WarningKind.TEXT_WITHOUT_TOKENS,
            len(silent),
            f"the tokenizer makes no token of {silent}",
        ),
        (WarningKind.TEXT_CUT, data.cut, cut),
    ]
    return [RecordWarning(kind=kind, detail=detail) for kind, count, detail in found if count]


def _loaded(settings: Settings, purpose: Purpose) -> list[Example]:
    source = getattr(settings.task, purpose)
    with about(f"task.{purpose} {source}"):
        return task_named(settings.task.name).load(source, settings.task, purpose)


_Sides = tuple[Selection, list[TokenizedExample], list[TokenizedExample], list[TokenizedExample]]
"""What was selected, and the tokens of training, test and validation."""


def _prompts(settings: Settings, tokenizer: Any) -> _Sides:
    chat = settings.task.template == "chat"
    selection = select(_loaded(settings, "train"), _loaded(settings, "test"), settings.task)
    length, new = settings.training.sequence_length, settings.inference.max_new_tokens
    if task_named(settings.task.name).cuts_training:
        train = tokens.fit_training_prompts(tokenizer, selection.train, length, chat)
    else:
        train = tokens.tokenize_all(tokenizer, selection.train, chat)
    test, validation = (
        tokens.fit_prompts(tokenizer, side, length, new, chat) for side in (selection.test, selection.validation)
    )
    return selection, train, test, validation


def _texts(settings: Settings, tokenizer: Any) -> _Sides:
    length, train, test = settings.training.sequence_length, _loaded(settings, "train"), _loaded(settings, "test")
    if settings.task.unit != "window":
        selection = select(train, test, settings.task)
        laid = [
            [tokens.tokenize_text(tokenizer, example, length) for example in side]
            for side in (selection.train, selection.test, selection.validation)
        ]
        return selection, laid[0], laid[1], laid[2]
    pairs = [[pair for text in side for pair in tokens.windows(tokenizer, text, length)] for side in (train, test)]
    selection = select([example for example, _ in pairs[0]], [example for example, _ in pairs[1]], settings.task)
    by_id = [{example.id: tokenized for example, tokenized in side} for side in pairs]
    return (
        selection,
        [by_id[0][example.id] for example in selection.train],
        [by_id[1][example.id] for example in selection.test],
        [by_id[0][example.id] for example in selection.validation],
    )


# -- files ----------------------------------------------------------------------------------------------------------


def _content(settings: Settings, reference: ModelReference, config: Any) -> str | None:
    """A hash of everything that the tokens follow from; None where it cannot be known (data or a tokenizer of the hub,
    or what cannot be read: its reader says why).

    Data and tokenizer count by the content of their files: a sweep that is resumed tokenises nothing again, unless its
    data has changed. Accepted answers are read as far as the model's EOS.
    """
    tokenizer = locate_tokenizer(settings.tokenizer) if settings.tokenizer else reference
    if not tokenizer.has_tokenizer:
        tokenizer = locate(PACKAGED)
    sources = [files_of(source, side) for side, source in _sources(settings)]
    if not tokenizer.is_local or not all(map(_can_be_read, sources)):
        return None
    tokenizer_files = _tokenizer_files(Path(tokenizer.location))
    if not all(os.access(path, os.R_OK) for path in tokenizer_files):
        return None
    digest = hashlib.sha256()
    versions = [version(name) for name in ("howlow", "transformers", "tokenizers")]
    ends = sorted(models.stop_tokens(not_loaded(settings, reference, config), None))
    digest.update(repr((versions, code_sha256(), preparation_key(settings), ends)).encode())
    for path in tokenizer_files:
        digest.update(f"{path.name} {file_sha256(path)}\n".encode())
    for source in sources:
        digest.update(repr((source.format, source.left_out)).encode())
        for name, path in zip(source.names, source.files, strict=True):
            digest.update(f"{name} {file_sha256(path)}\n".encode())
    return digest.hexdigest()


def _can_be_read(source: DataFiles) -> bool:
    try:
        return bool(source.files) and all(file.is_file() and os.access(file, os.R_OK) for file in source.files)
    except OSError:
        return False


def _tokenizer_files(place: Path) -> list[Path]:
    if not place.is_dir():
        return [place]
    inside = {path for pattern in _TOKENIZER_FILES for path in place.rglob(pattern)}
    return sorted(path for path in inside if path.is_file())
