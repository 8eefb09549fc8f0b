"""How the forward of a Hugging Face model is called, whatever version of transformers it comes from."""

from __future__ import annotations

import inspect
from typing import Any


def cache_argument(model: Any) -> str:
    """The name under which ``model.forward`` takes the cache: "cache" (transformers >= 5.24), else
    "past_key_values", the older name."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


def cache_of(output: Any) -> Any:
    """The KV cache that a model returned, under either name; None if it returned none. A newer transformers
    warns of the older name."""
    return output.cache if hasattr(output, "cache") else getattr(output, "past_key_values", None)
