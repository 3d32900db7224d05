"""The tasks: from data to examples, and from predictions to scores."""

import json
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from howlow.errors import UserError
from howlow.settings import TaskSettings, completed
from howlow.tasks import question_answering as squad_task
from howlow.tasks import task_named, tasks

completion, language_modeling, question_answering = map(
    task_named, ("completion", "language_modeling", "question_answering")
)
DATA = Path(os.environ.get("HOWLOW_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))


def settings(name, **values):
    return completed(TaskSettings(name=name, train="train", test="test", **values), task_named(name).rules)


def refusal(task, path, **values):
    (name,) = [name for name, one in tasks().items() if one is task]
    with pytest.raises(UserError) as caught:
        task.load(str(path), settings(name, **values), "train")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def written(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def squad(*questions, context="The fox jumps.", **document):
    return {"data": [{"title": "t", "paragraphs": [{"context": context, "qas": list(questions)}]}], **document}


def question(identity="q1", *answers, text="Who jumps?", **more):
    found = [{"text": answer, "answer_start": 0} for answer in answers]
    return {"id": identity, "question": text, "answers": found, **more}


def test_tasks_are_named():
    assert list(tasks()) == ["completion", "language_modeling", "question_answering", "summarization"]
    assert (task_named("language_modeling").generates, task_named("question_answering").generates) == (False, True)
    with pytest.raises(
        UserError, match="there is no task 'sources'; the tasks are: completion, language_modeling, question"
    ):
        task_named("sources")


# -- question answering ---------------------------------------------------------------------------------------------


def test_questions_become_examples(tmp_path):
    path = written(tmp_path / "d.json", squad(question("q1", "The fox", "fox"), version="1.1"))
    (example,) = question_answering.load(str(path), settings("question_answering"), "train")
    assert example.prompt == "The fox jumps.\n\nQuestion: Who jumps?\nAnswer:"
    assert (example.before, example.context, example.completion) == ("", "The fox jumps.", " The fox")
    assert (example.id, example.group) == ("q1", "The fox jumps.")
    assert (example.references, example.overlap_keys) == (("The fox", "fox"), ("The fox jumps.",))


def test_unanswerable_questions_come_on_request(tmp_path):
    impossible = question("q2", is_impossible=True)
    path = written(tmp_path / "d.json", squad(question("q1", "fox"), impossible, version="v2.0"))
    load = question_answering.load
    assert [one.id for one in load(str(path), settings("question_answering"), "train")] == ["q1"]
    both = load(str(path), settings("question_answering", answerable_only=False), "train")
    assert [(one.id, one.completion, one.references) for one in both] == [
        ("q1", " fox", ("fox",)),
        ("q2", " unanswerable", ()),
    ]
    given_answers = {
        "q1": question_answering.prediction(" Fox "),
        "q2": question_answering.prediction(" Unanswerable\n"),
    }
    parts = [f"{part}_{name}" for part in ("has_answer", "no_answer") for name in ("exact_match", "f1")]
    names = ["exact_match", "f1", *parts]
    assert question_answering.score(both, given_answers).overall == dict.fromkeys(names, 1.0)
    assert question_answering.score(both, {}).overall == dict.fromkeys(names, 0.0)
    assert question_answering.score(both[:1], given_answers).overall == {"exact_match": 1.0, "f1": 1.0}
    of_parts = question_answering.score(both, given_answers).per_example
    assert set(of_parts["q1"]) == {"exact_match", "f1", "has_answer_exact_match", "has_answer_f1"}
    assert set(of_parts["q2"]) == {"exact_match", "f1", "no_answer_exact_match", "no_answer_f1"}
    half = question_answering.score(both, {"q1": "", "q2": ""}).overall
    assert [half[name] for name in names] == [0.5, 0.5, 0.0, 0.0, 1.0, 1.0]


def test_questions_left_out_for_having_no_answer_are_counted(tmp_path):
    impossible = question("q2", is_impossible=True)
    path = written(tmp_path / "d.json", squad(question("q1", "fox"), impossible, version="v2.0"))
    words = question_answering.left_out(str(path), settings("question_answering"), "train")
    assert words == f"1 of the 2 questions of {path} have no answer and are left out"
    every = settings("question_answering", answerable_only=False)
    assert question_answering.left_out(str(path), every, "train") is None
    answered = written(tmp_path / "e.json", squad(question("q1", "fox")))
    assert question_answering.left_out(str(answered), settings("question_answering"), "train") is None


def test_an_answer_that_normalises_to_nothing_is_an_answer(tmp_path):
    """As in the official script, whose parts go by what the data hold, not by what is left after normalising."""
    entries = question("q1", "The"), question("q2", is_impossible=True)
    path = written(tmp_path / "d.json", squad(*entries, version="v2.0"))
    examples = question_answering.load(str(path), settings("question_answering", answerable_only=False), "test")
    scores = question_answering.score(examples, {"q1": "x", "q2": ""}).overall
    assert (scores["has_answer_f1"], scores["no_answer_f1"], scores["f1"]) == (0.0, 1.0, 0.5)


def test_a_file_of_unanswerable_questions_is_refused(tmp_path):
    path = written(tmp_path / "d.json", squad(question("q2"), version="2.0"))
    assert "set task.answerable_only = false" in refusal(question_answering, path)


@given(
    st.text(alphabet="{}contexqusip ", max_size=30), st.sampled_from(["{context}", "{question}", "{0}", "%s", "\\1"])
)
def test_braces_in_the_data_are_not_filled_in(text, placeholder):
    entry = squad_task.SquadQuestion("id", f"{text}{placeholder}", f"{placeholder}{text}", ("a",), "place")
    example = squad_task._example(entry, "Q: {question} C: {context} A:", 1)
    assert (example.before, example.after) == (f"Q: {placeholder}{text} C: ", " A:")
    assert example.prompt == f"Q: {placeholder}{text} C: {text}{placeholder} A:"


def test_the_chat_template_uses_the_default_text(tmp_path):
    path = written(tmp_path / "d.json", squad(question("q1", "fox")))
    plain, chat = (
        question_answering.load(str(path), settings("question_answering", template=template), "train")
        for template in (None, "chat")
    )
    assert plain == chat


def test_official_files_hold_what_their_description_says():
    if not (DATA / "squad").is_dir():
        pytest.skip(f"no SQuAD data in {DATA}; set HOWLOW_TEST_DATA to the folder that holds squad/")
    for name, paragraphs, questions in (("dev-v1.1.json", 1634, 7918), ("dev-v2.0.json", 923, 4649)):
        examples = question_answering.load(str(DATA / "squad" / name), settings("question_answering"), "train")
        assert (len({one.group for one in examples}) <= paragraphs, len(examples)) == (True, questions)


HERE = "data[0].paragraphs[0]"


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([], "is an object with a list 'data', not a list"),
        ({}, "data is missing"),
        ({"data": {}}, "data must be a list, not an object"),
        ({"data": [3]}, "data[0] must be an object, not a number"),
        ({"data": []}, "holds no question"),
        ({"data": [{}]}, "data[0].paragraphs is missing"),
        ({"data": [{"paragraphs": [{"qas": []}]}]}, f"{HERE}.context is missing"),
        ({"data": [{"paragraphs": [{"context": 1, "qas": []}]}]}, f"{HERE}.context must be a string, not a number"),
        ({"data": [{"paragraphs": [{"context": "x"}]}]}, f"{HERE}.qas is missing"),
        (squad({"question": "?", "answers": []}), f"{HERE}.qas[0].id is missing"),
        (squad(question(7, "fox")), f"{HERE}.qas[0].id must be a string, not a number"),
        (squad({"id": "q", "answers": []}), f"{HERE}.qas[0].question is missing"),
        (squad({"id": "q", "question": "?"}), f"{HERE}.qas[0].answers is missing"),
        (squad(question("q", 3)), f"{HERE}.qas[0].answers[0].text must be a string, not a number"),
        (squad({**question("q"), "answers": ["fox"]}), f"{HERE}.qas[0].answers[0] must be an object, not a string"),
        (squad({**question("q"), "answers": [{}]}), f"{HERE}.qas[0].answers[0].text is missing"),
        (squad(question("q")), f"{HERE}.qas[0].answers is empty"),
        (squad(question("q"), version="1.1"), f"{HERE}.qas[0].answers is empty"),
        (squad(question("q", is_impossible="no")), f"{HERE}.qas[0].is_impossible must be true or false, not a string"),
        (squad(question("q", "fox", is_impossible=True)), f"{HERE}.qas[0].answers must be empty"),
        (squad(question("q", " ")), "the first answer of 'q' is empty"),
        (squad(question("q", "\ud83d")), f"{HERE}.qas[0].answers[0].text holds half of a surrogate pair"),
        (squad(question("q", "fox"), question("q", "fox")), f"{HERE}.qas[1]: the id 'q' occurs twice"),
    ],
)
def test_broken_squad_data_is_refused_with_its_path(tmp_path, document, message):
    path = written(tmp_path / "d.json", document)
    refused = refusal(question_answering, path)
    assert message in refused
    assert refused.startswith(str(path))


# -- completion -----------------------------------------------------------------------------------------------------


def test_jsonl_lines_become_examples(tmp_path):
    lines = ['{"prompt": "2+2=", "completion": " 4 "}', "", '{"id": 7, "prompt": "a\u2028b", "completion": "c"}']
    path = written(tmp_path / "d.jsonl", "\n".join(lines) + "\n")
    first, second = completion.load(str(path), settings("completion"), "train")
    assert (first.id, first.prompt, first.completion, first.references) == ("d.jsonl:1", "2+2=", " 4 ", ("4",))
    assert (first.group, first.context, first.overlap_keys) == ("2+2=", "", ("2+2=",))
    assert (second.id, second.prompt) == ("7", "a\u2028b")


def test_csv_rows_become_examples(tmp_path):
    long = "x" * 200_000
    text = f'\ufeffcompletion,prompt,note\r\n"two\r\nlines",p1,\r\n{long},"p ""2"""," "\r\n'
    path = tmp_path / "d.CSV"
    path.write_bytes(text.encode())
    first, second = completion.load(str(path), settings("completion"), "train")
    assert (first.id, first.prompt, first.completion) == ("d.CSV:2", "p1", "two\r\nlines")
    assert (second.id, second.prompt, second.completion) == ("d.CSV:4", 'p "2"', long)


def test_the_template_surrounds_the_prompt(tmp_path):
    path = written(tmp_path / "d.jsonl", '{"prompt": "{prompt}", "completion": "c"}')
    (example,) = completion.load(str(path), settings("completion", template="Q {prompt} A"), "train")
    assert (example.prompt, example.group) == ("Q {prompt} A", "{prompt}")


def test_a_completion_is_right_when_it_is_equal(tmp_path):
    path = written(tmp_path / "d.jsonl", '{"prompt": "p", "completion": " c"}\n' * 3)
    examples = completion.load(str(path), settings("completion"), "train")
    scores = completion.score(examples, {"d.jsonl:1": "c\n", "d.jsonl:2": "C"})
    assert [one["exact_match"] for one in scores.per_example.values()] == [1.0, 0.0, 0.0]
    assert scores.overall == {"exact_match": pytest.approx(1 / 3)}
    assert completion.prediction(" c\n") == "c"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("d.jsonl", '{"prompt": "p", "completion": "c"}\n{"prompt": "p"', "line 2 column"),
        ("d.jsonl", '\n\n{"prompt": }', "line 3 column 12"),
        ("d.jsonl", "[1]", "line 1: one JSON object a line is expected, not a list"),
        ("d.jsonl", '{"prompt": "p", "text": "c"}', "line 1: 'completion' is missing; it has: prompt, text"),
        ("d.jsonl", '{"prompt": "p", "completion": 4}', "line 1: 'completion' must be a string, not a number"),
        ("d.jsonl", '{"prompt": "p", "completion": "  "}', "line 1: 'completion' is empty"),
        ("d.jsonl", '{"id": "a", "prompt": "p", "completion": "c"}\n' * 2, "line 2: the id 'a' occurs twice"),
        ("d.jsonl", '{"id": [], "prompt": "p", "completion": "c"}', "line 1: 'id' must be a string or a whole number"),
        ("d.csv", "a,b\n1,2\n", "exactly one column 'prompt' is expected; its columns are: a, b"),
        ("d.csv", "prompt,prompt,completion\n1,2,3\n", "exactly one column 'prompt'"),
        ("d.csv", "prompt,completion\np,c\np\n", "line 3: has 1 columns, the header has 2"),
        ("d.csv", 'prompt,completion\np,c\np,"c\n\n', "line 3: not valid CSV: unexpected end of data"),
        ("d.csv", "prompt,completion\np,c\np,\0\n", "line 3: holds a NUL"),
        ("d.csv", "prompt,completion\np,\n", "line 2: 'completion' is empty"),
        ("d.csv", "prompt,completion\n", "holds no example"),
    ],
)
def test_broken_rows_are_refused_with_their_line(tmp_path, name, content, message):
    path = written(tmp_path / name, content)
    refused = refusal(completion, path)
    assert message in refused
    assert refused.startswith(str(path))


