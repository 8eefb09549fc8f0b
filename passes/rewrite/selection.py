"""From the options to the arguments of the sampling and selection ops."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import sympy
from torch.utils._sympy.functions import FloorDiv

from sa_compile.config import SampleAttentionConfig

_DENOMINATOR = 10**6  # shares are read to six decimals, so that lengths stay integer arithmetic


def forced_slashes(config: SampleAttentionConfig) -> int:
    """Block diagonals of ``block_k`` that ``window_blocks`` diagonals of ``block_q`` are."""
    return max(1, config.window_blocks * config.block_q // config.block_k)


@dataclass(frozen=True)
class SelectionArguments:
    """Arguments of ``sample_scores`` and ``select_blocks``; sizes are expressions over the graph's
    symbols."""

    chunk_n: sympy.Expr
    sample_rows: int
    alpha_c: float
    alpha_s: float
    window_slashes: sympy.Expr
    last_rows: int


def selection_arguments(
    config: SampleAttentionConfig, q_len: sympy.Expr, kv_len: sympy.Expr
) -> SelectionArguments:
    """Method "chunked" (arXiv 2406.15486v3): tail rows of chunks. "stride" (v2): single rows, columns, a
    window."""
    if config.method == "chunked":
        return SelectionArguments(
            chunk_n=sympy.Integer(config.chunk_n),
            sample_rows=config.rows_of_a_chunk,
            alpha_c=config.alpha_c,
            alpha_s=config.alpha_s,
            window_slashes=sympy.Integer(forced_slashes(config)),
            last_rows=config.last_rows,
        )
    # A window of w keys reaches ceil((w - 1) / block_k) blocks behind the row's own.
    window = _share_of(config.r_w, kv_len)
    return SelectionArguments(
        chunk_n=_share_of(config.r_row, q_len),
        sample_rows=1,
        alpha_c=config.alpha_c,
        alpha_s=0.0,
        window_slashes=_ceil_div(window - 1, config.block_k) + 1,
        last_rows=0,
    )


def _share_of(share: float, length: sympy.Expr) -> sympy.Expr:
    """ceil(share * length)."""
    exact = Fraction(share).limit_denominator(_DENOMINATOR)
    return _ceil_div(length * exact.numerator, exact.denominator)


def _ceil_div(dividend: sympy.Expr, divisor: int) -> sympy.Expr:
    return FloorDiv(dividend + divisor - 1, sympy.Integer(divisor))
