"""Query blocks that stand apart, as a rank has them: an op on them, beside the op on all."""

from __future__ import annotations

import torch

from sa_compile.kernels import ops
from sa_compile.kernels.shared import blocks

RANKS = 3


class Ops:
    """The ops by their names, as ``Implementations`` are."""

    def __getattr__(self, op):
        return getattr(ops, f"{op}_op")


def operands(block_q, segments, q_len=155, start=0, dtype=torch.float32, device="cpu", dim=16):
    """query, key, value and key_segment of a prompt whose rows begin at position ``start``."""
    generator = torch.Generator().manual_seed(0)
    kv_len = q_len + start
    query = torch.randn(2, 4, q_len, dim, generator=generator) * 2
    key, value = (torch.randn(2, 2, kv_len, dim, generator=generator) for _ in range(2))
    segment = torch.zeros(2, kv_len, dtype=torch.int32)
    if segments == "left_padding":
        segment[0, :21], segment[1, :40] = -1, -1
    if segments == "right_padding":
        segment[0, kv_len - 37 :] = -1
    segment = None if segments == "none" else segment.to(device)
    return *(x.to(device, dtype) for x in (query, key, value)), segment


def positions_of_rank(rank, block_q, q_len):
    """The rows of a prompt that are a rank's, block after block."""
    row = torch.arange(q_len)
    return row[row // block_q % RANKS == rank]


def calls(run, query, key, value, segment, index, where, block_q, block_k, *, stride=()):
    """What each op with a stride finds: blocks as bool, and attention; ``where``: q_offset."""
    representatives = ops.block_representatives_op(key, segment, block_k, 3 if block_k < 128 else 15)
    adaptive = run.select_adaptive(
        query, key, *representatives, segment, 0.25, where, block_q, block_k, 0.3, True, 1, 0, *stride
    )
    peaks = run.select_peaks(
        query, key, *representatives, segment, 0.25, where, block_q, block_k, 0.5, True, 1, 0, *stride
    )
    budget = run.select_budget(
        query, key, segment, 0.25, where, block_q, block_k, 0.2, 0.9, 4, True, 1, *stride
    )
    allowed = run.mask_blocks(query, key, None, segment, True, where, 40, block_q, block_k, *stride)
    attended = run.block_sparse_attention(
        query, key, value, index, None, segment, None, 0.25, True, where, 50, block_q, block_k, *stride
    )
    return (adaptive, peaks, budget, allowed), attended


def check(run, sizes, segments, start, dtype=torch.float32, device="cpu", tolerance=1e-5, flips=0.0, **shape):
    """That every rank finds for its blocks what one finds for all, but for a share of ``flips`` of them."""
    block_q, block_k = sizes
    query, key, value, segment = operands(block_q, segments, start=start, dtype=dtype, device=device, **shape)
    n = -(-key.shape[2] // block_k)
    generator = torch.Generator().manual_seed(1)
    kept = torch.rand(2, 4, -(-query.shape[2] // block_q), n, generator=generator) < 0.7
    index = blocks.pack_bits(kept).to(device)
    all_masks, (out, lse) = calls(run, query, key, value, segment, index, start, block_q, block_k)
    for rank in range(RANKS):
        mine = positions_of_rank(rank, block_q, query.shape[2]).to(device)
        where = start + rank * block_q
        masks, (own_out, own_lse) = calls(
            run, query[:, :, mine], key, value, segment, index[:, :, rank::RANKS], where, block_q, block_k,
            stride=(RANKS,),
        )  # fmt: skip
        for own, whole in zip(masks, all_masks, strict=True):
            expected = whole[:, :, rank::RANKS]
            if whole.dtype == torch.bool:  # of an oracle
                assert torch.equal(own, expected)
            else:
                differ = blocks.unpack_bits(own, n) != blocks.unpack_bits(expected, n)
                assert differ.float().mean() <= flips
        torch.testing.assert_close(own_out, out[:, :, mine], rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(own_lse, lse[:, :, mine], rtol=tolerance, atol=tolerance)
