"""The singular values of a trial's update, module by module, in files of its folder.

`spectra.json` in a trial's folder holds those of the update that its own training gave. `start_spectra.json` holds
those of the adapter that a shrunk trial was cut from, as it was before the cut.
"""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from pydantic import Field, ValidationError

from howlow.errors import UserError
from howlow.records.files import write_atomically
from howlow.records.warnings import Frozen

OWN, START = "spectra.json", "start_spectra.json"


class ModuleSpectrum(Frozen):
    """The singular values of one module's update s B A."""

    module: str = Field(description="the layer's name in the base model")
    singular_values: tuple[float, ...] = Field(
        description="from the largest; as many as the rank, or the smaller side of the matrix"
    )


class Spectra(Frozen):
    """The spectra of all adapted modules, in the order of the model."""

    modules: tuple[ModuleSpectrum, ...]
    left_out: tuple[str, ...] = Field(
        (), description="adapted modules without a spectrum: no matrices, as fused experts, or LAPACK found no values"
    )


def energy_kept(spectra: Iterable[Sequence[float]], rank: int) -> float | None:
    """The share of the energy (squared singular values) that a rank keeps of these updates; None where all are zero."""
    squares = [[value * value for value in values] for values in spectra]
    whole = math.fsum(map(math.fsum, squares))
    return math.fsum(math.fsum(one[:rank]) for one in squares) / whole if whole else None


def write_spectra(folder: Path, spectra: Spectra, name: str = OWN) -> None:
    """Write a trial's spectra whole."""
    write_atomically(folder / name, spectra.model_dump_json() + "\n")


def read_spectra(folder: Path, name: str = OWN) -> Spectra | None:
    """A trial's spectra; None where it has none: it did not train an adapter, or an older howlow ran it.

    Raises:
        UserError: the file is damaged.
    """
    path = folder / name
    try:
        return Spectra.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError, ValidationError) as error:
        problem = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise UserError(
            f"{path}: cannot be read as spectra: {problem}; remove the file to report without them"
        ) from None
