"""The command line: exit codes, one clear line for each mistake of the user's, stdout for results only."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import squad_document

from howlow import cli
from howlow.settings import merge

HOWLOW = Path(sys.executable).parent / "howlow"
Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def howlow(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run the command line in this process, as the console script does: (exit code, stdout, stderr)."""

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["howlow", *map(str, arguments)])
        code: Any = 0
        try:
            cli.main()
        except SystemExit as end:
            code = end.code or 0
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def settings_file(tiny_table: dict[str, Any], tmp_path: Path) -> Callable[..., Path]:
    """A settings file of the tiny sweep with changes."""

    def write(**changes: Any) -> Path:
        from howlow import load_settings as load
        from howlow.settings import to_toml

        path = tmp_path / "settings.toml"
        path.write_text(to_toml(load(None, [merge(tiny_table, changes)])), encoding="utf-8")
        return path

    return write


def refused(result: tuple[int, str, str], *words: str) -> None:
    """Exit code 2, nothing on stdout, one line on stderr that holds the words."""
    code, out, err = result
    lines = [line for line in err.splitlines() if line != "preparing: data, tokens, model"]
    assert (code, out, len(lines)) == (2, "", 1), err
    assert all(word in lines[0] for word in words), lines[0]


# -- settings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--ranks", "0"], ["--ranks 0", "at least 1"]),
        (["--ranks", "-4"], ["--ranks -4", "at least 1"]),
        (["--ranks", "eight"], ["--ranks eight", "whole numbers"]),
        (["--ranks", "1..0"], ["1..0", "no power of two"]),
        (["--set", "lora.rnk=3"], ["unknown setting lora.rnk", "did you mean lora.rank?"]),
        (["--set", "lora.rank=0"], ["lora.rank = 0", "greater than 0"]),
        (["--set", 'lora.rank="many"'], ["lora.rank", "integer"]),
        (["--set", "lora.dropout=1.5"], ["lora.dropout = 1.5", "less than 1"]),
        (["--set", "training.batch_size=[1"], ["--set training.batch_size=[1", "TOML"]),
        (["--set", "nonsense"], ["KEY=VALUE"]),
        (["--batch-size", "0"], ["training.batch_size = 0", "greater than 0"]),
        (["--batch-size=--5"], ["training.batch_size = '--5'", "whole number"]),
        (["--batch-size", "²"], ["training.batch_size = '²'", "whole number"]),
        (["--seeds", "9" * 30], ["seed = 9999", "less than or equal to"]),
        (["--train", ""], ["task.train = ''", "a name is expected"]),
        (["--set", "training.effective_batch_size=1"], ["effective_batch_size = 1", "lower training.batch_size to 1"]),
        (["--set", "grid.seed=3"], ["grid.seed = 3", "a list"]),
        (["--layout", "diagonal"], ["training.layout", "padded"]),
        (["--retry", "sleepy"], ["--retry sleepy", "out_of_memory"]),
    ],
)
def test_a_wrong_setting_is_one_line(
    howlow: Command, settings_file: Callable[..., Path], tmp_path: Path, arguments: list[str], words: list[str]
) -> None:
    refused(howlow("sweep", settings_file(), *arguments, "--out", tmp_path / "out"), *words)
    assert not (tmp_path / "out").exists()


def test_an_unknown_preset_lists_those_there_are(howlow: Command, tmp_path: Path) -> None:
    refused(howlow("sweep", "dmeo", "--out", tmp_path / "out"), "dmeo", "demo", "paper-squad", "paper-wikitext2")


def test_a_missing_out_and_a_missing_model_say_so(howlow: Command, settings_file: Callable[..., Path]) -> None:
    refused(howlow("sweep", settings_file()), "--out DIR is missing")
    refused(howlow("sweep", "--task", "completion", "--train", "x", "--test", "y"), "model is missing", "--model")


def test_an_empty_out_and_a_foreign_one_are_refused(
    howlow: Command, settings_file: Callable[..., Path], tmp_path: Path
) -> None:
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "notes.txt").write_text("")
    for more in ([], ["--dry-run"]):
        refused(howlow("sweep", settings_file(), "--out", "", *more), "--out is empty")
        refused(howlow("sweep", settings_file(), "--out", foreign, *more), "holds other files (notes.txt)")
    assert [entry.name for entry in foreign.iterdir()] == ["notes.txt"]


# -- data -----------------------------------------------------------------------------------------------------------

SQUAD = {"version": "1.1", "data": [{"title": "t", "paragraphs": [{"context": "c", "qas": []}]}]}
WITHOUT_CONTEXT = json.dumps(merge(SQUAD, {"data": [{"title": "t", "paragraphs": [{"qas": []}]}]})).encode()


