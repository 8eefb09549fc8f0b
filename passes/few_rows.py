"""When attention of few rows is cheaper as it was captured, on a CPU: what ``bench exact-forms`` measured.

The block-sparse op packs keys and values before it multiplies, which few rows do not pay for; where a graph
repeats heads, that it reads them unrepeated does. PyTorch's SDPA is slower than a decode step written out.
"""

from __future__ import annotations

import torch

from .fx_utils import fixed, shape, value
from .site import AttentionSite

# Rows that pay for packing a key, of all heads that read it.
_PAYS = {"float32": 32, "half": 16}
_PAYS_NATIVE = 48  # float32, a key head for every query head


def written_out(site: AttentionSite) -> bool:
    """The attention is two products and a softmax, not SDPA."""
    return site.spelling != "sdpa"


def cheaper_below(site: AttentionSite) -> int:
    """The number of query rows below which the captured attention is cheaper than the block-sparse op."""
    half = value(site.query).dtype != torch.float32
    group = fixed(shape(site.query)[1]) // fixed(shape(site.key)[1])
    if site.repeats:
        rows = _PAYS["float32"] if written_out(site) and half else 0
    elif half:
        rows = 0 if written_out(site) else _PAYS["half"]
    else:
        rows = _PAYS_NATIVE if group == 1 else _PAYS["float32"]
    return -(-rows // group)
