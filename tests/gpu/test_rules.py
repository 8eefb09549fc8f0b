"""The harness's selection rules on a GPU: the same blocks as on the CPU, and no wait for the device."""

from __future__ import annotations

import pytest
import torch

from sa_compile.kernels import choice, ops
from sa_compile.kernels.shared.blocks import unpack_bits
from sa_compile.lab.eval.rules import RULES, parse_rule
from sa_compile.lab.eval.rules.base import Problem
from sa_compile.lab.eval.rules.oracle import all_block_mass

SPECS = [
    *RULES,
    "hyper:min_seq_len=512",
    "chunked:union=1",
    "flexprefill:tau=1.0",
    "minference:vertical_share=0.05,slash_share=0.125+sink+w2",
]
SHAPES = {
    "whole_blocks": (128, 128, 0),
    "ragged": (101, 101, 0),
    "second_chunk": (50, 150, 100),
}


def inputs(q_len, kv_len, dtype=torch.float32, device="cpu", dim=64):
    """Neighbours that look alike and a sink, in the model's layout: [B, S, H, D] transposed."""
    generator = torch.Generator().manual_seed(0)
    drift = torch.randn(1, max(q_len, kv_len), 2, dim, generator=generator).cumsum(1) / 8
    key = drift[:, :kv_len] + torch.randn(1, kv_len, 2, dim, generator=generator)
    query = drift[:, -q_len:].repeat_interleave(2, 2)
    query = query + torch.randn(1, q_len, 4, dim, generator=generator)
    key[:, 0] += query.mean()
    return (x.to(device, dtype).transpose(1, 2) for x in (query, key))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
@pytest.mark.parametrize("blocks", [(32, 32), (64, 16)], ids=["square", "wide"])
@pytest.mark.parametrize("name", SHAPES)
def test_block_mass_in_triton_is_the_plain_reading(name, blocks, dtype, triton_device):
    from sa_compile.lab.eval.block_mass import block_mass

    q_len, kv_len, q_offset = SHAPES[name]
    query, key = inputs(q_len, kv_len, dtype, triton_device, dim=24)
    where = {"q_offset": q_offset, "block_q": blocks[0], "block_k": blocks[1]}
    every = ops.mask_blocks(query, key, **where)
    _, lse = ops.block_sparse_attention(query.float(), key.float(), key.float(), every, scale=0.3, **where)
    found = block_mass(query, key, lse, scale=0.3, **where)
    problem = Problem(query, key, 0.3, q_offset, None, *blocks)
    with choice.preferring("pytorch"):
        expected = all_block_mass(problem)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("spec", SPECS)
def test_a_rule_keeps_on_the_gpu_what_it_keeps_on_the_cpu(spec, cuda):
    """Products of bfloat16 are summed in another order: a block or strip at a threshold may change sides."""
    rule = parse_rule(spec)
    kept = []
    for device in ("cpu", cuda):
        query, key = inputs(2048, 2048, torch.bfloat16, device)
        with choice.preferring("triton", "pytorch"):
            mask = rule.select(query, key)
        kept.append(unpack_bits(mask, 16).expand(1, 4, -1, -1).cpu())
    assert (kept[0] != kept[1]).float().mean() < 0.02


@pytest.mark.parametrize("spec", SPECS)
def test_a_rule_does_not_wait_for_the_device(spec, cuda):
    rule = parse_rule(spec)
    query, key = inputs(2048, 2048, torch.bfloat16, cuda)
    with choice.preferring("triton", "pytorch"):
        rule.select(query, key)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            rule.select(query, key)
        finally:
            torch.cuda.set_sync_debug_mode("default")
