"""A frozen base whose linear layers are stored in 4 or 8 bits, and computed in full (QLoRA, Dettmers et al. 2023).

    nf4     one of 16 values, the quantiles of a normal distribution, times the largest magnitude of its block of 64
            weights (QLoRA, section 3). Double quantisation stores these magnitudes in 8 bits, too, in blocks of 256.
    int8    round(127 w / m), with m the largest magnitude in the weight's row (LLM.int8(), Dettmers et al. 2022,
            section 2)

bitsandbytes makes the codes and reads them. Only the storage differs from a dense layer: each product, forward and
backward, reads the weight anew in the dtype from which it was quantised, and computes as the precision says.
Activations are not quantised, unlike in LLM.int8(). So in every layout the losses are those of a dense model which
holds the weights as they are read, and nothing of a weight is kept between the passes.

The layers are those that transformers' `BitsAndBytesConfig` replaces, by its own rule: all linear ones but the
vocabulary head, and what an architecture keeps in fp32. They get the same codes, so an adapter that was trained here
fits a base that is loaded with it.
"""

from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.base import HfQuantizer
from transformers.quantizers.quantizers_utils import should_convert_module

from howlow.errors import UserError

Quantization = Literal["none", "nf4", "int8"]
_BLOCK = 64  # weights that share a magnitude in nf4, as in QLoRA
_BLOCK_OF_MAGNITUDES = 256
_INSTALL = "pip install 'howlow[quant]'"
_FAILURES = (ArithmeticError, AttributeError, ImportError, LookupError, OSError, RuntimeError, TypeError, ValueError)


class QuantizedWeight(nn.Module):
    """A weight (out, in) as codes with their magnitudes; `dense` reads it."""

    def __init__(self, weight: Tensor, kind: Quantization, *, double: bool) -> None:
        super().__init__()
        self.kind, self.shape, self.dtype = kind, weight.shape, weight.dtype
        weight = weight.detach().contiguous()
        if kind == "int8":
            codes, magnitudes, _ = _bitsandbytes().int8_vectorwise_quant(weight.to(torch.float16))  # as Linear8bitLt
            self._keep(codes=codes, magnitudes=magnitudes)
            return
        codes, state = _bitsandbytes().quantize_4bit(
            weight, blocksize=_BLOCK, compress_statistics=double, quant_type="nf4"
        )
        self._keep(codes=codes, magnitudes=state.absmax, values=state.code)
        if state.nested:
            self._keep(offset=state.offset, outer_magnitudes=state.state2.absmax, outer_values=state.state2.code)

    def _keep(self, **tensors: Tensor) -> None:
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)

    @property
    def device(self) -> torch.device:
        """Where the codes are."""
        found: torch.device = self.get_buffer("codes").device
        return found

    def dense(self) -> Tensor:
        """The weight as it is read: a new tensor of (out, in) in the dtype that it was quantised from."""
        held = dict(self.named_buffers())
        if self.kind == "int8":
            return held["codes"].float().mul_(held["magnitudes"].view(-1, 1)).mul_(1 / 127).to(self.dtype)
        found: Tensor = _bitsandbytes().dequantize_4bit(held["codes"], self._state(held))
        return found.view(self.shape)

    def _state(self, held: dict[str, Tensor]) -> Any:
        """What bitsandbytes keeps beside its codes.

        Its CPU kernel (0.50) reads wrong magnitudes in rows that end within a block, so these are read as one row.
        """
        make, outer = _bitsandbytes().QuantState, None
        if "offset" in held:
            outer = make(
                absmax=held["outer_magnitudes"],
                code=held["outer_values"],
                blocksize=_BLOCK_OF_MAGNITUDES,
                dtype=torch.float32,
            )
        return make(
            absmax=held["magnitudes"],
            shape=self.shape if self.shape[-1] % _BLOCK == 0 else torch.Size([self.shape.numel()]),
            code=held["values"],
            blocksize=_BLOCK,
            quant_type="nf4",
            dtype=self.dtype,
            offset=held.get("offset"),
            state2=outer,
        )


class QuantizedLinear(nn.Linear):
    """A linear layer whose weight is stored as codes: y = x W^T + bias, with W frozen.

    `weight` is W as it is read, anew each time: PEFT initialises, merges and measures adapters with it.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, kind: Quantization, *, double: bool) -> None:
        nn.Module.__init__(self)
        self.out_features, self.in_features = weight.shape
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias.detach(), requires_grad=False))
        self.stored = QuantizedWeight(weight, kind, double=double)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """W as it is read."""
        return self.stored.dense()

    def dense(self) -> nn.Linear:
        """A plain layer with W as it is read."""
        layer = nn.Linear(self.in_features, self.out_features, bias=False, device="meta")
        layer.weight, layer.bias = nn.Parameter(self.weight, requires_grad=False), self.bias
        return layer

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., in), computed in its dtype or, under autocast, in that one's."""
        kind = x.device.type
        if torch.is_autocast_enabled(kind):
            x = x.to(torch.get_autocast_dtype(kind))
        y: Tensor = _Product.apply(x, self)  # type: ignore[no-untyped-call]
        return y


