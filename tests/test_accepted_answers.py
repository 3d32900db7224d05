"""Accepted answers go the way of predictions: a model that writes exactly what it was taught is right.

The law: the tokens of the completion, written by a generation, score 1; an answer that no cut reaches stays as it is;
every other one is counted, with the reason.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from tokenizer_kinds import KINDS

from howlow import load_settings as load
from howlow.engine.answers import AnswerLimits
from howlow.engine.generation import _Rows
from howlow.engine.tokens import tokenize
from howlow.records import RecordWarning
from howlow.settings import merge
from howlow.tasks import Example, task_named
from howlow.trial import preparation
from howlow.trial.accepted_answers import AcceptedAnswers, AnswerReader
from howlow.trial.prepared import read_prepared

EOS = 257
COMPLETION, SQUAD = task_named("completion"), task_named("question_answering")


def limits(stop: str | None = None, new: int = 32, eos: frozenset[int] = frozenset({EOS})) -> AnswerLimits:
    return AnswerLimits(eos, stop, new)


def one(completion: str, *references: str, identity: str = "one") -> Example:
    return Example(identity, "group", "", "", "Why?", completion, references or (completion.strip(),))


def read(tokenizer: Any, examples: list[Example], ends: AnswerLimits, task: Any = COMPLETION) -> AcceptedAnswers:
    tokenized = [tokenize(tokenizer, example) for example in examples]
    return AnswerReader(task, tokenizer, ends).accepted(examples, tokenized)


def taught(tokenizer: Any, example: Example, ends: AnswerLimits, task: Any) -> str:
    """The prediction of a model that writes exactly the tokens of the completion."""
    prediction: str = task.prediction(ends.written(tokenizer, tokenize(tokenizer, example).completion))
    return prediction


def exact_match(task: Any, example: Example, prediction: str) -> float:
    value: float = task.score([example], {example.id: prediction}).overall["exact_match"]
    return value


def kinds(found: AcceptedAnswers) -> dict[str, str]:
    return {warning.kind.value: warning.detail for warning in found.warnings}


# -- the law --------------------------------------------------------------------------------------------------------

TEXT = st.lists(st.sampled_from(["a", "b ", "é", "漢", "\n", " ", "</s>", "<s>", "END", ". "]), max_size=8).map("".join)
LONG = 40  # tokens, more than such a text has


@pytest.mark.parametrize("task", [COMPLETION, SQUAD], ids=["completion", "question_answering"])
@given(text=TEXT, other=TEXT, stop=st.sampled_from([None, "", "\n", "END"]), new=st.integers(1, 40))
def test_a_model_that_writes_what_it_was_taught_is_right(
    tiny_tokenizer: Any, task: Any, text: str, other: str, stop: str | None, new: int
):
    assume(text.strip())
    references = (text.strip(),) if task is COMPLETION else (text, other)
    example, ends = one(f" {text}", *references), limits(stop, LONG if task.compares_whole_answers else new)
    found = read(tiny_tokenizer, [example], ends, task)
    (as_compared,) = found.examples
    prediction = taught(tiny_tokenizer, example, ends, task)
    assert exact_match(task, as_compared, prediction) == 1.0
    assert replace(as_compared, references=references) == example
    assert found.count == len(set(references))
    assert found.num_unmatchable == sum(
        before != after for before, after in dict(zip(references, as_compared.references, strict=True)).items()
    )
    is_reached = exact_match(task, replace(example, references=references[:1]), prediction) == 1.0
    assert is_reached == (as_compared.references[0] == references[0])
    assert bool(found.warnings) == bool(found.num_unmatchable)


@given(
    text=TEXT.filter(bool),
    stop=st.sampled_from([None, "", "\n", "b ", "END"]),
    new=st.integers(1, 20),
)
def test_a_generation_writes_what_is_said_of_it(tiny_tokenizer: Any, text: str, stop: str | None, new: int):
    """Token by token, as a model that is sure of each of them would."""
    ids = tiny_tokenizer(text, add_special_tokens=False)["input_ids"]
    rows = _Rows(tiny_tokenizer, 1, stop, frozenset({EOS}))
    for token in ids[:new]:
        if not rows.is_done(0):
            rows.write([0], torch.nn.functional.one_hot(torch.tensor([token]), 264).float())
    (written,) = rows.results()
    assert written.text == limits(stop, new).written(tiny_tokenizer, ids)


# -- each reason ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("completion", "compared", "ends", "kind", "words"),
    [
        (" Paris</s>", "Paris", limits(), "references_with_special_tokens", "with the text of EOS or another special"),
        (" a<s>b", "ab", limits(), "references_with_special_tokens", "with the text of EOS or another special"),
        ("</s>", "", limits(), "references_with_special_tokens", "with the text of EOS or another special"),
        (" one\ntwo", "one", limits("\n"), "references_with_stop", "with task.stop = '\\n' inside"),
        (
            " twelve words",
            "twel",
            limits(new=5),
            "references_too_long",
            "longer than inference.max_new_tokens = 5",
        ),
    ],
)
def test_an_answer_that_no_generation_can_give_is_compared_as_it_would_be_written(
    tiny_tokenizer: Any, completion: str, compared: str, ends: AnswerLimits, kind: str, words: str
):
    plain = [one(" yes", identity="zero"), one(completion)]
    found = read(tiny_tokenizer, plain, ends)
    assert [example.references for example in found.examples] == [("yes",), (compared,)]
    assert (found.count, found.num_unmatchable) == (2, 1)
    (detail,) = kinds(found).values()
    assert list(kinds(found)) == [kind]
    assert detail.startswith("1 of 2 accepted answers ")
    assert words in detail
    assert "the first of example 'one'" in detail


def test_the_longest_is_named_so_that_the_setting_can_be_raised_to_it(tiny_tokenizer: Any):
    found = read(tiny_tokenizer, [one("abcdefgh"), one("abcdefghijkl"), one("ab")], limits(new=4))
    (detail,) = kinds(found).values()
    assert detail.startswith("2 of 3 accepted answers longer than inference.max_new_tokens = 4 (the longest: 12")
    assert read(tiny_tokenizer, [one("abcdefgh"), one("abcdefghijkl"), one("ab")], limits(new=12)).warnings == ()


def test_an_answer_is_not_cut_by_an_eos_that_does_not_fit_any_more(tiny_tokenizer: Any):
    assert read(tiny_tokenizer, [one("abcd")], limits(new=4)).num_unmatchable == 0


def test_each_reason_has_its_own_warning_and_an_answer_one_reason(tiny_tokenizer: Any):
    examples = [one(f"{start}much more than fits") for start in ("a</s>\n", "a\n", "")]
    found = read(tiny_tokenizer, examples, limits("\n", 6))
    assert sorted(kinds(found)) == ["references_too_long", "references_with_special_tokens", "references_with_stop"]
    assert (found.count, found.num_unmatchable) == (3, 3)


def test_a_tokenizer_that_cannot_write_an_answer():
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    known = {"[UNK]": 0, "paris": 1, "why": 2, "?": 3, "</s>": 4, "end": 5, "a": 6, "b": 7}
    words = Tokenizer(models.WordLevel(known, unk_token="[UNK]"))
    words.normalizer, words.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>", unk_token="[UNK]")
    found = read(tokenizer, [one("Paris")], limits(eos=frozenset({4})))
    assert found.examples[0].references == ("paris",)
    assert list(kinds(found)) == ["references_altered"]
    for stop, written in (("END", "end"), ("a\nb", "a b"), ("STOP", "")):  # no capitals, no line breaks, [UNK]
        assert kinds(read(tokenizer, [one("paris")], limits(stop, eos=frozenset({4})))) == {
            "stop_never_written": f"task.stop = {stop!r} ends no answer: the tokenizer writes it as {written!r}"
        }
    # SQuAD's comparison does not see capitals: there is nothing to count.
    assert read(tokenizer, [one(" Paris", "Paris")], limits("\n", eos=frozenset({4})), SQUAD).num_unmatchable == 0


def test_a_stop_that_no_answer_can_hold_is_told():
    tokenizer = KINDS["byte level"]()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<end>"]})
    for stop in ("", "\n", "END", " é", "<end>"):  # the last one ends an answer by its id
        assert read(tokenizer, [one("a")], limits(stop, eos=frozenset({1}))).warnings == ()
    assert kinds(read(tokenizer, [one("a")], limits("<end>\n", eos=frozenset({1})))) == {
        "stop_never_written": "task.stop = '<end>\\n' ends no answer: the tokenizer writes it as '\\n'"
    }


def test_what_squad_does_not_compare_does_not_count(tiny_tokenizer: Any):
    example = one(" the box", "the box", "box.", "a box", "the box")
    found = read(tiny_tokenizer, [example], limits("\n"), SQUAD)
    assert found.examples == [example]
    assert (found.count, found.num_unmatchable, found.warnings) == (3, 0, ())


def test_squads_official_scores_compare_a_long_answer_whole(tiny_tokenizer: Any):
    example, ends = one(" a long answer", "a long answer", "long"), limits("\n", 7)
    found = read(tiny_tokenizer, [example], ends, SQUAD)
    assert found.examples == [example]
    assert (found.count, found.num_unmatchable) == (2, 1)
    assert kinds(found)["references_too_long"].endswith("they are compared whole all the same")
    scores = SQUAD.score(found.examples, {"one": taught(tiny_tokenizer, example, ends, SQUAD)}).overall
    assert scores == {"exact_match": 1.0, "f1": 1.0}  # " a long": the second answer, without its article
    alone = read(tiny_tokenizer, [replace(example, references=("a long answer",))], ends, SQUAD)
    scores = SQUAD.score(alone.examples, {"one": taught(tiny_tokenizer, example, ends, SQUAD)}).overall
    assert scores == {"exact_match": 0.0, "f1": pytest.approx(2 / 3)}


def test_every_accepted_answer_is_read_and_equal_ones_count_once(tiny_tokenizer: Any):
    example = one(" two\nlines", "two\nlines", "two\nlines", "lines", "more\nlines")
    found = read(tiny_tokenizer, [example], limits("\n"), SQUAD)
    assert found.examples[0].references == ("two", "two", "lines", "more")
    assert (found.count, found.num_unmatchable) == (3, 2)


def test_an_answer_that_the_task_reads_as_no_answer(tiny_tokenizer: Any):
    found = read(tiny_tokenizer, [one(" unanswerable", "unanswerable")], limits("\n"), SQUAD)
    assert list(kinds(found)) == ["references_altered"]
    assert exact_match(SQUAD, found.examples[0], SQUAD.prediction(" unanswerable")) == 1.0


def test_a_question_without_an_answer_has_none_to_count(tiny_tokenizer: Any):
    example = replace(one(" unanswerable"), references=())
    found = read(tiny_tokenizer, [example], limits("\n", 2), SQUAD)
    assert (found.examples, found.count, found.num_unmatchable) == ([example], 0, 0)


# -- in the preparation ---------------------------------------------------------------------------------------------


def rows_file(path: Path, *completions: str) -> str:
    lines = [{"prompt": f"{path.stem} {index}?", "completion": text} for index, text in enumerate(completions)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return str(path)


def prepared(table: dict[str, Any], folder: Path, *completions: str, **changes: Any) -> tuple[dict[str, Any], Any]:
    """The report of a preparation with these test completions, and what the trials read."""
    task = {"name": "completion", "train": rows_file(folder / "train.jsonl", " yes", " no")}
    task["test"] = rows_file(folder / "test.jsonl", *completions)
    settings = load(None, [merge({**table, "task": task}, changes)])
    report = preparation.prepare(settings, [], folder / "prepared")
    return report, read_prepared(folder / "prepared")


def remedies(report: dict[str, Any]) -> dict[str, str]:
    return {warning["kind"]: RecordWarning(**warning).remedy for warning in report["warnings"]}


def test_what_cannot_be_matched_is_counted_before_the_first_trial(tiny_table: dict[str, Any], tmp_path: Path):
    report, found = prepared(tiny_table, tmp_path, " ok</s>", " a;b", " far too long", " ok", task={"stop": ";"})
    assert (report["data"]["references"], report["data"]["unmatchable_references"]) == (4, 3)
    assert sorted(example.references for example in found.test_examples) == [("a",), ("far",), ("ok",), ("ok",)]
    assert remedies(report) == {
        "references_with_special_tokens": "remove these texts from the answers; EOS follows a completion anyway",
        "references_with_stop": "set task.stop to a text that no answer holds, or to the empty text",
        "references_too_long": "raise inference.max_new_tokens to at least the length of the longest",
    }
    assert found.data.model_dump() == report["data"]
    again, _ = prepared(tiny_table, tmp_path, " ok", " yes", task={"stop": ";"})
    assert (again["data"]["references"], again["data"]["unmatchable_references"]) == (2, 0)
    assert again["warnings"] == []


def test_the_models_own_ends_cut_an_answer(tiny_table: dict[str, Any], tiny_model: Path, tmp_path: Path):
    """A generation config may end a generation at further tokens: here at every `b`."""
    import shutil

    folder = Path(shutil.copytree(tiny_model, tmp_path / "copied"))
    table = merge(tiny_table, {"model": str(folder)})
    whole, _ = prepared(table, tmp_path, " abc")
    assert whole["data"]["unmatchable_references"] == 0
    from transformers import AutoTokenizer

    ends = [EOS, *AutoTokenizer.from_pretrained(folder)("b", add_special_tokens=False)["input_ids"]]
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    cut, found = prepared(table, tmp_path, " abc")
    assert cut["data"]["unmatchable_references"] == 1
    assert found.test_examples[0].references == ("a",)


def test_texts_have_no_answers_to_count(tiny_table: dict[str, Any], tmp_path: Path):
    (tmp_path / "train.txt").write_text("A text.\n")
    (tmp_path / "test.txt").write_text("Another text.\n")
    task = {"name": "language_modeling", "train": str(tmp_path / "train.txt"), "test": str(tmp_path / "test.txt")}
    report = preparation.prepare(load(None, [{**tiny_table, "task": task}]), [], tmp_path / "prepared")
    assert (report["data"]["references"], report["data"]["unmatchable_references"]) == (None, None)


def test_a_chats_turn_ends_the_answer(tiny_table: dict[str, Any], tiny_model: Path, tmp_path: Path):
    import shutil

    from transformers import AutoTokenizer

    from howlow.trial.loading import turn_ends

    folder = Path(shutil.copytree(tiny_model, tmp_path / "copied"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<end>"]})
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role + ': ' + m.content | trim + '<end>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    tokenizer.save_pretrained(folder)
    table = merge(tiny_table, {"model": str(folder)})
    report, found = prepared(table, tmp_path, " a<end>b", task={"template": "chat"})
    end = tokenizer.convert_tokens_to_ids("<end>")
    assert found.test[0].completion[-1] == end
    assert found.test_examples[0].references == ("a",)
    assert list(remedies(report)) == ["references_with_special_tokens"]
    chat = load(None, [merge(table, {"task": {"name": "completion", "template": "chat"}})])
    assert turn_ends(chat, tokenizer) == {end}
    assert turn_ends(load(None, [table]), tokenizer) == frozenset()


def test_a_stop_that_is_a_special_token_ends_the_answer(tiny_table: dict[str, Any], tiny_model: Path, tmp_path: Path):
    """Special tokens are not decoded, so the text of one is never found in an answer."""
    import shutil

    from transformers import AutoTokenizer

    from howlow.trial.loading import turn_ends

    folder = Path(shutil.copytree(tiny_model, tmp_path / "copied"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<end>"]})
    tokenizer.save_pretrained(folder)
    table = merge(tiny_table, {"model": str(folder)})
    _, found = prepared(table, tmp_path, " a<end>b", task={"stop": "<end>"})
    assert found.test_examples[0].references == ("a",)
    asked = load(None, [merge(table, {"task": {"name": "completion", "stop": "<end>"}})])
    assert turn_ends(asked, tokenizer) == {tokenizer.convert_tokens_to_ids("<end>")}
    plain = load(None, [merge(table, {"task": {"name": "completion", "stop": "end"}})])
    assert turn_ends(plain, tokenizer) == frozenset()
