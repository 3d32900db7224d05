"""Every format in which data comes: the same rows give the same examples, and what was read is told."""

import bz2
import contextlib
import gzip
import io
import json
import lzma
import os
import tarfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from howlow.errors import UserError
from howlow.settings import TaskSettings, completed
from howlow.tasks import Example, files_of, score_predictions, select, task_named

gzipped = partial(gzip.compress, mtime=0)
"""Without the time of day: the bytes are part of tests' names."""

ROWS = [{"prompt": "2+2=", "completion": " 4"}, {"prompt": "é\u2028x", "completion": "ja\nnein "}]
TEXTS = [{"text": " = A = \n"}, {"text": ""}, {"text": "b c\u2028d"}]
QUESTIONS = [
    {"id": "q1", "context": "The fox.", "question": "Who?", "answers": {"text": [" fox "], "answer_start": [4]}},
    {"id": "q2", "context": "The fox.", "question": "Why?", "answers": {"text": [], "answer_start": []}},
]
OF_TASK = {"completion": ROWS, "language_modeling": TEXTS, "question_answering": QUESTIONS}


def loaded(task: str, path: Path | str, **values: Any) -> list[Example]:
    of_task = task_named(task)
    values = {"answerable_only": False} | values if task == "question_answering" else values
    return of_task.load(
        str(path), completed(TaskSettings(name=task, train="a", test="b", **values), of_task.rules), "train"
    )


def refusal(task: str, path: Path | str) -> str:
    with pytest.raises(UserError) as caught:
        loaded(task, path)
    return str(caught.value)


def contents(examples: list[Example]) -> list[tuple[str, ...]]:
    return [(one.prompt, one.completion, *one.references) for one in examples]


