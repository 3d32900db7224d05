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