# -- language modelling ---------------------------------------------------------------------------------------------


def test_lines_are_paragraphs(tmp_path):
    (tmp_path / "d.txt").write_bytes("\ufeff = Title = \r\n\r\nSome\u2028text\x0chere . \r\n".encode())
    examples = language_modeling.load(str(tmp_path / "d.txt"), settings("language_modeling"), "train")
    assert [(one.id, one.completion) for one in examples] == [
        ("d.txt:1", "= Title ="),
        ("d.txt:3", "Some\u2028text\x0chere ."),
    ]
    assert (examples[0].prompt, examples[0].group, examples[0].overlap_keys) == ("", "d.txt:1", ("= Title =",))
    assert language_modeling.score(examples, {}).overall == {}


def test_a_folder_is_read_file_by_file_in_order(tmp_path):
    (tmp_path / "b").mkdir()
    written(tmp_path / "b" / "2.txt", "two\nthree")
    written(tmp_path / "a.txt", "one\n")
    written(tmp_path / "c.md", "not this")
    load = language_modeling.load
    paragraphs = load(str(tmp_path), settings("language_modeling"), "train")
    assert [one.id for one in paragraphs] == ["a.txt:1", "b/2.txt:1", "b/2.txt:2"]
    windows = load(str(tmp_path), settings("language_modeling", unit="window"), "train")
    assert [(one.id, one.completion) for one in windows] == [("a.txt", "one\n"), ("b/2.txt", "two\nthree")]