def jsonl(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def plain(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text(jsonl(rows), encoding="utf-8")
    return path


def packed_by(compress: Callable[[bytes], bytes], suffix: str) -> Callable[[Path, list[dict[str, Any]]], Path]:
    def write(folder: Path, rows: list[dict[str, Any]]) -> Path:
        path = folder / f"rows.jsonl{suffix}"
        path.write_bytes(compress(jsonl(rows).encode()))
        return path

    return write


def as_table(kind: str) -> Callable[[Path, list[dict[str, Any]]], Path]:
    def write(folder: Path, rows: list[dict[str, Any]]) -> Path:
        import pyarrow
        from pyarrow import feather, parquet

        table, path = pyarrow.Table.from_pylist(rows), folder / f"rows.{kind}"
        (parquet.write_table if kind == "parquet" else feather.write_feather)(table, path)
        return path

    return write


def saved(splits: tuple[str, ...]) -> Callable[[Path, list[dict[str, Any]]], Path]:
    def write(folder: Path, rows: list[dict[str, Any]]) -> Path:
        from datasets import Dataset, DatasetDict

        one = Dataset.from_list(rows)
        path = folder / "saved"
        (DatasetDict(dict.fromkeys(splits, one)) if splits else one).save_to_disk(path)
        return path

    return write


def stream(folder: Path, rows: list[dict[str, Any]]) -> Path:
    return next(saved(())(folder, rows).glob("*.arrow"))


def array(folder: Path, rows: list[dict[str, Any]]) -> Path:
    path = folder / "rows.json"
    path.write_text(json.dumps(rows, indent=2), encoding="utf-8")
    return path


WRITERS = {
    "gzip": packed_by(gzip.compress, ".gz"),
    "bzip2": packed_by(bz2.compress, ".bz2"),
    "xz": packed_by(lzma.compress, ".xz"),
    "gzip by another name": packed_by(gzip.compress, ""),
    "parquet": as_table("parquet"),
    "arrow file": as_table("feather"),
    "arrow stream": stream,
    "saved": saved(()),
    "saved splits": saved(("test", "train")),
}


@pytest.mark.parametrize("task", OF_TASK)
@pytest.mark.parametrize("writer", WRITERS)
def test_the_format_of_rows_changes_no_example(tmp_path: Path, task: str, writer: str) -> None:
    rows = OF_TASK[task]
    expected = contents(loaded(task, plain(tmp_path / "plain.jsonl", rows)))
    assert expected
    assert contents(loaded(task, WRITERS[writer](tmp_path, rows))) == expected


@pytest.mark.parametrize("task", ["completion", "language_modeling"])
def test_an_array_of_objects_is_read_where_the_name_says_json(tmp_path: Path, task: str) -> None:
    expected = contents(loaded(task, plain(tmp_path / "plain.jsonl", OF_TASK[task])))
    path = array(tmp_path, OF_TASK[task])
    assert contents(loaded(task, path)) == expected
    path.write_text('[{"prompt": "p", "completion": "c"}, 3]', encoding="utf-8")
    assert "entry 2: an object is expected, not a number" in refusal(task, path)


@pytest.mark.parametrize("text", ["[\n{}\n]", '{\n "prompt": "p"}', '[{"prompt": "p",\n"completion": "c"}]'])
def test_json_over_several_lines_is_told_as_what_it_is(tmp_path: Path, text: str) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text(text, encoding="utf-8")
    assert "JSONL has one whole object a line" in refusal("completion", path)
    path.write_text('{"prompt": "p"', encoding="utf-8")
    assert "the text ends in the middle" in refusal("completion", path)


def test_csv_with_tabs_and_compressed_csv_are_read(tmp_path: Path) -> None:
    (tmp_path / "d.tsv").write_text("prompt\tcompletion\na,b\t c\n", encoding="utf-8")
    assert contents(loaded("completion", tmp_path / "d.tsv")) == [("a,b", " c", "c")]
    (tmp_path / "d.csv.gz").write_bytes(gzipped(b'\xef\xbb\xbfprompt,completion\n"a,b", c\n'))
    assert contents(loaded("completion", tmp_path / "d.csv.gz")) == [("a,b", " c", "c")]


def test_compressed_official_squad_and_predictions_are_read(tmp_path: Path) -> None:
    question = {"id": "q", "question": "Who?", "answers": [{"text": "fox"}]}
    document = {"data": [{"paragraphs": [{"context": "The fox.", "qas": [question]}]}]}
    data, predictions = tmp_path / "squad.json.gz", tmp_path / "p.json.xz"
    data.write_bytes(gzipped(json.dumps(document).encode()))
    predictions.write_bytes(lzma.compress(b'{"q": "The fox"}'))
    assert score_predictions("question_answering", str(data), str(predictions)).figures["exact_match"] == 1.0


def tar_of(content: bytes) -> bytes:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as file:
        entry = tarfile.TarInfo("a.txt")
        entry.size = len(content)
        file.addfile(entry, io.BytesIO(content))
    return archive.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("d.jsonl.gz", gzipped(b'{"prompt": "p"}')[:-4], "cannot be decompressed as gzip"),
        ("d.jsonl.gz", b"\x1f\x8b\x08nonsense", "cannot be decompressed as gzip"),
        ("d.jsonl.bz2", bz2.compress(b"x")[:-4], "cannot be decompressed as bzip2"),
        ("d.jsonl.xz", lzma.compress(b"x")[:-4], "cannot be decompressed as xz"),
        ("d.jsonl.zst", b"\x28\xb5\x2f\xfd\x24\x00", "compressed by zstd"),
        ("d.zip", b"PK\x03\x04\xff\xff", "a zip archive"),
        ("d.jsonl", "ab".encode("utf-16"), "UTF-16; save it as UTF-8"),
        ("d.parquet", b"PAR1nonsense", "cannot be read as a table"),
        ("d.parquet", b"prompt,completion\n", "cannot be read as a table"),
        ("d.arrow", b"ARROW1\0\0nonsense", "cannot be read as a table"),
        ("d.arrow", b"", "is empty"),
        ("d.parquet.gz", gzipped(b"PAR1nonsense"), "is a table compressed by gzip; decompress it"),
        ("d.arrow.xz", lzma.compress(b"ARROW1nonsense"), "is a table compressed by xz; decompress it"),
        ("d.feather.bz2", bz2.compress(b"ARROW1nonsense"), "is a table compressed by bzip2; decompress it"),
        ("d.gz", gzipped(b"PAR1\xff\xfe"), "Parquet; one data file of this kind is read, not compressed again"),
        (
            "d.jsonl.gz",
            gzipped(gzipped(b"x")),
            "is compressed twice (gzip within gzip); decompress it once",
        ),
        ("d.jsonl.xz", lzma.compress(bz2.compress(b"x")), "is compressed twice (bzip2 within xz); decompress it once"),
        ("d.jsonl", "ab".encode("utf-32"), "UTF-32; save it as UTF-8"),
        ("d.txt", "\ufeffab".encode("utf-32-be"), "UTF-32; save it as UTF-8"),
        ("d.txt", "abcd".encode("utf-16-le"), "UTF-16; save it as UTF-8"),
        ("d.jsonl", '{"a": 1}'.encode("utf-16-be"), "UTF-16; save it as UTF-8"),
        ("d.txt", "prompt,completion".encode("utf-32-le"), "UTF-32; save it as UTF-8"),
        ("d.tar.gz", gzipped(tar_of(b"hello")), "a tar archive; unpack it"),
        ("d.jsonl", tar_of(b"\xff"), "a tar archive; unpack it"),
    ],
)
def test_a_damaged_file_is_told_by_what_it_is(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    for task in OF_TASK:
        refused = refusal(task, path)
        assert message in refused
        assert str(path) in refused


def test_a_text_may_begin_as_a_bzip2_file_does(tmp_path: Path) -> None:
    path = tmp_path / "d.txt"
    path.write_text("BZh is how bzip2 begins\n")
    assert contents(loaded("language_modeling", path)) == [("", "BZh is how bzip2 begins")]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "d.jsonl",
            '{"prompt": ' + "1" * 5000 + "}",
            "not valid JSON at line 1: a whole number has 5000 digits; at most",
        ),
        ("d.jsonl", '{"a": 1}\n{"n": -' + "9" * 9000 + "}", "not valid JSON at line 2: a whole number has 9000 digits"),
        (
            "d.json",
            '[{"n": ' + "1" * 5000 + "}]",
            "not valid JSON: a whole number has 5000 digits; at most 4300 are read",
        ),
        (
            "d.jsonl",
            '{"a": 1, "a": 2}',
            "not valid JSON at line 1: the key 'a' is given twice in one object; give it once",
        ),
        ("d.jsonl", "[" * 200_000, "not valid JSON at line 1: it is nested too deeply; give data with a few levels"),
    ],
)
def test_what_json_allows_and_nobody_reads_is_told_with_its_place(
    tmp_path: Path, name: str, content: str, message: str
) -> None:
    path = tmp_path / name
    path.write_text(content)
    said = refusal("completion", path)
    assert said.startswith(f"{path}: {message}")
    assert "set_int_max_str_digits" not in said


