"""The oracles and the PyTorch implementations of all ops, as functions of the schema's arguments in order."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any


class Implementations:
    """``Implementations("eager").select_blocks`` is that function of ``kernels/select_blocks/eager.py``.

    It takes the arguments one by one, as the op does, and makes the record of them.
    """

    def __init__(self, file: str) -> None:
        self._file = file

    def __getattr__(self, op: str) -> Callable:
        function = getattr(importlib.import_module(f"sa_compile.kernels.{op}.{self._file}"), op)
        arguments = importlib.import_module(f"sa_compile.kernels.{op}.op").Arguments

        def of_arguments(*values: Any) -> Any:
            return function(arguments(*values))

        return of_arguments


eager, reference = Implementations("eager"), Implementations("reference")
triton = Implementations("triton")
