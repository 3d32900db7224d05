"""The adapter of a shrunk trial: the update of a saved adapter, cut to the trial's rank by its singular values."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from howlow.engine import model as models
from howlow.engine.adapter import matched_layers
from howlow.engine.saved_factors import WEIGHTS, check_factors, read_factors
from howlow.engine.spectra import adapted_layers, scaled_singular_values, set_factors, singular_values, truncated
from howlow.engine.weights import file_sha256
from howlow.errors import UserError
from howlow.records import ModuleSpectrum, ShrunkRecord, Spectra, read_record_beside, write_spectra
from howlow.records.spectra import START, energy_kept
from howlow.settings import Settings, read_saved_adapter
from howlow.trial.state import TrialState

_DIGITS = 7


def check_start(settings: Settings, structure: models.Structure) -> str | None:
    """Refuse a start that cannot be cut or does not fit the model; the hash of its weights, None without a start.

    Raises:
        UserError: as `read_saved_adapter`, `read_factors` and `check_factors`; or the settings say other things about
            the adapter than it does.
    """
    lora = settings.lora
    if lora.start is None or lora.start_rank is None:
        return None
    there = read_saved_adapter(Path(lora.start))
    folder, asked = there.folder, lora.model_copy(update={"rank": lora.start_rank})
    told = {
        "lora.start_rank": (lora.start_rank, there.rank),
        "lora.alpha": (asked.alpha_value, there.alpha),
        "lora.scaling": (lora.scaling, "rank_stabilized" if there.is_rank_stabilized else "standard"),
    }
    for key, (setting, value) in told.items():
        if setting != value:
            raise UserError(f"{key} is {setting!r} for the rank of lora.start, and its config says {value!r}; set that")
    shapes, idle = structure.linear_shapes, structure.unreached_layers
    matched = matched_layers(shapes, lora.target_modules, idle)
    check_factors(folder, read_factors(folder), lora.start_rank, {name: shapes[name] for name in matched})
    return file_sha256(folder / WEIGHTS)


def refuse_other_base(settings: Settings, model_sha256: str | None) -> None:
    """Refuse a base of which the record beside a saved adapter says that it was trained on another one.

    Raises:
        UserError: names both models.
    """
    if settings.lora.start is None:
        return
    folder = read_saved_adapter(Path(settings.lora.start)).folder.resolve()
    record = read_record_beside(folder)
    there = record.data.model_sha256 if record is not None and record.data is not None else None
    if record is not None and None not in (there, model_sha256) and there != model_sha256:
        raise UserError(
            f"{settings.model}: it is not the base of the adapter {folder}: config or weights are not those of "
            f"{record.settings.model}, on which {record.trial} was trained; give that one with --model"
        )


def start_from_saved(state: TrialState, model: Any) -> None:
    """Put the cut update into the model's adapter, and keep the spectra of the whole one with the trial."""
    lora = state.settings.lora
    assert lora.start is not None, "a shrunk trial has a start"
    assert lora.start_rank is not None, "settings give both"
    folder = read_saved_adapter(Path(lora.start)).folder
    factors = read_factors(folder)
    set_factors(model, {name: truncated(pair, lora.rank) for name, pair in factors.items()})
    values = {name: (singular_values(pair) * lora.scaling_factor).tolist() for name, pair in factors.items()}
    write_spectra(state.folder, Spectra(modules=_rounded(values)), START)
    state.found.shrunk = ShrunkRecord(
        start=str(folder),
        start_rank=lora.start_rank,
        start_sha256=file_sha256(folder / WEIGHTS),
        energy_kept=energy_kept(values.values(), lora.rank),
        continued_steps=lora.continue_steps,
    )


def save_spectra(state: TrialState, model: Any) -> None:
    """Keep the singular values of the update that training gave."""
    values = {name: found.tolist() for name, found in scaled_singular_values(model).items()}
    left_out = tuple(name for name, _ in adapted_layers(model) if name not in values)
    if values or state.settings.lora.variant != "dora":  # DoRA's updates are no products of two matrices
        write_spectra(state.folder, Spectra(modules=_rounded(values), left_out=left_out))


def _rounded(values: Mapping[str, Sequence[float]]) -> tuple[ModuleSpectrum, ...]:
    return tuple(
        ModuleSpectrum(module=name, singular_values=tuple(float(f"{value:.{_DIGITS}g}") for value in found))
        for name, found in values.items()
    )