def test_a_table_without_the_column_names_those_that_it_has(tmp_path: Path) -> None:
    path = WRITERS["parquet"](tmp_path, [{"question": "q", "completion": "c"}])
    assert "has no column 'prompt'; its columns are: question, completion" in refusal("completion", path)
    path = WRITERS["parquet"](tmp_path, [{"prompt": 3, "completion": None}])
    assert "rows.parquet row 1: 'prompt' must be a string, not a number" in refusal("completion", path)


def test_a_saved_split_is_named_by_its_folder(tmp_path: Path) -> None:
    path = saved(("dev",))(tmp_path, ROWS)
    assert "has no split train; name one of dev" in refusal("completion", path)
    assert len(loaded("completion", path / "dev")) == 2
    (path / "dataset_dict.json").write_text("3", encoding="utf-8")
    assert "cannot be read as a saved data set's list of splits" in refusal("completion", path)
    (next((path / "dev").glob("*.arrow"))).write_bytes(b"nonsense")
    assert "cannot be read as a table" in refusal("completion", path / "dev")


# -- folders of text ------------------------------------------------------------------------------------------------


def corpus(folder: Path) -> Path:
    for name in ("a.txt", "b/C.TXT", ".ipynb_checkpoints/a-checkpoint.txt", ".hidden.txt", "notes.md", "b/d.jsonl"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"the text of {name}\n", encoding="utf-8")
    (folder / "z.txt.gz").write_bytes(gzipped(b"the text of z\n"))
    (folder / "linked").symlink_to(folder / "b", target_is_directory=True)
    return folder


def test_a_folder_gives_its_text_files_and_tells_what_it_leaves_out(tmp_path: Path) -> None:
    folder = corpus(tmp_path / "corpus")
    found = files_of(str(folder), "train")
    assert found.names == ("a.txt", "b/C.TXT", "z.txt.gz")
    assert found.left_out == (".hidden.txt", ".ipynb_checkpoints/", "b/d.jsonl", "linked/", "notes.md")
    examples = loaded("language_modeling", folder)
    assert [one.id for one in examples] == ["a.txt:1", "b/C.TXT:1", "z.txt.gz:1"]
    assert [one.completion for one in examples] == ["the text of a.txt", "the text of b/C.TXT", "the text of z"]


def test_a_folder_without_text_names_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "c.md").write_text("x", encoding="utf-8")
    assert f"{tmp_path}: holds no .txt file (it holds c.md)" in refusal("language_modeling", tmp_path)