@pytest.mark.parametrize(
    ("task", "name", "content", "words"),
    [
        ("question_answering", "missing.json", None, ["missing.json", "no such file"]),
        ("question_answering", "words.json", b"these are words", ["words.json", "JSON"]),
        ("question_answering", "latin.json", b'{"a": "\xe9"}', ["latin.json", "UTF-8"]),
        ("question_answering", "empty.json", b"", ["empty.json", "empty"]),
        ("question_answering", "cut.json", json.dumps(SQUAD).encode()[:40], ["cut.json", "line 1"]),
        ("question_answering", "field.json", WITHOUT_CONTEXT, ["data[0].paragraphs[0].context", "missing"]),
        ("completion", "broken.jsonl", b'{"prompt": "a", "completion": "b"}\n{"prompt": ', ["broken.jsonl", "line 2"]),
        ("completion", "column.csv", b"question,answer\n1,2\n", ["column.csv", "question", "answer", "prompt"]),
    ],
)
def test_wrong_data_is_one_line(
    howlow: Command,
    settings_file: Callable[..., Path],
    tmp_path: Path,
    task: str,
    name: str,
    content: bytes | None,
    words: list[str],
) -> None:
    data = tmp_path / name
    if content is not None:
        data.write_bytes(content)
    table = settings_file()
    if task == "completion":  # the settings file is one of question answering
        table.write_text(table.read_text().replace("answerable_only = true\n", ""), encoding="utf-8")
    result = howlow("sweep", table, "--task", task, "--train", data, "--test", data, "--out", tmp_path / "out")
    refused(result, *words)


def test_nothing_left_after_cutting_names_the_shortest(
    howlow: Command, settings_file: Callable[..., Path], tmp_path: Path
) -> None:
    table = settings_file()
    result = howlow("sweep", table, "--set", "training.sequence_length=40", "--out", tmp_path / "out")
    refused(result, "no training example", "sequence_length = 40", "shortest has")


def test_a_question_that_cannot_stay_whole_is_refused(
    howlow: Command, settings_file: Callable[..., Path], tmp_path: Path
) -> None:
    long = json.loads(json.dumps(squad_document(2, name="c")).replace("How many balls?", "How many balls?" * 20))
    (tmp_path / "long.json").write_text(json.dumps(long), encoding="utf-8")
    result = howlow("sweep", settings_file(), "--test", tmp_path / "long.json", "--out", tmp_path / "out")
    refused(
        result, "test example c", "-0: even without", "training.sequence_length = 160", "inference.max_new_tokens = 4"
    )


# -- models ---------------------------------------------------------------------------------------------------------


def test_a_target_module_that_matches_nothing_lists_what_would(
    howlow: Command, settings_file: Callable[..., Path], tmp_path: Path
) -> None:
    result = howlow("sweep", settings_file(), "--set", 'lora.target_modules=["q_prj"]', "--out", tmp_path / "out")
    refused(result, "'q_prj' matched no layer", "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj")


