"""A method in one file: what a sampled row gives much attention to is kept."""

from dataclasses import dataclass

from sa_compile.kernels import ops
from sa_compile.methods.base import Method
from sa_compile.methods.options import number_in, option, power_of_two


@dataclass(frozen=True)
class PeaksOptions:
    height: float = option(
        0.5, "Shares of a block's keys, in their 2-norm, that keep it, in [0, 1].", number_in(0, 1)
    )
    peak_rows: int = option(8, "Rows of a query block that are looked at, a power of two.", power_of_two)


class Peaks(Method):
    name = "peaks"
    summary = "keeps the blocks to which a sampled row gives much attention"
    options = PeaksOptions
    shared = ("window_blocks",)

    def select(self, run, options, attention, forced):
        a = attention
        looked_at = (1.0, options.height, options.peak_rows)
        kept = (forced.keep_sink, forced.window_slashes)
        return run.call(
            ops.select_budget_op, a.query, a.key, *a.where, a.block_q, a.block_k, *looked_at, *kept
        )
