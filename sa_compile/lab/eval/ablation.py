"""Ablations as in the paper: one setting varied at a time around its rule's default, on the same documents.

What is varied is data: an axis names a rule, one of its settings and the values. Block sizes are an axis too;
the window and the sampled rows keep their size in tokens there. On the first documents of each length the
theorem's bound is computed beside the error that it bounds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from sa_compile.kernels.defaults import ALPHA
from sa_compile.lab.eval.plan import Plan
from sa_compile.lab.eval.rules import parse_rule
from sa_compile.lab.eval.run import FORMAT, Journal, run
from sa_compile.lab.eval.supply import Documents

KIND = "ablation"
BLOCK = 128  # rows and keys of a block wherever blocks are not what is varied
# Settings of 'chunked' whose default 0 means another value.
_ZERO_STANDS_FOR = {"alpha_c": ALPHA, "alpha_s": ALPHA, "sample_rows": BLOCK}


@dataclass(frozen=True)
class Point:
    """One value of an axis: the rule that it stands for, and the block size."""

    value: str
    rule: str
    block: int
    is_default: bool


@dataclass(frozen=True)
class Axis:
    """A setting of a rule, its values, and what it is; ``rule`` may hold settings beside which it counts."""

    rule: str
    setting: str
    values: tuple[Any, ...]
    about: str

    def points(self) -> tuple[Point, ...]:
        """Its values, the default among them."""
        plain = parse_rule(self.rule)
        joined = "," if ":" in self.rule else ":"
        default = getattr(plain, self.setting)
        if not default and self.setting in _ZERO_STANDS_FOR:
            default = _ZERO_STANDS_FOR[self.setting]
        return tuple(
            Point(
                _text(value),
                plain.spec
                if value == default
                else _spec(f"{self.rule}{joined}{self.setting}={_text(value)}"),
                BLOCK,
                value == default,
            )
            for value in self.values
        )


@dataclass(frozen=True)
class BlockAxis:
    """Square blocks of several sizes, with the window and the sampled rows of the default's blocks."""

    values: tuple[int, ...] = (32, 64, 128)
    window: int = 2 * BLOCK
    rows: int = BLOCK
    about: str = "rows and keys of a block; window and sampled rows keep their size in tokens"

    def points(self) -> tuple[Point, ...]:
        return tuple(
            Point(
                str(block),
                "chunked"
                if block == BLOCK
                else _spec(f"chunked:window={self.window // block},sample_rows={self.rows}"),
                block,
                block == BLOCK,
            )
            for block in self.values
        )


AXES: dict[str, Axis | BlockAxis] = {
    "alpha": Axis("chunked", "alpha", (0.7, 0.8, 0.9, 0.95, 0.98), "share that columns and slashes reach"),
    "alpha_c": Axis("chunked", "alpha_c", (0.7, 0.8, 0.9, 0.95, 0.98), "share that columns reach"),
    "alpha_s": Axis("chunked", "alpha_s", (0.7, 0.8, 0.9, 0.95, 0.98), "share that slashes reach"),
    "chunk_n": Axis("chunked", "chunk_n", (1, 2, 4, 8, 16), "chunks of queries whose tails are sampled"),
    "sample_rows": Axis("chunked", "sample_rows", (16, 32, 64, 128, 256, 512), "sampled rows of a chunk"),
    "window": Axis("chunked", "window", (0, 1, 2, 4, 8), "block diagonals that are forced"),
    "sink": Axis("chunked", "sink", (True, False), "the sink block is forced (1) or not (0)"),
    "block": BlockAxis(),
    "stride_alpha": Axis("stride", "alpha", (0.8, 0.9, 0.95, 0.98), "share that columns reach, method A"),
    "r_w": Axis("stride", "r_w", (0.02, 0.04, 0.08, 0.16), "window as a share of the keys, method A"),
    "r_row": Axis("stride", "r_row", (0.01, 0.02, 0.05, 0.1), "share of rows that is sampled, method A"),
    "tau": Axis(
        "adaptive:peak=1.0", "tau", (0.0, 0.05, 0.1, 0.2, 0.4, 0.8), "2-norm that keeps a block, method C"
    ),
    "peak": Axis(
        "adaptive", "peak", (0.05, 0.1, 0.2, 0.3, 0.5, 1.0), "a row's share that keeps a block, method C"
    ),
    "landmarks": Axis(
        "adaptive:peak=1.0", "landmarks", (0, 3, 7, 15, 31), "keys that stand for a block, method C"
    ),
    "last": Axis("adaptive", "last", (0, 128, 256), "rows at the end that attend to every key, method C"),
}


def ablate(
    plan: Plan,
    axes: Sequence[str],
    model: nn.Module,
    documents: Documents,
    *,
    out: Path,
    resume: bool = False,
    minutes: float = float("inf"),
    revision: str | None = None,
) -> dict[str, Any]:
    """Measure every point of the axes; the result holds one of the harness's results a block size.

    ``plan``'s rules and block sizes are not read; ``documents`` are the plan's. ``out`` names the result,
    beside which the journals lie. ValueError for an unknown axis.
    """
    for name in axes:
        if name not in AXES:
            raise ValueError(f"unknown axis {name!r}; known: {', '.join(AXES)}")
    points = {name: AXES[name].points() for name in axes}
    results = {}
    for block in sorted({point.block for several in points.values() for point in several}, reverse=True):
        rules = [point.rule for several in points.values() for point in several if point.block == block]
        own = dataclasses.replace(plan, rules=tuple(rules), block_q=block, block_k=block)
        journal = Journal(out.with_suffix(f".{block}.jsonl"), own, resume=resume)
        limits: dict[str, Any] = {"minutes": minutes, "revision": revision}
        results[str(block)] = run(own, model, documents, journal, **limits)
    described = {
        name: {"about": AXES[name].about, "points": [dataclasses.asdict(point) for point in several]}
        for name, several in points.items()
    }
    return {"format": FORMAT, "kind": KIND, "axes": described, "results": results}


def _text(value: Any) -> str:
    return str(int(value)) if isinstance(value, bool) else str(value)


def _spec(text: str) -> str:
    return parse_rule(text).spec
