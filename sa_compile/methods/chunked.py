"""Method "chunked" (arXiv 2406.15486v3): the tail rows of chunks say which columns and slashes are kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sa_compile.kernels import ops
from sa_compile.kernels.defaults import ALPHA

from .base import Attention, Calls, Forced, Method, axis
from .options import at_least, number_in, option

_share = number_in(0, 1, above=True)
# Columns and slashes need not share an alpha: columns carry what is looked up, slashes what is near.
_ALPHAS = ((0.8, 0.8), (0.85, 0.85), (0.9, 0.9), (0.95, 0.95), (0.98, 0.98), (0.95, 0.8), (0.98, 0.9))


@dataclass(frozen=True)
class ChunkedOptions:
    alpha_c: float = option(
        ALPHA,
        "Share of the sampled attention that the kept columns must reach (methods 'chunked' and 'stride'), "
        "in (0, 1].",
        _share,
    )
    alpha_s: float = option(
        ALPHA,
        "Share of the sampled attention that the kept slashes must reach (method 'chunked'), in (0, 1].",
        _share,
    )
    chunk_n: int = option(
        2,
        "Number of query chunks whose tail rows are sampled (method 'chunked'; with stats, also the rows "
        "whose CRA method 'adaptive' measures), >= 1.",
        at_least(1),
    )
    sample_rows: int = option(
        0,
        "Rows sampled at the end of each chunk, 0 for as many as block_q (method 'chunked'; with stats, also "
        "the rows whose CRA method 'adaptive' measures), >= 0.",
        at_least(0),
    )


class Chunked(Method):
    name = "chunked"
    summary = (
        "samples the tail rows of chunk_n chunks and keeps columns and slashes (arXiv 2406.15486v3), for "
        "questions that close the prompt"
    )
    options = ChunkedOptions
    shared = ("window_blocks", "last_rows")
    tried = (tuple({"alpha_c": c, "alpha_s": s} for c, s in _ALPHAS), axis("chunk_n", 1, 2, 4))

    def select(self, run: Calls, options: Any, attention: Attention, forced: Forced) -> Any:
        scores = sampled_scores(run, attention, *self.measured_rows(run, options, attention))
        return strips(run, attention, scores, options.alpha_c, options.alpha_s, forced)

    def timed(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        return {"chunk_n": settings["chunk_n"]}


def sampled_scores(run: Calls, attention: Attention, chunk_n: Any, sample_rows: int) -> tuple[Any, Any]:
    """Column and slash scores, fp32 [B, Hq, n_key_blocks], of the last ``sample_rows`` rows of chunks."""
    a = attention
    scores = run.call(ops.sample_scores_op, a.query, a.key, *a.where, chunk_n, sample_rows, a.block_k)
    return run.item(scores, 0), run.item(scores, 1)


def strips(
    run: Calls,
    attention: Attention,
    scores: tuple[Any, Any],
    alpha_c: float,
    alpha_s: float,
    forced: Forced,
) -> Any:
    """The fewest columns and slashes whose scores reach their alphas, with what is forced: a block_mask."""
    a = attention
    sizes = (run.size(a.q_len), run.size(a.kv_len), a.q_offset, a.block_q, a.block_k)
    kept = (alpha_c, alpha_s, forced.keep_sink, forced.window_slashes, forced.last_rows)
    return run.call(ops.select_blocks_op, *scores, a.key_segment, *sizes, *kept)
