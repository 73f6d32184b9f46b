"""`python -m tests.sanitizers.on_build NATIVE ...`: run something on another build of the core.

NATIVE: the file of that build, which takes the place of the installed one
...: arguments of pytest, or `misbehave KIND` to commit a fault on purpose
"""

from __future__ import annotations

import importlib.util
import os
import sys
from types import ModuleType

NAME = "neuralchat_lite.kernels._native"


def use(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(NAME, os.path.realpath(path))
    assert spec is not None and spec.loader is not None, path
    sys.modules[NAME] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main(path: str, *arguments: str) -> int:
    native = use(path)
    if arguments[0] == "misbehave":
        native.set_threads(2)
        native.misbehave(arguments[1])
        return 0
    import pytest

    return pytest.main(["-s", "-p", "no:cacheprovider", *arguments])


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
