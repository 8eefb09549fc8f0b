"""The ops as PyTorch knows them: ``sampleattn::read_mask`` and ``sampleattn::late_attention``.

Both wait for numbers that the device computes, once for each mask or offset of a graph: CUDA graphs leave
them out (``cudagraph_unsafe``), and they take and give these numbers as tensors on the CPU.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sa_compile.kernels.ops import NAMESPACE
from sa_compile.kernels.shared import checks
from sa_compile.late import attention

__all__ = ["late_attention_op", "read_mask_op"]

_library = torch.library.Library(NAMESPACE, "FRAGMENT")
_TAGS = (torch.Tag.needs_fixed_stride_order, torch.Tag.pt2_compliant_tag, torch.Tag.cudagraph_unsafe)
_library.define("read_mask(Tensor mask, str site) -> (Tensor found, Tensor key_valid)", tags=_TAGS)
_library.define(
    "late_attention(Tensor query, Tensor key, Tensor value, Tensor? mask, Tensor found, Tensor? key_valid, "
    "Tensor? sinks, float scale, str options) -> (Tensor out, Tensor stats)",
    tags=_TAGS,
)
_library.impl("read_mask", attention.read_mask, "CompositeExplicitAutograd")
_library.impl("late_attention", attention.attend, "CompositeExplicitAutograd")


@torch.library.register_fake(f"{NAMESPACE}::read_mask", lib=_library)
def _read_mask_fake(mask: Tensor, site: str) -> tuple[Tensor, Tensor]:
    if mask.dtype != torch.bool or mask.dim() < 2 or any(size != 1 for size in mask.shape[1:-2]):
        raise ValueError(
            f"read_mask: 'mask' must be bool [B, 1, Sq, Sk], got {mask.dtype} {tuple(mask.shape)}"
        )
    batch = mask.shape[0] if mask.dim() > 2 else 1
    found = torch.empty((3,), dtype=torch.int64, device="cpu")
    return found, mask.new_empty((batch, mask.shape[-1]))


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
) -> tuple[Tensor, Tensor]:
    checks.check_qkv("late_attention", query, key, value)
    batch, heads, q_len, _ = query.shape
    out = query.new_empty((batch, q_len, heads, value.shape[3])).transpose(1, 2)
    measured = heads if attention.config_of(options).stats else 0
    return out, query.new_empty((measured, 3), dtype=torch.float32)


def _no_backward(ctx: object, *grads: Tensor) -> None:
    raise NotImplementedError(
        f"{NAMESPACE}.late_attention has no backward: it serves inference, run it under torch.no_grad()"
    )


torch.library.register_autograd(f"{NAMESPACE}::late_attention", _no_backward, lib=_library)

# What a rewritten graph's nodes call.
read_mask_op = torch.ops.sampleattn.read_mask.default
late_attention_op = torch.ops.sampleattn.late_attention.default
