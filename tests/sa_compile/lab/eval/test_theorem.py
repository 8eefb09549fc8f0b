"""The bound behind CRA (arXiv 2406.15486, theorem 1) on numbers: what is dropped bounds what changes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sa_compile.kernels import ops
from sa_compile.lab.eval.rules import parse_rule

RULES = (
    "chunked:alpha=0.6,sample_rows=16",
    "streaming:window=24",
    "oracle:alpha=0.8",
    "adaptive:peak=1,tau=0.3,landmarks=2",
)


def attend(query, key, value, mask):
    return ops.block_sparse_attention(query, key, value, mask, block_q=16, block_k=16)[0]


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), sharpness=st.sampled_from([0.5, 1.0, 3.0]), rule=st.sampled_from(RULES))
def test_the_output_moves_at_most_by_what_the_measured_cra_allows(seed, sharpness, rule):
    """Per row, ||O~ - O||_1 <= 2 (1 - CRA) R with R the largest 1-norm of a value.

    P~ is P renormalised over the kept keys: ||P~ - P||_1 = 2 (1 - kept share), and ||O~ - O||_1 <= R ||P~
    - P||_1. So CRA >= 1 - eps / (2 R) keeps every output row within eps.
    """
    generator = torch.Generator().manual_seed(seed)
    query, key, value = (torch.randn(1, 2, 128, 16, generator=generator) for _ in range(3))
    query = query * sharpness
    mask = parse_rule(rule).select(query, key, block_q=16, block_k=16)
    mask = mask.expand(1, 2, -1, -1).contiguous()
    cra = ops.attention_mass(query, key, mask, chunk_n=1, sample_rows=128, block_q=16, block_k=16)
    full = parse_rule("full").select(query, key, block_q=16, block_k=16)
    change = (attend(query, key, value, mask) - attend(query, key, value, full)).abs().sum(-1).amax(-1)
    bound = 2 * (1 - cra) * value.abs().sum(-1).amax(-1)
    assert torch.all(change <= bound + 1e-4)


@pytest.mark.parametrize("rule", RULES)
def test_the_measured_cra_is_the_smallest_share_kept_of_a_row(rule):
    generator = torch.Generator().manual_seed(1)
    query, key = (torch.randn(1, 1, 96, 8, generator=generator) for _ in range(2))
    mask = parse_rule(rule).select(query, key, block_q=16, block_k=16)
    cra = ops.attention_mass(query, key, mask, chunk_n=1, sample_rows=96, block_q=16, block_k=16)
    scores = (query @ key.transpose(-1, -2) * 8**-0.5).masked_fill(
        ~torch.ones(96, 96).tril().bool(), -torch.inf
    )
    ones = torch.ones(1, 1, 96, 1)
    _, kept = ops.block_sparse_attention(query, key, ones, mask, block_q=16, block_k=16)
    shares = torch.exp(kept - scores.logsumexp(-1))
    assert cra.item() == pytest.approx(shares.min().item(), abs=1e-5)
