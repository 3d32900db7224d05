"""SQuAD's scores against the official figures, and against the two official scripts' logic written a second time."""

import json
import os
import random
import re
import string
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from howlow.errors import UserError
from howlow.settings import TaskSettings
from howlow.tasks import score_predictions, task_named
from howlow.tasks.squad_score import answer_scores, counted_references, normalize_answer

question_answering = task_named("question_answering")

DATA = Path(os.environ.get("HOWLOW_TEST_DATA", Path(__file__).parents[2] / "shared" / "data")) / "squad"

texts = st.text(alphabet=st.sampled_from("aAn the.,'-éx12 "), max_size=12)


@pytest.fixture
def squad():
    if not DATA.is_dir():
        pytest.skip(f"no SQuAD data in {DATA}; set HOWLOW_TEST_DATA to the folder that holds squad/")
    return DATA


def score_file(data, predictions):
    return score_predictions("question_answering", data, predictions).document()


def write(path, value):
    path.write_text(json.dumps(value), encoding="utf-8")
    return str(path)


# -- the official scripts, a second time, step by step and slowly ---------------------------------------------------


def official_normal_form(text):
    text = "".join(character for character in text.lower() if character not in set(string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def shared_tokens(one, other):
    return sum(min(one.count(token), other.count(token)) for token in set(one))


def official_f1(version, gold, predicted):
    one, other = official_normal_form(gold).split(), official_normal_form(predicted).split()
    same = shared_tokens(one, other)
    if version == 2 and (not one or not other):
        return float(one == other)
    if same == 0:
        return 0.0
    return 2 * (same / len(other)) * (same / len(one)) / (same / len(other) + same / len(one))


def official_scores(version, answers, predicted):
    if version == 2:
        answers = [answer for answer in answers if official_normal_form(answer)] or [""]
    exact = max(float(official_normal_form(answer) == official_normal_form(predicted)) for answer in answers)
    return {"exact_match": exact, "f1": max(official_f1(version, answer, predicted) for answer in answers)}


# -- golden figures -------------------------------------------------------------------------------------------------


def test_official_figures_of_a_published_bert_are_reproduced(squad):
    result = score_file(str(squad / "dev-v2.0.json"), str(squad / "predictions-bert-v2.0.json"))
    assert result["examples"] == 9180
    assert (result["has_answer_examples"], result["no_answer_examples"]) == (4649, 4531)
    official = {
        "exact_match": 79.73856,
        "f1": 82.75319,
        "has_answer_exact_match": 73.49968,
        "has_answer_f1": 79.45241,
        "no_answer_exact_match": 86.13992,
        "no_answer_f1": 86.13992,
    }
    assert {name: result[name] for name in official} == {
        name: pytest.approx(value / 100, abs=1e-7) for name, value in official.items()
    }
    assert (result["missing_predictions"], result["extra_predictions"], result["warnings"]) == (0, 0, [])


@pytest.mark.parametrize(("name", "version"), [("dev-v1.1.json", 1), ("dev-v2.0.json", 2)])
def test_random_predictions_score_as_in_the_official_script(squad, tmp_path, name, version):
    chance = random.Random(name)
    document = json.loads((squad / name).read_text(encoding="utf-8"))
    questions = [
        (entry, paragraph["context"])
        for article in document["data"]
        for paragraph in article["paragraphs"]
        for entry in paragraph["qas"]
    ]
    predictions = {entry["id"]: some_prediction(chance, entry, context) for entry, context in questions}
    expected = [
        official_scores(version, [answer["text"] for answer in entry["answers"]], predictions[entry["id"]])
        for entry, _ in questions
    ]
    result = score_file(str(squad / name), write(tmp_path / "predictions.json", predictions))
    for score in ("exact_match", "f1"):
        assert result[score] == pytest.approx(sum(one[score] for one in expected) / len(expected), abs=1e-12)
    assert 0.1 < result["exact_match"] < result["f1"] < 0.9
    task = TaskSettings(name="question_answering", train="x", test="x", answerable_only=False)
    examples = question_answering.load(str(squad / name), task, "test")
    scores = question_answering.score(examples, predictions)
    own = [{score: one[score] for score in ("exact_match", "f1")} for one in scores.per_example.values()]
    assert own == [pytest.approx(one) for one in expected]
    parts = ["has_answer" if entry["answers"] else "no_answer" for entry, _ in questions]
    for part, one in zip(parts, scores.per_example.values(), strict=True):
        assert one == {score: one[score] for score in ("exact_match", "f1")} | {
            f"{part}_{score}": one[score] for score in ("exact_match", "f1")
        }
    figures = {name: value for name, value in result.items() if name in scores.overall}
    assert scores.overall == {name: pytest.approx(value, abs=1e-12) for name, value in figures.items()}
    assert len(scores.overall) == (6 if version == 2 else 2)


def some_prediction(chance, entry, context):
    words = context.split()
    start = chance.randrange(len(words))
    span = " ".join(words[start : start + chance.randrange(1, 6)])
    answer = chance.choice(entry["answers"])["text"] if entry["answers"] else ""
    return chance.choice([answer, f"The {answer}!", f"{answer} {span}", span, "", "the", answer.upper()])


# -- laws -----------------------------------------------------------------------------------------------------------


@given(texts, st.lists(texts, min_size=1, max_size=4), st.sampled_from([1, 2]))
def test_every_answer_scores_as_in_the_official_script(prediction, answers, version):
    expected = official_scores(version, answers, prediction)
    assert answer_scores(prediction, counted_references(answers, version)) == pytest.approx(expected)


@given(texts, st.lists(texts, max_size=4))
def test_scores_are_fractions_and_exact_implies_full_f1(prediction, answers):
    scores = answer_scores(prediction, counted_references(answers, version=2))
    assert 0.0 <= scores["exact_match"] <= scores["f1"] <= 1.0
    if scores["exact_match"]:
        assert scores["f1"] == 1.0


@given(texts, texts)
def test_f1_is_symmetric(one, other):
    assert answer_scores(one, (other,))["f1"] == pytest.approx(answer_scores(other, (one,))["f1"])


@given(texts)
def test_normalising_leaves_no_case_punctuation_or_spare_space(text):
    normal = normalize_answer(text)
    assert normal == " ".join(normal.lower().split())
    assert not set(normal) & set(string.punctuation)


def test_f1_of_a_hand_computed_answer():
    assert answer_scores("the old brown fox", ("A brown fox jumps.",)) == {
        "exact_match": 0.0,
        "f1": pytest.approx(2 / 3),
    }


def test_versions_differ_where_an_answer_normalises_to_nothing():
    assert answer_scores("", counted_references(["the"], version=1)) == {"exact_match": 1.0, "f1": 0.0}
    assert answer_scores("", counted_references(["the"], version=2)) == {"exact_match": 1.0, "f1": 1.0}
    assert answer_scores("", counted_references(["the", "x"], version=1)) == {"exact_match": 1.0, "f1": 0.0}
    assert answer_scores("", counted_references(["the", "x"], version=2)) == {"exact_match": 0.0, "f1": 0.0}


# -- predictions files ----------------------------------------------------------------------------------------------


@pytest.fixture
def small(tmp_path):
    entries = [
        {"id": "yes", "question": "?", "answers": [{"text": "a fox"}], "is_impossible": False},
        {"id": "no", "question": "?", "answers": [], "is_impossible": True},
    ]
    document = {"version": "v2.0", "data": [{"paragraphs": [{"context": "a fox", "qas": entries}]}]}
    return write(tmp_path / "data.json", document)


def test_missing_predictions_count_as_wrong_and_extra_ones_are_ignored(small, tmp_path):
    result = score_file(small, write(tmp_path / "p.json", {"yes": "Fox.", "other": "x"}))
    assert {key: value for key, value in result.items() if key != "warnings"} == {
        "examples": 2,
        "has_answer_examples": 1,
        "no_answer_examples": 1,
        "exact_match": 0.5,
        "f1": 0.5,
        "has_answer_exact_match": 1.0,
        "has_answer_f1": 1.0,
        "no_answer_exact_match": 0.0,
        "no_answer_f1": 0.0,
        "missing_predictions": 1,
        "extra_predictions": 1,
    }
    assert ["'no'" in result["warnings"][0], "'other'" in result["warnings"][1]] == [True, True]


def test_parts_without_examples_are_absent(tmp_path):
    entry = {"id": "q", "question": "?", "answers": [{"text": "fox"}]}
    document = {"version": "1.1", "data": [{"paragraphs": [{"context": "fox", "qas": [entry]}]}]}
    result = score_file(write(tmp_path / "d.json", document), write(tmp_path / "p.json", {"q": "fox"}))
    assert (result["no_answer_examples"], result["no_answer_exact_match"], result["no_answer_f1"]) == (0, None, None)
    assert result["has_answer_f1"] == result["f1"] == 1.0


@pytest.mark.parametrize(
    ("predictions", "message"),
    [
        ([{"id": "yes", "prediction_text": "x"}], "example id -> text, not a list"),
        ({"yes": None}, "the prediction for 'yes' must be a string, not null"),
        ({"yes": ["fox"]}, "the prediction for 'yes' must be a string, not a list"),
        ({"no": 3}, "the prediction for 'no' must be a string, not a number"),
    ],
)
def test_predictions_of_another_shape_are_refused(small, tmp_path, predictions, message):
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        score_file(small, write(tmp_path / "p.json", predictions))
    assert "p.json" in str(caught.value)


def test_an_id_predicted_twice_is_refused(small, tmp_path):
    (tmp_path / "p.json").write_text('{"yes": "a", "yes": "b"}')
    with pytest.raises(UserError, match="the key 'yes' is given twice"):
        score_file(small, str(tmp_path / "p.json"))
