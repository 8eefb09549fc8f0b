"""Method C: for each query block the key blocks that its rows are estimated to look for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from sa_compile.kernels import ops
from sa_compile.kernels.blocks import unpack_bits
from sa_compile.kernels.defaults import ADAPTIVE_LANDMARKS, ADAPTIVE_TAU, LAST_ROWS

from .base import Problem, Rule


@dataclass(frozen=True)
class Adaptive(Rule):
    """Method "adaptive", through the ops that compiled models run.

    A block is kept if the shares of attention that the query block's rows are estimated to give its keys
    reach ``tau`` in their 2-norm; the others count by their mean key and value. Every key block is
    represented by ``landmarks`` of its keys, large ones in different directions, and the mean of the
    others; the sink block (``sink``) and ``window`` block diagonals are kept, as are all blocks of the
    last ``last`` rows. Source: ours; docs/accuracy.md.
    """

    name: ClassVar[str] = "adaptive"
    means_dropped: ClassVar[bool] = True
    tau: float = ADAPTIVE_TAU
    landmarks: int = ADAPTIVE_LANDMARKS
    sink: bool = True
    window: int = 2
    last: int = LAST_ROWS

    def blocks(self, problem: Problem) -> Tensor:
        sizes = {"key_segment": problem.key_segment, "block_k": problem.block_k}
        landmarks = min(self.landmarks, problem.block_k)
        bits = ops.select_adaptive(
            problem.query,
            problem.key,
            ops.block_representatives(problem.key, landmarks=landmarks, **sizes),
            scale=problem.scale,
            q_offset=problem.q_offset,
            block_q=problem.block_q,
            tau=self.tau,
            keep_sink=self.sink,
            window_slashes=self.window,
            last_rows=self.last,
            **sizes,
        )
        return unpack_bits(bits, problem.n_key_blocks)
