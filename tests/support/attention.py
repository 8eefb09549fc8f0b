"""Tensors and masks that spellings of attention are tested on: lengths that differ from every other size."""

import torch

BATCH, HEADS, KV_HEADS, LENGTH, HEAD_DIM = 2, 4, 2, 48, 16
SCALE = HEAD_DIM**-0.5
FLOAT_MIN = torch.finfo(torch.float32).min
INF = float("inf")


def grouped(dtype=torch.float32):
    """Query with 4 heads, key and value with 2."""
    return _random(HEADS, dtype), _random(KV_HEADS, dtype), _random(KV_HEADS, dtype)


def full(dtype=torch.float32):
    """Query, key and value with 4 heads."""
    return _random(HEADS, dtype), _random(HEADS, dtype), _random(HEADS, dtype)


def single():
    """Query with 4 heads, key and value with 1 (multi-query attention)."""
    return _random(HEADS), _random(1), _random(1)


def by_position(kv_heads=HEADS):
    """Query, key and value as [B, S, H, D]."""
    return tuple(torch.randn(BATCH, LENGTH, heads, HEAD_DIM) for heads in (HEADS, kv_heads, kv_heads))


def _random(heads, dtype=torch.float32):
    return torch.randn(BATCH, heads, LENGTH, HEAD_DIM, dtype=dtype)


def merged(*tensors):
    """[B * H, S, D]."""
    return tuple(tensor.reshape(BATCH * HEADS, LENGTH, HEAD_DIM) for tensor in tensors)


def repeat_kv(x, n=HEADS // KV_HEADS):
    """As transformers writes it."""
    batch, heads, length, head_dim = x.shape
    return (
        x[:, :, None, :, :]
        .expand(batch, heads, n, length, head_dim)
        .reshape(batch, heads * n, length, head_dim)
    )


def allowed():
    """Causal, bool, True = may attend."""
    return torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()


def added(value=-INF):
    """Causal, float, to be added."""
    return torch.full((LENGTH, LENGTH), value).triu(1)


def left_padding():
    """[B, S]: the first row of the batch starts with 5 padding tokens."""
    mask = torch.ones(BATCH, LENGTH, dtype=torch.int64)
    mask[0, :5] = 0
    return mask


SINKS = torch.tensor([0.5, -1.0, 3.0, 0.0])


def scores(q, k, value=-INF):
    """Scaled and masked, as sinks join them."""
    return q @ k.mT * SCALE + added(value)


def column(sinks, rows=LENGTH, batch=BATCH):
    """A logit a head as the column behind the scores."""
    return sinks.reshape(1, -1, 1, 1).expand(batch, -1, rows, -1)