def test_a_folder_that_cannot_be_listed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = corpus(tmp_path / "corpus")
    real = os.scandir

    def denied(path: Any) -> Any:
        if str(path).endswith("/b"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", denied)
    refused = refusal("language_modeling", folder)
    assert refused == f"{folder}/b: cannot be read: Permission denied; give the permission, or move it away"


def test_a_link_that_leads_nowhere_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x", encoding="utf-8")
    (tmp_path / "b.txt").symlink_to(tmp_path / "gone")
    assert f"{tmp_path}/b.txt: no such file" in refusal("language_modeling", tmp_path)


def test_a_pipe_and_a_device_are_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "d.jsonl")
    for task in OF_TASK:
        assert "is a pipe or a device" in refusal(task, tmp_path / "d.jsonl")
        assert "is a pipe or a device" in refusal(task, "/dev/zero")


def test_a_file_name_that_is_no_utf8_gives_an_id_that_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9.jsonl")
    (first, _) = loaded("completion", plain(path, ROWS))
    assert first.id == "caf\ufffd.jsonl:1"


# -- what is decided ------------------------------------------------------------------------------------------------


def squad(*qas: dict[str, Any], context: str = "The fox.", **more: Any) -> dict[str, Any]:
    return {"data": [{"paragraphs": [{"context": context, "qas": list(qas)}]}], **more}


def test_the_space_around_an_answer_is_no_part_of_it(tmp_path: Path) -> None:
    path = tmp_path / "d.json"
    path.write_text(
        json.dumps(squad({"id": "q", "question": "?", "answers": [{"text": "\n fox\t"}]})), encoding="utf-8"
    )
    (example,) = loaded("question_answering", path)
    assert example.completion == " fox"
    assert task_named("question_answering").score([example], {"q": "fox"}).overall["exact_match"] == 1.0


@given(contexts=st.lists(st.sampled_from(["", " ", "\n\t", "The fox."]), min_size=2, max_size=6))
@hypothesis_settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_blank_contexts_and_prompts_share_nothing(tmp_path: Path, contexts: list[str]) -> None:
    answer = [{"text": "fox"}]
    qas = [
        squad({"id": f"q{n}", "question": f"{n}?", "answers": answer}, context=text) for n, text in enumerate(contexts)
    ]
    (tmp_path / "d.json").write_text(json.dumps({"data": [one["data"][0] for one in qas]}), encoding="utf-8")
    rows = [{"prompt": text, "completion": f"{number}"} for number, text in enumerate(contexts)]
    blank = sum(not text.strip() for text in contexts)
    for examples in (
        loaded("question_answering", tmp_path / "d.json"),
        loaded("completion", plain(tmp_path / "d.jsonl", rows)),
    ):
        assert len({one.group for one in examples}) == blank + (blank < len(contexts))
        first, *others = examples
        if blank == len(contexts) and others:
            kept = select(others, [first], TaskSettings(name="completion", train="a", test="b"))
            assert kept.overlap_left_out == 0


def test_an_empty_list_of_answers_says_by_itself_that_there_is_none(tmp_path: Path) -> None:
    path = tmp_path / "d.json"
    path.write_text(json.dumps(squad({"id": "q", "question": "?", "answers": []}, version="v2.0")), encoding="utf-8")
    (example,) = loaded("question_answering", path)
    assert (example.completion, example.references) == (" unanswerable", ())


@given(st.text(max_size=40).map(lambda name: f"{name.replace('/', '_')}.jsonl"))
@hypothesis_settings(max_examples=100)
def test_any_name_of_a_missing_file_is_refused_in_one_line(source: str) -> None:
    for task in OF_TASK:
        assert "\n" not in refusal(task, source)


VALID = {
    "d.jsonl": jsonl(ROWS),
    "d.json": json.dumps(QUESTIONS),
    "d.csv": "prompt,completion\n2+2=,4\n",
    "d.txt": "a b\nc\n",
}


@given(
    name=st.sampled_from([*VALID, "d.parquet", "d.arrow"]),
    start=st.integers(0, 80),
    piece=st.binary(max_size=6)
    | st.sampled_from([b"[" * 5000, b"9" * 5000, b"\\ud800", b"\xef\xbb\xbf", b"NaN", b"PAR1"]),
)
@hypothesis_settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damage_gives_examples_or_one_line(tmp_path: Path, name: str, start: int, piece: bytes) -> None:
    valid = VALID.get(name, VALID["d.jsonl"]).encode()
    (tmp_path / name).write_bytes(valid[:start] + piece + valid[start + 1 :])
    for task in OF_TASK:
        with contextlib.suppress(UserError):
            assert loaded(task, tmp_path / name)
