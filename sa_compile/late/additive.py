"""What a mask that is added to the scores allows, read from its entries."""

from __future__ import annotations

import torch
from torch import Tensor

_ROWS_AT_ONCE = 1024


def read_allowed(mask: Tensor) -> tuple[Tensor, bool] | None:
    """bool [B, Sq, Sk] of a float mask [B, Sq, Sk], True where its entry is 0; None if it is no mask.

    It is one if every other entry is the dtype's lowest number or -inf, beside which softmax weighs nothing.
    Second: whether rows without keys hold the lowest number throughout, so that all keys weigh alike there.
    In fp16 the scores show through in such rows: None too. Waits for the device, once.
    """
    low = torch.finfo(mask.dtype).min
    allowed = torch.empty(mask.shape, dtype=torch.bool, device=mask.device)
    wrong, uneven = [], []
    for first in range(0, mask.shape[1], _ROWS_AT_ONCE):
        rows = mask[:, first : first + _ROWS_AT_ONCE]
        here = torch.eq(rows, 0, out=allowed[:, first : first + _ROWS_AT_ONCE])
        empty = ~here.any(-1, keepdim=True)
        wrong.append((~(here | (rows <= low))).any())
        uneven.append((empty & (rows != low)).any())
        if mask.dtype == torch.float16:
            wrong.append(empty.any())
    is_no_mask, differ = torch.stack([torch.stack(wrong).any(), torch.stack(uneven).any()]).tolist()
    return None if is_no_mask else (allowed, not differ)


def rows_without_keys(key_valid: Tensor, q_len: int, q_offset: int, window: int) -> Tensor:
    """Which rows of a causal mask with key padding see no key: bool [B, Sq]; ``window`` 0: no lower bound."""
    seen = torch.nn.functional.pad(key_valid.cumsum(-1), (1, 0))  # [B, Sk + 1]: valid keys before each
    end = torch.arange(q_offset + 1, q_offset + q_len + 1, device=key_valid.device)
    before = seen[:, (end - window).clamp(min=0)] if window else 0
    return seen[:, end] == before


def attend_to_lowest(mask: Tensor, rows: Tensor, value: Tensor, empty_is_nan: bool) -> Tensor:
    """What softmax makes of ``rows`` [R] of a mask [B|1, Sq, Sk] that see no key: [B, Hkv, R, Dv].

    The lowest number drowns the scores: keys that have it weigh alike, beside those of -inf. Rows of -inf
    alone are NaN if ``empty_is_nan``, else 0. value [B, Hkv, Sk, Dv].
    """
    weighed = (mask[:, rows] == torch.finfo(mask.dtype).min).float()
    weights = (weighed / weighed.sum(-1, keepdim=True).clamp(min=0 if empty_is_nan else 1)).to(value.dtype)
    return (weights @ value.transpose(1, 2).flatten(2)).unflatten(-1, (value.shape[1], -1)).transpose(1, 2)
