"""Reads a module of an installed package without what the rest of that package imports: trainers, loaders, decoders.

Models are measured, which need PyTorch and a little more; the packages around them ask for gigabytes.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any


class NotInstalled(Exception):
    """A package that a model is from is not there; the message says how to get it."""


def read(module: str, pip: str, bare: Sequence[str] = (), absent: Sequence[str] = ()) -> Any:
    """The module of that name.

    Args:
        module: its name.
        pip: what `pip install --no-deps` calls its package.
        bare: packages above or beside it whose `__init__` is not run.
        absent: modules that the model does not use. Those of other packages may be missing and have stand-ins then,
            those of its own package have them always: every name that is asked of one is an empty class.

    Raises:
        NotInstalled: the package is not there.
    """
    top = module.partition(".")[0]
    if importlib.util.find_spec(top) is None:
        raise NotInstalled(f"not installed: pip install --no-deps {pip}")
    for name in bare:
        if name not in sys.modules:
            _bare(name)
    with warnings.catch_warnings(), _stand_ins(absent, of=top):
        warnings.simplefilter("ignore")
        return importlib.import_module(module)


def _bare(name: str) -> None:
    parent, _, own = name.rpartition(".")
    if parent:
        folders = [str(Path(folder) / own) for folder in sys.modules[parent].__path__]
    else:
        spec = importlib.util.find_spec(name)
        folders = list(spec.submodule_search_locations or ()) if spec else []
    package = types.ModuleType(name)
    package.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
    package.__path__ = package.__spec__.submodule_search_locations = folders
    sys.modules[name] = package


class _StandIn(types.ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {"__module__": self.__name__})


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def __init__(self, absent: Sequence[str]) -> None:
        self.absent = absent

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> Any:
        known = any(fullname == name or fullname.startswith(f"{name}.") for name in self.absent)
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True) if known else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return _StandIn(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass


@contextlib.contextmanager
def _stand_ins(absent: Sequence[str], of: str) -> Iterator[None]:
    """They leave sys.modules again, so that nobody else takes the package for one that is there."""
    first = _Finder([name for name in absent if name.startswith(f"{of}.")])
    last = _Finder([name for name in absent if name not in first.absent])  # what nobody else has found is missing
    sys.meta_path[:] = [first, *sys.meta_path, last]
    try:
        yield
    finally:
        sys.meta_path[:] = [finder for finder in sys.meta_path if finder not in (first, last)]
        for name in [name for name, module in sys.modules.items() if isinstance(module, _StandIn)]:
            del sys.modules[name]
