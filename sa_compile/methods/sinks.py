"""Attention sinks, from what any attention over blocks returns: ``out * sigmoid(lse - sink)``.

A sink is a logit a head beside a row's scores: it takes its share of the softmax and has no value, so
that the row keeps exp(lse) / (exp(lse) + exp(sink)) of what it would have without.
"""

from __future__ import annotations

from typing import Any

import torch

from .base import Calls


def with_sinks(run: Calls, out: Any, lse: Any, sinks: Any) -> Any:
    """The attention with sinks, fp32 [B, Hq, Sq, Dv], of ``out`` and ``lse`` without.

    out [B, Hq, Sq, Dv], lse fp32 [B, Hq, Sq], sinks [Hq] or [1]: logits as the scores are scaled.
    """
    difference = run.call(torch.sub, lse, run.call(torch.reshape, sinks, (-1, 1)))
    share = run.call(torch.unsqueeze, run.call(torch.sigmoid, difference), -1)
    return run.call(torch.mul, out, share)


def finite_lse(run: Calls, lse: Any) -> Any:
    """``lse`` of rows that see no key as it is where masked entries have the least score: any sink but one
    of -inf outweighs them."""
    return run.call(torch.clamp, lse, torch.finfo(torch.float32).min)
