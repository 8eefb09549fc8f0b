"""Masks that are added to the scores: what is read of them, and the attention under them."""

import pytest
import torch
import torch.nn.functional as F
from support.attention import FLOAT_MIN, grouped, repeat_kv
from support.models import LOSSLESS

from sa_compile.config import SampleAttentionConfig
from sa_compile.late import additive
from sa_compile.late.additive import read_allowed, rows_without_keys
from sa_compile.late.attention import NOT_CAUSAL, options_text
from sa_compile.late.ops import late_attention_op, read_mask_op

OPTIONS = options_text(SampleAttentionConfig(**LOSSLESS))
LENGTH = 48
INF = float("inf")


def causal(window=0, pad=0, keys=LENGTH):
    """bool [2, 1, Sq, Sk]; the second prompt starts with ``pad`` padding tokens."""
    mask = torch.ones(LENGTH, keys, dtype=torch.bool).tril(keys - LENGTH)
    mask = mask.triu(keys - LENGTH - window + 1) if window else mask
    mask = mask.expand(2, 1, -1, -1).clone()
    mask[1, ..., :pad] = False
    return mask


def added(mask, low=FLOAT_MIN, dtype=torch.float32):
    return torch.zeros(mask.shape, dtype=dtype).masked_fill(~mask, low)


def with_bias():
    return added(causal()) + torch.randn(LENGTH, LENGTH)


SINKS = torch.tensor([0.5, -INF, 3.0, -30.0])


def scores_of(query, key, mask):
    return query @ repeat_kv(key).mT * 0.3 + mask


def written_out(query, key, value, mask):
    return scores_of(query, key, mask).softmax(-1) @ repeat_kv(value)


def of_sdpa(query, key, value, mask):
    return F.scaled_dot_product_attention(query, key, value, mask, scale=0.3, enable_gqa=True)


def with_sinks_joined(query, key, value, mask):
    scores = scores_of(query, key, mask)
    column = SINKS.view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
    return torch.cat([scores, column], -1).softmax(-1)[..., :-1] @ repeat_kv(value)


def with_sinks_share(query, key, value, mask):
    scores = scores_of(query, key, mask)
    share = (scores.logsumexp(-1, keepdim=True) - SINKS.view(-1, 1, 1)).sigmoid()
    return scores.softmax(-1) @ repeat_kv(value) * share


SPELLINGS = {  # with the op's sinks, and empty_is_nan
    written_out: (None, True),
    of_sdpa: (None, False),
    with_sinks_joined: (SINKS, False),
    with_sinks_share: (SINKS, True),
}


CAUSAL = {
    "causal": added(causal()),
    "one mask for the batch": added(causal()[:1]),
    "two dims": added(causal()[0, 0]),
    "-inf": added(causal(), -INF),
    "window": added(causal(window=20)),
    "rows without keys": added(causal(pad=7)),
    "rows without keys under a window": added(causal(window=5, pad=20)),
    "rows of -inf": added(causal(pad=7), -INF),
    "two masks that meet": added(causal(pad=7)) + added(causal()),
    "two masks that meet, one of them for the batch": (added(causal(pad=7)) + added(causal()))[1:],
}
OTHERS = {
    "not low enough": added(causal(), -1e4),
    "bias": with_bias(),
    "not causal": added(causal().flip(2)),
    "nan": added(causal()).masked_fill(torch.eye(LENGTH).bool(), float("nan")),
}


@pytest.mark.parametrize("name", [*CAUSAL, *OTHERS])
@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.filterwarnings("ignore:sampleattn")
def test_attention_under_an_added_mask_is_what_was_spelled(name, spelling):
    mask = {**CAUSAL, **OTHERS}[name]
    query, key, value = grouped()
    found, key_valid = read_mask_op(mask, "a site")
    assert (found[0] != NOT_CAUSAL) == (name in CAUSAL)
    sinks, empty_is_nan = SPELLINGS[spelling]
    arguments = (query, key, value, mask, found, key_valid, sinks, 0.3, OPTIONS, empty_is_nan)
    out, _ = late_attention_op(*arguments)
    expected = spelling(query, key, value, mask)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5, equal_nan=True)


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_rows_without_keys_weigh_the_keys_behind_them_too(spelling):
    query, key, value = (x[..., :LENGTH, :] for x in grouped())
    mask = torch.nn.functional.pad(added(causal(pad=7)), (0, 9), value=FLOAT_MIN)
    key, value = (torch.cat([x, torch.randn_like(x[:, :, :9])], 2) for x in (key, value))
    found, key_valid = read_mask_op(mask, "a site")
    sinks, empty_is_nan = SPELLINGS[spelling]
    arguments = (query, key, value, mask, found, key_valid, sinks, 0.3, OPTIONS, empty_is_nan)
    out, _ = late_attention_op(*arguments)
    torch.testing.assert_close(out, spelling(query, key, value, mask), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("slab", [5, 1024])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_what_is_allowed(dtype, slab, monkeypatch):
    monkeypatch.setattr(additive, "_ROWS_AT_ONCE", slab)
    low = torch.finfo(dtype).min
    whole, padded = causal()[:, 0], causal(pad=7)[:, 0]
    allowed, even = read_allowed(added(whole, low, dtype))
    assert torch.equal(allowed, whole) and even
    last = added(whole, low, dtype)
    last[1, -1, 0] = -1.0
    assert read_allowed(last) is None
    read = read_allowed(added(padded, low, dtype))
    if dtype == torch.float16:  # its lowest number does not drown the scores: rows of it are no mean
        assert read is None
        return
    assert torch.equal(read[0], padded) and read[1]
    meet = added(padded, low, dtype) + added(whole, low, dtype)
    assert torch.equal(read_allowed(meet)[0], padded) and not read_allowed(meet)[1]


@pytest.mark.parametrize("window", [0, 1, 4])
@pytest.mark.parametrize("q_offset", [0, 3])
def test_rows_without_keys(q_offset, window):
    key_valid = torch.rand(3, 12, generator=torch.Generator().manual_seed(0)) < 0.4
    position = torch.arange(9)[:, None] + q_offset
    seen = (torch.arange(12) <= position) & ((torch.arange(12) > position - window) if window else True)
    empty = ~(seen & key_valid[:, None]).any(-1)
    assert torch.equal(rows_without_keys(key_valid, 9, q_offset, window), empty)


def test_the_op_is_what_pytorch_asks_of_ops():
    mask = CAUSAL["rows without keys"]
    torch.library.opcheck(read_mask_op, (mask, ""))
    found, key_valid = read_mask_op(mask, "")
    for sinks, empty_is_nan in SPELLINGS.values():
        arguments = (*grouped(), mask, found, key_valid, sinks, 0.3, OPTIONS, empty_is_nan)
        torch.library.opcheck(late_attention_op, arguments)
