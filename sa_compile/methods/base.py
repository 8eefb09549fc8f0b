"""What a method is: its options, the ops that it calls, what it is measured on and timed by.

A method is written once, against :class:`Calls`: a rewrite of a graph hands it nodes and writes what it calls
as nodes, a caller with tensors runs the ops at once.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import sympy
from torch import Tensor

from sa_compile.kernels import ops
from sa_compile.kernels.defaults import LAST_ROWS
from sa_compile.kernels.shared import checks
from sa_compile.kernels.shared.shapes import row_positions

from .options import at_least, fail, flag, one_of, option

BLOCK_SIZES = (16, 32, 64, 128)

Axis = tuple[Mapping[str, Any], ...]  # settings of one thing, of which tuning takes one


def _key_block_size(options: Any, name: str, value: Any) -> int:
    one_of(*BLOCK_SIZES)(options, name, value)
    if value > options.block_q:
        fail(name, f"at most block_q ({options.block_q})", value, ValueError)
    return int(value)


@dataclass(frozen=True)
class SharedOptions:
    """The options that several methods read."""

    block_q: int = option(128, "Rows of a query block: one of 16, 32, 64, 128.", one_of(*BLOCK_SIZES))
    block_k: int = option(
        128, "Keys of a key block: one of 16, 32, 64, 128; at most block_q.", _key_block_size
    )
    min_seq_len: int = option(
        4096,
        "Prompts with fewer query rows stay exact: sampling would cost more than it saves, >= 1.",
        at_least(1),
    )
    keep_sink: bool = option(True, "Always keep the first key block, where attention sinks live.", flag)
    window_blocks: int = option(
        2,
        "Block diagonals that are always kept, the main one included (methods 'chunked' and "
        "'adaptive'), >= 1.",
        at_least(1),
    )
    last_rows: int = option(
        LAST_ROWS,
        "Rows at the end of the prompt, where its question stands, that attend to every key: their query "
        "blocks keep every block (methods 'chunked' and 'adaptive'), >= 0. Of a prompt that is padded on the "
        "right they are the last ones before the padding.",
        at_least(0),
    )


class Calls(Protocol):
    """How a method calls ops: on tensors, or as nodes of a graph."""

    def call(self, op: Any, *arguments: Any) -> Any:
        """The result of an op, or of a function of torch."""

    def item(self, results: Any, number: int) -> Any:
        """One result of an op that has several."""

    def size(self, size: sympy.Expr) -> Any:
        """A size as an op takes it."""


class OnTensors:
    """Runs what is called at once."""

    def call(self, op: Any, *arguments: Any) -> Any:
        return op(*arguments)

    def item(self, results: Any, number: int) -> Any:
        return results[number]

    def size(self, size: sympy.Expr) -> int:
        return int(size)


ON_TENSORS: Calls = OnTensors()


@dataclass(frozen=True)
class Attention:
    """A causal attention as methods see it: tensors, or the nodes that hold them.

    query [B, Hq, Sq, D], key [B, Hkv, Sk, D]; ``key_segment`` int32 [B|1, Sk]: 0 for valid keys, -1 for
    padding, or None. Row i has position ``i + q_offset``, or with a ``q_stride`` above 1 the one that
    ``kernels.shared.shapes.row_positions`` says. ``q_len`` and ``kv_len`` are expressions over the symbols of
    a graph. ``sinks`` float32 [Hq] or [1], or None: logits without values that the attention over the kept
    blocks has beside its scores; a selection may count them, see ``apart_beside_sinks``.
    """

    query: Any
    key: Any
    key_segment: Any
    scale: Any
    q_offset: Any
    q_len: sympy.Expr
    kv_len: sympy.Expr
    block_q: int
    block_k: int
    q_stride: int = 1
    sinks: Any = None

    @classmethod
    def of_tensors(
        cls,
        query: Tensor,
        key: Tensor,
        options: SharedOptions,
        *,
        scale: float | None = None,
        q_offset: int = 0,
        key_segment: Tensor | None = None,
        q_stride: int = 1,
    ) -> Attention:
        """That of tensors; ``scale`` None is 1/sqrt(D). Raises ValueError for tensors that do not fit."""
        checks.check_qkv("select", query, key)
        checks.check_segment("select", "key_segment", key_segment, query.shape[0], key.shape[2], query)
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        lengths = sympy.Integer(query.shape[2]), sympy.Integer(key.shape[2])
        blocks = (options.block_q, options.block_k, q_stride)
        return cls(query, key, key_segment, scale, q_offset, *lengths, *blocks)

    @property
    def where(self) -> tuple[Any, ...]:
        """What most ops take behind the tensors: which keys are valid, the scale, where the rows stand."""
        return self.key_segment, self.scale, self.q_offset

    @property
    def apart(self) -> tuple[int, ...]:
        """What ops that know query blocks that stand apart take at the end: nothing where they do not."""
        return () if self.q_stride == 1 else (self.q_stride,)

    @property
    def apart_beside_sinks(self) -> tuple[Any, ...]:
        """What selections that count sinks take at the end: :attr:`apart`, and the sinks if there are any."""
        return self.apart if self.sinks is None else (self.q_stride, self.sinks)


@dataclass(frozen=True)
class Kept:
    """What a method keeps of an attention: tensors, or the nodes that hold them.

    ``block_mask`` int32 [B|1, Hq|1, n_query_blocks, n_words]; ``rest`` None, or what its ``attend`` knows of
    the blocks that are left out: the results of ``select_budget_rest`` behind its block_mask.
    """

    block_mask: Any
    rest: tuple[Any, Any, Any] | None = None


@dataclass(frozen=True)
class Forced:
    """Blocks that are kept whatever a method finds: the sink, block diagonals (in key blocks), last rows."""

    keep_sink: bool
    window_slashes: int
    last_rows: int

    @classmethod
    def of(cls, options: SharedOptions) -> Forced:
        """Those of the options: diagonals of ``block_q`` rows are several of ``block_k`` keys."""
        window_slashes = max(1, options.window_blocks * options.block_q // options.block_k)
        return cls(options.keep_sink, window_slashes, options.last_rows)


class Method(ABC):
    """A rule that chooses which blocks an attention is computed on.

    ``options`` of its methods is a ``SampleAttentionConfig``, or anything else with the attributes that it
    reads.
    """

    name: ClassVar[str]
    summary: ClassVar[str]  # what it does, for the option 'method'
    options: ClassVar[type[Any]]  # a frozen dataclass of the options that are its own
    shared: ClassVar[tuple[str, ...]] = ()  # others that it reads, beside block sizes and keep_sink
    read_by_stats: ClassVar[tuple[str, ...]] = ()  # others that say which rows stats measure
    tried: ClassVar[tuple[Axis, ...]] = ()  # the settings that tuning tries: one entry of each axis

    @abstractmethod
    def select(self, run: Calls, options: Any, attention: Attention, forced: Forced) -> Any:
        """The blocks to keep, a block_mask int32 [B|1, Hq|1, n_query_blocks, n_words]."""

    def keep(self, run: Calls, options: Any, attention: Attention, forced: Forced, value: Any) -> Kept:
        """:meth:`select`, and what ``attend`` wants to know beside; value is [B, Hkv, Sk, Dv]."""
        return Kept(self.select(run, options, attention, forced))

    def attend(self, run: Calls, options: Any, attention: Attention, value: Any, kept: Kept) -> Any:
        """Attention over what was kept, two results: out [B, Hq, Sq, Dv] and lse [B, Hq, Sq]."""
        a = attention
        tensors = (a.query, a.key, value, kept.block_mask, None, a.key_segment, a.sinks)
        where = (a.scale, True, a.q_offset, 0, a.block_q, a.block_k, *a.apart)
        return run.call(ops.block_sparse_attention_op, *tensors, *where)

    def counts_left_out(self, options: Any) -> bool:
        """Does ``attend`` count blocks that are left out for something, and so do more than attend to what is
        kept?"""
        return False

    def measured_rows(self, run: Calls, options: Any, attention: Attention) -> tuple[Any, int]:
        """Rows whose CRA stats measure: the last rows of how many chunks, and how many of each."""
        return options.chunk_n, options.sample_rows or attention.block_q

    def unread(self, options: Any) -> Mapping[str, str]:
        """Options of its own that these options leave without effect, each with the one that does so."""
        return {}

    def timed(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """What the time of ``select`` depends on, beside the block sizes, of options or a rule's settings."""
        return {name: settings[name] for name in self.own_options}

    def rule_settings(self, options: Any) -> dict[str, Any]:
        """The settings under which the evaluation's rule of this name measures these options."""
        forced = Forced.of(options)
        own = {name: getattr(options, name) for name in self.own_options}
        return {
            **own,
            "sink": forced.keep_sink,
            "window": forced.window_slashes,
            "last": forced.last_rows,
        }

    @property
    def own_options(self) -> tuple[str, ...]:
        """Names of the options that no other module declares."""
        return tuple(field.name for field in dataclasses.fields(self.options))

    @property
    def reads(self) -> tuple[str, ...]:
        """Names of the options that it reads, beside block sizes and keep_sink."""
        return (*self.own_options, *self.shared)


def axis(name: str, *values: Any) -> Axis:
    """An axis of one option."""
    return tuple({name: value} for value in values)


def kept_mass(run: Calls, method: Method, options: Any, attention: Attention, block_mask: Any) -> Any:
    """Measured CRA, fp32 [B, Hq]: the smallest share of a measured row's attention that was kept.

    Of query blocks that stand apart (tensors alone) the rows of the last one are measured.
    """
    if attention.q_stride != 1:
        attention, block_mask = _last_block(attention), block_mask[:, :, -1:]
        rows: tuple[Any, int] = (1, attention.block_q)
    else:
        rows = method.measured_rows(run, options, attention)
    a = attention
    return run.call(ops.attention_mass_op, a.query, a.key, block_mask, *a.where, *rows, a.block_q, a.block_k)


def _last_block(a: Attention) -> Attention:
    first = (a.query.shape[2] - 1) // a.block_q * a.block_q
    position = row_positions(first, a.q_offset, a.q_stride, a.block_q)
    q_len = sympy.Integer(a.query.shape[2] - first)
    return dataclasses.replace(a, query=a.query[:, :, first:], q_offset=position, q_len=q_len, q_stride=1)
