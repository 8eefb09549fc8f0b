"""Method "stride" (arXiv 2406.15486v2): rows sampled at a stride keep columns, beside a window."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import sympy
from torch.utils._sympy.functions import FloorDiv

from .base import Attention, Calls, Forced, Method, axis
from .chunked import sampled_scores, strips
from .options import number_in, option

_share = number_in(0, 1, above=True)
_DENOMINATOR = 10**6  # shares are read to six decimals, so that lengths stay integer arithmetic


@dataclass(frozen=True)
class StrideOptions:
    r_w: float = option(
        0.08, "Window kept for every row, as a share of the keys (method 'stride'), in (0, 1].", _share
    )
    r_row: float = option(
        0.05, "Share of the query rows that is sampled (method 'stride'), in (0, 1].", _share
    )


class Stride(Method):
    name = "stride"
    summary = "samples rows at a stride and keeps columns and a window (v2)"
    options = StrideOptions
    shared = ("alpha_c",)
    tried = (axis("alpha_c", 0.9, 0.95, 0.98), axis("r_row", 0.02, 0.05))

    def select(self, run: Calls, options: Any, attention: Attention, forced: Forced) -> Any:
        scores = sampled_scores(run, attention, *self.measured_rows(run, options, attention))
        slashes = run.size(window_slashes(options.r_w, attention.kv_len, attention.block_k))
        return strips(run, attention, scores, options.alpha_c, 0.0, Forced(forced.keep_sink, slashes, 0))

    def measured_rows(self, run: Calls, options: Any, attention: Attention) -> tuple[Any, int]:
        return run.size(share_of(options.r_row, attention.q_len)), 1

    def timed(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        return {"r_row": settings["r_row"]}

    def rule_settings(self, options: Any) -> dict[str, Any]:
        return {
            "alpha": options.alpha_c,
            "r_row": options.r_row,
            "r_w": options.r_w,
            "sink": options.keep_sink,
        }


def window_slashes(share: float, kv_len: sympy.Expr, block_k: int) -> sympy.Expr:
    """Block diagonals, in key blocks, that hold a window of a share of the keys.

    A window of w keys reaches ceil((w - 1) / block_k) blocks behind the row's own.
    """
    return _ceil_div(share_of(share, kv_len) - 1, block_k) + 1


def share_of(share: float, length: sympy.Expr) -> sympy.Expr:
    """ceil(share * length)."""
    exact = Fraction(share).limit_denominator(_DENOMINATOR)
    return _ceil_div(length * exact.numerator, exact.denominator)


def _ceil_div(dividend: sympy.Expr, divisor: int) -> sympy.Expr:
    return FloorDiv(dividend + divisor - 1, sympy.Integer(divisor))
