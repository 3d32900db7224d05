"""Summarization: articles become prompts that are cut to fit, and ROUGE is that of rouge-score with stemming."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer
from tokenizer_kinds import KINDS

from howlow import load_settings as load
from howlow.engine import tokens
from howlow.errors import UserError
from howlow.records import read_lines
from howlow.settings import TaskSettings, merge
from howlow.sweeping.sweep import sweep
from howlow.tasks import Example, score_predictions, task_named
from howlow.trial import preparation
from howlow.trial.prepared import Prepared, read_prepared

TASK = task_named("summarization")
few = hypothesis_settings(max_examples=15)


def settings(**values: Any) -> TaskSettings:
    return TaskSettings(name="summarization", train="a", test="b", **values)


def article(number: int, words: int = 20) -> dict[str, str]:
    text = " ".join(f"word{number}x{index}" for index in range(words))
    return {"id": f"n{number}", "article": text, "highlights": f"Word{number} one .\nWord{number} two ."}


def written(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return str(path)


# -- examples -------------------------------------------------------------------------------------------------------


def test_an_article_becomes_a_prompt_and_its_highlights_the_completion(tmp_path: Path) -> None:
    row = {"id": 7, "article": "It rained. {article}", "highlights": " Rain .\nMore rain . ", "url": "ignored"}
    (example,) = TASK.load(written(tmp_path / "d.jsonl", [row]), settings(), "train")
    assert example.prompt == "It rained. {article}\n\nSummary:"
    assert (example.before, example.context) == ("", "It rained. {article}")
    assert (example.completion, example.references) == (" Rain .\nMore rain .", ("Rain .\nMore rain .",))
    assert (example.id, example.group, example.overlap_keys) == ("7", row["article"], (row["article"],))


def test_csv_and_jsonl_give_the_same_examples(tmp_path: Path) -> None:
    rows = [article(number) for number in range(3)]
    with (tmp_path / "d.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["", "id", "article", "highlights"])  # pandas' index has no name
        writer.writeheader()
        writer.writerows({"": index, **row} for index, row in enumerate(rows))
    found = TASK.load(str(tmp_path / "d.csv"), settings(), "test")
    assert found == TASK.load(written(tmp_path / "d.jsonl", rows), settings(), "test")


def test_a_template_holds_the_article_once(tmp_path: Path) -> None:
    source = written(tmp_path / "d.jsonl", [article(1)])
    (example,) = TASK.load(source, settings(template="Sum up: {article} ->"), "test")
    assert (example.before, example.after) == ("Sum up: ", " ->")
    table = {"model": "m", "task": {"name": "summarization", "train": "a/b", "test": "c/d", "template": "no"}}
    with pytest.raises(UserError, match=r"task.template must hold \{article\} exactly once"):
        load(None, [table])


def test_blank_articles_are_groups_of_their_own(tmp_path: Path) -> None:
    rows = [{**article(number), "article": " "} for number in range(2)]
    found = TASK.load(written(tmp_path / "d.jsonl", rows), settings(), "train")
    assert [(one.group, one.overlap_keys) for one in found] == [
        ("n0", (rows[0]["highlights"],)),
        ("n1", (rows[1]["highlights"],)),
    ]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"article": "a"}, "line 1: 'highlights' is missing; it has: article"),
        ({"article": 3, "highlights": "b"}, "line 1: 'article' must be a string, not a number"),
        ({"article": "a", "highlights": " \n"}, "line 1: 'highlights' is empty; give the summary of the article"),
        ({"article": "a", "highlights": "日本語。"}, "line 1: 'highlights' has no word that ROUGE counts (a-z, 0-9)"),
        ({"article": "a", "highlights": "b", "id": 0.5}, "line 1: 'id' must be a string or a whole number"),
    ],
)
def test_what_is_wrong_is_one_line_with_its_place(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        TASK.load(written(tmp_path / "d.jsonl", [row]), settings(), "test")
    assert message in str(caught.value)


def test_two_articles_of_one_id_and_an_empty_list_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="line 2: the id 'n1' occurs twice"):
        TASK.load(written(tmp_path / "d.jsonl", [article(1), article(1)]), settings(), "train")
    (tmp_path / "e.json").write_text("[]")
    with pytest.raises(UserError, match="holds no article; give at least one row"):
        TASK.load(str(tmp_path / "e.json"), settings(), "train")


def test_training_may_have_summaries_in_any_script(tmp_path: Path) -> None:
    source = written(tmp_path / "d.jsonl", [{**article(1), "highlights": "日本語。"}])
    assert TASK.load(source, settings(), "train")[0].completion == " 日本語。"


# -- scores ---------------------------------------------------------------------------------------------------------


def scored(reference: str, prediction: str) -> dict[str, float]:
    example = Example("1", "1", "", "text", "", f" {reference}", (reference,))
    return TASK.score([example], {"1": prediction}).per_example["1"]


def test_rouge_counts_stemmed_words_by_hand() -> None:
    """Words: the cat sit on the mat; the cat on mat. Shared: 4 of 6 and of 4; pairs: the-cat of 5 and of 3."""
    found = scored("The cats sits on the mat.", "the cat on mat")
    assert found["rouge1"] == pytest.approx(2 * (4 / 6) * (4 / 4) / (4 / 6 + 4 / 4))
    assert found["rouge2"] == pytest.approx(2 * (1 / 5) * (1 / 3) / (1 / 5 + 1 / 3))
    assert found["rougeL"] == found["rouge1"]


TEXTS = st.text(alphabet="abc running.\n-É9 ", max_size=40)


@given(TEXTS.filter(lambda text: text.strip()), TEXTS)
def test_scores_are_those_of_rouge_score_with_its_stemmer(reference: str, prediction: str) -> None:
    theirs = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True).score(reference, prediction)
    assert scored(reference, prediction) == {name: score.fmeasure for name, score in theirs.items()}


@given(st.lists(st.sampled_from(["rain", "falls", "today", "9"]), min_size=2, max_size=8))
def test_a_summary_that_equals_its_reference_scores_one(words: list[str]) -> None:
    text = " ".join(words)
    assert scored(text, text) == {"rouge1": 1.0, "rouge2": 1.0, "rougeL": 1.0}
    assert scored(text, "") == {"rouge1": 0.0, "rouge2": 0.0, "rougeL": 0.0}


def test_a_file_of_predictions_is_scored(tmp_path: Path) -> None:
    data = written(tmp_path / "d.jsonl", [article(1), article(2)])
    (tmp_path / "p.json").write_text(json.dumps({"n1": article(1)["highlights"], "x": "y"}))
    found = score_predictions("summarization", data, str(tmp_path / "p.json"))
    rouge = dict.fromkeys(("rouge1", "rouge2", "rougeL"), 0.5)
    assert found.figures == {"examples": 2, **rouge, "missing_predictions": 1, "extra_predictions": 1}


# -- articles that are too long -------------------------------------------------------------------------------------


def long_example(words: int, completion: str = " short") -> Example:
    context = " ".join(f"w{index}" for index in range(words))
    return Example("1", "1", "", context, "\n\nSummary:", completion, (completion.strip(),))


@pytest.mark.parametrize("kind", sorted(KINDS))
@few
@given(words=st.integers(1, 60), length=st.integers(8, 90), completion=st.sampled_from([" short", " a bit longer one"]))
def test_a_training_example_is_cut_to_fit_or_left_as_it_is(kind: str, words: int, length: int, completion: str) -> None:
    tokenizer, example = KINDS[kind](), long_example(words, completion)
    (whole,) = tokens.tokenize_all(tokenizer, [example])
    (found,) = tokens.fit_training_prompts(tokenizer, [example], length)
    if whole.length <= length or found.length > length:
        assert found == whole  # it fits, or nothing of its article would be left: it is dropped
        assert not found.cut
        return
    assert found.cut
    assert found.completion == whole.completion
    assert found.prompt[:1] == whole.prompt[:1]


def prepared(table: dict[str, Any], folder: Path) -> tuple[Prepared, dict[str, str]]:
    report = preparation.prepare(load(None, [table]), [], folder / "prepared")
    return read_prepared(folder / "prepared"), {one["kind"]: one["detail"] for one in report["warnings"]}


def table_of(tiny_table: dict[str, Any], folder: Path, lengths: list[int]) -> dict[str, Any]:
    train = written(folder / "train.jsonl", [article(number, words) for number, words in enumerate(lengths)])
    test = written(folder / "test.jsonl", [article(number + 50, words) for number, words in enumerate(lengths)])
    return {**tiny_table, "task": {"name": "summarization", "train": train, "test": test}}


def test_long_articles_are_cut_on_both_sides_and_counted(tiny_table: dict[str, Any], tmp_path: Path) -> None:
    found, warnings = prepared(table_of(tiny_table, tmp_path, [3, 40, 50]), tmp_path)
    assert (found.data.cut, found.data.cut_in_training, found.data.dropped) == (4, 2, 0)
    assert warnings["text_cut"].startswith("2 training and 2 test prompts cut: training.sequence_length = 160 holds")
    assert all(example.length <= 160 for example in found.train)
    assert all(len(example.prompt) + 4 <= 160 for example in found.test)
    assert found.data.train_completion_tokens == sum(len(example.completion) for example in found.train)


def test_an_article_of_which_nothing_fits_is_dropped(tiny_table: dict[str, Any], tmp_path: Path) -> None:
    table = table_of(tiny_table, tmp_path, [3, 5])
    row = {"id": "long", "article": "x" * 90, "highlights": "y" * 150}
    table["task"]["train"] = written(tmp_path / "train.jsonl", [article(1, 3), row])
    found, warnings = prepared(table, tmp_path)
    assert ([example.id for example in found.train], found.data.dropped) == (["n1"], 1)
    assert "examples_dropped" in warnings


# -- its settings ---------------------------------------------------------------------------------------------------


def test_summaries_may_be_longer_than_answers_unless_told_otherwise() -> None:
    table = {"model": "m", "task": {"name": "summarization", "train": "a/b", "test": "c/d"}}
    assert load(None, [table]).inference.max_new_tokens == 128
    assert load(None, [merge(table, {"inference": {"max_new_tokens": 9}})]).inference.max_new_tokens == 9
    assert load(None, [merge(table, {"inference": {"batch_size": 2}})]).inference.max_new_tokens == 128
    others = merge(table, {"task": {"name": "completion"}})
    assert load(None, [others]).inference.max_new_tokens == 32
    with pytest.raises(UserError, match="inference = 3: a table of settings is expected"):
        load(None, [table | {"inference": 3}])


@pytest.mark.slow
def test_a_sweep_scores_summaries(tiny_table: dict[str, Any], tmp_path: Path) -> None:
    table = merge(table_of(tiny_table, tmp_path, [3, 4]), {"baselines": [], "grid": {"lora.rank": [1]}})
    (record,) = sweep(load(None, [table]), tmp_path / "run").records
    assert record.status == "done"
    assert None not in (record.scores.rouge1, record.scores.rouge2, record.scores.rougeL, record.scores.loss)
    assert record.scores.f1 is None
    lines = list(read_lines(tmp_path / "run" / "trials" / "r0001-s0" / "predictions.jsonl"))
    assert {frozenset(line["scores"]) for line in lines} == {frozenset(("rouge1", "rouge2", "rougeL"))}


def test_real_articles_are_read(real_data: Path) -> None:
    found = TASK.load(str(real_data / "cnn_dailymail" / "sample.csv"), settings(), "test")
    assert len(found) == 100
    assert sum(len(example.context.split()) for example in found) / 100 == pytest.approx(695, abs=1)
