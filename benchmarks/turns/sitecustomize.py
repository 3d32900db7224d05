"""Makes two processes take their timed steps in turns; Python imports this at its start where it is on the path.

HOWLOW_TURNS names two FIFOs, mine:theirs. Before a step a process reads a byte from its own; after it, it writes one
into the other's. Both revisions that `revisions.py` compares have `howlow.meters.session.PhaseMeter.step`.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

_PATCHED = "howlow.meters.session"


def in_turns(step: Any, mine: str, theirs: str) -> Any:
    """A `step` that waits for its turn and then gives it on."""
    pipes: list[int] = []

    @contextmanager
    def taken(*given: Any, **named: Any) -> Iterator[Any]:
        if not pipes:  # read and write, so that opening never waits and the reader never sees an end
            pipes.extend(os.open(path, os.O_RDWR) for path in (mine, theirs))
        os.read(pipes[0], 1)
        try:
            with step(*given, **named) as timed:
                yield timed
        finally:
            os.write(pipes[1], b".")

    return taken


class _Patching(Loader):
    def __init__(self, own: Any) -> None:
        self._own = own

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        module: ModuleType | None = self._own.create_module(spec)
        return module

    def exec_module(self, module: Any) -> None:
        self._own.exec_module(module)
        module.PhaseMeter.step = in_turns(module.PhaseMeter.step, *os.environ["HOWLOW_TURNS"].split(":"))


class _Finder(MetaPathFinder):
    def find_spec(self, name: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        found = PathFinder.find_spec(name, path, target) if name == _PATCHED else None
        if found is not None:
            found.loader = _Patching(found.loader)
        return found


if "HOWLOW_TURNS" in os.environ:
    sys.meta_path.insert(0, _Finder())
