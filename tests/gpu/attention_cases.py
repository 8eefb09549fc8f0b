"""Random inputs for the block-sparse attention kernels, and how far a result is from the oracle."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from support.attention_inputs import sdpa_with_sinks
from support.implementations import reference
from torch import Tensor

from sa_compile.kernels.shared import blocks
from sa_compile.kernels.shared import reference as shared_reference

POISON = float("nan")


@dataclass(frozen=True)
class Case:
    """One call: sizes, mask and index. ``density``: share of the blocks that a random index keeps."""

    batch: int = 1
    heads: int = 4
    kv_heads: int = 2
    q_len: int = 512
    kv_len: int = 512
    head_dim: int = 128
    value_head_dim: int = 128
    dtype: torch.dtype = torch.bfloat16
    causal: bool = True
    q_offset: int = 0
    window: int = 0
    block_q: int = 128
    block_k: int = 128
    density: float = 0.5
    segments: str = "none"  # none | left_padding | right_padding | packed
    layout: str = "bhsd"  # see LAYOUTS
    shared_mask: bool = False  # one index for all batches and heads
    sinks: str = "none"  # none | a_head | one

    def with_(self, **changes: object) -> Case:
        return replace(self, **changes)  # type: ignore[arg-type]


@dataclass
class Inputs:
    query: Tensor
    key: Tensor
    value: Tensor
    block_mask: Tensor
    query_segment: Tensor | None
    key_segment: Tensor | None
    sinks: Tensor | None

    def arguments(self, case: Case) -> tuple:
        """The op's positional arguments."""
        return (
            self.query,
            self.key,
            self.value,
            self.block_mask,
            self.query_segment,
            self.key_segment,
            self.sinks,
            case.head_dim**-0.5,
            case.causal,
            case.q_offset,
            case.window,
            case.block_q,
            case.block_k,
        )


def _contiguous(drawn: Tensor) -> Tensor:
    return drawn


def _transposed(drawn: Tensor) -> Tensor:
    """A view of [B, S, H, D], as Hugging Face models pass it."""
    return drawn.transpose(1, 2).contiguous().transpose(1, 2)


def _among_others(drawn: Tensor) -> Tensor:
    """A view of some heads of [B, S, more heads, D], as a fused projection gives it."""
    heads = drawn.shape[1]
    fused = torch.full_like(drawn, POISON).repeat(1, 3, 1, 1)
    fused[:, heads : 2 * heads] = drawn
    return _transposed(fused)[:, heads : 2 * heads]


def _odd_rows(drawn: Tensor) -> Tensor:
    """Rows that begin at odd addresses, which no vector load takes."""
    return torch.nn.functional.pad(drawn, (1, 0), value=POISON)[..., 1:]


LAYOUTS = {"bhsd": _contiguous, "bshd": _transposed, "fused": _among_others, "odd_rows": _odd_rows}


