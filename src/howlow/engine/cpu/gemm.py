"""Products on a CPU, and which library computes them.

A frozen layer needs two products, y = x W^T + bias and in the backward pass dx = dy W. torch offers two libraries for
them: oneDNN, and the BLAS it was built with (MKL on x86). Which one is faster depends on the make of the CPU, on the
weight's shape and on the pass (`docs/log.md` has figures). `choose_gemms` times both on a loaded model's own weights.

The two round differently, so a choice changes the last bits of losses. It is made once for all trials of a sweep, kept
with the sweep and recorded. Without a choice oneDNN computes everything.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle
from time import perf_counter
from typing import Literal, NamedTuple, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional

from howlow.engine.quantization import QuantizedLinear, QuantizedWeight, as_read, held

GemmLibrary = Literal["onednn", "blas"]
GemmPass = Literal["forward", "backward", "attention"]
FEWEST_ROWS = 64
"""With fewer rows a product takes as long as reading its weight, and oneDNN computes it."""
_ADVANTAGE = 1.1  # BLAS is chosen where it is faster by this factor, so that noise seldom decides
_TIMED = 3  # calls of each library, in turns; the fastest counts, because other work on the machine only slows down
_MOST_FLOPS = 5e9  # of one timed product; a wide weight is timed with fewer rows
_MOST_ROWS = 16_384  # a library is not faster with more, and a narrow weight would be timed for seconds
FEWEST_FLOPS = 1e8
"""With less to do, calls cost more than arithmetic, and the clock would decide by chance."""


@dataclass(frozen=True)
class GemmChoice:
    """Which library computes a product, and how fast each of them was.

    of: a pass through frozen weights of one shape, or attention (in: the dimension of a head, out: keys).
    """

    of: GemmPass
    in_features: int
    out_features: int
    rows: int
    library: GemmLibrary
    onednn_gflops: float | None = None
    blas_gflops: float | None = None


@dataclass(frozen=True)
class FrozenWeight:
    """A weight W (out, in) that does not train, its bias, and the libraries of its two products."""

    weight: Tensor | QuantizedWeight
    bias: Tensor | None = None
    forward_library: GemmLibrary = "onednn"
    backward_library: GemmLibrary = "onednn"

    def forward(self, x: Tensor) -> Tensor:
        """x W^T + bias; x: (..., in)."""
        return _by(self.forward_library, x, as_read(self.weight), self.bias)

    def backward(self, dy: Tensor) -> Tensor:
        """dy W, the gradient of x; dy: (..., out)."""
        return _by(self.backward_library, dy, as_read(self.weight).t(), None)


@dataclass(frozen=True)
class Gemms:
    """The choices that hold for a model's frozen layers."""

    choices: tuple[GemmChoice, ...] = ()

    def frozen(self, layer: nn.Linear) -> FrozenWeight:
        """A layer's weight with the libraries chosen for its shape."""
        shape = layer.in_features, layer.out_features
        libraries = {one.of: one.library for one in self.choices if (one.in_features, one.out_features) == shape}
        forward, backward = (libraries.get(of, "onednn") for of in ("forward", "backward"))
        return FrozenWeight(held(layer), layer.bias, forward, backward)

    @property
    def attention(self) -> GemmLibrary:
        """The library of the products of attention."""
        return next((one.library for one in self.choices if one.of == "attention"), "onednn")


NO_CHOICE = Gemms()
"""oneDNN computes everything."""


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + bias through oneDNN; x: (tokens, in), W: (out, in)."""
    if not (weight.is_contiguous() or weight.t().is_contiguous()):
        weight = weight.contiguous()  # strided rows would take a reference loop, a thousand times slower
    found: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return found


def _by(library: GemmLibrary, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if library == "onednn" or x.numel() < FEWEST_ROWS * x.shape[-1]:
        return product(x, weight, bias)
    return functional.linear(x, weight, bias)


# -- measuring ----------------------------------------------------------------------------------------------------


@torch.inference_mode()
def choose_gemms(
    model: nn.Module, rows: int, known: Sequence[GemmChoice] = (), library: GemmLibrary | None = None
) -> tuple[GemmChoice, ...]:
    """The library for each shape of the model's frozen fp32 layers, and each pass.

    rows: the tokens of a training step. known: choices that are kept. library: the one that was asked for; None: the
    faster one, by timing both; products too small to be timed get no choice.
    """
    layers: dict[tuple[int, int], list[nn.Linear]] = {}
    for layer in model.modules():
        if is_frozen_linear(layer, torch.float32):
            layers.setdefault((layer.in_features, layer.out_features), []).append(layer)
    made = {(one.of, one.in_features, one.out_features): one for one in known}
    passes: tuple[GemmPass, ...] = ("forward", "backward")
    found = []
    for shape, alike in layers.items():
        most_rows = max(FEWEST_ROWS, min(rows, _MOST_ROWS, round(_MOST_FLOPS / (2 * shape[0] * shape[1]))))
        for of in passes:
            if library is not None:
                found.append(GemmChoice(of, *shape, most_rows, library))
            elif (of, *shape) in made:
                found.append(made[of, *shape])
            elif 2 * most_rows * shape[0] * shape[1] >= FEWEST_FLOPS:
                found.append(_faster(alike, of, most_rows))
    return tuple(found)


def is_frozen_linear(layer: object, dtype: torch.dtype) -> TypeGuard[nn.Linear]:
    """Whether this is a plain or quantised linear layer on a CPU whose weights have this dtype and do not train."""
    if type(layer) not in (nn.Linear, QuantizedLinear):
        return False
    weight = held(layer)  # type: ignore[arg-type]
    if weight.device.type != "cpu" or weight.dtype != dtype:
        return False
    return all(not one.requires_grad and one.dtype == dtype for one in layer.parameters())  # type: ignore[attr-defined]


def _faster(layers: Sequence[nn.Linear], of: GemmPass, rows: int) -> GemmChoice:
    """The choice for layers of one shape, by timing."""
    inside, outside = layers[0].in_features, layers[0].out_features
    read = [layer.weight for layer in layers[: 2 * (1 + _TIMED)]]  # no more are taken
    weights = [weight.t() if of == "backward" else weight for weight in read]
    x, turns = torch.randn((rows, weights[0].shape[1]), generator=torch.Generator().manual_seed(0)), cycle(weights)
    # each call takes another weight, as in a step
    found = faster(lambda: product(x, next(turns)), lambda: functional.linear(x, next(turns)))
    gflops = [round(2e-9 * rows * inside * outside / seconds, 1) for seconds in found.seconds]
    return GemmChoice(of, inside, outside, rows, found.library, *gflops)


class Race(NamedTuple):
    """The faster library, and the time of each."""

    library: GemmLibrary
    seconds: tuple[float, float]


def faster(onednn: Callable[[], object], blas: Callable[[], object]) -> Race:
    """Time the same work through both libraries."""
    onednn_s, blas_s = _seconds(onednn, blas)
    return Race("blas" if blas_s * _ADVANTAGE < onednn_s else "onednn", (onednn_s, blas_s))


def _seconds(*ways: Callable[[], object]) -> tuple[float, ...]:
    """The least time of each way."""
    for way in ways:
        way()  # oneDNN compiles its kernel
    timed = [[_timed(way) for way in ways] for _ in range(_TIMED)]
    return tuple(min(times) for times in zip(*timed, strict=True))


def _timed(work: Callable[[], object]) -> float:
    started_s = perf_counter()
    work()
    return perf_counter() - started_s