def test_wikitext_holds_what_its_description_says():
    path = DATA / "wikitext-2" / "valid.txt"
    if not path.is_file():
        pytest.skip(f"no WikiText-2 in {DATA}; set HOWLOW_TEST_DATA to the folder that holds wikitext-2/")
    paragraphs = language_modeling.load(str(path), settings("language_modeling"), "test")
    assert sum(len(one.completion.split()) for one in paragraphs) == 213_886
    (window,) = language_modeling.load(str(path), settings("language_modeling", unit="window"), "test")
    assert window.completion == path.read_text(encoding="utf-8")


def test_what_is_no_text_is_refused(tmp_path):
    assert "holds no .txt file" in refusal(language_modeling, tmp_path)
    (tmp_path / "d.txt").write_bytes("é\0x".encode())
    assert "d.txt: holds a NUL at byte 2" in refusal(language_modeling, tmp_path)


# -- files that cannot be read --------------------------------------------------------------------------------------

LOADERS = [question_answering, completion, language_modeling]


@pytest.mark.parametrize("module", LOADERS)
def test_unreadable_files_are_refused(module, tmp_path):
    assert "no such file" in refusal(module, tmp_path / "missing.json")
    assert "no such file" in refusal(module, "./missing")
    assert "no such file" in refusal(module, "data/missing.txt")
    assert "hub data is written owner/name" in refusal(module, "squad")
    assert "is empty" in refusal(module, written(tmp_path / "empty.txt", " \n"))
    (tmp_path / "latin.txt").write_bytes("ok é".encode("latin-1"))
    assert "latin.txt: not UTF-8 at byte 3" in refusal(module, tmp_path / "latin.txt")
    assert "Not a directory" in refusal(module, tmp_path / "latin.txt" / "x.txt")
    assert "cannot be read" in refusal(module, "nul\0byte.txt")
    assert "cannot be read" in refusal(module, "/" + "x" * 300)


