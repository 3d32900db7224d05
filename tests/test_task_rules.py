"""A task says everything about itself in its own file; no other code knows it by name."""

import ast
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import howlow
from howlow.errors import UserError
from howlow.settings import TaskSettings, completed
from howlow.settings.machines import RunSettings
from howlow.settings.schema import InferenceSettings, LoraSettings, MeterSettings, TrainingSettings
from howlow.tasks import score_predictions, task_rules, tasks

SOURCE = Path(howlow.__file__).parent
HEADLINES = '''"""Headlines: the first line of a text is to be written from the rest."""

from howlow.settings import TaskRules
from howlow.tasks.examples import Example, TaskScores
from howlow.tasks.task import Task


def _load(source, settings, purpose):
    return [Example(source, source, before="", context="", after="text", completion=" headline")]


TASK = Task(
    about="texts with a headline",
    metrics=("rougeL", "loss"),
    rules=TaskRules(takes=("template", "stop"), defaults={"stop": "!"}, placeholders=("{text}",)),
    load=_load,
    score=lambda examples, predictions: TaskScores(),
)
'''


def modules_outside() -> Iterator[tuple[str, ast.AST]]:
    for path in sorted(SOURCE.rglob("*.py")):
        name = path.relative_to(SOURCE).as_posix()
        if not name.startswith("tasks/"):
            yield name, ast.parse(path.read_text(encoding="utf-8"))


def values_of_settings() -> set[str]:
    """Words that are also values of a setting, such as `completion` of training.loss_on."""
    sections = (TrainingSettings, LoraSettings, InferenceSettings, MeterSettings, RunSettings)
    annotations = [str(field.annotation) for section in sections for field in section.model_fields.values()]
    return {name for name in tasks() if any(repr(name) in annotation for annotation in annotations)}


def test_no_other_code_spells_the_name_of_a_task() -> None:
    unmistakable = set(tasks()) - values_of_settings()
    assert {"question_answering", "language_modeling"} <= unmistakable
    for name, tree in modules_outside():
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert not [task for task in unmistakable if task in node.value], f"{name} spells {node.value!r}"


def test_no_other_code_compares_the_name_of_the_task() -> None:
    for name, tree in modules_outside():
        for node in ast.walk(tree):
            if isinstance(node, ast.Compare):
                sides = [ast.unparse(side) for side in (node.left, *node.comparators)]
                is_literal = any(isinstance(side, ast.Constant) for side in (node.left, *node.comparators))
                assert not (is_literal and any(side.endswith("task.name") for side in sides)), f"{name}: {sides}"


def test_a_setting_of_some_tasks_is_a_setting() -> None:
    for name, rules in task_rules().items():
        assert set(rules.takes) <= set(TaskSettings.model_fields), name
        assert set(rules.defaults or {}) <= set(rules.takes), name


@pytest.mark.parametrize("name", sorted(tasks()))
def test_defaults_are_written_out_and_given_values_are_kept(name: str) -> None:
    rules = task_rules()[name]
    asked = TaskSettings(name=name, train="a", test="b")
    found = completed(asked, rules)
    assert {setting: getattr(found, setting) for setting in rules.defaults or {}} == (rules.defaults or {})
    assert completed(found, rules) == found
    assert completed(asked.model_copy(update={"stop": ""}), rules).stop == ""


def test_a_task_without_answers_cannot_score_a_file() -> None:
    with pytest.raises(UserError, match="the task language_modeling has no answers to score; tasks that have: complet"):
        score_predictions("language_modeling", "data", "predictions")
    with pytest.raises(UserError, match="there is no task 'f1'; the tasks are: completion"):
        score_predictions("f1", "data", "predictions")


def test_completions_made_elsewhere_are_scored(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text('{"id": 1, "prompt": "p", "completion": "c"}\n{"prompt": "q", "completion": "d"}')
    (tmp_path / "p.json").write_text('{"1": "c ", "9": "x"}')
    scores = score_predictions("completion", str(tmp_path / "d.jsonl"), str(tmp_path / "p.json"))
    counts = {"examples": 2, "exact_match": 0.5, "missing_predictions": 1, "extra_predictions": 1}
    assert scores.figures == counts
    assert ["'d.jsonl:2'" in scores.warnings[0], "'9'" in scores.warnings[1]] == [True, True]
    assert scores.document() == counts | {"warnings": list(scores.warnings)}


def test_a_new_task_is_one_new_file(tmp_path: Path) -> None:
    package = shutil.copytree(SOURCE, tmp_path / "howlow", ignore=shutil.ignore_patterns("__pycache__"))
    (package / "tasks" / "headlines.py").write_text(HEADLINES)
    code = """
import howlow
from howlow.analysis.comparison import metrics_of
from howlow.errors import UserError

assert howlow.__file__.startswith({folder!r}), howlow.__file__
task = {{"name": "headlines", "train": "a/b", "test": "c/d"}}
found = howlow.load_settings(None, [{{"model": "m", "task": task}}])
assert (found.task.stop, found.task.unit) == ("!", None)
for wrong, words in (({{"template": "no"}}, "{{text}} exactly once"), ({{"unit": "window"}}, "not to headlines")):
    try:
        howlow.load_settings(None, [{{"model": "m", "task": task | wrong}}])
    except UserError as error:
        assert words in str(error), error
    else:
        raise AssertionError(wrong)
"""
    code = code.format(folder=str(tmp_path))
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": str(tmp_path)}, cwd=tmp_path)
