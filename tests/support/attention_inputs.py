"""Random inputs for the attention ops, and what an error may be: a small multiple of dense SDPA's own."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F
from support.implementations import reference
from torch import Tensor

from sa_compile.kernels.shared import blocks
from sa_compile.kernels.shared import reference as shared_reference

NAN = float("nan")
EPSILON = {torch.float32: 2.0**-23, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}


@dataclass(frozen=True)
class Case:
    """One call of the ops. ``segments``: none, left_padding, right_padding, packed."""

    batch: int = 1
    heads: int = 2
    kv_heads: int = 1
    q_len: int = 160
    kv_len: int = 160
    head_dim: int = 32
    value_head_dim: int = 32
    dtype: torch.dtype = torch.float32
    causal: bool = True
    q_offset: int = 0
    window: int = 0
    block_q: int = 32
    block_k: int = 32
    density: float = 0.6
    segments: str = "none"
    transposed: bool = True  # [B, S, H, D].transpose(1, 2), as models pass their heads
    shared_index: bool = False
    sinks: bool = False

    def but(self, **changes: object) -> Case:
        return replace(self, **changes)  # type: ignore[arg-type]

    @property
    def scale(self) -> float:
        return self.head_dim**-0.5


# What a selection of blocks is tried on, by name.
SELECTION = Case(q_len=200, kv_len=200, block_q=32, block_k=16)
SELECTION_CASES = [
    pytest.param(SELECTION, id="fp32"),
    pytest.param(SELECTION.but(dtype=torch.bfloat16), id="bf16"),
    pytest.param(SELECTION.but(dtype=torch.float16, heads=6, kv_heads=3), id="fp16-gqa"),
    pytest.param(SELECTION.but(batch=3, segments="left_padding"), id="left-padding"),
    pytest.param(SELECTION.but(batch=3, segments="right_padding", block_k=32), id="right-padding"),
    pytest.param(SELECTION.but(q_len=70, kv_len=600, q_offset=530), id="second-chunk-of-more-than-32-blocks"),
    pytest.param(SELECTION.but(q_len=70, kv_len=200, q_offset=123), id="offset-inside-a-block"),
    pytest.param(SELECTION.but(q_len=200, kv_len=70, q_offset=-130), id="rows-before-the-first-key"),
    pytest.param(SELECTION.but(q_len=200, kv_len=70), id="positions-past-the-last-key"),
    pytest.param(SELECTION.but(head_dim=19, block_k=64, block_q=64), id="odd-sizes"),
    pytest.param(SELECTION.but(q_len=1, kv_len=200, q_offset=199), id="one-row"),
]


@dataclass
class Inputs:
    query: Tensor  # [B, Hq, Sq, D]
    key: Tensor  # [B, Hkv, Sk, D]
    value: Tensor  # [B, Hkv, Sk, Dv]
    block_mask: Tensor  # [B|1, Hq|1, n_query_blocks, n_words]
    query_segment: Tensor | None
    key_segment: Tensor | None
    sinks: Tensor | None = None  # [Hq]

    def attention_arguments(self, case: Case) -> tuple:
        return (
            self.query,
            self.key,
            self.value,
            self.block_mask,
            self.query_segment,
            self.key_segment,
            self.sinks,
            case.scale,
            case.causal,
            case.q_offset,
            case.window,
            case.block_q,
            case.block_k,
        )


def make_inputs(case: Case, seed: int = 0) -> Inputs:
    """Inputs of a case; padded keys and values are NaN."""
    generator = torch.Generator().manual_seed(seed)

    def tensor(heads: int, length: int, dim: int) -> Tensor:
        if case.transposed:
            memory = torch.randn(case.batch, length, heads, dim, generator=generator)
            return memory.to(case.dtype).transpose(1, 2)
        return torch.randn(case.batch, heads, length, dim, generator=generator).to(case.dtype)

    query = tensor(case.heads, case.q_len, case.head_dim)
    key = tensor(case.kv_heads, case.kv_len, case.head_dim)
    value = tensor(case.kv_heads, case.kv_len, case.value_head_dim)
    query_segment, key_segment = make_segments(case)
    if key_segment is not None:
        padding = (key_segment < 0)[:, None, :, None]
        key, value = key.masked_fill(padding, NAN), value.masked_fill(padding, NAN)
    shape = (1, 1) if case.shared_index else (case.batch, case.heads)
    n_query_blocks, n_key_blocks = -(-case.q_len // case.block_q), -(-case.kv_len // case.block_k)
    kept = torch.rand(*shape, n_query_blocks, n_key_blocks, generator=generator) < case.density
    sinks = torch.linspace(-1, 3, case.heads) if case.sinks else None
    return Inputs(query, key, value, blocks.pack_bits(kept), query_segment, key_segment, sinks)


def make_segments(case: Case) -> tuple[Tensor | None, Tensor | None]:
    """Segment ids of a case: padding marks keys only, packing marks both sides."""
    if case.segments == "none":
        return None, None
    key = torch.zeros(case.batch, case.kv_len, dtype=torch.int32)
    if case.segments == "packed":
        key = (torch.arange(case.kv_len) * 3 // case.kv_len).int()[None].clone()
        query = key[:, torch.arange(case.q_len) + max(case.kv_len - case.q_len, 0)].clone()
        query[:, -5:] = -1
        key[:, -3:] = -1
        return query, key
    for b in range(case.batch):
        n = (b + 1) * case.kv_len // (case.batch + 3)
        if case.segments == "left_padding":
            key[b, :n] = -1
        else:
            key[b, case.kv_len - n :] = -1
    return None, key


def kept_and_visible(case: Case, inputs: Inputs) -> Tensor:
    """Bool [B|1, Hq|1, Sq, Sk]: the entries that the op must attend to."""
    rows = torch.arange(case.q_len)
    visible = shared_reference.visible_entries(
        rows,
        case.kv_len,
        causal=case.causal,
        q_offset=case.q_offset,
        window=case.window,
        query_segment=inputs.query_segment,
        key_segment=inputs.key_segment,
    )
    kept = shared_reference.kept_entries(inputs.block_mask, rows, case.kv_len, case.block_q, case.block_k)
    return visible[:, None] & kept


def sdpa_with_sinks(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, sinks: Tensor | None, scale: float
) -> Tensor:
    """SDPA with one more key for the sinks: its scores are 0, the mask adds the logits, its value is 0."""
    if sinks is not None:
        key, value = (F.pad(x, (0, 0, 0, 1)) for x in (key, value))
        scores = torch.zeros(mask.shape, device=mask.device).masked_fill(~mask, -torch.inf)
        scores = scores.expand(query.shape[0], query.shape[1], *mask.shape[2:])
        column = sinks.view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        mask = torch.cat([scores, column], -1).to(query.dtype)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale, enable_gqa=True)


def assert_as_good_as_sdpa(out: Tensor, lse: Tensor, case: Case, inputs: Inputs) -> None:
    """``out`` and ``lse`` are within 3 times SDPA's own error, and a rounding, of the float64 oracle."""
    exact, exact_lse = reference.block_sparse_attention(*inputs.attention_arguments(case))
    mask = kept_and_visible(case, inputs)
    tensors = (inputs.query, inputs.key.nan_to_num(), inputs.value.nan_to_num())
    sdpa = sdpa_with_sinks(*tensors, mask, inputs.sinks, case.scale)
    empty = ~mask.any(-1).expand(out.shape[:3])
    sdpa_error = (sdpa.double() - exact).masked_fill(empty[..., None], 0).abs().amax()
    bound = 3 * sdpa_error + EPSILON[case.dtype] * exact.abs().amax()
    assert (out.double() - exact).abs().amax() <= bound
    assert torch.equal(out[empty], torch.zeros_like(out[empty]))
    assert torch.equal(lse == -torch.inf, empty)
    seen = ~empty
    torch.testing.assert_close(lse[seen].double(), exact_lse[seen], rtol=1e-5, atol=1e-5)
