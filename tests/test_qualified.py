"""Which numbers a warning stands beside."""

import pytest

from howlow.analysis import COLUMNS
from howlow.analysis.qualified import _WORDS, qualified
from howlow.records import RecordWarning, WarningKind
from howlow.report.tables import _MARKS


def test_every_kind_has_its_place_and_its_mark() -> None:
    assert set(_WORDS) == set(WarningKind)
    assert len(set(_MARKS)) == len(_MARKS) >= len(WarningKind)
    for kind in WarningKind:
        touched = qualified(RecordWarning(kind=kind, detail="told"), "generate")
        assert set(touched) <= {column.name for column in COLUMNS}
        assert bool(touched) == (kind not in (WarningKind.RESUMED, WarningKind.RANK_ABOVE_MATRIX))


@pytest.mark.parametrize(
    ("detail", "phase", "prefixes"),
    [
        ("train: only 2 measured steps", "train", {"train"}),
        ("generate, nvml counter: 1 s of 2 s have no energy", "generate", {"inference"}),
        ("evaluate: only 1 measured steps", "evaluate", set()),  # its figures are not in the table beside generation's
        ("load, the whole phase", "load", set()),
        ("training is told of", None, {"train", "inference"}),
    ],
)
def test_a_warning_of_a_phase_touches_that_phases_columns(detail: str, phase: str | None, prefixes: set[str]) -> None:
    warning = RecordWarning(kind=WarningKind.STEADINESS_UNKNOWN, detail=detail)
    assert warning.phase == phase
    assert {name.partition("_")[0] for name in qualified(warning, "generate")} == prefixes


def test_what_is_touched() -> None:
    gap = qualified(RecordWarning(kind=WarningKind.ENERGY_GAP, detail="train, lost"), "generate")
    assert {"train_energy_per_sample_j", "train_power_w", "train_phase_energy_j", "train_power_p50_w"} <= set(gap)
    assert "train_energy_error_per_sample_j" not in gap  # says itself how far the figure is to be trusted
    assert not {name for name in gap if "samples_per_s" in name or name.startswith("inference_")}
    overlap = qualified(RecordWarning(kind=WarningKind.TRAIN_TEST_OVERLAP, detail="4 left out"), "generate")
    assert {"f1", "exact_match", "loss", "perplexity"} <= set(overlap)
    assert not {name for name in overlap if name.startswith(("train_", "inference_"))}
    swapped = qualified(RecordWarning(kind=WarningKind.SWAPPING, detail="3 pages"), "evaluate")
    assert {"train_samples_per_s", "inference_samples_per_s", "inference_energy_per_sample_j"} <= set(swapped)
    assert "train_peak_memory_bytes" not in swapped