def random_inputs(case: Case, device: str, seed: int) -> Inputs:
    """Fresh inputs; keys and values of padding hold NaN."""
    random = torch.Generator(device).manual_seed(seed)

    def tensor(heads: int, length: int, dim: int) -> Tensor:
        drawn = torch.randn(case.batch, heads, length, dim, generator=random, device=device)
        return LAYOUTS[case.layout](drawn.to(case.dtype))

    query = tensor(case.heads, case.q_len, case.head_dim)
    key = tensor(case.kv_heads, case.kv_len, case.head_dim)
    value = tensor(case.kv_heads, case.kv_len, case.value_head_dim)
    mask_shape = (1, 1) if case.shared_mask else (case.batch, case.heads)
    n_q, n_k = -(-case.q_len // case.block_q), -(-case.kv_len // case.block_k)
    kept = torch.rand(*mask_shape, n_q, n_k, generator=random, device=device) < case.density
    query_segment, key_segment = _segments(case, device)
    if key_segment is not None:
        padded = (key_segment < 0).expand(case.batch, -1)[:, None, :, None]
        key.masked_fill_(padded, POISON)
        value.masked_fill_(padded, POISON)
    sinks = None
    if case.sinks != "none":
        sinks = torch.linspace(-1, 3, case.heads if case.sinks == "a_head" else 1, device=device)
    return Inputs(query, key, value, blocks.pack_bits(kept), query_segment, key_segment, sinks)


def _segments(case: Case, device: str) -> tuple[Tensor | None, Tensor | None]:
    index = torch.arange(case.kv_len, device=device)
    padding = torch.arange(case.batch, device=device)[:, None] * 37 + 91
    if case.segments == "none":
        return None, None
    if case.segments == "left_padding":
        return None, torch.where(index < padding, -1, 0).int()
    if case.segments == "right_padding":
        return None, torch.where(index >= case.kv_len - padding, -1, 0).int()
    ids = (index // 200).int()[None]
    rows = (torch.arange(case.q_len, device=device) + case.q_offset) // 200
    return rows.int()[None], ids


def oracle(inputs: Inputs, case: Case) -> tuple[Tensor, Tensor]:
    """float64 out and lse; NaN in padding is cleared first, for the oracle multiplies it by zero."""
    clean = Inputs(
        inputs.query,
        inputs.key.nan_to_num(),
        inputs.value.nan_to_num(),
        inputs.block_mask,
        inputs.query_segment,
        inputs.key_segment,
        inputs.sinks,
    )
    return reference.block_sparse_attention(*clean.arguments(case))


def relative_error(result: Tensor, expected: Tensor) -> float:
    """Norm of the difference over the norm of ``expected``; infinite if a NaN is in ``result``."""
    if result.isnan().any():
        return float("inf")
    return ((result.double() - expected).norm() / expected.norm().clamp_min(1e-30)).item()


def same_precision_error(inputs: Inputs, case: Case, expected: Tensor) -> float:
    """Error of dense SDPA in the case's dtype with the same mask as a tensor, where a row keeps a key."""
    rows = torch.arange(case.q_len, device=inputs.query.device)
    visible = shared_reference.visible_entries(
        rows,
        case.kv_len,
        causal=case.causal,
        q_offset=case.q_offset,
        window=case.window,
        query_segment=inputs.query_segment,
        key_segment=inputs.key_segment,
    )[:, None]
    mask = visible & shared_reference.kept_entries(
        inputs.block_mask, rows, case.kv_len, case.block_q, case.block_k
    )
    sinks = inputs.sinks if inputs.sinks is None else inputs.sinks.expand(case.heads)
    out = sdpa_with_sinks(
        inputs.query.contiguous(),
        inputs.key.nan_to_num().contiguous(),
        inputs.value.nan_to_num().contiguous(),
        mask.expand(case.batch, case.heads, -1, -1),
        sinks,
        case.head_dim**-0.5,
    )
    seen = mask.any(-1)[..., None]
    return relative_error(torch.where(seen, out, 0), expected)


def check(op: Callable, case: Case, device: str, seed: int) -> tuple[float, float, float]:
    """Runs the op; returns (its error, SDPA's error, its lse's largest error) after asserting exact laws."""
    inputs = random_inputs(case, device, seed)
    out, lse = op(*inputs.arguments(case))
    expected, expected_lse = oracle(inputs, case)
    no_key = expected_lse == float("-inf")
    assert out.shape == (case.batch, case.heads, case.q_len, case.value_head_dim)
    assert out.transpose(1, 2).is_contiguous()
    assert torch.equal(lse == float("-inf"), no_key), "rows without a key must have lse -inf, only they"
    assert (out[no_key] == 0).all(), "rows without a kept key must be zero"
    lse_error = (lse.double() - expected_lse)[~no_key].abs().max().item() if (~no_key).any() else 0.0
    return relative_error(out, expected), same_precision_error(inputs, case, expected), lse_error


BASE = Case()
GRID = {
    "square": BASE,
    "all_blocks": BASE.with_(density=1.0),
    "no_blocks": BASE.with_(density=0.0),
    "few_blocks": BASE.with_(density=0.1, q_len=2048, kv_len=2048),
    "ragged": BASE.with_(q_len=437, kv_len=437),
    "ragged_bshd": BASE.with_(q_len=437, kv_len=437, layout="bshd", batch=2),
    "chunked_prefill": BASE.with_(q_len=300, kv_len=1000, q_offset=700),
    "unaligned_offset": BASE.with_(q_len=333, kv_len=777, q_offset=77),
    "negative_offset": BASE.with_(q_len=500, kv_len=300, q_offset=-150),
    "not_causal": BASE.with_(causal=False, kv_len=700),
    "window": BASE.with_(window=150, density=1.0, q_len=1000, kv_len=1000),
    "window_not_causal": BASE.with_(window=100, density=0.7, causal=False),
    "one_row": BASE.with_(q_len=1, kv_len=900, q_offset=899),
    "left_padding": BASE.with_(segments="left_padding", batch=3),
    "right_padding": BASE.with_(segments="right_padding", batch=3, density=1.0),
    "packed": BASE.with_(segments="packed", q_len=1000, kv_len=1000, density=1.0),
    "packed_sparse_batch": BASE.with_(segments="packed", q_len=900, kv_len=900, batch=2),
    "mha": BASE.with_(heads=3, kv_heads=3),
    "mqa": BASE.with_(heads=5, kv_heads=1),
    "shared_mask": BASE.with_(batch=2, shared_mask=True),
    "fused_projection": BASE.with_(q_len=300, kv_len=300, layout="fused", batch=2),
    "odd_rows": BASE.with_(q_len=300, kv_len=300, layout="odd_rows"),
    "padded_chunked_prefill": BASE.with_(
        q_len=300, kv_len=1000, q_offset=700, segments="left_padding", batch=2
    ),
    "padded_window": BASE.with_(
        q_len=700, kv_len=700, window=200, segments="right_padding", batch=2, density=1.0
    ),
    "sinks": BASE.with_(q_len=700, kv_len=700, sinks="a_head", heads=8),
    "one_sink_padded": BASE.with_(sinks="one", segments="left_padding", batch=2, density=0.2),
    "sinks_window": BASE.with_(sinks="a_head", window=128, density=1.0, q_len=700, kv_len=700),
    "all_padding": BASE.with_(q_len=90, kv_len=90, segments="left_padding", batch=2),
    "long": BASE.with_(q_len=9000, kv_len=9000, heads=2, kv_heads=1, density=0.15),
}
