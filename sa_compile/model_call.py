"""How the forward of a Hugging Face model is called, whatever version of transformers it comes from."""

from __future__ import annotations

import inspect
from typing import Any

CACHES = ("cache", "past_key_values")  # what transformers calls a KV cache: since 5.24, and before


def cache_argument(model: Any) -> str:
    """The name under which ``model.forward`` takes the cache; the older one if it names neither."""
    newer, older = CACHES
    return newer if newer in inspect.signature(model.forward).parameters else older


def cache_of(output: Any) -> Any:
    """The KV cache that a model returned, under either name; None if it returned none. A newer transformers
    warns of the older name."""
    newer, older = CACHES
    return getattr(output, newer) if hasattr(output, newer) else getattr(output, older, None)
