"""The methods of compiled models as rules: each selects through its own module of ``sa_compile.methods``."""

from __future__ import annotations

import dataclasses
import sys
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from types import SimpleNamespace
from typing import Any, ClassVar, cast

import sympy
import torch.nn.functional as F
from torch import Tensor

from sa_compile.kernels.defaults import (
    ADAPTIVE_LANDMARKS,
    ADAPTIVE_PEAK,
    ADAPTIVE_TAU,
    ALPHA,
    BUDGET,
    BUDGET_ROWS,
    BUDGET_TAU,
    LAST_ROWS,
    MEANS,
    REST,
)
from sa_compile.kernels.shared.blocks import unpack_bits
from sa_compile.kernels.shared.shapes import ceil_div
from sa_compile.methods import METHODS, ON_TENSORS, Attention, Forced, Kept, Method
from sa_compile.methods.adaptive import AdaptiveOptions
from sa_compile.methods.base import BLOCK_SIZES
from sa_compile.methods.chunked import ChunkedOptions, sampled_scores, strips

from .base import Problem, Rule


class MethodRule(Rule):
    """A method's selection. Subclasses say what their settings mean as its options.

    ValueError or TypeError for a setting that the backend would refuse as an option.
    """

    def __post_init__(self) -> None:
        method, options = METHODS[self.name], self.options(sys.maxsize)
        declared = {f.name: f for m in (*METHODS.values(), method) for f in fields(m.options)}
        given = {n: getattr(options, n) for n in method.reads if n in declared and hasattr(options, n)}
        blocks = {"block_q": max(BLOCK_SIZES), "block_k": max(BLOCK_SIZES)}
        for name, value in given.items():
            check = declared[name].metadata.get("check")
            try:
                if check is not None:
                    check(SimpleNamespace(**given, **blocks), name, value)
            except (TypeError, ValueError) as error:
                raise type(error)(f"rule {self.name!r}: {error}") from None

    @abstractmethod
    def options(self, block_k: int) -> Any:
        """What the method reads, with key blocks of this size."""

    @property
    @abstractmethod
    def forced(self) -> Forced:
        """The blocks that are kept in any case."""

    def unread(self) -> Mapping[str, str]:
        return METHODS[self.name].unread(self)

    def blocks(self, problem: Problem) -> Tensor:
        attention = _attention(problem, problem.q_len, problem.kv_len)
        bits = METHODS[self.name].select(ON_TENSORS, self.options(problem.block_k), attention, self.forced)
        return unpack_bits(bits, problem.n_key_blocks)

    def keep(self, query: Tensor, key: Tensor, value: Tensor, **where: Any) -> Kept:
        problem = self.problem(query, key, **where)
        attention = _attention(problem, problem.q_len, problem.kv_len)
        options = self.options(problem.block_k)
        return METHODS[self.name].keep(ON_TENSORS, options, attention, self.forced, value)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, kept: Kept, **where: Any) -> Tensor:
        problem = self.problem(query, key, **where)
        attention, options = _attention(problem, problem.q_len, problem.kv_len), self.options(problem.block_k)
        out, _ = METHODS[self.name].attend(ON_TENSORS, options, attention, value, kept)
        return cast(Tensor, out)


def _attention(problem: Problem, q_len: int, kv_len: int) -> Attention:
    """The first ``q_len`` rows of a problem's attention and its first ``kv_len`` keys."""
    segment = problem.key_segment
    return Attention(
        problem.query[:, :, :q_len],
        problem.key[:, :, :kv_len],
        None if segment is None else segment[:, :kv_len],
        problem.scale,
        problem.q_offset,
        sympy.Integer(q_len),
        sympy.Integer(kv_len),
        problem.block_q,
        problem.block_k,
    )


