"""Batch or rank: the split of a step, its intervals, the other orders, and what is told where a leg is absent."""

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_cli import Command, howlow
from test_rows import phase_of, steps_of, write_trial

from howlow.analysis import compare, rows
from howlow.analysis.decomposition import Decomposition, RankStep, Split, decompositions
from howlow.records import Resolved, Scores
from howlow.reporting import read_report, write_report
from howlow.reporting.decomposition import HEADINGS, decomposition_csv, decomposition_lines, decomposition_panels

__all__ = ["howlow"]
AXIS = "training.batch_size"
H100 = {(1, 8): 21.3, (1, 1): 5.15, (512, 8): 19.8, (512, 1): 4.02, (2048, 1): 3.39}
"""Samples/s of LLaMA-3.1-8B's shape on an H100, by rank and batch; rank 2048 runs out of memory at batch 8."""


def trial(
    folder: Path, rank: int, batch: int, per_s: float, asked: Any = None, noise: float = 0.0005, **fields: Any
) -> None:
    """A trial that trains with this batch at this pace; `asked`: the value of the axis where it is not the batch."""
    jitter = [1 + noise * math.sin(step * (rank + batch)) for step in range(8)]
    seconds = [batch / per_s * one for one in jitter]
    trained = phase_of("train", samples=8 * batch, time_s=sum(seconds), energy_j=300 * sum(seconds))
    memory = phase_of("generate", peak_memory_bytes=2**30)
    values: dict[str, Any] = {
        "axes": {AXIS: asked or batch},
        "steps": [*steps_of("train", [9.0, *seconds], samples=batch), *steps_of("generate", [3.0, 1.0, 1.01], 900.0)],
        "phases": (trained.model_copy(update={"peak_memory_bytes": (rank + 100 * batch) * 2**20}), memory),
        "resolved": Resolved(precision="fp32", train_batch_size=batch),
        "scores": Scores(f1=0.6, exact_match=0.5, loss=1.0),
    }
    write_trial(folder, rank, **(values | fields))


def out_of_memory(folder: Path, rank: int, asked: Any) -> None:
    write_trial(folder, rank, axes={AXIS: asked}, status="out_of_memory", error="OutOfMemoryError: 2 GiB")


@pytest.fixture
def h100(tmp_path: Path) -> Path:
    for (rank, batch), per_s in H100.items():
        trial(tmp_path, rank, batch, per_s)
    out_of_memory(tmp_path, 2048, 8)
    return tmp_path


def of(folder: Path) -> Decomposition:
    (found,) = decompositions(compare(rows([folder])))
    return found


def split_of(step: RankStep | None, name: str = "train_samples_per_s") -> Split:
    assert step is not None
    return next(split for split in step.splits if split.column.name == name)


# -- the split ------------------------------------------------------------------------------------------------------


def test_the_worked_example_of_an_h100(h100: Path) -> None:
    found = of(h100)
    split = split_of(found.whole)
    assert (found.whole.smaller_batch, found.whole.larger_batch, split.at_batch) == (8, 1, 1)  # type: ignore[union-attr]
    assert split.rank is not None
    assert split.batch is not None
    lower = [round(1 / ratio.value, 1) for ratio in (split.total, split.batch, split.rank)]
    assert lower == [6.3, 4.1, 1.5]
    assert split.batch_share == pytest.approx(math.log(21.3 / 5.15) / math.log(21.3 / 3.39), rel=0.01)
    for ratio in (split.total, split.batch, split.rank):
        assert ratio.low is not None
        assert ratio.high is not None
        assert ratio.low < ratio.value < ratio.high
        assert ratio.high / ratio.low < 1.05


def test_the_docs_tell_what_the_code_says(tmp_path: Path) -> None:
    for (rank, batch), per_s in H100.items():
        trial(tmp_path, rank, batch, per_s, noise=0.0)
    (panel,) = decomposition_panels(compare(rows([tmp_path])))
    told = [row for row in panel.rows if row.figure == "samples/s"]
    page = (Path(__file__).parent.parent / "docs" / "decisions" / "batch-or-rank.md").read_text(encoding="utf-8")
    for row in told:
        cells = (row.ranks, row.batches, row.values, row.total, row.batch, row.rank, row.others)
        assert f"| {' | '.join(cells)} |" in page
    assert panel.sentences[0] in page


