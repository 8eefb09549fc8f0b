"""Method C: for each query block the key blocks that its rows are estimated to look for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from sa_compile.kernels import ops
from sa_compile.kernels.defaults import (
    ADAPTIVE_LANDMARKS,
    ADAPTIVE_TAU,
    BUDGET,
    BUDGET_ROWS,
    BUDGET_TAU,
    LAST_ROWS,
    MEANS,
)
from sa_compile.kernels.shared.blocks import unpack_bits

from .base import Problem, Rule


@dataclass(frozen=True)
class Adaptive(Rule):
    """Method "adaptive", through the ops that compiled models run.

    A block is kept if the shares of attention that the query block's rows are estimated to give its keys
    reach ``tau`` in their 2-norm, every key block represented by ``landmarks`` of its keys, large ones in
    different directions, and the mean of the others; or if ``rows`` sampled rows give it more than may be
    left out within ``budget`` (1: sampled rows are not looked at), or its keys shares that reach ``rows_tau``
    in their 2-norm. The sink block (``sink``) and ``window`` block diagonals are kept, as are all blocks of
    the last ``last`` rows. With ``means`` the others count by their mean key and value. Source: ours;
    docs/pretrained.md.
    """

    name: ClassVar[str] = "adaptive"
    tau: float = ADAPTIVE_TAU
    landmarks: int = ADAPTIVE_LANDMARKS
    sink: bool = True
    window: int = 2
    last: int = LAST_ROWS
    budget: float = BUDGET
    rows_tau: float = BUDGET_TAU
    rows: int = BUDGET_ROWS
    means: bool = MEANS

    @property
    def means_dropped(self) -> bool:  # type: ignore[override]
        return self.means

    def blocks(self, problem: Problem) -> Tensor:
        query, key = problem.query, problem.key
        sizes: dict[str, Any] = {"key_segment": problem.key_segment, "block_k": problem.block_k}
        landmarks = min(self.landmarks, problem.block_k)
        representatives = ops.block_representatives(key, landmarks=landmarks, **sizes)
        where: dict[str, Any] = sizes | {
            "scale": problem.scale,
            "q_offset": problem.q_offset,
            "block_q": problem.block_q,
            "keep_sink": self.sink,
            "window_slashes": self.window,
        }
        bits = ops.select_adaptive(query, key, representatives, **where, tau=self.tau, last_rows=self.last)
        if self.budget < 1:
            sampled: dict[str, Any] = {"budget": self.budget, "tau": self.rows_tau, "rows": self.rows}
            bits = bits | ops.select_budget(query, key, **where, **sampled)
        return unpack_bits(bits, problem.n_key_blocks)
