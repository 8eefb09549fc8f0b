"""Method "adaptive": per query block the blocks that its rows look for, and what may not be left out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch

from sa_compile.kernels import ops
from sa_compile.kernels.defaults import (
    ADAPTIVE_LANDMARKS,
    ADAPTIVE_PEAK,
    ADAPTIVE_TAU,
    BEFORE_THE_BUDGET,
    BEFORE_THE_PEAK,
    BEFORE_THE_REST,
    BUDGET,
    BUDGET_ROWS,
    BUDGET_TAU,
    MEANS,
    REST,
)

from .base import Attention, Calls, Forced, Kept, Method
from .options import flag, int_up_to, number_in, option, power_of_two

_share = number_in(0, 1)
# Budget, budget_tau and how many rows they are measured on: fewer rows cost less, and ask for more blocks.
_BUDGETS = (
    (0.015, 0.05, 32),
    (0.025, 0.07, 32),
    (0.03, 0.08, 32),
    (0.05, 0.12, 32),
    (0.015, 0.05, 16),
    (0.02, 0.06, 16),
    (0.03, 0.08, 16),
    (0.01, 0.04, 8),
    (0.015, 0.05, 8),
    (0.025, 0.07, 8),
)
# What tuning tries, with few landmarks and many: tau alone, with the means of what is left out, or with a
# budget.
_BY_TAU = (
    *({"tau": tau, "budget": 1.0, "means": True} for tau in (0.1, 0.2, 0.3, 0.5, 0.8)),
    *(
        {"tau": tau, "budget": budget, "budget_tau": budget_tau, "budget_rows": rows}
        for tau in (0.2, 0.5)
        for budget, budget_tau, rows in _BUDGETS
    ),
    *({"budget": budget, "budget_tau": 0.05, "budget_rows": 16, "rest": 0.0} for budget in (0.015, 0.02)),
)
# And by peaks, of few landmarks or as the default does.
_BY_PEAK = tuple(
    {"peak": peak, "landmarks": landmarks, "budget": budget, "budget_tau": budget_tau, "budget_rows": rows}
    for peak, landmarks in ((0.1, 7), (0.2, 7), (0.3, 7), (ADAPTIVE_PEAK, ADAPTIVE_LANDMARKS))
    for budget, budget_tau, rows in ((BUDGET, BUDGET_TAU, BUDGET_ROWS), (0.02, 0.06, 16))
)
_TRIED = (
    *({**settings, "peak": 1.0, "landmarks": landmarks} for settings in _BY_TAU for landmarks in (7, 15)),
    *_BY_PEAK,
)


def _peak(options: Any, name: str, value: Any) -> float:
    """A share; below 1 there must be landmarks among which to look for it."""
    peak = _share(options, name, value)
    if peak < 1 and options.landmarks < 1:
        raise ValueError(
            f"option 'peak' below 1 looks at landmarks, of which there must be 1 or more, got peak={peak!r} "
            f"with landmarks={options.landmarks!r}"
        )
    return float(peak)


@dataclass(frozen=True)
class AdaptiveOptions:
    tau: float = option(
        ADAPTIVE_TAU,
        "A block is kept if the shares of attention that a query block's rows give its keys reach this in "
        "their 2-norm; 0 keeps every block (method 'adaptive'), in [0, 1]. With a 'peak' below 1 it is not "
        "looked at.",
        _share,
    )
    landmarks: int = option(
        ADAPTIVE_LANDMARKS,
        "Keys that stand for a key block beside its mean (method 'adaptive'): large ones in different "
        "directions, in [0, block_k]; on Hopper 7 and 15 have the fastest kernel.",
        int_up_to(0, "block_k"),
    )
    peak: float = option(
        ADAPTIVE_PEAK,
        "A block is kept if one of its landmarks gets this share of the attention of a query block's row "
        "(method 'adaptive'), instead of for its 'tau'; 0 keeps every block; in [0, 1], 1: it is not looked "
        "at, below 1 'landmarks' must be 1 or more. Prompts of more than 65536 keys, of which 'budget' "
        "samples 4 rows a block, keep more of what they look for with 0.05.",
        _peak,
    )
    budget: float = option(
        BUDGET,
        "What may be left out of a query block's attention (method 'adaptive'): blocks go from the smallest "
        "share on, as long as a share times (itself and twice what went before it) stays below this squared; "
        "in [0, 1], 1: neither this nor 'budget_tau' is looked at, and 'tau' or 'peak' alone decides.",
        _share,
    )
    budget_tau: float = option(
        BUDGET_TAU,
        "A block is kept, too, if the shares of its keys on the rows that 'budget' samples reach this in "
        "their 2-norm (method 'adaptive'), in [0, 1].",
        _share,
    )
    budget_rows: int = option(
        BUDGET_ROWS,
        "Rows of a query block whose attention 'budget' is measured on, a power of two; half as many each "
        "time a prompt of more than 16384 keys doubles, 4 at least (method 'adaptive').",
        power_of_two,
    )
    means: bool = option(
        MEANS,
        "Blocks that are left out count by their mean key and value (method 'adaptive'): better on models "
        "trained for retrieval, several times worse on pretrained ones (docs/pretrained.md).",
        flag,
    )
    rest: float = option(
        REST,
        "The part of what the rows that 'budget' samples get, on average, from the blocks that are left out, "
        "that every row of their query block gets (method 'adaptive'): mean values by exact shares of "
        "attention; in [0, 1]. With 'means', or without a budget, it is not looked at (docs/pretrained.md).",
        _share,
    )


def rest_counts(options: Any) -> bool:
    """Does what is left out count by the sampled rows' shares?"""
    return bool(options.rest > 0 and options.budget < 1 and not options.means)