@pytest.mark.parametrize("module", [question_answering, completion])
def test_a_folder_in_the_place_of_a_file_is_refused(module, tmp_path):
    assert "is a folder; a file is expected" in refusal(module, tmp_path)


@pytest.mark.parametrize("module", LOADERS)
def test_a_file_without_permission_is_refused(module, tmp_path, monkeypatch):
    def denied(path):
        raise PermissionError(13, "Permission denied", str(path))

    path = written(tmp_path / "d.txt", "x")
    monkeypatch.setattr(Path, "read_bytes", denied)
    assert f"{path}: cannot be read: Permission denied" == refusal(module, path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("no json", "not valid JSON at line 1 column 1: Expecting value"),
        ('{\n "data": [', "not valid JSON at line 2 column 11: the text ends in the middle"),
        ('{"data": 1} x', "not valid JSON at line 1 column 13: Extra data"),
        ('{"data": 1, "data": 2}', "the key 'data' is given twice"),
        ("[" * 200_000, "nested too deeply"),
        ("1" * 5000, "not valid JSON"),
    ],
)
def test_broken_json_is_refused_with_its_place(tmp_path, content, message):
    assert message in refusal(question_answering, written(tmp_path / "d.json", content))


# -- hub data -------------------------------------------------------------------------------------------------------


