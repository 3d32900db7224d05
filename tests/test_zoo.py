"""Many architectures against transformers alone: what the check lets through is right, and what it refuses is listed.

`benchmarks/zoo.py` examines every causal language model that transformers maps.
"""

import pytest
import zoo

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("kind", [kind for kind in zoo.EXPECTED if kind not in zoo.SLOW])
def test_an_architecture_is_right_in_every_layout_or_refused(kind: str):
    found = zoo.examine(kind)
    assert found.wrong == []
    assert found.verdict == zoo.EXPECTED[kind]


def test_at_least_forty_architectures_are_examined():
    assert len(zoo.EXPECTED.keys() - set(zoo.SLOW)) >= 40


def test_a_model_whose_own_code_cannot_keep_its_state_is_refused_with_the_librarys_words(
    monkeypatch: pytest.MonkeyPatch,
):
    """transformers rounds the width of xLSTM's state up to 64, and the width of its layers not."""
    monkeypatch.setitem(zoo.CHANGES, "xlstm", {"v_head_dim": None})
    found = zoo.examine("xlstm")
    assert found.wrong == []
    assert found.verdict.startswith("padded; writes nothing (ValueError: matC_old has wrong shape")
