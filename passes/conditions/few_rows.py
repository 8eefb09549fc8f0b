"""When attention of few rows is cheaper as it was captured, on a CPU: what ``bench exact-forms`` measured.

The block-sparse op packs keys and values before it multiplies, which few rows do not pay for; where a graph
repeats heads, that it reads them unrepeated does. PyTorch's SDPA is slower than a decode step written out.
"""

from __future__ import annotations

import torch

from ..graph.nodes import shape, value
from ..graph.sizes import fixed
from ..site import AttentionSite

# Rows that pay for packing a key, of all query heads that read it.
_OF_A_GROUP = {"float32": 32, "half": 16}
_NATIVE = 48  # a key head for every query head
_OF_REPEATS = 32  # written out in a half dtype, whose products Inductor fuses with the repeats


def decode_stays(site: AttentionSite) -> bool:
    """One query row: SDPA without mask and repeats would not be cheaper than what was captured."""
    return _written_out(site) or (_half(site) and _repeats(site))


def cheaper_below(site: AttentionSite) -> int:
    """The number of query rows below which the captured attention is cheaper than the block-sparse op."""
    written_out, half, group = _written_out(site), _half(site), _group(site)
    if _repeats(site):
        rows = _OF_REPEATS if written_out and half else 0
    elif written_out and half:
        rows = 0
    elif group == 1:
        rows = _NATIVE
    else:
        rows = _OF_A_GROUP["half" if half else "float32"]
    return -(-rows // group)


def _written_out(site: AttentionSite) -> bool:
    return site.spelling != "sdpa"


def _half(site: AttentionSite) -> bool:
    return bool(value(site.query).dtype != torch.float32)


def _group(site: AttentionSite) -> int:
    """Query heads that read a key head."""
    return fixed(shape(site.query)[1]) // fixed(shape(site.key)[1])


def _repeats(site: AttentionSite) -> bool:
    return site.repeats and _group(site) > 1