def test_pickled_weights_are_refused(
    howlow: Command, settings_file: Callable[..., Path], tiny_model: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "pickled"
    folder.mkdir()
    (folder / "config.json").write_bytes((tiny_model / "config.json").read_bytes())
    result = howlow("sweep", settings_file(), "--model", folder, "--out", tmp_path / "out")
    refused(result, "no weights (*.safetensors)", "random_weights")
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04N.")
    result = howlow("sweep", settings_file(), "--model", folder, "--out", tmp_path / "out")
    refused(result, "pytorch_model.bin", "refused", "safetensors")


def test_an_unknown_model_says_how_to_give_a_local_one(
    howlow: Command, settings_file: Callable[..., Path], tmp_path: Path
) -> None:
    result = howlow("sweep", settings_file(), "--model", "no-such-model-anywhere", "--out", tmp_path / "out")
    refused(result, "no-such-model-anywhere", "folder", "smollm2-135m")
    result = howlow("sweep", settings_file(), "--model", tmp_path / "nowhere", "--out", tmp_path / "out")
    refused(result, "nowhere", "no such folder")


# -- a folder with something else -----------------------------------------------------------------------------------


def test_dry_run_says_what_would_be_done_and_writes_nothing(
    howlow: Command, settings_file: Callable[..., Path], tmp_path: Path
) -> None:
    code, out, _ = howlow("sweep", settings_file(), "--ranks", "1..4", "--dry-run", "--out", tmp_path / "out")
    assert code == 0
    assert "4 trials, 0 of them finished" in out
    for words in ("r0002-s0", "train: 24 examples in 8 groups", "longest training example", "dropped as too long"):
        assert words in out
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_sweep_report_and_json_agree(howlow: Command, settings_file: Callable[..., Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, table, err = howlow("sweep", settings_file(), "--out", out)
    assert code == 0, err
    assert "F1" in table
    for name in ("results.csv", "report.html", "sweep.toml"):
        assert (out / name).stat().st_size > 0
    code, text, _ = howlow("report", out, "--json")
    document = json.loads(text)
    assert code == 0
    assert document["reference_rank"] == 4
    assert {row["trial"] for row in document["rows"]} == {"base-s0", "r0001-s0", "r0004-s0"}
    assert all(row["train_energy_per_sample_j"] is None for row in document["rows"])
    code, _, _ = howlow("sweep", out / "sweep.toml", "--out", out)
    assert code == 0
    record = json.loads((out / "trials/r0001-s0/record.json").read_text())
    (out / "trials/r0001-s0/record.json").write_text(json.dumps(record | {"schema_version": 999}))
    refused(howlow("report", out), "r0001-s0", "999")
    other = howlow("sweep", settings_file(), "--set", "training.epochs=7", "--out", out)
    refused(other, "training.epochs is 1 there and 7 now")


@pytest.mark.slow
def test_a_failed_trial_is_exit_code_1_and_told(
    howlow: Command, settings_file: Callable[..., Path], tmp_path: Path
) -> None:
    arguments = ["--ranks", "1", "--baselines", "none", "--set", "training.learning_rate=1e30"]
    code, out, err = howlow("sweep", settings_file(), *arguments, "--out", tmp_path / "out")
    assert code == 1
    assert "r0001-s0 ended as diverged" in err
    assert "diverged" in out


@pytest.mark.parametrize(
    ("name", "damage", "words"),
    [
        ("steps.jsonl", "{", "no JSON"),
        ("steps.jsonl", "3", "no JSON object"),
        ("steps.jsonl", '{"phase": "train"}', "part: "),
        ("timeline.jsonl", "{", "no JSON"),
        ("timeline.jsonl", "[]", "no JSON object"),
        ("timeline.jsonl", '{"time_s": "soon", "phase": "train"}', "time_s is 'soon'"),
    ],
)
def test_a_damaged_line_is_named_with_its_file(
    howlow: Command, tmp_path: Path, name: str, damage: str, words: str
) -> None:
    from test_records import record

    from howlow.records import write_record

    trial = tmp_path / "trials" / record().trial
    trial.mkdir(parents=True)
    write_record(trial, record())
    reading = '{"time_s": 1.0, "device": "cpu", "phase": "train"}'
    step = '{"phase": "train", "part": "measured", "step": 0, "start_s": 0, "duration_s": 1, "micro_batches": 1, '
    step += '"samples": 1, "tokens": 1, "target_tokens": 1, "computed_tokens": 1}'
    (trial / "steps.jsonl").write_text(f"{step}\n")
    (trial / "timeline.jsonl").write_text(f"{reading}\n")
    (trial / name).write_text((trial / name).read_text() + f"{damage}\n")
    refused(howlow("report", tmp_path), f"{trial / name}, line 2: damaged: ", words)


# -- the console script ---------------------------------------------------------------------------------------------


def test_the_console_script_prints_help_and_exits_2_without_a_traceback() -> None:
    shown = subprocess.run([HOWLOW, "--help"], capture_output=True, text=True, check=True)
    for command in ("sweep", "report", "score"):
        assert command in shown.stdout
    wrong = subprocess.run([HOWLOW, "report", "/no/such/folder"], capture_output=True, text=True, check=False)
    assert wrong.returncode == 2
    assert wrong.stderr.count("\n") == 1
    assert "Traceback" not in wrong.stderr


def test_scores_of_the_published_predictions_are_the_official_ones(howlow: Command, real_data: Path) -> None:
    squad = real_data / "squad"
    arguments = ["--data", squad / "dev-v2.0.json", "--predictions", squad / "predictions-bert-v2.0.json", "--json"]
    code, out, _ = howlow("score", "question_answering", *arguments)
    scores = json.loads(out)
    assert code == 0
    official = {"exact_match": 79.73856, "f1": 82.75319, "has_answer_exact_match": 73.49968, "has_answer_f1": 79.45241}
    for name, value in (official | {"no_answer_exact_match": 86.13992}).items():
        assert round(scores[name] * 100, 5) == value


def test_help_is_there_at_once() -> None:
    """Under 0.4 s: measured as the processor's time, which other work on the machine does not change."""
    code = """
import resource, subprocess, sys
subprocess.run([sys.argv[1], "--help"], check=True, stdout=subprocess.DEVNULL)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(used.ru_utime + used.ru_stime)
"""
    found = subprocess.run([sys.executable, "-c", code, HOWLOW], capture_output=True, text=True, check=True)
    assert float(found.stdout) < 0.4
    heavy = "import sys, howlow.cli; assert not {'pydantic', 'rich', 'altair', 'torch'} & set(sys.modules), sys.modules"
    subprocess.run([sys.executable, "-c", heavy], check=True)


def test_an_options_help_is_its_settings_description(howlow: Command) -> None:
    code, out, _ = howlow("sweep", "--help")
    assert code == 0
    assert "examples in one forward and backward pass" in " ".join(out.split())
    assert "[training.batch_size]" in out