@dataclass(frozen=True)
class Chunked(MethodRule):
    """SampleAttention B: columns and slashes.

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

    def options(self, block_k: int) -> ChunkedOptions:
        alphas = self.alpha_c or self.alpha, self.alpha_s or self.alpha
        return ChunkedOptions(*alphas, self.chunk_n, self.sample_rows)

    @property
    def forced(self) -> Forced:
        return Forced(self.sink, self.window, self.last)

    def blocks(self, problem: Problem) -> Tensor:
        if not self.union:
            return super().blocks(problem)
        ends = {(chunk + 1) * problem.q_len // self.chunk_n for chunk in range(self.chunk_n)}
        kept = problem.none()
        for end in sorted(ends - {0}):
            kept = kept | self._strips_of(problem, end)
        return kept

    def _strips_of(self, problem: Problem, end: int) -> Tensor:
        """The strips that the tail of the first ``end`` query rows asks for."""
        keys, options = min(end + problem.q_offset, problem.kv_len), self.options(problem.block_k)
        whole = _attention(problem, problem.q_len, problem.kv_len)
        scores = sampled_scores(
            ON_TENSORS, _attention(problem, end, keys), 1, self.sample_rows or problem.block_q
        )
        missing = problem.n_key_blocks - ceil_div(keys, problem.block_k)
        column, slash = (F.pad(score, (0, missing)) for score in scores)
        alphas = options.alpha_c, options.alpha_s
        bits = strips(ON_TENSORS, whole, (column, slash), *alphas, self.forced)
        return unpack_bits(bits, problem.n_key_blocks)


@dataclass(frozen=True)
class _StrideSettings:
    alpha_c: float
    r_w: float
    r_row: float


@dataclass(frozen=True)
class Stride(MethodRule):
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

    def options(self, block_k: int) -> _StrideSettings:
        return _StrideSettings(self.alpha, self.r_w, self.r_row)

    @property
    def forced(self) -> Forced:
        return Forced(self.sink, 0, 0)


@dataclass(frozen=True)
class Adaptive(MethodRule):
    """For each query block the key blocks that its rows are estimated to look for.

    A block is kept if the shares of attention that the query block's rows are estimated to give its keys
    reach ``tau`` in their 2-norm, every key block represented by ``landmarks`` of its keys, large ones in
    different directions, and the mean of the others, or with a ``peak`` below 1, if a landmark of it gets
    that share of a row's attention; or if ``rows`` sampled rows give it more than may be
    left out within ``budget`` (1: sampled rows are not looked at), or its keys shares that reach ``rows_tau``
    in their 2-norm. The sink block (``sink``) and ``window`` block diagonals are kept, as are all blocks of
    the last ``last`` rows. With ``means`` the others count by their mean key and value, else by ``rest`` of
    what the sampled rows get from them. Source: ours; docs/pretrained.md.
    """

    name: ClassVar[str] = "adaptive"
    tau: float = ADAPTIVE_TAU
    landmarks: int = ADAPTIVE_LANDMARKS
    peak: float = ADAPTIVE_PEAK
    sink: bool = True
    window: int = 2
    last: int = LAST_ROWS
    budget: float = BUDGET
    rows_tau: float = BUDGET_TAU
    rows: int = BUDGET_ROWS
    means: bool = MEANS
    rest: float = REST

    def options(self, block_k: int) -> AdaptiveOptions:
        landmarks = min(self.landmarks, block_k)
        sampled = (self.budget, self.rows_tau, self.rows)
        return AdaptiveOptions(self.tau, landmarks, self.peak, *sampled, self.means, self.rest)

    @property
    def forced(self) -> Forced:
        return Forced(self.sink, self.window, self.last)


class _Registered(MethodRule):
    """A method that has no settings of its own here: its options, and what is forced."""

    sink: bool
    window: int
    last: int

    def options(self, block_k: int) -> Any:
        return self

    @property
    def forced(self) -> Forced:
        return Forced(self.sink, self.window, self.last)


@cache
def rule_of(method: Method) -> type[Rule]:
    """The rule of a method that was registered since: its settings are its options, ``sink``, ``window`` and
    ``last``."""
    own: list[Any] = [(f.name, f.type, f) for f in fields(method.options)]
    forced: list[Any] = [("sink", bool, True), ("window", int, 2), ("last", int, LAST_ROWS)]
    settings = [(name, kind, _default(default)) for name, kind, default in (*own, *forced)]
    return dataclasses.make_dataclass(
        method.name.title(), settings, bases=(_Registered,), frozen=True, namespace={"name": method.name}
    )


def _default(declared: Any) -> Any:
    default = declared.default if isinstance(declared, dataclasses.Field) else declared
    return dataclasses.field(default=default)