class Adaptive(Method):
    name = "adaptive"
    summary = (
        "scores all rows against a few keys of every block and keeps what they look for, wherever in the "
        "prompt, and what sampled rows give too much attention to be left out (docs/pretrained.md)"
    )
    options = AdaptiveOptions
    shared = ("window_blocks", "last_rows")
    read_by_stats = ("chunk_n", "sample_rows")
    tried = (_TRIED,)

    def select(self, run: Calls, options: Any, attention: Attention, forced: Forced) -> Any:
        """What either every row, by landmarks, or the sampled rows, by all keys, ask for."""
        looked_for = self._looked_for(run, options, attention, forced)
        if options.budget >= 1:
            return looked_for
        sampled = self._sampled(options, attention, forced)
        used = run.call(ops.select_budget_op, attention.query, attention.key, *sampled)
        return run.call(torch.bitwise_or, looked_for, used)

    def keep(self, run: Calls, options: Any, attention: Attention, forced: Forced, value: Any) -> Kept:
        """The same blocks, and what the sampled rows get from the others."""
        if not rest_counts(options):
            return super().keep(run, options, attention, forced, value)
        looked_for = self._looked_for(run, options, attention, forced)
        tensors = (attention.query, attention.key, value, looked_for)
        sampled = self._sampled(options, attention, forced)
        found = run.call(ops.select_budget_rest_op, *tensors, *sampled)
        block_mask, *rest = (run.item(found, number) for number in range(4))
        return Kept(block_mask, (rest[0], rest[1], rest[2]))

    def _looked_for(self, run: Calls, options: Any, attention: Attention, forced: Forced) -> Any:
        a = attention
        found = run.call(ops.block_representatives_op, a.key, a.key_segment, a.block_k, options.landmarks)
        representatives = (run.item(found, number) for number in range(3))
        by_peak = options.peak < 1
        op, least = (ops.select_peaks_op, options.peak) if by_peak else (ops.select_adaptive_op, options.tau)
        kept = (least, forced.keep_sink, forced.window_slashes, forced.last_rows, *a.apart_beside_sinks)
        return run.call(op, a.query, a.key, *representatives, *a.where, a.block_q, a.block_k, *kept)

    def _sampled(self, options: Any, attention: Attention, forced: Forced) -> tuple[Any, ...]:
        """What both ops that sample rows take behind the tensors."""
        a = attention
        sampled = (options.budget, options.budget_tau, options.budget_rows)
        kept = (forced.keep_sink, forced.window_slashes, *a.apart_beside_sinks)
        return (*a.where, a.block_q, a.block_k, *sampled, *kept)

    def attend(self, run: Calls, options: Any, attention: Attention, value: Any, kept: Kept) -> Any:
        a, rest = attention, kept.rest
        if rest is None and not options.means:
            return super().attend(run, options, attention, value, kept)
        tensors, segment = (a.query, a.key, value, kept.block_mask), (a.key_segment, a.sinks, a.scale)
        where = (a.q_offset, a.block_q, a.block_k)
        if rest is None:
            return run.call(ops.block_mean_attention_op, *tensors, *segment, *where)
        found = (*tensors, *rest, *segment, options.rest)
        return run.call(ops.block_rest_attention_op, *found, *where, *a.apart)

    def counts_left_out(self, options: Any) -> bool:
        return bool(options.means) or rest_counts(options)

    def unread(self, options: Any) -> dict[str, str]:
        return {"tau": "peak"} if options.peak < 1 else {}

    def timed(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """The landmarks, whether for their peak, how many rows a budget samples, and whether they tell what
        is left out.

        Settings that are older than a budget have none, and take what is left out by its means.
        """
        settings = {**BEFORE_THE_PEAK, **BEFORE_THE_REST, **BEFORE_THE_BUDGET, **settings}
        found = {"landmarks": settings["landmarks"]}
        if settings["peak"] < 1:
            found["peak"] = True
        if settings["budget"] < 1:
            found["rows"] = settings["budget_rows"] if "budget_rows" in settings else settings["rows"]
        if settings["means"] != ("rows" not in found):
            found["means"] = settings["means"]
        if rest_counts(SimpleNamespace(**settings)):
            found["rest"] = True
        return found

    def rule_settings(self, options: Any) -> dict[str, Any]:
        settings = super().rule_settings(options)
        rows_tau, rows = settings.pop("budget_tau"), settings.pop("budget_rows")
        return {**settings, "rows_tau": rows_tau, "rows": rows}
