"""The oracles and the PyTorch implementations of all ops, as functions of the schema's arguments in order."""

from __future__ import annotations

import importlib
from collections.abc import Callable


class Implementations:
    """``Implementations("eager").select_blocks`` is that function of ``kernels/select_blocks/eager.py``."""

    def __init__(self, file: str) -> None:
        self._file = file

    def __getattr__(self, op: str) -> Callable:
        return getattr(importlib.import_module(f"sa_compile.kernels.{op}.{self._file}"), op)


eager, reference = Implementations("eager"), Implementations("reference")
