"""`howlow shrink` on a tiny real model: what is saved, how it is scored, what records and report say, bad input."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import howlow
from howlow import cli
from howlow.errors import UserError
from howlow.records import Record, read_lines, read_record, read_spectra
from howlow.records.spectra import START
from howlow.settings import merge

pytestmark = pytest.mark.slow

TRAINED = {
    "grid": {"lora.rank": [4]},
    "baselines": [],
    "lora": {"alpha": 3.0, "scaling": "rank_stabilized", "target_modules": ["q_proj", "down_proj"]},
    "training": {"learning_rate": 0.02, "epochs": 3},
}


@pytest.fixture(scope="module")
def trained(tiny_table: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory with one trained adapter of rank 4, rank-stabilised."""
    out = tmp_path_factory.mktemp("trained") / "out"
    result = howlow.sweep(howlow.load_settings(None, [merge(tiny_table, TRAINED)]), out)
    assert not result.failed
    return out


@pytest.fixture(scope="module")
def adapter(trained: Path) -> Path:
    return trained / "trials" / "r0004-s0" / "adapter"


@pytest.fixture(scope="module")
def shrunk(adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The adapter cut to ranks 1, 2 and 4, each as it is and with three further steps."""
    out = tmp_path_factory.mktemp("shrunk") / "out"
    settings = howlow.shrink_settings(adapter, [1, 2, 4], [{"grid": {"lora.continue_steps": [0, 3]}}])
    assert not howlow.sweep(settings, out).failed
    return out


def trial(run: Path, rank: int, steps: int = 0) -> Path:
    return run / "trials" / f"r{rank:04d}-s0-shrunk-lora.continue_steps={steps}"


def record_of(folder: Path) -> Record:
    record = read_record(folder)
    assert record is not None
    return record


def updates(folder: Path, scaling: float) -> dict[str, torch.Tensor]:
    from howlow.engine.saved_factors import read_factors

    return {name: scaling * (pair.b.double() @ pair.a.double()) for name, pair in read_factors(folder).items()}


def best(matrix: torch.Tensor, rank: int) -> torch.Tensor:
    u, values, vh = torch.linalg.svd(matrix, full_matrices=False)
    return (u[:, :rank] * values[:rank]) @ vh[:rank]


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_peft_loads_it_and_gives_the_logits_of_the_truncated_update(
    adapter: Path, shrunk: Path, tiny_model: Path, rank: int
) -> None:
    from conftest import loaded
    from peft import PeftModel

    folder = trial(shrunk, rank) / "adapter"
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    assert (config["r"], config["use_rslora"]) == (rank, True)
    assert config["lora_alpha"] / rank**0.5 == pytest.approx(3.0 / 4**0.5)
    ids = torch.arange(1, 40)[None]
    plain = loaded(tiny_model)
    before = plain(ids).logits
    for name, update in updates(adapter, 3.0 / 4**0.5).items():
        plain.get_submodule(name).weight.data += best(update, rank).float()
    with torch.no_grad():
        expected = plain(ids).logits
        found = PeftModel.from_pretrained(loaded(tiny_model), folder).eval()(ids).logits
    assert (expected - before).abs().max() > 0.05  # the update does something
    assert torch.allclose(found, expected, atol=1e-4)


def test_records_say_what_it_is(adapter: Path, shrunk: Path) -> None:
    record = record_of(trial(shrunk, 2))
    assert (record.kind, record.rank, record.status) == ("shrunk", 2, "done")
    assert record.shrunk is not None
    assert (record.shrunk.start, record.shrunk.start_rank) == (str(adapter), 4)
    assert record.shrunk.continued_steps == 0
    squares = [torch.linalg.svdvals(update).square() for update in updates(adapter, 1.0).values()]
    kept = sum(float(one[:2].sum()) for one in squares) / sum(float(one.sum()) for one in squares)
    assert record.shrunk.energy_kept == pytest.approx(kept, rel=1e-5)
    assert record.phase("train") is None
    assert record.resolved.train_batch_size is None
    card = (trial(shrunk, 2) / "adapter" / "README.md").read_text(encoding="utf-8")
    assert "Made by `howlow shrink`" in card
    assert f"cut from | {adapter}, rank 4" in card


def test_the_whole_rank_scores_as_the_trained_adapter_did(trained: Path, shrunk: Path) -> None:
    theirs, ours = record_of(trained / "trials" / "r0004-s0"), record_of(trial(shrunk, 4))
    assert ours.scores.loss == pytest.approx(theirs.scores.loss, rel=1e-5)
    assert ours.data is not None
    assert theirs.data is not None
    assert ours.data.test_sha256 == theirs.data.test_sha256
    lines = [list(read_lines(run / "predictions.jsonl")) for run in (trained / "trials/r0004-s0", trial(shrunk, 4))]
    assert [line["id"] for line in lines[0]] == [line["id"] for line in lines[1]]


def test_less_of_the_update_is_further_from_the_trained_loss(shrunk: Path) -> None:
    kept = [record_of(trial(shrunk, rank)).shrunk for rank in (1, 2, 4)]
    energies = [one.energy_kept for one in kept if one is not None]
    assert energies == sorted(energies)
    assert energies[-1] == pytest.approx(1)
    assert energies[0] < 1


def test_continuing_trains_so_many_steps_from_the_cut(shrunk: Path) -> None:
    record = record_of(trial(shrunk, 1, steps=3))
    steps = [line for line in read_lines(trial(shrunk, 1, steps=3) / "steps.jsonl") if line["phase"] == "train"]
    assert len(steps) == 3
    assert record.shrunk is not None
    assert record.shrunk.continued_steps == 3
    assert record.phase("train") is not None
    assert record.scores.loss != record_of(trial(shrunk, 1)).scores.loss
    before, after = (updates(trial(shrunk, 1, n) / "adapter", 1.0) for n in (0, 3))
    moved = [float((after[name] - before[name]).norm() / before[name].norm()) for name in before]
    assert 0 < max(moved) < 1.5  # it went on from the cut, not from zero


def test_spectra_are_kept_with_the_trial(trained: Path, adapter: Path, shrunk: Path) -> None:
    own = read_spectra(trained / "trials" / "r0004-s0")
    assert own is not None
    whole = {name: torch.linalg.svdvals(update)[:4] for name, update in updates(adapter, 3.0 / 4**0.5).items()}
    assert {module.module for module in own.modules} == set(whole)
    for module in own.modules:
        assert module.singular_values == pytest.approx(whole[module.module].tolist(), rel=1e-5, abs=1e-9)
    start = read_spectra(trial(shrunk, 1), START)
    assert start is not None
    for module in start.modules:
        assert module.singular_values == pytest.approx(whole[module.module].tolist(), rel=1e-5, abs=1e-9)
    assert read_spectra(trial(shrunk, 1)) is None  # it did not train
    assert read_spectra(trial(shrunk, 1, steps=3)) is not None


def test_shrunk_ranks_stand_beside_trained_ones_and_never_as_them(trained: Path, shrunk: Path, tmp_path: Path) -> None:
    from howlow.analysis.spectra import spectra_of
    from howlow.reporting import read_report

    report = read_report([trained, shrunk])
    kinds = [(row["kind"], row["rank"], row["start_rank"]) for row in report.comparison.results.rows]
    assert ("lora", 4, None) in kinds
    assert ("shrunk", 1, 4) in kinds
    (reference,) = report.comparison.references
    assert (reference.group.kind, reference.rank) == ("lora", 4)
    assert all(report.comparison.reference_for(row) is reference for row in report.comparison.results.rows)
    spectra = spectra_of(report.comparison, 40)
    assert "r0004-s0" in {one.trial for one in spectra}
    assert not any("/" in one.trial for one in spectra)  # the start's are those of the trial that trained it
    text = report.table_text(200)
    assert "2 shrunk" in text
    page = report.written(tmp_path).files
    html = next(path for path in page if path.name == "report.html").read_text(encoding="utf-8")
    assert "Why a rank is enough" in html
    assert (tmp_path / "figures" / "spectra.svg").is_file()


def test_cut_ranks_alone_are_nothing_to_recommend(shrunk: Path) -> None:
    with pytest.raises(UserError, match="its ranks were cut from a trained adapter, and none was trained"):
        howlow.recommend(shrunk)


def test_a_report_of_shrunk_ranks_alone_says_that_none_was_trained(shrunk: Path) -> None:
    from howlow.reporting import read_report
    from howlow.reporting.words import sentences

    comparison = read_report([shrunk]).comparison
    assert comparison.reference_rank == 4
    assert all("cut from a trained one of rank 4" in sentence for sentence in sentences(comparison)[:2])


def test_the_command_cuts_scores_and_reports(
    adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    asked = ["howlow", "shrink", str(adapter), "--ranks", "1..2", "--out", str(out)]
    monkeypatch.setattr("sys.argv", asked)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    said = capsys.readouterr()
    assert "2 shrunk" in said.out
    assert "recommendation" not in said.err
    assert "completion tokens" not in said.err  # no adapter is trained from zero, so none needs room for the data
    assert (out / "trials" / "r0001-s0-shrunk" / "adapter" / "adapter_model.safetensors").is_file()
    shutil.rmtree(out / "trials" / "r0001-s0-shrunk")  # interrupted before its record
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert "exists already and holds all of these ranks" in capsys.readouterr().err


# -- bad input ------------------------------------------------------------------------------------------------------


def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *asked: str | Path) -> str:
    monkeypatch.setattr("sys.argv", ["howlow", "shrink", *map(str, asked)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("preparing")]
    assert ended.value.code == 2, said
    assert len(said) == 1
    return said[0]


def copied(adapter: Path, folder: Path, **changes: Any) -> Path:
    shutil.copytree(adapter, folder)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")
    return folder


def test_a_rank_above_the_adapters_own_is_refused(
    adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused(monkeypatch, capsys, adapter, "--ranks", "1..16", "--out", tmp_path / "out")
    assert "8, 16 is above the adapter's own rank, 4" in said


def test_what_exists_is_refused(
    adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "file"
    file.write_text("", encoding="utf-8")
    for out in (tmp_path, file):
        assert "exists already" in refused(monkeypatch, capsys, adapter, "--ranks", "1", "--out", out)


def test_a_sweep_is_no_shrink_to_resume(
    trained: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused(monkeypatch, capsys, adapter, "--ranks", "1", "--out", trained)
    assert "holds another sweep" in said


def test_an_adapter_of_unknown_origin_needs_its_task(
    adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    own = copied(adapter, tmp_path / "own")
    said = refused(monkeypatch, capsys, own, "--ranks", "1", "--out", tmp_path / "out")
    assert "give --task and --train and --test" in said


def test_a_base_that_is_not_at_hand_is_refused(
    adapter: Path,
    tiny_squad: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    own = copied(adapter, tmp_path / "own", base_model_name_or_path="/no/such/base")
    data = ["--task", "question_answering", "--train", tiny_squad[0], "--test", tiny_squad[1]]
    said = refused(monkeypatch, capsys, own, "--ranks", "1", *data, "--out", tmp_path / "out")
    assert "model /no/such/base: no such folder" in said
    assert f"it is the base of the adapter {own}: give it with --model" in said


def test_a_base_that_the_adapter_was_not_trained_on_is_refused(adapter: Path, tmp_path: Path) -> None:
    """Its layers have the same shapes."""
    settings = howlow.shrink_settings(adapter, [1])
    other = tmp_path / "other"
    shutil.copytree(settings.model, other)
    config = json.loads((other / "config.json").read_text(encoding="utf-8"))
    (other / "config.json").write_text(json.dumps(config | {"rope_theta": 77.0}), encoding="utf-8")
    with pytest.raises(howlow.UserError, match=r"it is not the base of the adapter .* give that one with --model"):
        howlow.sweep(howlow.shrink_settings(adapter, [1], [{"model": str(other)}]), tmp_path / "out")


def test_ranks_that_differ_in_the_weights_are_refused(
    adapter: Path, tmp_path: Path, tiny_squad: tuple[Path, Path], tiny_model: Path
) -> None:
    own = copied(adapter, tmp_path / "own", r=8)
    data = {"task": {"name": "question_answering", "train": str(tiny_squad[0]), "test": str(tiny_squad[1])}}
    settings = howlow.shrink_settings(own, [1], [data, {"model": str(tiny_model)}])
    with pytest.raises(UserError, match="its ranks differ by module"):
        howlow.sweep(settings, tmp_path / "out")


def test_the_adapters_own_settings_are_not_changed(adapter: Path) -> None:
    for override in ({"lora": {"alpha": 3}}, {"grid": {"lora.rank": [1]}}):
        with pytest.raises(UserError, match="follows from the adapter"):
            howlow.shrink_settings(adapter, [1], [override])


def test_a_shrunk_adapter_can_be_shrunk_again(shrunk: Path) -> None:
    settings = howlow.shrink_settings(trial(shrunk, 2) / "adapter", [1])
    assert settings.lora.start_rank == 2
    assert settings.lora.scaling_factor == pytest.approx(3.0 / 4**0.5)


def test_another_adapter_in_the_trials_place_is_refused(trained: Path, adapter: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "run")
    own = tmp_path / "run" / "trials" / "r0004-s0" / "adapter" / "adapter_config.json"
    own.write_text(own.read_text(encoding="utf-8").replace('"lora_alpha": 3.0', '"lora_alpha": 5.0'), encoding="utf-8")
    with pytest.raises(UserError, match="not that of the trial in its folder"):
        howlow.shrink_settings(own.parent, [1])
