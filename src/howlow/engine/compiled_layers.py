"""The decoder's layers compiled by torch, each as a region of its own, so that one compilation serves all of a kind.

Nothing in a region may depend on which layer it is. In training nothing does. In generation a layer finds its keys and
values in the model's cache by its number, so a compiled one is given its own part of the cache in place of the whole.
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental import _config as shape_config

from howlow.engine.cuda.attention import MOST_FORMS
from howlow.engine.model import base_of, decoder_of
from howlow.errors import UserError

MOST_IN_GENERATION = 16
"""Forms of a layer in generation: a token step, rows of one block and of more, with and without a window; and those of
training, if it was in this process. A model whose layers each need their own would compile for minutes."""


@dataclass(frozen=True)
class Compiled:
    """What torch's compiler has done in this process."""

    regions: int
    seconds: float

    @classmethod
    def so_far(cls) -> "Compiled":
        """By torch's own counters, if its compiler was used at all."""
        dynamo = sys.modules.get("torch._dynamo.utils")
        if dynamo is None:
            return cls(0, 0.0)
        return cls(dynamo.counters["stats"]["unique_graphs"], dynamo.calculate_time_spent()["total_wall_time"])


def _layers_of(model: Any) -> list[Any]:
    base = base_of(model)
    found = list(getattr(decoder_of(base), "layers", []))
    if not found:
        raise UserError(f"training.compile: {type(base).__name__} does not name its decoder's layers; set it to false")
    return found


@contextmanager
def compiled_for_training(model: Any, dynamic: bool | None) -> Iterator[None]:
    """Within this context the layers run compiled.

    The first layer shares the others' compilation: it is given embeddings that have gradients, as the others are given
    hidden states that have. The part that changes from step to step (which positions go through the vocabulary head) is
    not compiled.

    dynamic: whether one compilation is for rows of all lengths; None: torch decides when it has seen a second length.
    """
    layers, hook = _layers_of(model), base_of(model).get_input_embeddings().register_forward_hook(_with_gradients)
    try:
        for layer in layers:
            layer.compile(dynamic=dynamic)
        with _compiling(dynamic, MOST_FORMS):
            yield
    finally:
        hook.remove()
        for layer in layers:
            layer._compiled_call_impl = None


def _with_gradients(_: Any, __: Any, embeddings: Tensor) -> Tensor:
    """The hook behind frozen embeddings."""
    return embeddings.requires_grad_() if torch.is_grad_enabled() else embeddings


class LayersOverCache:
    """The layers of a model in generation, compiled for rows of all lengths, each over its own part of a cache.

    cache: what the model is given as its cache. parts: the part of each layer, with the cache's `update`.
    Roundings to 16 bits are those of uncompiled layers, as far as torch has an option for it: otherwise more texts
    would differ where two tokens nearly tie.
    """

    def __init__(self, model: Any, cache: Any, parts: Sequence[Any]) -> None:
        self._layers, self._calls = _layers_of(model), list[Callable[..., Any]]()
        if without := len(self._layers) - len(parts):
            raise UserError(f"{without} of the {len(self._layers)} layers keep no keys of their own")
        for layer, part in zip(self._layers, parts, strict=True):
            layer.compile(dynamic=True)
            self._calls.append(_given(part, cache, layer._compiled_call_impl))
            layer._compiled_call_impl = None

    @staticmethod
    def fix_sizes(tensors: Iterable[Tensor], dimensions: tuple[int, ...]) -> None:
        """Let the compiler take these sizes of tensors in the cache for constants, as the model's own are."""
        from torch._dynamo import mark_static  # only where something is compiled: it takes a second to load

        for tensor in tensors:
            for dimension in dimensions:
                mark_static(tensor, dimension)

    @contextmanager
    def compiled(self, *, last: bool) -> Iterator[None]:
        """Within this context the layers run compiled.

        last: whether the last one does, too. It must not where only some of its tokens are computed
            (`howlow.engine.last_layer`): what is compiled does not see that other tokens are chosen for another batch.
        """
        from torch._inductor import config  # only where something is compiled: it takes a second to load

        count = len(self._layers) if last else len(self._layers) - 1
        try:
            for layer, call in zip(self._layers[:count], self._calls[:count], strict=True):
                layer._compiled_call_impl = call
            with _compiling(True, MOST_IN_GENERATION), config.patch(emulate_precision_casts=True):
                yield
        finally:
            for layer in self._layers:
                layer._compiled_call_impl = None


def _given(part: Any, cache: Any, call: Callable[..., Any]) -> Callable[..., Any]:
    """The call of a layer, with a part of the cache wherever it is given the whole."""

    def called(*positional: Any, **named: Any) -> Any:
        replaced = [part if one is cache else one for one in positional]
        return call(*replaced, **{name: part if one is cache else one for name, one in named.items()})

    return called


def refusing_more_forms() -> AbstractContextManager[None]:
    """Within this context more forms of a layer than are allowed are an error; otherwise it would run uncompiled."""
    from torch._dynamo import config  # only where something is compiled: it takes a second to load

    found: AbstractContextManager[None] = config.patch(fail_on_recompile_limit_hit=True)
    return found


@contextmanager
def _compiling(dynamic: bool | None, most_forms: int) -> Iterator[None]:
    """Within this context torch's compiler takes a layer's numbers, such as its epsilon, for constants.

    Where shapes are dynamic it takes them for variables first, and traces the layer a second time when that fails.

    most_forms: how often the layers may be compiled in another form; torch's own limit may be too low.
    """
    from torch._dynamo import config  # only where something is compiled: it takes a second to load

    duck = shape_config.use_duck_shape
    # A row that happens to be as long as the model is wide would otherwise be taken for equal to it, for good.
    shape_config.use_duck_shape = dynamic is not True
    try:
        with config.patch(specialize_float=True, recompile_limit=most_forms, **_recomputing()):
            yield
    finally:
        shape_config.use_duck_shape = duck


def _recomputing() -> dict[str, Any]:
    """What a layer needs that recomputes its activations: its adapters may keep what they share until all have it.

    That is gone at the layer's end, and what is recomputed is the traced graph, in which nothing is kept. Versions of
    torch without the option do not compile such layers.
    """
    from torch._dynamo import config  # only where something is compiled: it takes a second to load

    option = "skip_fwd_side_effects_in_bwd_under_checkpoint"
    return {option: True} if hasattr(config, option) else {}
