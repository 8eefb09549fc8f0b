"""The ops of the namespace ``sampleattn``: what a rewritten graph calls, and checked calls for everyone else.

The only module through which others reach ``torch.ops.sampleattn``; each op's own are in ``<op>/op.py``.
Meaning of the arguments, in short (an op's ``reference.py`` is the long form):

* query [B, Hq, Sq, D], key [B, Hkv, Sk, D], value [B, Hkv, Sk, Dv]; query row i has position
  ``i + q_offset``. Ops with a ``q_stride`` take query blocks that stand apart, as a rank has them of a prompt
  that several share: block i begins at position ``q_offset + i * q_stride * block_q``.
* A prompt ends behind its last row whose own key is not padding: its last rows, and those that are sampled,
  count from there, for each batch entry (see ``shared.rows``).
* query_segment int32 [B|1, Sq], key_segment int32 [B|1, Sk] or None: key j is visible to row i only if
  ``key_segment[j] >= 0`` and ``key_segment[j] == query_segment[i]`` (query_segment None: all 0).
* block_mask int32 [B|1, Hq|1, n_query_blocks, n_words]: one bit a block, see ``shared.blocks``.
"""

from __future__ import annotations

import torch

from . import choice
from .attention_mass.op import attention_mass
from .block_mean_attention.op import block_mean_attention
from .block_representatives.op import block_representatives
from .block_rest_attention.op import block_rest_attention
from .block_sparse_attention.op import block_sparse_attention
from .dispatch import HAS_CPU_LIBRARY, NAMESPACE, SCHEMAS
from .mask_blocks.op import mask_blocks
from .sample_scores.op import sample_scores
from .select_adaptive.op import select_adaptive
from .select_blocks.op import select_blocks
from .select_budget.op import select_budget
from .select_budget_rest.op import select_budget_rest
from .select_peaks.op import select_peaks

__all__ = [
    "NAMESPACE",
    "attention_kernel",
    "declare_to_inductor",
    "sample_scores",
    "sample_scores_op",
    "select_blocks",
    "select_blocks_op",
    "mask_blocks",
    "mask_blocks_op",
    "block_sparse_attention",
    "block_sparse_attention_op",
    "block_mean_attention",
    "block_mean_attention_op",
    "attention_mass",
    "attention_mass_op",
    "block_representatives",
    "block_representatives_op",
    "select_adaptive",
    "select_adaptive_op",
    "select_budget",
    "select_budget_op",
    "select_budget_rest",
    "select_budget_rest_op",
    "select_peaks",
    "select_peaks_op",
    "block_rest_attention",
    "block_rest_attention_op",
]


def attention_kernel(
    device: torch.device, dtype: torch.dtype, head_dim: int, value_head_dim: int, block_q: int, block_k: int
) -> str:
    """What ``block_sparse_attention`` runs on such tensors: "cpp" on the CPU, or a key of ``choice.KERNELS``.

    "pytorch" is correct everywhere and faster than dense attention nowhere.
    """
    if device.type == "cuda":
        dims = (head_dim, value_head_dim)
        return choice.choose(choice.Call("block_sparse_attention", device, dtype, dims, block_q, block_k))
    return "cpp" if device.type == "cpu" and HAS_CPU_LIBRARY else "pytorch"


# What a rewritten graph's nodes call.
sample_scores_op = torch.ops.sampleattn.sample_scores.default
select_blocks_op = torch.ops.sampleattn.select_blocks.default
mask_blocks_op = torch.ops.sampleattn.mask_blocks.default
block_sparse_attention_op = torch.ops.sampleattn.block_sparse_attention.default
block_mean_attention_op = torch.ops.sampleattn.block_mean_attention.default
attention_mass_op = torch.ops.sampleattn.attention_mass.default
block_representatives_op = torch.ops.sampleattn.block_representatives.default
select_adaptive_op = torch.ops.sampleattn.select_adaptive.default
select_budget_op = torch.ops.sampleattn.select_budget.default
select_budget_rest_op = torch.ops.sampleattn.select_budget_rest.default
select_peaks_op = torch.ops.sampleattn.select_peaks.default
block_rest_attention_op = torch.ops.sampleattn.block_rest_attention.default


def declare_to_inductor() -> None:
    """Tell Inductor, before it lowers a graph, that the ops read their inputs from memory.

    It learns this by itself when it meets an op for the first time, but then has already decided to compute
    the operands that several ops share (query and key) once for each of them.
    """
    from torch._inductor.lowering import add_needs_realized_inputs

    for name in SCHEMAS:
        add_needs_realized_inputs(getattr(torch.ops.sampleattn, name).default)
