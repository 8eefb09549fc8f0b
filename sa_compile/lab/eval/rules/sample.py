"""SampleAttention: B (chunked sampling, columns and slashes) and A (stride sampling, columns, window)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from sa_compile.kernels import ops
from sa_compile.kernels.defaults import ALPHA, LAST_ROWS
from sa_compile.kernels.shared.blocks import bits_from_window, unpack_bits
from sa_compile.kernels.shared.shapes import ceil_div

from .base import Problem, Rule


@dataclass(frozen=True)
class Chunked(Rule):
    """SampleAttention B, through the ops that compiled models run.

    The last ``sample_rows`` rows (0: as many as a query block holds) of ``chunk_n`` chunks give column
    and slash scores; the fewest columns and slashes that reach ``alpha`` (``alpha_c``, ``alpha_s`` if not
    0) are kept as strips over the head, with the sink block, ``window`` block diagonals and all blocks of the
    last ``last`` rows forced.
    ``union``: every chunk's sample reaches alpha on its own, then OR. Source: arXiv 2406.15486v3 section
    3, DESIGN section 4.
    """

    name: ClassVar[str] = "chunked"
    alpha: float = ALPHA
    alpha_c: float = 0.0
    alpha_s: float = 0.0
    chunk_n: int = 2
    sample_rows: int = 0
    sink: bool = True
    window: int = 2
    last: int = LAST_ROWS
    union: bool = False

    def blocks(self, problem: Problem) -> Tensor:
        if not self.union:
            return self._strips(problem, problem.q_len, self.chunk_n)
        ends = {(chunk + 1) * problem.q_len // self.chunk_n for chunk in range(self.chunk_n)}
        kept = problem.none()
        for end in sorted(ends - {0}):
            kept = kept | self._strips(problem, end, 1)
        return kept

    def _strips(self, problem: Problem, rows: int, chunk_n: int) -> Tensor:
        """The strips that the tails of ``chunk_n`` chunks of the first ``rows`` query rows ask for."""
        keys = min(rows + problem.q_offset, problem.k_len)
        segment = problem.key_segment
        scores = ops.sample_scores(
            problem.query[:, :, :rows],
            problem.key[:, :, :keys],
            key_segment=None if segment is None else segment[:, :keys],
            scale=problem.scale,
            q_offset=problem.q_offset,
            chunk_n=chunk_n,
            sample_rows=self.sample_rows or problem.block_q,
            block_k=problem.block_k,
        )
        missing = problem.n_key_blocks - ceil_div(keys, problem.block_k)
        column, slash = (F.pad(score, (0, missing)) for score in scores)
        bits = ops.select_blocks(
            column,
            slash,
            q_len=problem.q_len,
            k_len=problem.k_len,
            key_segment=segment,
            q_offset=problem.q_offset,
            block_q=problem.block_q,
            block_k=problem.block_k,
            alpha_c=self.alpha_c or self.alpha,
            alpha_s=self.alpha_s or self.alpha,
            keep_sink=self.sink,
            window_slashes=self.window,
            last_rows=self.last,
        )
        return unpack_bits(bits, problem.n_key_blocks)


@dataclass(frozen=True)
class Stride(Rule):
    """SampleAttention A: key columns from rows sampled at a stride, and a window of ``r_w`` of the keys.

    One row in 1 / ``r_row`` is sampled; the fewest key blocks whose summed attention reaches ``alpha``
    are kept as columns. The paper's columns are single keys, here blocks. Source: arXiv 2406.15486v2
    section 4.
    """

    name: ClassVar[str] = "stride"
    alpha: float = ALPHA
    r_row: float = 0.05
    r_w: float = 0.08
    sink: bool = True

    def blocks(self, problem: Problem) -> Tensor:
        column, slash = ops.sample_scores(
            problem.query,
            problem.key,
            key_segment=problem.key_segment,
            scale=problem.scale,
            q_offset=problem.q_offset,
            chunk_n=max(math.ceil(self.r_row * problem.q_len), 1),
            sample_rows=1,
            block_k=problem.block_k,
        )
        sizes = (problem.q_len, problem.k_len)
        blocks = {"q_offset": problem.q_offset, "block_q": problem.block_q, "block_k": problem.block_k}
        columns = ops.select_blocks(
            column,
            slash,
            q_len=sizes[0],
            k_len=sizes[1],
            key_segment=problem.key_segment,
            alpha_c=self.alpha,
            alpha_s=0.0,
            keep_sink=self.sink,
            window_slashes=0,
            **blocks,
        )
        window = bits_from_window(
            *sizes, max(math.ceil(self.r_w * problem.k_len), 1), **blocks, device=problem.device
        )
        return unpack_bits(torch.bitwise_or(columns, window), problem.n_key_blocks)