def test_a_step_at_one_batch_is_all_the_ranks_and_another_batch_shows_the_interaction(h100: Path) -> None:
    step = of(h100).steps[0]
    split = split_of(step)
    assert (step.smaller_rank, step.larger_rank, step.changes_batch, split.at_batch) == (1, 512, False, 8)
    assert split.batch is not None
    assert (split.batch.value, split.batch.low, split.batch.high) == (1, 1, 1)
    assert split.rank is not None
    assert split.rank.value == pytest.approx(19.8 / 21.3, rel=0.01)
    (other,) = split.others
    assert other.batch == 1
    assert other.ratio.value == pytest.approx(4.02 / 5.15, rel=0.01)
    assert other.interaction.value == pytest.approx(4.02 / 5.15 / (19.8 / 21.3), rel=0.01)
    assert other.interaction.is_significant


@settings(max_examples=8)
@given(st.lists(st.floats(0.1, 100), min_size=6, max_size=6), st.sampled_from([(8, 4, 1), (8, 1, 1), (2, 4, 1)]))
def test_the_parts_multiply_to_the_step(tmp_path_factory: Any, pace: list[float], batches: Any) -> None:
    folder = tmp_path_factory.mktemp("sweep")
    first, last, fixed = batches
    for index, (rank, batch) in enumerate(dict.fromkeys([(1, first), (1, fixed), (8, last), (8, fixed)])):
        trial(folder, rank, batch, pace[index])
    for split in of(folder).steps[0].splits:
        assert split.rank is not None
        assert split.batch is not None
        assert split.rank.value * split.batch.value == pytest.approx(split.total.value)
        assert split.at_batch == fixed


def test_the_leg_of_largest_batches_is_told_by_what_each_rank_ran_with(tmp_path: Path) -> None:
    for seed in (0, 1, 2):
        for rank, most in ((1, 8), (64, 4), (2048, 1)):
            trial(tmp_path, rank, most, (20 - rank**0.3) * (1 + 0.01 * seed) * most / 8, "max", seed=seed)
            trial(tmp_path, rank, 1, (20 - rank**0.3) * (1 + 0.01 * seed) / 8, 1, seed=seed)
    found = of(tmp_path)
    assert found.batches == {1: (1, 8), 64: (1, 4), 2048: (1,)}
    assert [(step.smaller_batch, step.larger_batch, split_of(step).at_batch) for step in found.steps] == [
        (8, 4, 1),
        (4, 1, 1),
    ]
    split = split_of(found.whole)
    assert split.batch is not None
    assert split.batch.value == pytest.approx(1 / 8, rel=0.01)
    assert split.batch.basis == "processes"


def test_energy_memory_and_quality_are_split_too(h100: Path) -> None:
    whole = of(h100).whole
    names = [split.column.name for split in whole.splits] if whole else []
    assert names == [
        "train_samples_per_s",
        "train_energy_per_sample_j",
        "train_peak_memory_bytes",
        "f1",
        "exact_match",
        "loss",
    ]
    memory = split_of(whole, "train_peak_memory_bytes")
    assert memory.rank is not None
    assert memory.batch is not None
    assert memory.rank.value == pytest.approx((2048 + 100) / 101)
    assert memory.batch.value == pytest.approx(101 / 801)
    assert memory.rank.basis == memory.batch.basis == "exact"
    energy = split_of(whole, "train_energy_per_sample_j")
    assert energy.total.value == pytest.approx(21.3 / 3.39, rel=0.01)
    assert energy.total.low is None, "an energy without a known bound has no interval"


# -- where a leg is absent ------------------------------------------------------------------------------------------


def test_without_a_common_batch_only_the_whole_step_is_told(tmp_path: Path) -> None:
    trial(tmp_path, 1, 8, 21.3)
    trial(tmp_path, 2048, 1, 3.39)
    out_of_memory(tmp_path, 2048, 8)
    split = split_of(of(tmp_path).steps[0])
    assert split.total.value == pytest.approx(3.39 / 21.3, rel=0.01)
    assert (split.rank, split.batch, split.at_batch, split.batch_share) == (None, None, None, None)
    told = "\n".join(decomposition_lines(compare(rows([tmp_path]))))
    assert "only the whole change is known: rank 1 ran with batch 8 and rank 2048 ran with batch 1" in told
    assert "Rank 2048 has no figures with training.batch_size = 8: out_of_memory." in told
    assert 'grid."training.batch_size"=["max",1]' in told


