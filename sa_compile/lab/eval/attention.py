"""Runs a Hugging Face model with a selection rule in every full attention layer's prefill.

The rule's blocks go to the same ops that compiled models run: block-sparse attention, with what the rule's
method counts of left-out blocks. Layers with a sliding window are exact, as in compiled models,
and count for nothing in what is measured. Decoding (one query row) stays dense.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from sa_compile import prefill
from sa_compile.config import SampleAttentionConfig
from sa_compile.hf.attention import plain_causal
from sa_compile.hf.masks import mask_function_for_sampleattn
from sa_compile.kernels import ops
from sa_compile.kernels.shared.blocks import density
from sa_compile.lab.eval import exact
from sa_compile.lab.eval.rules import Rule

_NAME = "sampleattn_eval"
_active: ContextVar[SparsePrefill | None] = ContextVar("active sparse prefill", default=None)


@dataclass
class SparsePrefill:
    """A rule at work in a model, and what is measured of it.

    ``densities`` and ``cras`` hold one fp32 [B, Hq] tensor a prefill and layer without sliding window, in the
    order of the layers: the kept share of causal blocks, and the smallest kept share of attention over
    ``cra_rows`` rows at the end of each of ``cra_chunks`` equal chunks (0 chunks: not measured). With
    ``theorem``, ``errors`` and ``bounds`` hold what :func:`~sa_compile.lab.eval.exact.output_error` gives,
    with ``sparsity`` ``sds`` the heads' SD(0.95); both cost as much as dense attention. ``masks`` are the
    block masks, ``layers`` the numbers of the model's layers that they are of.
    """

    rule: Rule
    block_q: int = 128
    block_k: int = 128
    cra_chunks: int = 0
    cra_rows: int = 4
    theorem: bool = False
    sparsity: bool = False
    cras: list[Tensor] = field(default_factory=list)
    masks: list[Tensor] = field(default_factory=list)
    layers: list[int] = field(default_factory=list)
    errors: list[Tensor] = field(default_factory=list)
    bounds: list[Tensor] = field(default_factory=list)
    sds: list[Tensor] = field(default_factory=list)
    _lengths: list[tuple[int, int]] = field(default_factory=list)  # of queries and keys, as masks

    @property
    def densities(self) -> list[Tensor]:
        """Counted when asked for, neighbouring layers of the same shape at once: few launches."""
        found: list[Tensor] = []
        same = groupby(zip(self.masks, self._lengths, strict=True), lambda layer: (layer[0].shape, layer[1]))
        for (_, (q_len, kv_len)), layers in same:
            masks = torch.stack([mask for mask, _ in layers])
            share = density(masks, q_len, kv_len, kv_len - q_len, self.block_q, self.block_k)
            found += share.float().unbind()
        return found

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Output [B, Hq, Sq, Dv] of query [B, Hq, Sq, D], key [B, Hkv, Sk, D], value [B, Hkv, Sk, Dv]."""
        q_len, kv_len = query.shape[2], key.shape[2]
        blocks: dict[str, Any] = {
            "q_offset": kv_len - q_len,
            "block_q": self.block_q,
            "block_k": self.block_k,
        }
        kept = self.rule.keep(query, key, value, scale=scale, **blocks)
        mask = kept.block_mask
        self.masks.append(mask.expand(*query.shape[:2], -1, -1))
        self._lengths.append((q_len, kv_len))
        if self.cra_chunks:
            rows: dict[str, Any] = {"chunk_n": self.cra_chunks, "sample_rows": self.cra_rows}
            whole = self.masks[-1].contiguous()
            self.cras.append(ops.attention_mass(query, key, whole, scale=scale, **rows, **blocks))
        if self.theorem:
            error, bound = exact.output_error(query, key, value, mask, scale=scale, **blocks)
            self.errors.append(error)
            self.bounds.append(bound)
        if self.sparsity:
            self.sds.append(exact.sparsity(query, key, scale=scale, q_offset=blocks["q_offset"]))
        return self.rule.attend(query, key, value, kept, scale=scale, **blocks)


@contextmanager
def sparse_prefill(model: nn.Module, rule: Rule, **settings: Any) -> Iterator[SparsePrefill]:
    """While it lasts, every attention of a Hugging Face ``model`` prefills with ``rule``'s blocks, or exactly
    if it has a sliding window.

    ``settings`` are :class:`SparsePrefill`'s. Prompts must not be padded. Raises ValueError, when the
    model runs, for attention that is not known to be causal with at most a window (chunks, soft caps, sinks,
    cross attention).
    """
    AttentionInterface.register(_NAME, _attention)
    AttentionMaskInterface.register(_NAME, mask_function_for_sampleattn)
    run = SparsePrefill(rule, **settings)
    before = model.config._attn_implementation  # type: ignore[union-attr]
    model.set_attn_implementation(_NAME)  # type: ignore[operator]
    token = _active.set(run)
    try:
        yield run
    finally:
        _active.reset(token)
        model.set_attn_implementation(before)  # type: ignore[operator]


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    run = _active.get()
    if run is None:
        raise RuntimeError(f"attention {_NAME!r} works inside sparse_prefill only")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if query.shape[2] == 1:
        dense = F.scaled_dot_product_attention(
            query, key, value, attn_mask=attention_mask, scale=scale, enable_gqa=True
        )
        return dense.transpose(1, 2), None
    meaning = plain_causal(module, query, key, value, scale, attention_mask, None, kwargs)
    if not isinstance(meaning, str) and meaning.key_valid is not None:
        meaning = "padding"
    if not isinstance(meaning, str) and meaning.sinks is not None:
        meaning = "attention sinks"
    if isinstance(meaning, str):
        raise ValueError(f"the harness runs causal attention, sliding or not; a layer has: {meaning}")
    meaning = meaning.without_unseen_keys()
    if meaning.window or kwargs.get("sliding_window") is not None:
        return prefill.exact(meaning, SampleAttentionConfig()).transpose(1, 2), None
    run.layers.append(getattr(module, "layer_idx", len(run.layers)))
    return run.attend(meaning.query, meaning.key, meaning.value, scale).transpose(1, 2), None
