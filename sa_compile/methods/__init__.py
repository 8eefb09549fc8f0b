"""Methods: which blocks a compiled model keeps. One module a method, and a registry of them.

A further method is a subclass of :class:`Method` that is given to :func:`register`; from then on its options
are options of the backend, and ``options={"method": name}`` selects it.
"""

from __future__ import annotations

from typing import Any

from .adaptive import Adaptive
from .base import ON_TENSORS as ON_TENSORS
from .base import Attention as Attention
from .base import Calls as Calls
from .base import Forced as Forced
from .base import Kept as Kept
from .base import Method as Method
from .base import OnTensors as OnTensors
from .base import kept_mass as kept_mass
from .chunked import Chunked
from .stride import Stride

METHODS: dict[str, Method] = {}


def register(method: Method) -> None:
    """Make a method known by its name. Raises ``ValueError`` if the name is taken."""
    if method.name in METHODS:
        raise ValueError(f"a method named {method.name!r} is registered already")
    METHODS[method.name] = method


def method_of(options: Any) -> Method:
    """The method that the option 'method' names."""
    return METHODS[options.method]


for _method in (Chunked(), Stride(), Adaptive()):
    register(_method)
