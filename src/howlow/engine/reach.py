"""Which parts of a model a text reaches: those that run when the model is given tokens and nothing else.

A multimodal model holds towers for pictures or sound next to its text model. An adapter there would never train, nor
would the tower's own weights. Layers of the text model may be left over, too, such as the keys of a layer that takes
those of an earlier one. Names decide nothing: the model runs on a few tokens, without storage where it has none, and
its modules note whether they are called. An expert that no token has chosen counts as reached, because it is one of
several.

A layer that text reaches may still have no influence on a loss: its weight is read without calling it, or what it gives
is only compared. So where a model with its weights is run on texts, `watched` notes whose results are given gradients.
"""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from howlow.engine.attention_context import one_sequence_a_row

_TOKENS = 4


@dataclass(frozen=True)
class Unreached:
    """What no text reaches: names of modules, and of the parameters outside of the text model."""

    modules: frozenset[str]
    parameters: frozenset[str]


def unreached(model: Any, text_model: nn.Module, failures: tuple[type[Exception], ...]) -> Unreached:
    """What no text reaches in this model.

    text_model: the part whose result is the hidden states, or the whole model.
    failures: what the model's own code may raise. Then only the models within it that are no text models count.
    """
    inside = {id(module) for module in text_model.modules()}
    called = _called(model, failures) or _without_towers(model, inside)
    parents = {id(child): parent for parent in model.modules() for child in parent.children()}
    idle = {name: module for name, module in model.named_modules() if id(module) not in called}
    outside = {name for name, module in idle.items() if id(module) not in inside}
    left_over = {name for name, module in idle.items() if not _is_one_of_several(module, parents, called)} - outside
    names = (name for name, _ in model.named_parameters())
    return Unreached(
        modules=frozenset(outside | left_over),
        parameters=frozenset(name for name in names if name.rpartition(".")[0] in outside),
    )


def _without_towers(model: Any, inside: set[int]) -> set[int]:
    """All modules but those of the models next to the text model."""
    towers = [
        module
        for module in model.modules()
        if isinstance(module, PreTrainedModel) and not inside & {id(part) for part in module.modules()}
    ]
    return {id(part) for part in model.modules()} - {id(part) for tower in towers for part in tower.modules()}


def _is_one_of_several(module: nn.Module, parents: dict[int, nn.Module], called: set[int]) -> bool:
    """Whether a module that was not called belongs to a list of alternatives, such as experts."""
    above = parents.get(id(module))
    while above is not None and id(above) not in called:
        if isinstance(above, nn.ModuleList | nn.ModuleDict):
            return True
        above = parents.get(id(above))
    return False


def _called(model: Any, failures: tuple[type[Exception], ...]) -> set[int]:
    """The modules that run on a few tokens; none where the model's code fails."""
    called: set[int] = set()
    hooks = [module.register_forward_pre_hook(lambda one, _: called.add(id(one))) for module in model.modules()]
    try:
        return called if runs_on_tokens(model, failures) else set()
    finally:
        for hook in hooks:
            hook.remove()


def runs_on_tokens(model: Any, failures: tuple[type[Exception], ...]) -> bool:
    """Whether a model runs on a few tokens in training mode; failures: what its own code may raise."""
    try:
        run_on_tokens(model)
    except failures:
        return False
    return True


def run_on_tokens(model: Any, *, with_gradients: bool = False) -> Any:
    """Run a model on a few tokens in training mode; gives its output."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        with next(model.parameters()).device, one_sequence_a_row(), torch.set_grad_enabled(with_gradients):
            return model.train()(input_ids=torch.arange(_TOKENS)[None], use_cache=False)
    finally:
        for module, mode in modes:
            module.training = mode


# -- what a loss depends on ---------------------------------------------------------------------------------------


class Watched:
    """Which modules of a model were called, and the results of which layers were given gradients."""

    def __init__(self, model: nn.Module, layers: Collection[str]) -> None:
        self._layers = {name: module for name, module in model.named_modules() if name in layers}
        self._parents = {id(child): parent for parent in model.modules() for child in parent.children()}
        self.called = set[int]()
        self._influential = set[str]()

    def noting(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        """The hook behind a layer."""

        def note(_: nn.Module, __: Any, result: Any) -> None:
            if isinstance(result, Tensor) and result.requires_grad:
                result.register_hook(lambda _: self._influential.add(name))  # type: ignore[no-untyped-call]

        return note

    def idle(self) -> tuple[str, ...]:
        """The layers whose results no loss has depended on, so that an adapter there would not have trained.

        An expert that was not called, while another one of its list was, is none of them.
        """
        return tuple(
            name
            for name, module in self._layers.items()
            if name not in self._influential and not self._may_be_chosen(module)
        )

    def _may_be_chosen(self, module: nn.Module) -> bool:
        """Whether a module was not called although an alternative to it, or to what it is part of, was."""
        above: nn.Module | None = module
        while above is not None and id(above) not in self.called:
            if isinstance(above, nn.ModuleList | nn.ModuleDict) and any(
                id(part) in self.called for part in above.modules()
            ):
                return True
            above = self._parents.get(id(above))
        return False


@contextmanager
def watched(model: nn.Module, layers: Collection[str]) -> Iterator[Watched]:
    """Within this context a model's forward and backward passes are watched; layers: by their names in the model."""
    found = Watched(model, layers)
    hooks = [module.register_forward_pre_hook(lambda one, _: found.called.add(id(one))) for module in model.modules()]
    named = [(name, module) for name, module in model.named_modules() if name in layers]
    hooks += [module.register_forward_hook(found.noting(name)) for name, module in named]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
