"""Layers with adapters without casts are traced whole by torch's compiler, as often as layers with PEFT's own code."""

import pytest
import torch
from test_adapters import adapted, assert_alike, batch_of, gradients_of, in_bf16
from torch._dynamo.testing import CompileCounterWithBackend

from howlow.engine.model import base_of

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),  # from within the tracer
]
LAYERS = 4


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma2"])
def test_compiled_layers_have_no_graph_break_and_share_their_compilations(name: str):
    """Two serve all: the first layer is given a tensor that needs no gradient, the others one that does."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    found = []
    for backend in (None, counter):
        model = in_bf16(adapted(name, layers=LAYERS))
        for layer in base_of(model).model.layers if backend else ():
            layer.compile(backend=backend, fullgraph=True)
        found.append(gradients_of(model, [batch_of(length=27)], "bf16", joins_adapters=True))
    torch._dynamo.reset()
    assert_alike(found[1], found[0], 0.02)
    assert counter.frame_count == 2 < LAYERS
