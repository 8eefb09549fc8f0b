"""The cases of ``bench ops`` in the order in which they are measured, and what each should show.

Unless a case says otherwise: batch 1, 32 query heads, 8 key heads, head dim 128, bfloat16, causal.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch

from sa_compile.lab.bench.ops import problems
from sa_compile.lab.bench.ops.inputs import Shape
from sa_compile.lab.bench.ops.problems import Problem

K = 1024


@dataclass(frozen=True)
class Goal:
    """A ratio of medians and its bound: the sum over ``over`` against the sum over ``under``."""

    over: tuple[str, ...]
    under: tuple[str, ...]
    bound: float
    at_least: bool = True
    quantity: str = "milliseconds"  # or "tflops"


@dataclass(frozen=True)
class Case:
    """One measurement: ``rounds`` in turn of ``repeats`` calls of each run of the problem."""

    name: str
    problem: Callable[[Shape, float, tuple[str, ...], str], Problem]
    shape: Shape
    density: float = 0.1
    against: tuple[str, ...] = ()
    goals: tuple[Goal, ...] = ()
    rounds: int = 4
    repeats: int = 4


def faster_than(name: str, bound: float, ours: str = "ours") -> Goal:
    """``name`` takes at least ``bound`` times as long as ``ours``."""
    return Goal((name,), (ours,), bound)


def share_of(parts: tuple[str, ...], whole: str, bound: float) -> Goal:
    """``parts`` together take at most ``bound`` of the time of ``whole``."""
    return Goal(parts, (whole,), bound, at_least=False)


def rate_of(name: str, other: str, bound: float) -> Goal:
    """``name`` reaches at least ``bound`` of the TFLOP/s of ``other``."""
    return Goal((name,), (other,), bound, quantity="tflops")


def at_most(steps: tuple[str, ...], bound: float) -> Goal:
    """``steps`` at head dim 256 take at most ``bound`` times what they take at 128."""
    return Goal(steps, tuple(step.replace("256", "128") for step in steps), bound, at_least=False)


STEPS = ("sample_scores", "select_blocks")
ADAPTIVE_STEPS = ("block_representatives", "select_adaptive")
FEWER_STEPS = tuple(step + problems.FEWER_LANDMARKS for step in ADAPTIVE_STEPS)
PEAK_STEPS = ("block_representatives", "select_peaks")
LANDMARK_STEPS = (*ADAPTIVE_STEPS, "select_peaks")
FEWER_PEAK_STEPS = tuple(step + problems.FEWER_LANDMARKS for step in PEAK_STEPS)
ATTENTION = "block_sparse_attention"

CASES = (
    Case(
        "random_128k",
        problems.random_lists,
        Shape(128 * K),
        against=("flex",),
        goals=(faster_than("flex", 1.55),),
    ),
    Case(
        "random_32k",
        problems.random_lists,
        Shape(32 * K),
        against=("flex",),
        goals=(faster_than("flex", 1.5),),
        repeats=8,
    ),
    Case(
        "random_8k",
        problems.random_lists,
        Shape(8 * K),
        density=0.102,
        against=("flex",),
        goals=(faster_than("flex", 1.4),),
        repeats=20,
    ),
    Case(
        "sampling_128k",
        problems.sampling,
        Shape(128 * K),
        goals=(share_of(STEPS, ATTENTION, 0.08),),
    ),
    Case(
        "sampling_32k", problems.sampling, Shape(32 * K), goals=(share_of(STEPS, ATTENTION, 0.2),), repeats=8
    ),
    *(
        Case(
            f"adaptive_{length}k",
            problems.adaptive,
            Shape(length * K),
            density=0.3,
            goals=tuple(
                share_of(steps, ATTENTION, 0.2)
                for steps in (ADAPTIVE_STEPS, FEWER_STEPS, PEAK_STEPS, FEWER_PEAK_STEPS)
            ),
        )
        for length in (32, 8)
    ),
    Case("adaptive_128k", problems.adaptive, Shape(128 * K), density=0.3, repeats=2),
    Case(
        "whole_adaptive_128k",
        problems.adaptive,
        Shape(128 * K),
        against=("cudnn", "fa2"),
        goals=(faster_than("cudnn", 9, "whole"), faster_than("fa2", 15, "whole")),
        repeats=2,
    ),
    Case("whole_adaptive_32k", problems.adaptive, Shape(32 * K), against=("cudnn", "fa2"), repeats=6),
    Case(
        "whole_128k",
        problems.whole_attention,
        Shape(128 * K),
        against=("cudnn", "fa2"),
        goals=(faster_than("cudnn", 9, "whole"), faster_than("fa2", 15, "whole")),
        rounds=3,
        repeats=2,
    ),
    Case("whole_32k", problems.whole_attention, Shape(32 * K), against=("cudnn", "fa2"), repeats=6),
    Case(
        "selected_128k",
        problems.selected_and_random,
        Shape(128 * K),
        goals=(share_of(("selected",), "random", 1.02),),
    ),
    Case(
        "selected_32k",
        problems.selected_and_random,
        Shape(32 * K),
        goals=(share_of(("selected",), "random", 1.02),),
        repeats=8,
    ),
    Case(
        "key_blocks_128k",
        problems.key_blocks,
        Shape(128 * K),
        goals=(share_of(("64, in pairs",), "128", 1.1), share_of(("64, anywhere",), "128", 1.1)),
    ),
    Case(
        "head_dims_128k",
        problems.head_dims,
        Shape(128 * K),
        goals=(rate_of("64", "128", 0.8), rate_of("256", "128", 0.8)),
    ),
    *(
        Case(
            f"wide_{length}k",
            problems.wide_heads,
            Shape(length * K),
            goals=(rate_of("256", "128", 0.95), rate_of("512", "128", 0.6)),
            rounds=3,
            repeats=2,
        )
        for length in (32, 128)
    ),
    *(
        Case(
            f"selection_head_dims_{length}k{note}",
            problems.selection_head_dims,
            Shape(length * K, kv_heads=kv_heads),
            goals=(
                at_most(("block_representatives, 256", "select_adaptive, 256"), 1.3),
                at_most(("block_representatives, 256", "select_adaptive, 256", "select_budget, 256"), 1.3),
                at_most(("block_representatives, 256", "select_peaks, 256"), 1.3),
            ),
            rounds=2,
            repeats=4 if length == 32 else 1,
        )
        for length, kv_heads, note in ((32, 8, ""), (32, 4, "_eight_a_kv_head"), (128, 8, ""))
    ),
    Case(
        "dense_512_128k",
        problems.random_lists,
        Shape(128 * K, 512, 512, 8, 2),
        against=("efficient", "cudnn", "fa2"),
        goals=(faster_than("efficient", 3.0),),
        rounds=1,
        repeats=1,
    ),
    Case(
        "dense_128k",
        problems.random_lists,
        Shape(128 * K),
        density=1.0,
        against=("cudnn", "fa2"),
        goals=(faster_than("cudnn", 1.0),),
        rounds=3,
        repeats=1,
    ),
    Case(
        "dense_32k",
        problems.random_lists,
        Shape(32 * K),
        density=1.0,
        against=("flex", "cudnn", "fa2"),
        goals=(faster_than("cudnn", 1.0),),
    ),
    Case("whole_1m", problems.whole_attention, Shape(1024 * K, kv_heads=2), rounds=2, repeats=1),
    Case("kernels_32k", problems.each_kernel, Shape(32 * K)),
    *(
        Case(
            f"portable_{head_dim}_{length}k",
            problems.portable_attention,
            Shape(length * K, head_dim, head_dim, *((16, 4) if head_dim == 256 else (32, 8))),
            against=("flex",),
            goals=(faster_than("flex", 1.0, "triton"),),
            repeats={8: 20, 32: 8, 128: 2}[length],
        )
        for head_dim in (64, 128, 256)
        for length in (8, 32, 128)
    ),
    *(
        Case(
            f"portable_selection_{head_dim}_{length}k",
            problems.portable_selection,
            Shape(length * K, head_dim, head_dim),
            goals=tuple(share_of((step + problems.IN_TRITON,), step, 2.0) for step in LANDMARK_STEPS),
            repeats={32: 8, 128: 2}[length],
        )
        for head_dim in (64, 128)
        for length in (32, 128)
    ),
    *(
        Case(f"random_32k_{percent}", problems.random_lists, Shape(32 * K), percent / 100, ("flex",))
        for percent in (5, 20, 40)
    ),
    *(
        Case(
            f"random_128k_{percent}",
            problems.random_lists,
            Shape(128 * K),
            percent / 100,
            ("flex",),
            rounds=2,
            repeats=2,
        )
        for percent in (5, 20, 40)
    ),
)


def chosen(patterns: Sequence[str]) -> tuple[Case, ...]:
    """Cases whose name fits a pattern (``random_*``), all without patterns; ValueError if one fits none."""
    for pattern in patterns:
        if not any(fnmatch(case.name, pattern) for case in CASES):
            names = ", ".join(case.name for case in CASES)
            raise ValueError(f"--only {pattern!r} fits none of the cases: {names}")
    return tuple(case for case in CASES if not patterns or any(fnmatch(case.name, p) for p in patterns))
