"""The singular values of an adapter's update, and the best update of a smaller rank.

The update of a layer is B A with B of shape (out, r) and A of shape (r, in). With the QR decompositions B = Q R and
A^T = P S, its singular value decomposition follows from that of R S^T, which is r x r: if R S^T = U D V^T, then
B A = (Q U) D (P V)^T. The full matrix is never built. Cutting D to its largest values gives the best approximation of
that rank in the Frobenius and the spectral norm (Eckart and Young 1936).

Everything is computed in fp64 on the CPU: the same numbers whatever the device, at the precision of the stored factors.
"""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from howlow.engine.adapter import IN_PEFT
from howlow.engine.adapter_variants import has_magnitudes, update_factors


@dataclass(frozen=True)
class Factors:
    """The two matrices of a layer's update B A: b of shape (out, r), a of shape (r, in)."""

    b: Tensor
    a: Tensor


def singular_values(factors: Factors) -> Tensor:
    """The singular values of B A, from the largest: as many as the rank or the smaller side of the matrix."""
    left = torch.linalg.qr(_exact(factors.b), mode="r").R
    right = torch.linalg.qr(_exact(factors.a).T, mode="r").R
    values: Tensor = torch.linalg.svdvals(left @ right.T)
    return values


def truncated(factors: Factors, rank: int) -> Factors:
    """The factors of the best approximation of B A of this rank, in fp32; each holds the roots of the singular values.

    Where the update has fewer singular values than the rank, the rest of the factors is zero.
    """
    left_basis, left = torch.linalg.qr(_exact(factors.b))
    right_basis, right = torch.linalg.qr(_exact(factors.a).T)
    u, values, vh = torch.linalg.svd(left @ right.T)
    kept = min(rank, len(values))
    roots = values[:kept].sqrt()
    b, a = torch.zeros(factors.b.shape[0], rank), torch.zeros(rank, factors.a.shape[1])
    b[:, :kept] = left_basis @ (u[:, :kept] * roots)
    a[:kept] = (roots[:, None] * vh[:kept]) @ right_basis.T
    return Factors(b, a)


def _exact(matrix: Tensor) -> Tensor:
    return matrix.detach().to("cpu", torch.float64)


# -- in a model -----------------------------------------------------------------------------------------------------


def adapted_layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """The layers with an adapter, by their names in the base model."""
    for name, module in model.named_modules():
        if hasattr(module, "get_delta_weight"):
            yield name.removeprefix(IN_PEFT), module


def is_matrix(layer: Any) -> bool:
    """Whether a layer's update is one product B A; that of fused experts is one for each, and DoRA's is none."""
    return not hasattr(layer, "parameter_name") and not has_magnitudes(layer)


def factors_of(layer: Any) -> Factors:
    """The factors of a layer's update of the base as it came; of plain LoRA, as PEFT keeps them."""
    a, b = update_factors(layer)
    return Factors(b, a)


def scaled_singular_values(model: nn.Module) -> dict[str, Tensor]:
    """The singular values of every layer's update s B A, by the layer's name.

    Layers whose update is no matrix are left out, and those whose values LAPACK does not find.
    """
    found = {}
    for name, layer in adapted_layers(model):
        with suppress(torch.linalg.LinAlgError):  # type: ignore[attr-defined]
            if is_matrix(layer):
                found[name] = singular_values(factors_of(layer)) * layer.scaling["default"]
    return found


def set_factors(model: nn.Module, factors: Mapping[str, Factors]) -> None:
    """Put factors into the adapter of a model, a pair for each of its layers."""
    with torch.no_grad():
        for name, layer in adapted_layers(model):
            own, given = factors_of(layer), factors[name]
            own.b.copy_(given.b)
            own.a.copy_(given.a)
