"""The op as PyTorch knows it: ``sampleattn::context_attention``, a rank's rows and all keys of a prompt.

The collectives are inside: to a graph it is a function of the rank's own tensors. It waits for other ranks:
CUDA graphs leave it out (``cudagraph_unsafe``).
"""

from __future__ import annotations

import torch
from torch import Tensor

from sa_compile.distributed.attention import attend
from sa_compile.kernels.dispatch import refuse_backward
from sa_compile.kernels.ops import NAMESPACE
from sa_compile.kernels.shared import checks

__all__ = ["context_attention_op"]

_library = torch.library.Library(NAMESPACE, "FRAGMENT")
_library.define(
    "context_attention(Tensor query, Tensor key, Tensor value, Tensor shard_mask, Tensor? sinks, "
    "float scale, int window, str context, int layer) -> Tensor",
    tags=(
        torch.Tag.needs_fixed_stride_order,
        torch.Tag.pt2_compliant_tag,
        torch.Tag.cudagraph_unsafe,
    ),
)
_library.impl("context_attention", attend, "CompositeExplicitAutograd")


@torch.library.register_fake(f"{NAMESPACE}::context_attention", lib=_library)
def _fake(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    shard_mask: Tensor,
    sinks: Tensor | None,
    scale: float,
    window: int,
    context: str,
    layer: int,
) -> Tensor:
    checks.check_qkv("context_attention", query, key, value)
    batch, heads, rows, _ = query.shape
    return query.new_empty((batch, rows, heads, value.shape[3])).transpose(1, 2)


refuse_backward("context_attention", _library)
context_attention_op = torch.ops.sampleattn.context_attention.default