class _Product(torch.autograd.Function):
    """y = x W^T + bias; W is read in either pass, and kept in neither."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: QuantizedLinear) -> Tensor:
        ctx.layer = layer
        bias = None if layer.bias is None else layer.bias.to(x.dtype)
        return F.linear(x, layer.weight.to(x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        return dy @ ctx.layer.weight.to(dy.dtype), None


def quantize(model: Any, kind: Quantization, *, double: bool, device: torch.device) -> None:
    """Replace the model's linear layers, all but the vocabulary head, by quantised ones on the device.

    Layers are moved and quantised one after the other, so the device never holds the dense model. One that stands at
    several places stays one layer.

    Raises:
        UserError: the model has no such layer, or int8 cannot hold its weights.
    """
    found, made = _layers_to_quantize(model), dict[int, QuantizedLinear]()
    if not found:
        raise no_layers(type(model).__name__, kind)
    for name, layer in found:
        if id(layer) not in made:
            _refuse_too_large(name, layer.weight, kind)
            weight = layer.weight.to(device)
            bias = None if layer.bias is None else layer.bias.to(device)
            weight = weight.T if isinstance(layer, Conv1D) else weight  # (in, out), the other way round
            made[id(layer)] = QuantizedLinear(weight, bias, kind, double=double)
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, made[id(layer)])
    for parameter in model.parameters():  # the others may be parts of a mapped file, which would stay in memory whole
        parameter.data = parameter.data.clone()


def _layers_to_quantize(model: Any) -> list[tuple[str, Any]]:
    """The linear layers that transformers quantises, under each of their names."""
    linear = [item for item in model.named_modules(remove_duplicate=False) if type(item[1]) in (nn.Linear, Conv1D)]
    if not linear:
        return []
    kept = HfQuantizer.get_modules_to_not_convert(model, None, model._keep_in_fp32_modules)
    return [(name, layer) for name, layer in linear if should_convert_module(name, kept)]


def _refuse_too_large(name: str, weight: Tensor, kind: Quantization) -> None:
    """Refuse weights that bitsandbytes' int8, which starts from fp16, would make infinite."""
    largest = float(weight.detach().abs().max()) if kind == "int8" and weight.numel() else 0.0
    if largest > torch.finfo(torch.float16).max:
        raise UserError(
            f'quantization = "int8": {name} has a weight of {largest:.3g}, and int8 starts from fp16, which ends at '
            '65504; set "nf4" or "none"'
        )


def no_layers(architecture: str, kind: Quantization) -> UserError:
    """The error where there is nothing to quantise."""
    return UserError(
        f'quantization = "{kind}": {architecture} has no linear layer that could be quantised; set it to "none"'
    )


def quantized_already(model: str, config: Any) -> UserError:
    """The error where a model's files hold weights in a quantised format, which its config describes."""
    method = config.get("quant_method") if isinstance(config, dict) else getattr(config, "quant_method", None)
    return UserError(
        f"model {model}: its weights are quantised already ({getattr(method, 'value', method)}); give the original "
        'model, and quantization = "nf4" or "int8" to store it in fewer bits'
    )


def not_quantized(name: str, model: Any) -> Any:
    """A loaded model, refused if its layers are in a quantised format."""
    if getattr(model, "is_quantized", False):
        raise quantized_already(name, getattr(model.config, "quantization_config", None))
    return model


def held(layer: nn.Linear) -> Tensor | QuantizedWeight:
    """The weight of a linear layer as it is stored."""
    return layer.stored if isinstance(layer, QuantizedLinear) else layer.weight


def as_read(weight: Tensor | QuantizedWeight) -> Tensor:
    """A stored weight as products take it."""
    return weight.dense() if isinstance(weight, QuantizedWeight) else weight


def count_parameters(model: nn.Module) -> int:
    """The numbers that a model's weights stand for, however they are stored."""
    quantized = (one.shape.numel() for one in model.modules() if isinstance(one, QuantizedWeight))
    return sum(quantized) + sum(parameter.numel() for parameter in model.parameters())


def stored_bytes(model: nn.Module) -> int:
    """The bytes that a model's weights take, with the magnitudes of quantised ones."""
    quantized = [buffer for one in model.modules() if isinstance(one, QuantizedWeight) for buffer in one.buffers()]
    return sum(tensor.nbytes for tensor in (*model.parameters(), *quantized))


# -- bitsandbytes -----------------------------------------------------------------------------------------------------


_functions: Any = None


def _bitsandbytes() -> Any:
    """Its functions; only where something is quantised: it takes a while to load.

    They are kept, because torch's compiler cannot look into an import, and would cut a layer in pieces there.
    """
    global _functions
    if _functions is None:
        _functions = import_module("bitsandbytes.functional")
    return _functions


def refuse_unusable(kind: Quantization, device: torch.device, dtype: torch.dtype) -> None:
    """Quantise a small layer on the device, and train through it.

    Raises:
        UserError: bitsandbytes is not installed, or cannot do it there.
    """
    asked = f'quantization = "{kind}"'
    if find_spec("bitsandbytes") is None:
        raise UserError(f'{asked} needs bitsandbytes, which is not installed: {_INSTALL}, or set it to "none"')
    try:
        layer = QuantizedLinear(torch.eye(_BLOCK, device=device, dtype=dtype), None, kind, double=True)
        x = torch.ones((2, _BLOCK), device=device, dtype=dtype, requires_grad=True)
        layer(x).sum().backward()
        fits = x.grad is not None and torch.allclose(x.grad, torch.ones_like(x), atol=0.01)
        problem = None if fits else "its results are wrong"
    except _FAILURES as error:
        problem = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    if problem is not None:
        name = f"bitsandbytes {version('bitsandbytes')}"
        raise UserError(
            f"{asked}: {name} cannot train through such layers on {device} ({problem}); set run.device = "
            f'"cpu" or a CUDA device that it supports, or quantization to "none"'
        )
