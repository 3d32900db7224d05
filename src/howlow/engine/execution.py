"""How a model runs: decided once, held as one value, and the one context in which everything runs it.

`decide` makes an `Execution` from plain arguments: the dtype in which the base is stored, the dtype in which it
computes, whether the loss is scaled, which attention kernel runs, which parts run fused, joined or compiled. A model
enters it through `running`, once for a training, a phase of inference, a probe or a check. Whatever has to be learned
from the model's weights (`howlow.engine.last_layer`, `howlow.engine.cpu.patches`) is learned there, so that no step
reads the device. Within it `Running.batch` is the context of one batch.

    precision       base stored in   computes in        loss scaling   fused on a CPU
    fp32            fp32             fp32               no             yes, unless compiled
    bf16            bf16 *           autocast to bf16   no             yes *, unless compiled
    fp16-autocast   fp32             autocast to fp16   yes            no

    * in fp32, and not fused, where the base itself trains
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from howlow.engine.attention import AttentionKernel, tree_attention
from howlow.engine.attention_context import (
    AttentionContext,
    attending,
    configs_of,
    note_kinds,
    one_sequence_a_row,
)
from howlow.engine.compiled_layers import compiled_for_training
from howlow.engine.cpu.attention import FEWEST_KEPT
from howlow.engine.cpu.gemm import NO_CHOICE, Gemms
from howlow.engine.cpu.patches import fused
from howlow.engine.cuda.adapters import CastAdapters, joined_adapters
from howlow.engine.last_layer import modules_by_token, only_rows
from howlow.engine.layouts import Batch
from howlow.engine.loss import Head
from howlow.engine.prefix_tree import PrefixTree
from howlow.engine.quantization import Quantization
from howlow.engine.rotary import as_in_a_full_row

Precision = Literal["fp32", "bf16", "fp16-autocast"]
_COMPUTED_IN = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16-autocast": torch.float16}


@dataclass(frozen=True)
class Execution:
    """How a model runs on one device.

    storage: the dtype of the base's weights, or the one from which they are quantised; an adapter's are always fp32.
    quantization: how the linear layers of a frozen base are stored (`howlow.engine.quantization`).
    double_quantization: whether the magnitudes of nf4 are stored in 8 bits.
    compute: the dtype of products; where it is not fp32, forward passes run under autocast to it.
    attention: the kernel for examples that share a row; examples in rows of their own use the model's own attention.
    kernels_kept: how many compiled kernels oneDNN keeps in this process.
    head: where the vocabulary head is computed: for the hidden states that predict a target, or for all.
    fused: whether frozen parts run fused (`howlow.engine.cpu.patches`).
    joined_adapters: whether plain adapters run joined, from copies in `compute` (`howlow.engine.cuda.adapters`).
    gemms: the libraries that compute the products of fused layers and of attention.
    compiled: whether the decoder's layers run compiled by torch.
    graphed: whether a training step is replayed as CUDA graphs (`howlow.engine.step_graphs`), in generation a token
        step (`howlow.engine.decode_graphs`).
    devices: over how many devices the base is sharded (`howlow.engine.sharding`); where there are several, nothing of
        it runs fused, compiled or graphed.
    full_row: the sequence length whose rotary frequencies hold in every layout; None leaves them to the batch's length.
    """

    device: torch.device
    precision: Precision
    storage: torch.dtype
    compute: torch.dtype
    scales_loss: bool
    attention: AttentionKernel
    kernels_kept: int
    head: Head
    fused: bool
    joined_adapters: bool
    compiled: bool
    graphed: bool
    full_row: int | None
    gemms: Gemms = NO_CHOICE
    devices: int = 1
    quantization: Quantization = "none"
    double_quantization: bool = True

    @property
    def fills_shapes(self) -> bool:
        """Whether batches are filled up to few shapes, because each new one would cost a compilation or a graph."""
        return self.device.type == "cuda" and (self.compiled or self.graphed)

    def plainer(self) -> "Execution | None":
        """The next plainer way in which the same is computed; None where this is the plainest."""
        if self.graphed:
            return replace(self, graphed=False)
        if self.compiled:
            return replace(self, compiled=False)
        return replace(self, joined_adapters=False) if self.joined_adapters else None

    def plainest(self) -> "Execution":
        """The plainest way in which the same is computed."""
        plainer = self.plainer()
        return self if plainer is None else plainer.plainest()

    def for_evaluation(self) -> "Execution":
        """The same without compiled layers; it runs fused wherever that is possible.

        Fused layers run their adapters themselves. Elsewhere adapters that were found right joined stay so: a token
        step is many small kernels, and PEFT's casts are a third of them.
        """
        is_fused = self.devices == 1 and _can_fuse(self.device, self.storage, self.compute)
        joined = self.joined_adapters and not is_fused
        return replace(self, compiled=False, graphed=False, joined_adapters=joined, fused=is_fused)

    def for_generation(self) -> "Execution":
        """As evaluation, with rotary frequencies that follow the tokens so far, as in transformers' `generate`.

        Its token steps draw no random numbers, so they are graphed wherever training compiles.
        """
        graphed = self.compiled and self.device.type == "cuda"
        return replace(self.for_evaluation(), full_row=None, graphed=graphed)

    def autocast(self) -> AbstractContextManager[Any]:
        """The context of a forward pass."""
        if self.compute == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.compute)

    def facts(self) -> dict[str, str | int | bool]:
        """What was decided, in plain values, for the record."""
        return {
            "device": str(self.device),
            "precision": self.precision,
            "storage": _name(self.storage),
            "compute": _name(self.compute),
            "loss_scaling": self.scales_loss,
            "attention": self.attention,
            "kernels_kept": self.kernels_kept,
            "head": self.head,
            "fused": self.fused,
            "joined_adapters": self.joined_adapters,
            "compiled": self.compiled,
            "graphed": self.graphed,
            "quantization": self.quantization,
        }


def decide(
    *,
    device: torch.device,
    precision: Precision,
    attention: Literal["own", "sdpa", "flex"] = "sdpa",
    kernels_kept: int = 0,
    head: Head = "targets",
    joins_adapters: bool = False,
    compiles: bool = False,
    graphs: bool = False,
    trains_base: bool = False,
    full_row: int | None = None,
    gemms: Gemms = NO_CHOICE,
    devices: int = 1,
    quantization: Quantization = "none",
    double_quantization: bool = True,
) -> Execution:
    """Decide how a model runs.

    attention: the kernel that the check of the model found (`howlow.engine.layout_check`), or the model's `own`.
    kernels_kept: see `Execution`; attention runs as products only where many are kept.
    joins_adapters: whether training runs plain adapters joined and without casts.
    compiles: whether training compiles the decoder's layers.
    graphs: whether training replays its steps as CUDA graphs.
    trains_base: whether the base's own weights train.
    gemms: the libraries that were measured for the model (`howlow.engine.cpu.gemm`).
    devices: over how many devices the base is sharded.
    quantization, double_quantization: see `Execution`.
    """
    assert quantization == "none" or not trains_base, "settings refuse a quantised base that trains"
    compute = _COMPUTED_IN[precision]
    storage = torch.bfloat16 if precision == "bf16" and not trains_base else torch.float32
    can_fuse = devices == 1 and _can_fuse(device, storage, compute)
    takes_products = attention == "sdpa" and can_fuse and kernels_kept >= FEWEST_KEPT
    return Execution(
        device=device,
        precision=precision,
        storage=storage,
        compute=compute,
        scales_loss=precision == "fp16-autocast",
        attention="products" if takes_products else attention,
        kernels_kept=kernels_kept,
        head=head,
        # torch's compiler fuses by itself, and cannot look into our functions; joined adapters replace fused ones
        fused=can_fuse and not compiles and not joins_adapters,
        joined_adapters=joins_adapters,
        compiled=compiles,
        graphed=graphs and device.type == "cuda",
        full_row=full_row,
        gemms=gemms,
        devices=devices,
        quantization=quantization,
        double_quantization=double_quantization,
    )


def _can_fuse(device: torch.device, storage: torch.dtype, compute: torch.dtype) -> bool:
    """Whether oneDNN computes products of such weights in their own dtype, and this execution wants that."""
    if device.type != "cpu" or storage != compute or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    return storage == torch.float32 or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


class Running:
    """A model within its execution; made by `running` and valid within that context."""

    def __init__(self, model: Any, execution: Execution, adapters: CastAdapters | None = None) -> None:
        self.model = model
        self.execution = execution
        self._adapters = adapters
        self._configs = configs_of(model)
        self._kinds = note_kinds(model) if execution.attention == "flex" else set()
        self._by_token = modules_by_token(model) if execution.attention != "own" else []

    def autocast(self) -> AbstractContextManager[Any]:
        """The context of a forward pass."""
        return self.execution.autocast()

    def cast_adapters(self) -> None:
        """Cast the adapters' weights, if the execution has copies of them and they have moved."""
        if self._adapters is not None:
            self._adapters.cast_if_moved()

    def batch(self, batch: Batch) -> AbstractContextManager[None]:
        """The context of a batch that is on the device, forward and backward: who sees whom, and what is computed.

        Examples in rows of their own run the model's own attention and every hidden state, as the paper does.
        """
        self.cast_adapters()
        if batch.tree is None:
            return self._own_rows()
        used = batch.predictors if self.execution.head == "targets" and batch.weights is None else None
        return self.row(self.attention(batch.tree), used)

    def attention(self, tree: PrefixTree) -> AttentionContext:
        """How the tokens of a prefix tree, which is on the device, attend."""
        how = self.execution
        return tree_attention(tree, how.attention, how.kernels_kept, self._kinds, how.gemms.attention)

    @contextmanager
    def row(self, context: AttentionContext, used: Tensor | None = None) -> Iterator[None]:
        """The context of a row whose tokens attend as `context` says.

        used: (count,) int64, the tokens whose hidden states are used; None for all.
        """
        chosen = nullcontext() if used is None else only_rows(self._by_token, used)
        with self._forgetting_failures(), chosen, attending(self._configs, context):
            yield

    @contextmanager
    def _own_rows(self) -> Iterator[None]:
        with self._forgetting_failures(), one_sequence_a_row():
            yield

    @contextmanager
    def _forgetting_failures(self) -> Iterator[None]:
        """Within this context a pass that fails leaves nothing of itself in joined adapters."""
        try:
            yield
        except BaseException:
            if self._adapters is not None:
                self._adapters.forget()
            raise


@contextmanager
def running(model: Any, execution: Execution) -> Iterator[Running]:
    """Within this context the model, which is on the execution's device, runs as it says."""
    with ExitStack() as stack:
        stack.enter_context(_current(execution.device))
        wants_copies, dynamic = execution.joined_adapters, True if execution.attention == "flex" else None
        adapters = stack.enter_context(joined_adapters(model, execution.compute)) if wants_copies else None
        if execution.compiled:
            stack.enter_context(compiled_for_training(model, dynamic))
        if execution.fused:
            stack.enter_context(fused(model, execution.storage, execution.gemms))
        if execution.full_row is not None:
            stack.enter_context(as_in_a_full_row(model, execution.full_row))
        yield Running(model, execution, adapters)


def _current(device: torch.device) -> AbstractContextManager[Any]:
    """The context in which this device is torch's current one: streams, events and graphs are made on that."""
    is_there = device.type == "cuda" and torch.cuda.is_available()
    return torch.cuda.device(device) if is_there else nullcontext()