def test_one_batch_needs_no_decomposition(tmp_path: Path) -> None:
    for rank in (1, 8):
        trial(tmp_path, rank, 8, 20)
    comparison = compare(rows([tmp_path]))
    assert decompositions(comparison) == ()
    assert decomposition_lines(comparison) == []
    assert decomposition_csv(comparison) is None


def test_other_axes_have_a_decomposition_each(tmp_path: Path) -> None:
    for alpha in (16, 32):
        for (rank, batch), per_s in H100.items():
            trial(tmp_path, rank, batch, per_s + alpha, axes={AXIS: batch, "lora.alpha": alpha})
    found = decompositions(compare(rows([tmp_path])))
    assert [dict(one.axes) for one in found] == [{"lora.alpha": 16}, {"lora.alpha": 32}]


def test_figures_that_were_measured_differently_are_no_ends(h100: Path) -> None:
    from howlow.records import RecordWarning

    warning = RecordWarning(kind="costs_not_comparable", detail="another card")
    trial(h100, 4096, 1, 1.0, warnings=(warning,))
    names = [split.column.name for split in of(h100).steps[-1].splits]
    assert names == ["f1", "exact_match", "loss"]


# -- where it is shown ----------------------------------------------------------------------------------------------


def test_the_terminal_tells_the_whole_way_and_the_steps_that_change_the_batch(h100: Path) -> None:
    text = read_report([h100]).table_text(160)
    assert "Batch or rank? fine-tuning (training.batch_size)" in text
    assert "rank 1 (batch 8) to 2048 (1):" in text
    (line,) = [line for line in text.splitlines() if "samples/s 21.3 to 3.39" in line]
    assert "lower: 4.1" in line
    assert "by the batch, 1.5" in line
    assert "by the rank at batch 1" in line
    assert "interact" in text


def test_json_and_csv_hold_the_ratios(h100: Path, howlow: Command) -> None:
    code, out, _ = howlow("report", h100, "--json")
    (document,) = json.loads(out)["decomposition"]
    assert code == 0
    assert document["batches"] == {"1": [1, 8], "512": [1, 8], "2048": [1]}
    assert document["missing"] == [{"rank": 2048, "asked": 8, "status": ["out_of_memory"]}]
    figure = document["steps"][0]["figures"]["train_samples_per_s"]
    assert document["steps"][0]["whole"]
    assert figure["batch"]["value"] * figure["rank"]["value"] == pytest.approx(figure["total"]["value"])
    table = list(csv.DictReader(io.StringIO((h100 / "decomposition.csv").read_text())))
    (row,) = [one for one in table if one["whole"] == "1" and one["figure"] == "train_samples_per_s"]
    assert float(row["rank"]) == figure["rank"]["value"]
    assert float(row["batch_low"]) == figure["batch"]["low"]
    assert row["at_batch"] == "1"


def test_a_stale_file_goes(tmp_path: Path) -> None:
    for rank in (1, 8):
        trial(tmp_path, rank, 8, 20)
    (tmp_path / "decomposition.csv").write_text("old")
    write_report([tmp_path])
    assert not (tmp_path / "decomposition.csv").exists()


def test_the_panel_has_a_sentence_a_row_and_a_note_for_everything(h100: Path) -> None:
    (panel,) = decomposition_panels(compare(rows([h100])))
    assert panel.title == "Batch or rank? fine-tuning"
    assert "from rank 1 (batch 8) to rank 2048 (batch 1): 4.1" in panel.sentences[0]
    assert panel.sentences[0].endswith("by the rank at batch 1.")
    assert len(panel.rows) == 3 * 6
    assert [row.is_whole for row in panel.rows] == [True] * 6 + [False] * 12
    assert len(HEADINGS) == 8
    assert any("interact" in note for note in panel.notes)
