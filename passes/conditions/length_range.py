"""Which options a length gets: those given, or those of the profile's range.

Each end of a range is a guard on a symbolic length, so a model gets at most one graph a range.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import sympy

from sa_compile.config import SampleAttentionConfig
from sa_compile.profile import LengthRange


@dataclass(frozen=True)
class Settings:
    """``config`` for sampling, or ``exact`` attention; ``reason`` says why, ``profile_range`` where from."""

    config: SampleAttentionConfig
    exact: bool
    reason: str
    profile_range: str = ""


def settings_for(
    config: SampleAttentionConfig, q_len: sympy.Expr, holds: Callable[[sympy.Basic], bool]
) -> Settings:
    """The settings for ``q_len`` query rows; ``holds`` answers a condition on sizes and guards the answer."""
    profile = config.tuned
    if profile is None:
        least = config.min_seq_len
        if holds(sympy.Ge(q_len, least)):
            return Settings(config, False, f"q_len >= min_seq_len ({least})")
        return Settings(config, True, f"shorter than min_seq_len ({least})")
    if not holds(sympy.Ge(q_len, profile.first_length)):
        return Settings(config, True, f"shorter than the profile's first range ({profile.first_length})")
    for one in profile.ranges:
        if one.last is None or holds(sympy.Le(q_len, one.last)):
            return _in_range(config, one)
    return Settings(config, True, f"longer than the profile's last range ({profile.ranges[-1]})")


def _in_range(config: SampleAttentionConfig, one: LengthRange) -> Settings:
    if one.options is None:
        return Settings(config, True, f"the profile leaves {one} exact", str(one))
    plain, chosen = SampleAttentionConfig(), config.in_range(one)
    tuned = (name for name in one.options if getattr(chosen, name) != getattr(plain, name))
    options = ", ".join(f"{name}={getattr(chosen, name)}" for name in tuned) or "the defaults"
    return Settings(chosen, False, f"profile, {one}: {options}", str(one))
