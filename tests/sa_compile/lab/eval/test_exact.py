"""What the harness measures beside answers: agreement of predictions, error and bound, sparsity of heads."""

import torch

from sa_compile import metrics
from sa_compile.lab.eval import exact
from sa_compile.lab.eval.rules import parse_rule

BLOCKS = {"block_q": 16, "block_k": 16}


def attention(seed=0, rows=256, heads=4, kv_heads=2):
    generator = torch.Generator().manual_seed(seed)
    query = 2 * torch.randn(1, heads, rows, 8, generator=generator)
    key, value = (torch.randn(1, kv_heads, rows, 8, generator=generator) for _ in range(2))
    return query, key, value


def test_error_and_bound_are_those_of_the_definition():
    query, key, value = attention()
    mask = parse_rule("streaming:sink=1,window=32").select(query, key, **BLOCKS)
    error, bound = exact.output_error(query, key, value, mask, scale=8**-0.5, q_offset=0, **BLOCKS)
    keys, values = (x.double().repeat_interleave(2, 1) for x in (key, value))
    hidden = ~torch.ones(256, 256).tril().bool()
    scores = (query.double() @ keys.mT * 8**-0.5).masked_fill(hidden, -torch.inf)
    kept = torch.tensor([[j == 0 or 0 <= i - j < 3 for j in range(16)] for i in range(16)])
    share = metrics.kept_probability(query, key, mask, **BLOCKS)
    kept = kept.repeat_interleave(16, 0).repeat_interleave(16, 1)
    sparse = scores.masked_fill(~kept, -torch.inf).softmax(-1) @ values
    change = (sparse - scores.softmax(-1) @ values).abs().sum(-1).amax(-1)
    torch.testing.assert_close(error.double(), change, rtol=1e-4, atol=1e-4)
    expected = 2 * (1 - share.amin(-1)) * values.abs().sum(-1).amax(-1)
    torch.testing.assert_close(bound.double(), expected, rtol=1e-3, atol=1e-3)
    assert torch.all(error <= bound) and torch.all(error > 0)


def test_nothing_dropped_is_no_error():
    query, key, value = attention()
    mask = parse_rule("full").select(query, key, **BLOCKS)
    error, bound = exact.output_error(query, key, value, mask, scale=1.0, q_offset=0, **BLOCKS)
    assert error.max() == 0 and bound.max() < 1e-3


def test_sparsity_over_all_rows_is_the_metrics():
    query, key, _ = attention(rows=256)  # 16 chunks of 16 rows: every row is measured
    measured = exact.sparsity(query, key, scale=0.5, q_offset=0)
    expected = metrics.sparsity_degree(query, key, 0.95, scale=0.5)
    torch.testing.assert_close(measured.double(), expected, rtol=1e-5, atol=1e-6)
    assert measured.min() > 0 and measured.max() < 1
