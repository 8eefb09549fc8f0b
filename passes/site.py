"""AttentionSite: what every matcher produces and every later step reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import fx


@dataclass(frozen=True)
class BlockLists:
    """Which blocks ``flex_attention`` computes, beside what its mask says: tensors of a running graph.

    ``counts`` int32 ``[B|1, Hq|1, n_query_blocks]``: how many of ``indices`` ``[..., n_query_blocks, n]`` are
    the key blocks in which the mask is asked; ``full_counts`` and ``full_indices``, or None: those in which
    it is not, and everything allowed. Blocks in neither are left out.
    """

    counts: fx.Node
    indices: fx.Node
    full_counts: fx.Node | None
    full_indices: fx.Node | None
    block_q: int
    block_k: int


@dataclass(frozen=True)
class AttentionSite:
    """One attention found in a graph, whatever its spelling.

    ``output`` is the node that the rewrite replaces; its value is ``[B, Hq, Sq, Dv]``, permuted by
    ``output_order`` and then viewed as the node's own shape. ``query`` is ``[B, Hq, Sq, D]``; ``key``
    ``[B, Hkv, Sk, D]`` and ``value`` ``[B, Hkv, Sk, Dv]`` are the *unrepeated* tensors (``Hq`` is a
    multiple of ``Hkv``). ``mask`` is the bool (True = may attend) or additive float tensor that broadcasts to
    ``[B, Hq, Sq, Sk]``, or None. ``is_causal`` is SDPA's flag: top-left aligned. ``sinks`` are logits
    ``[Hq]``, or ``[1]`` for all heads: each adds a key without a value to its head's softmax.

    A matcher may have added nodes to the graph to bring operands into this form; they are views or parts of
    the mask, without effect, and ``pipeline`` removes those that the rewrite does not use.
    """

    spelling: str  # "sdpa", "eager", ...: shown in the report
    output: fx.Node
    query: fx.Node
    key: fx.Node
    value: fx.Node
    mask: fx.Node | None
    is_causal: bool
    scale: float | fx.Node | None  # None: 1/sqrt(D)
    dropout_p: float | fx.Node
    covered: tuple[fx.Node, ...]  # the nodes this spelling is made of, `output` included
    module_path: str  # "model.layers.0.self_attn", from the module stack; "" if unknown
    obstacle: str | None = None  # why this spelling can not be rewritten (softcap, ...), in words
    softmax_empty_rows: str = "zero"  # a row without keys under -inf: "zero" (SDPA), "softmax" (eager: NaN)
    output_order: tuple[int, ...] = (0, 1, 2, 3)  # permutation of [B, Hq, Sq, Dv] that `output` holds
    repeats: bool = False  # the spelling repeats key and value heads; `key` and `value` are those before it
    sinks: fx.Node | None = None
    lists: BlockLists | None = None  # blocks that it computes, which only a running graph knows
    rows_and_keys: tuple[Any, Any] | None = None  # sizes of the scores, of an attention with an obstacle
    mask_scaled: bool = False  # scores and mask are scaled together: the mask's entries are not as it says

    def with_nodes(self, replaced_by: Mapping[fx.Node, fx.Node]) -> AttentionSite:
        """The site after other attentions, whose results it may read, were rewritten."""
        mask = self.mask and replaced_by.get(self.mask, self.mask)
        sinks = self.sinks and replaced_by.get(self.sinks, self.sinks)
        query, key, value = (replaced_by.get(node, node) for node in (self.query, self.key, self.value))
        return replace(self, query=query, key=key, value=value, mask=mask, sinks=sinks)
