"""The options of the plug-in, from vLLM's ``--additional-config`` and from the environment."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from sa_compile.config import SampleAttentionConfig, options_without_compiler

KEY = "sampleattn"  # in --additional-config '{"sampleattn": {...}}'
ENVIRONMENT = "SAMPLEATTN_VLLM"  # a JSON object of the same options
_REFUSED = ("trace", "inner", "inductor", "stats")


def options_of(additional_config: Any) -> SampleAttentionConfig:
    """The options that apply: those of the environment, and over them those of ``additional_config``.

    Raises ``ValueError`` and ``TypeError`` as :class:`SampleAttentionConfig` does, naming the option; also
    for an option that only a compiler could follow, and for ``stats``: density is always counted.
    """
    given = additional_config.get(KEY) if isinstance(additional_config, Mapping) else None
    if given is not None and not isinstance(given, Mapping):
        raise TypeError(
            f"--additional-config: {KEY!r} must be an object of options, got {type(given).__name__}"
        )
    return _checked(json.dumps({**_from_environment(), **(given or {})}, sort_keys=True))


def are_given(additional_config: Any) -> bool:
    """Did anybody set options for the plug-in?"""
    return ENVIRONMENT in os.environ or isinstance(additional_config, Mapping) and KEY in additional_config


def _from_environment() -> dict[str, Any]:
    text = os.environ.get(ENVIRONMENT)
    if text is None:
        return {}
    try:
        options = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{ENVIRONMENT} must be a JSON object of options, got {text!r}: {error}") from None
    if not isinstance(options, dict):
        raise TypeError(f"{ENVIRONMENT} must be a JSON object of options, got {text!r}")
    return options


@lru_cache(maxsize=8)
def _checked(text: str) -> SampleAttentionConfig:
    """Every layer asks; the profile is read, and warnings are given, once."""
    return options_without_compiler(json.loads(text), "the vLLM plug-in", _REFUSED)
