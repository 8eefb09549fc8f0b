"""The ops as PyTorch knows them: ``sampleattn::read_mask`` and ``sampleattn::late_attention``, and with lists
of blocks ``sampleattn::read_block_lists`` and ``sampleattn::listed_attention``.

They wait for numbers that the device computes, once for each mask or offset of a graph: CUDA graphs leave
them out (``cudagraph_unsafe``), and they take and give these numbers as tensors on the CPU.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sa_compile.kernels.dispatch import refuse_backward
from sa_compile.kernels.ops import NAMESPACE
from sa_compile.kernels.shared import checks
from sa_compile.kernels.shared.shapes import ceil_div
from sa_compile.late import attention, block_lists

__all__ = ["late_attention_op", "listed_attention_op", "read_block_lists_op", "read_mask_op"]

_library = torch.library.Library(NAMESPACE, "FRAGMENT")
_TAGS = (torch.Tag.needs_fixed_stride_order, torch.Tag.pt2_compliant_tag, torch.Tag.cudagraph_unsafe)
_library.define("read_mask(Tensor mask, str site) -> (Tensor found, Tensor key_valid)", tags=_TAGS)
_library.define(
    "late_attention(Tensor query, Tensor key, Tensor value, Tensor? mask, Tensor found, Tensor? key_valid, "
    "Tensor? sinks, float scale, str options, bool empty_is_nan=False) -> (Tensor out, Tensor stats)",
    tags=_TAGS,
)
_library.define(
    "read_block_lists(Tensor counts, Tensor indices, Tensor? full_counts, Tensor? full_indices, "
    "Tensor? key_valid, Tensor? start, SymInt q_len, SymInt kv_len, SymInt q_offset, int block_q, "
    "int block_k, str site) -> (Tensor found, Tensor listed, Tensor full)",
    tags=_TAGS,
)
_library.define(
    "listed_attention(Tensor query, Tensor key, Tensor value, Tensor found, Tensor listed, Tensor full, "
    "Tensor? key_valid, int block_q, int block_k, float scale, str options) -> (Tensor out, Tensor stats)",
    tags=_TAGS,
)
_library.impl("read_mask", attention.read_mask, "CompositeExplicitAutograd")
_library.impl("late_attention", attention.attend, "CompositeExplicitAutograd")
_library.impl("read_block_lists", block_lists.read_block_lists, "CompositeExplicitAutograd")
_library.impl("listed_attention", block_lists.attend_in_blocks, "CompositeExplicitAutograd")


@torch.library.register_fake(f"{NAMESPACE}::read_mask", lib=_library)
def _read_mask_fake(mask: Tensor, site: str) -> tuple[Tensor, Tensor]:
    is_mask = mask.dtype == torch.bool or mask.dtype.is_floating_point
    if not is_mask or mask.dim() < 2 or any(size != 1 for size in mask.shape[1:-2]):
        raise ValueError(
            f"read_mask: 'mask' must be bool or float [B, 1, Sq, Sk], got {mask.dtype} {tuple(mask.shape)}"
        )
    batch = mask.shape[0] if mask.dim() > 2 else 1
    found = torch.empty((3,), dtype=torch.int64, device="cpu")
    return found, mask.new_empty((batch, mask.shape[-1]), dtype=torch.bool)


@torch.library.register_fake(f"{NAMESPACE}::late_attention", lib=_library)
def _late_attention_fake(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    found: Tensor,
    key_valid: Tensor | None,
    sinks: Tensor | None,
    scale: float,
    options: str,
    empty_is_nan: bool = False,
) -> tuple[Tensor, Tensor]:
    return _attention_fake("late_attention", query, key, value, options)


@torch.library.register_fake(f"{NAMESPACE}::read_block_lists", lib=_library)
def _read_block_lists_fake(
    counts: Tensor,
    indices: Tensor,
    full_counts: Tensor | None,
    full_indices: Tensor | None,
    key_valid: Tensor | None,
    start: Tensor | None,
    q_len: int,
    kv_len: int,
    q_offset: int,
    block_q: int,
    block_k: int,
    site: str,
) -> tuple[Tensor, Tensor, Tensor]:
    found = torch.empty((3,), dtype=torch.int64, device="cpu")
    blocks = (ceil_div(q_len, block_q), ceil_div(kv_len, block_k))
    full = counts if full_counts is None else full_counts
    around = torch.broadcast_shapes(counts.shape[:2], full.shape[:2])
    return (
        found,
        counts.new_empty((*around, *blocks), dtype=torch.bool),
        full.new_empty((*full.shape[:2], *blocks), dtype=torch.bool),
    )


@torch.library.register_fake(f"{NAMESPACE}::listed_attention", lib=_library)
def _listed_attention_fake(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    found: Tensor,
    listed: Tensor,
    full: Tensor,
    key_valid: Tensor | None,
    block_q: int,
    block_k: int,
    scale: float,
    options: str,
) -> tuple[Tensor, Tensor]:
    return _attention_fake("listed_attention", query, key, value, options)


def _attention_fake(
    op: str, query: Tensor, key: Tensor, value: Tensor, options: str
) -> tuple[Tensor, Tensor]:
    checks.check_qkv(op, query, key, value)
    batch, heads, q_len, _ = query.shape
    out = query.new_empty((batch, q_len, heads, value.shape[3])).transpose(1, 2)
    measured = heads if attention.config_of(options).stats else 0
    return out, query.new_empty((measured, 3), dtype=torch.float32)


for _op in ("late_attention", "listed_attention"):
    refuse_backward(_op, _library)

# What a rewritten graph's nodes call.
read_mask_op = torch.ops.sampleattn.read_mask.default
late_attention_op = torch.ops.sampleattn.late_attention.default
read_block_lists_op = torch.ops.sampleattn.read_block_lists.default
listed_attention_op = torch.ops.sampleattn.listed_attention.default
