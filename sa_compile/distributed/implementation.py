"""``attn_implementation="sampleattn_context_parallel"``: "sampleattn", and over ranks an op of ours."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from sa_compile.distributed.layout import is_shard_mask
from sa_compile.distributed.ops import context_attention_op
from sa_compile.hf.attention import as_autocast, obstacle, sampleattn_attention, sinks_of
from sa_compile.hf.masks import mask_function_for_sampleattn

NAME = "sampleattn_context_parallel"
CONTEXT = "_sampleattn_context"  # an attention module's attribute: how ranks share its model's prompts


def attention_over_ranks(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """As ``hf.sampleattn_attention``; with a ``layout.shard_mask``, of the rows that a rank has of a prompt.

    Raises ``NotImplementedError`` for a soft cap, a bias or attention that is not causal.
    """
    if not is_shard_mask(attention_mask):
        return sampleattn_attention(
            module, query, key, value, attention_mask, dropout, scaling, is_causal, **kwargs
        )
    assert attention_mask is not None
    arguments = {"dropout": dropout, **kwargs}
    why = obstacle(module, None, is_causal, arguments)
    if why is not None:
        raise NotImplementedError(f"context_parallel does not compute {why}, in {type(module).__name__}")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    query, key, value = map(as_autocast, (query, key, value))
    where = (scale, kwargs.get("sliding_window") or 0, getattr(module, CONTEXT), module.layer_idx)
    out = context_attention_op(query, key, value, attention_mask, sinks_of(arguments), *where)
    return out.transpose(1, 2), None


AttentionInterface.register(NAME, attention_over_ranks)
AttentionMaskInterface.register(NAME, mask_function_for_sampleattn)