class Table:
    """As much of `datasets.Dataset` as is used."""

    def __init__(self, rows):
        self.rows, self.column_names = rows, list(rows[0])

    def select_columns(self, names):
        return [{name: row[name] for name in names} for row in self.rows]


@pytest.fixture
def hub(monkeypatch):
    """A stand-in for `datasets`: `hub.splits` maps split -> rows; `hub.asked` lists what was loaded."""
    fake, exceptions = ModuleType("datasets"), ModuleType("datasets.exceptions")
    exceptions.DatasetsError = type("DatasetsError", (Exception,), {})
    fake.exceptions, fake.splits, fake.asked = exceptions, {}, []

    def load_dataset(name, config, split):
        fake.asked.append((name, config, split))
        return Table(fake.splits[split])

    fake.load_dataset, fake.get_dataset_split_names = load_dataset, lambda name, config: list(fake.splits)
    monkeypatch.setattr("howlow.hub.is_reachable", lambda: True)
    monkeypatch.setitem(sys.modules, "datasets", fake)
    monkeypatch.setitem(sys.modules, "datasets.exceptions", exceptions)
    return fake


def test_hub_questions(hub):
    answers = {"text": ["fox"], "answer_start": [0]}
    row = {"id": "q1", "title": "t", "context": "c", "question": "?", "answers": answers}
    hub.splits = {"train": [row], "validation": [row, {**row, "id": "q2", "answers": {"text": [], "answer_start": []}}]}
    task = settings("question_answering", answerable_only=False)
    (example,) = question_answering.load("owner/squad-v1.1", task, "train")
    assert (example.id, example.references, example.completion) == ("q1", ("fox",), " fox")
    assert [one.references for one in question_answering.load("owner/squad::validation", task, "train")] == [
        ("fox",),
        (),
    ]
    question_answering.load("owner/squad:plain", task, "test")
    assert hub.asked == [
        ("owner/squad-v1.1", None, "train"),
        ("owner/squad", None, "validation"),
        ("owner/squad", "plain", "validation"),
    ]
    hub.splits["train"] = [{**row, "answers": ["fox"]}]
    assert "row 1: 'answers' must hold a list 'text'" in refusal(question_answering, "owner/squad")


def test_hub_text_is_one_text_with_a_line_a_row(hub):
    hub.splits = {"train": [{"text": " = A = \n"}, {"text": ""}, {"text": "b\n"}], "test": [{"text": ""}]}
    examples = language_modeling.load("owner/wiki", settings("language_modeling"), "train")
    assert [(one.id, one.completion) for one in examples] == [("train:1", "= A ="), ("train:3", "b")]
    (window,) = language_modeling.load("owner/wiki", settings("language_modeling", unit="window"), "train")
    assert window.completion == " = A = \n\nb"
    assert "holds no text in its 1 rows" in refusal(language_modeling, "owner/wiki:all:test")


def test_hub_completions(hub):
    hub.splits = {"train": [{"prompt": "p", "completion": "c", "id": 9}], "test": [{"prompt": "p", "completion": "c"}]}
    ids = [completion.load("owner/data", settings("completion"), side)[0].id for side in ("train", "test")]
    assert ids == ["9", "test:1"]
    hub.splits = {"train": [{"text": "x"}]}
    assert "has no column 'prompt'; its columns are: text" in refusal(completion, "owner/data")


@pytest.mark.parametrize("module", LOADERS)
def test_hub_data_that_cannot_be_loaded_is_refused(module, hub, monkeypatch):
    hub.splits = {"dev": [{"text": "x"}]}
    assert "has no split train; name one of dev as owner/name" in refusal(module, "owner/data")

    def offline(name, config):
        raise ConnectionError("no network\nhere")

    monkeypatch.setattr(hub, "get_dataset_split_names", offline)
    refused = refusal(module, "owner/data")
    assert "task.train owner/data: no such file, and it cannot be loaded as hub data: ConnectionError" in refused
    assert refused.endswith("give a local file instead")


def test_a_folder_on_the_disk_is_never_looked_up_on_the_hub(hub, tmp_path, monkeypatch):
    (tmp_path / "owner" / "data").mkdir(parents=True)
    written(tmp_path / "owner" / "data" / "a.txt", "local")
    monkeypatch.chdir(tmp_path)
    (example,) = language_modeling.load("owner/data", settings("language_modeling"), "train")
    assert (example.completion, hub.asked) == ("local", [])
