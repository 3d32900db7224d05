"""Which numbers a warning stands beside."""

from typing import Any

import pytest

from howlow.analysis import COLUMNS
from howlow.analysis.caveats import qualified
from howlow.records import PhaseName, RecordWarning, WarningKind
from howlow.reporting.summary import WarningNote
from howlow.reporting.tables import warning_lines


def test_every_kind_has_a_mark_of_its_own() -> None:
    notes = [WarningNote(number, kind, "told", "do", ("r1",), ()) for number, kind in enumerate(WarningKind)]
    lines = warning_lines(notes)
    assert len({line[0] for line in lines}) == len(lines) == len(WarningKind)


def test_every_kind_has_its_place() -> None:
    of_the_trial = (
        WarningKind.RESUMED,
        WarningKind.RANK_ABOVE_MATRIX,
        WarningKind.BASELINE_REPEATED,
        WarningKind.LAYERS_LEFT_OUT,
        WarningKind.LARGE_EFFECTIVE_BATCH,
        WarningKind.ATTENTION_ALONE_ADAPTED,
        WarningKind.ALPHA_GROWS_WITH_RANK,
        WarningKind.OTHER_SETTINGS_UNTRIED,
    )
    for kind in WarningKind:
        touched = qualified(RecordWarning(kind=kind, detail="told"), "generate")
        assert set(touched) <= {column.name for column in COLUMNS}
        assert bool(touched) == (kind not in of_the_trial)


@pytest.mark.parametrize(
    ("phase", "prefixes"),
    [
        ("train", {"train"}),
        ("generate", {"inference"}),
        ("evaluate", set()),  # its figures are not in the table beside generation's
        ("load", set()),
        (None, {"train", "inference"}),
    ],
)
def test_a_warning_of_a_phase_touches_that_phases_columns(phase: PhaseName | None, prefixes: set[str]) -> None:
    warning = RecordWarning(kind=WarningKind.STEADINESS_UNKNOWN, detail="told", phase=phase)
    assert {name.partition("_")[0] for name in qualified(warning, "generate")} == prefixes


@pytest.mark.parametrize(
    ("part", "meter", "touched", "spared"),
    [
        ("measured", "trial", {"energy_per_sample_j", "power_w", "phase_energy_j"}, {"cpu_energy_per_sample_j"}),
        ("phase", "trial", {"phase_energy_j", "phase_power_w"}, {"energy_per_sample_j", "power_w", "power_p50_w"}),
        ("prefill", "trial", {"prefill_energy_per_token_j"}, {"energy_per_sample_j", "decode_energy_per_token_j"}),
        ("decode", "trial", {"decode_energy_per_token_j"}, {"energy_per_sample_j", "phase_energy_j"}),
        ("measured", "cpu", {"cpu_energy_per_sample_j", "cpu_energy_above_idle_per_sample_j"}, {"energy_per_sample_j"}),
        ("phase", "cpu", set(), {"cpu_energy_per_sample_j", "phase_energy_j"}),
    ],
)
def test_energy_that_is_missing_touches_only_what_it_is_missing_of(
    part: Any, meter: Any, touched: set[str], spared: set[str]
) -> None:
    lack = RecordWarning(kind=WarningKind.ENERGY_GAP, detail="lost", phase="generate", part=part, meter=meter)
    found = {name.removeprefix("inference_") for name in qualified(lack, "generate")}
    assert touched <= found
    assert not spared & found
    assert not any(name.endswith("samples_per_s") for name in found)


def test_what_is_touched() -> None:
    gap = qualified(RecordWarning(kind=WarningKind.ENERGY_GAP, detail="lost", phase="train"), "generate")
    assert {"train_energy_per_sample_j", "train_power_w", "train_phase_energy_j", "train_power_p50_w"} <= set(gap)
    assert "train_energy_error_per_sample_j" not in gap  # says itself how far the figure is to be trusted
    assert not {name for name in gap if "samples_per_s" in name or name.startswith("inference_")}
    overlap = qualified(RecordWarning(kind=WarningKind.TRAIN_TEST_OVERLAP, detail="4 left out"), "generate")
    assert {"f1", "exact_match", "loss", "perplexity"} <= set(overlap)
    assert not {name for name in overlap if name.startswith(("train_", "inference_"))}
    swapped = qualified(RecordWarning(kind=WarningKind.SWAPPING, detail="3 pages"), "evaluate")
    assert {"train_samples_per_s", "inference_samples_per_s", "inference_energy_per_sample_j"} <= set(swapped)
    assert "train_peak_memory_bytes" in swapped  # what is swapped out is not resident
