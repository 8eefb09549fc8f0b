"""The oracle in float64, to be read beside docs/accuracy.md. Slow on purpose."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .op import Arguments


def block_representatives(a: Arguments) -> tuple[Tensor, Tensor, Tensor]:
    """Of every key block its ``landmarks`` (see ``landmark_keys``), and the mean of its other keys."""
    key, key_segment, block_k, landmarks = a
    batch, heads, kv_len, dim = key.shape
    n_key_blocks = -(-kv_len // block_k)
    shape = (batch, heads, 1 + landmarks, n_key_blocks)
    representatives = torch.zeros(*shape, dim, dtype=torch.float64, device=key.device)
    log_weights = torch.full(shape, -torch.inf, dtype=torch.float64, device=key.device)
    spreads = torch.zeros(shape, dtype=torch.float64, device=key.device)
    for b in range(batch):
        valid = list(range(kv_len))
        if key_segment is not None:
            valid = (key_segment[b % key_segment.shape[0]] == 0).nonzero().flatten().tolist()
        for h in range(heads):
            keys = key[b, h].double()
            for j in range(n_key_blocks):
                own = [k for k in valid if k // block_k == j]
                chosen = landmark_keys(keys[own], landmarks, has_first_key=valid[0] in own) if own else []
                for mark, k in enumerate(chosen, start=1):
                    representatives[b, h, mark, j] = keys[own[k]]
                    log_weights[b, h, mark, j] = 0.0
                if others := [k for at, k in enumerate(own) if at not in chosen]:
                    mean = keys[others].mean(0)
                    representatives[b, h, 0, j] = mean
                    log_weights[b, h, 0, j] = math.log(len(others))
                    spreads[b, h, 0, j] = (keys[others] - mean).square().mean()
    return representatives, log_weights, spreads


def landmark_keys(keys: Tensor, count: int, has_first_key: bool) -> list[int]:
    """Which of a block's keys [n, D] are its landmarks, in order: at most ``count``.

    The one of which most is left, then again, after half of what the others have in its direction has been
    taken away: keys of large norm that point elsewhere than those before. A prompt's first key, whose norm
    says nothing of the attention that it gets, is the first landmark of its block.
    """
    left, chosen = keys.clone(), list[int]()
    for mark in range(min(count, len(keys))):
        norms = left.square().sum(-1)
        norms[chosen] = -1.0
        best = 0 if has_first_key and mark == 0 else int(norms.argmax())
        chosen.append(best)
        direction = left[best] / left[best].norm().clamp(min=1e-300)
        left = left - 0.5 * (left @ direction)[:, None] * direction
    return chosen
