"""What the singular values of trained updates say: why a rank is enough, and how much a smaller one would keep.

With the singular values v_1 >= v_2 >= ... of an update s B A:

    energy kept by rank r    (v_1^2 + ... + v_r^2) / (v_1^2 + v_2^2 + ...)
    effective rank           exp(-sum p_i ln p_i) with p_i = v_i / (v_1 + v_2 + ...)   (Roy and Vetterli 2007)

The energy kept is the share of the update's squared Frobenius norm that the best approximation of rank r has. It says
how near that is to the whole update, not how well the model answers with it: `howlow shrink` measures that.
"""

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from howlow.analysis.comparison import Comparison, Group
from howlow.records import ModuleSpectrum, Spectra, read_spectra
from howlow.records.spectra import START, energy_kept


def effective_rank(values: Sequence[float]) -> float | None:
    """The exponential of the entropy of the singular values; None of an update that is zero."""
    whole = math.fsum(values)
    if not whole:
        return None
    shares = [value / whole for value in values if value > 0]
    return math.exp(-math.fsum(share * math.log(share) for share in shares))


@dataclass(frozen=True)
class UpdateSpectra:
    """The spectra of one trained adapter.

    trial: the trial that trained it, or of an adapter that was cut, the folder from which it came.
    """

    trial: str
    rank: int
    spectra: Spectra

    @property
    def modules(self) -> tuple[ModuleSpectrum, ...]:
        """The modules, in the order of the model."""
        return self.spectra.modules

    @cached_property
    def smaller_ranks(self) -> tuple[int, ...]:
        """The powers of two below its rank."""
        return tuple(1 << power for power in range(self.rank.bit_length()) if 1 << power < self.rank)

    @cached_property
    def effective_ranks(self) -> list[float]:
        """The effective rank of each module whose update is not zero, ascending."""
        found = (effective_rank(module.singular_values) for module in self.modules)
        return sorted(rank for rank in found if rank is not None)

    def kept_by(self, rank: int) -> float | None:
        """The energy that a smaller rank keeps, of all modules together."""
        return energy_kept([module.singular_values for module in self.modules], rank)

    def rank_keeping(self, share: float) -> int | None:
        """The smallest rank, the same for all modules, that keeps this share of the energy."""
        ranks = range(1, self.rank + 1)
        squares = [[value * value for value in module.singular_values] for module in self.modules]
        by_rank = [math.fsum(one[rank - 1] for one in squares if rank <= len(one)) for rank in ranks]
        left = share * math.fsum(by_rank)
        if not left:
            return None
        for rank, energy in zip(ranks, by_rank, strict=True):
            left -= energy
            if left <= 1e-9 * share * math.fsum(by_rank):
                return rank
        return self.rank


def spectra_of(comparison: Comparison, most: int) -> list[UpdateSpectra]:
    """The spectra of trained updates, from the largest rank, at most so many: those of one trial of each group.

    Of an adapter that was cut, they are those of the whole update, once, and none where the trial that trained it is
    here itself. A shrunk trial whose training was continued has those of its own, too.
    """
    found: dict[str, UpdateSpectra] = {}
    here = {str(trial.folder.resolve() / "adapter") for trial in comparison.results.trials}
    for group in sorted(comparison.groups, key=lambda group: -(group.rank or 0)):
        if len(found) < most:
            found |= {one.trial: one for one in _own(group)} | {
                one.trial: one for one in _start(group, here | set(found))
            }
    return sorted(found.values(), key=lambda one: -one.rank)[:most]


def _own(group: Group) -> Iterator[UpdateSpectra]:
    for trial in group.trials:
        spectra = read_spectra(trial.folder)
        if spectra is not None and group.rank is not None:
            longest = max((len(module.singular_values) for module in spectra.modules), default=0)
            yield UpdateSpectra(trial.record.trial, max(group.rank, longest), spectra)  # PiSSA's have twice the rank
            return


def _start(group: Group, known: Collection[str]) -> Iterator[UpdateSpectra]:
    for trial in group.trials:
        shrunk = trial.record.shrunk
        if shrunk is None or shrunk.start in known:
            continue
        spectra = read_spectra(trial.folder, START)
        if spectra is not None:
            yield UpdateSpectra(shrunk.start, shrunk.start_rank, spectra)
            return


# -- a module's place -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ModulePlace:
    """Where a module is: the number of its layer (0 where names have none), and its name within the layer."""

    layer: int
    name: str


def place_of(module: str) -> ModulePlace:
    """`model.layers.12.self_attn.q_proj` is `self_attn.q_proj` of layer 12; further numbers (experts) become *."""
    parts = module.split(".")
    first = next((index for index, part in enumerate(parts) if part.isdecimal()), None)
    if first is None or first == len(parts) - 1:
        return ModulePlace(0, module)
    rest = ("*" if part.isdecimal() else part for part in parts[first + 1 :])
    return ModulePlace(int(parts[first]), ".".join(rest))
