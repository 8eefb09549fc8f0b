"""The ops of the namespace ``sampleattn``: schemas, fakes, argument checks and dispatch.

The only module that knows ``torch.ops.sampleattn``. Importing it defines the ops, registers the PyTorch
implementation (``eager``) for every device, and loads the C++ library that replaces it on the CPU. Meaning of
the arguments, in short (``reference`` is the long form):

* query [B, Hq, Sq, D], key [B, Hkv, Sk, D], value [B, Hkv, Sk, Dv]; query row i has position
  ``i + q_offset``.
* query_segment int32 [B|1, Sq], key_segment int32 [B|1, Sk] or None: key j is visible to row i only if
  ``key_segment[j] >= 0`` and ``key_segment[j] == query_segment[i]`` (query_segment None: all 0).
* block_mask int32 [B|1, Hq|1, n_query_blocks, n_words]: one bit a block, see ``blocks``.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from . import checks, cuda_library, eager, eager_adaptive
from .defaults import ADAPTIVE_LANDMARKS, ADAPTIVE_TAU
from .shapes import ceil_div, n_words

NAMESPACE = "sampleattn"

_SCHEMAS = {
    "sample_scores": "(Tensor query, Tensor key, Tensor? key_segment, float scale, SymInt q_offset, "
    "SymInt chunk_n, int sample_rows, int block_k) -> (Tensor column_scores, Tensor slash_scores)",
    "select_blocks": "(Tensor column_scores, Tensor slash_scores, Tensor? key_segment, SymInt q_len, "
    "SymInt k_len, SymInt q_offset, int block_q, int block_k, float alpha_c, float alpha_s, bool keep_sink, "
    "SymInt window_slashes) -> Tensor",
    "mask_blocks": "(Tensor query, Tensor key, Tensor? query_segment, Tensor? key_segment, bool causal, "
    "SymInt q_offset, SymInt window, int block_q, int block_k) -> Tensor",
    "block_sparse_attention": "(Tensor query, Tensor key, Tensor value, Tensor block_mask, "
    "Tensor? query_segment, Tensor? key_segment, float scale, bool causal, SymInt q_offset, SymInt window, "
    "int block_q, int block_k) -> (Tensor out, Tensor lse)",
    "attention_mass": "(Tensor query, Tensor key, Tensor block_mask, Tensor? key_segment, float scale, "
    "SymInt q_offset, SymInt chunk_n, int sample_rows, int block_q, int block_k) -> Tensor",
    "block_representatives": "(Tensor key, Tensor? key_segment, int block_k, int landmarks) -> "
    "(Tensor representatives, Tensor log_weights, Tensor spreads)",
    "select_adaptive": "(Tensor query, Tensor key, Tensor representatives, Tensor log_weights, "
    "Tensor spreads, Tensor? key_segment, float scale, SymInt q_offset, int block_q, int block_k, float tau, "
    "bool keep_sink, int window_slashes) -> Tensor",
}

_library = torch.library.Library(NAMESPACE, "DEF")
for _name, _schema in _SCHEMAS.items():
    # Implementations take any strides whose last dimension is contiguous, so the order of strides is all that
    # Inductor has to keep: views such as [B, S, H, D].transpose(1, 2) reach them uncopied.
    _library.define(_name + _schema, tags=(torch.Tag.needs_fixed_stride_order, torch.Tag.pt2_compliant_tag))


def implement(name: str, dispatch_key: str, function: Callable) -> None:
    """Register ``function`` as the implementation of op ``name`` for a dispatch key such as "CUDA".

    ``function`` takes the schema's arguments positionally. Must run before a graph is captured.
    """
    _library.impl(name, function, dispatch_key)


def load_cpu_library() -> bool:
    """Load the C++ implementations for the CPU; False, with a warning, if they are not installed."""
    spec = importlib.util.find_spec(f"{__package__}._C_cpu")
    if spec is None or spec.origin is None:
        warnings.warn(
            "sa_compile's C++ library for the CPU is not installed: CPU tensors use slower PyTorch code",
            stacklevel=2,
        )
        return False
    torch.ops.load_library(spec.origin)
    return True


def _fake(name: str) -> Callable[[Callable], Callable]:
    return torch.library.register_fake(f"{NAMESPACE}::{name}", lib=_library)


@_fake("sample_scores")
def _sample_scores_fake(query, key, key_segment, scale, q_offset, chunk_n, sample_rows, block_k):
    _check_sample_scores(query, key, key_segment, chunk_n, sample_rows, block_k)
    shape = (query.shape[0], query.shape[1], ceil_div(key.shape[2], block_k))
    return query.new_empty(shape, dtype=torch.float32), query.new_empty(shape, dtype=torch.float32)


@_fake("select_blocks")
def _select_blocks_fake(
    column_scores,
    slash_scores,
    key_segment,
    q_len,
    k_len,
    q_offset,
    block_q,
    block_k,
    alpha_c,
    alpha_s,
    keep_sink,
    window_slashes,
):
    _check_select_blocks(
        column_scores, slash_scores, key_segment, q_len, k_len, block_q, block_k, alpha_c, alpha_s
    )
    batch, heads, n_key_blocks = column_scores.shape
    return column_scores.new_empty(
        (batch, heads, ceil_div(q_len, block_q), n_words(n_key_blocks)), dtype=torch.int32
    )


@_fake("mask_blocks")
def _mask_blocks_fake(query, key, query_segment, key_segment, causal, q_offset, window, block_q, block_k):
    _check_mask_blocks(query, key, query_segment, key_segment, block_q, block_k)
    batch = eager.segment_batch(query_segment, key_segment)
    shape = (batch, 1, ceil_div(query.shape[2], block_q), n_words(ceil_div(key.shape[2], block_k)))
    return query.new_empty(shape, dtype=torch.int32)


@_fake("block_sparse_attention")
def _block_sparse_attention_fake(
    query,
    key,
    value,
    block_mask,
    query_segment,
    key_segment,
    scale,
    causal,
    q_offset,
    window,
    block_q,
    block_k,
):
    _check_block_sparse_attention(query, key, value, block_mask, query_segment, key_segment, block_q, block_k)
    batch, heads, q_len, _ = query.shape
    out = query.new_empty((batch, q_len, heads, value.shape[3])).transpose(1, 2)
    return out, query.new_empty((batch, heads, q_len), dtype=torch.float32)


@_fake("attention_mass")
def _attention_mass_fake(
    query, key, block_mask, key_segment, scale, q_offset, chunk_n, sample_rows, block_q, block_k
):
    _check_attention_mass(query, key, block_mask, key_segment, chunk_n, sample_rows, block_q, block_k)
    return query.new_empty(query.shape[:2], dtype=torch.float32)


@_fake("block_representatives")
def _block_representatives_fake(key, key_segment, block_k, landmarks):
    _check_block_representatives(key, key_segment, block_k, landmarks)
    batch, heads, k_len, head_dim = key.shape
    shape = (batch, heads, 1 + landmarks, ceil_div(k_len, block_k))
    floats = (key.new_empty(shape, dtype=torch.float32) for _ in range(2))
    return key.new_empty((*shape, head_dim)), *floats


@_fake("select_adaptive")
def _select_adaptive_fake(
    query,
    key,
    representatives,
    log_weights,
    spreads,
    key_segment,
    scale,
    q_offset,
    block_q,
    block_k,
    tau,
    keep_sink,
    window_slashes,
):
    _check_select_adaptive(
        query,
        key,
        representatives,
        log_weights,
        spreads,
        key_segment,
        block_q,
        block_k,
        tau,
        window_slashes,
    )
    batch, heads, q_len, _ = query.shape
    shape = (batch, heads, ceil_div(q_len, block_q), n_words(ceil_div(key.shape[2], block_k)))
    return query.new_empty(shape, dtype=torch.int32)


def _check_sample_scores(
    query: Tensor, key: Tensor, key_segment: Tensor | None, chunk_n: int, sample_rows: int, block_k: int
) -> None:
    op = "sample_scores"
    checks.check_qkv(op, query, key)
    checks.check_segment(op, "key_segment", key_segment, query.shape[0], key.shape[2], query)
    checks.check_at_least(op, 1, chunk_n=chunk_n, sample_rows=sample_rows)
    checks.check_block_size(op, block_k=block_k)


def _check_select_blocks(
    column_scores: Tensor,
    slash_scores: Tensor,
    key_segment: Tensor | None,
    q_len: int,
    k_len: int,
    block_q: int,
    block_k: int,
    alpha_c: float,
    alpha_s: float,
) -> None:
    op = "select_blocks"
    checks.check_block_size(op, block_q=block_q, block_k=block_k)
    checks.check_scores(op, column_scores, slash_scores, k_len, block_k)
    checks.check_segment(op, "key_segment", key_segment, column_scores.shape[0], k_len, column_scores)
    checks.check_at_least(op, 0, q_len=q_len, alpha_c=alpha_c, alpha_s=alpha_s)


def _check_mask_blocks(
    query: Tensor,
    key: Tensor,
    query_segment: Tensor | None,
    key_segment: Tensor | None,
    block_q: int,
    block_k: int,
) -> None:
    op = "mask_blocks"
    checks.check_qkv(op, query, key)
    checks.check_segment(op, "query_segment", query_segment, query.shape[0], query.shape[2], query)
    checks.check_segment(op, "key_segment", key_segment, query.shape[0], key.shape[2], query)
    checks.check_block_size(op, block_q=block_q, block_k=block_k)


def _check_block_sparse_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    block_mask: Tensor,
    query_segment: Tensor | None,
    key_segment: Tensor | None,
    block_q: int,
    block_k: int,
) -> None:
    op = "block_sparse_attention"
    checks.check_qkv(op, query, key, value)
    checks.check_block_size(op, block_q=block_q, block_k=block_k)
    checks.check_block_mask(op, block_mask, query, key.shape[2], block_q, block_k)
    checks.check_segment(op, "query_segment", query_segment, query.shape[0], query.shape[2], query)
    checks.check_segment(op, "key_segment", key_segment, query.shape[0], key.shape[2], query)


def _check_attention_mass(
    query: Tensor,
    key: Tensor,
    block_mask: Tensor,
    key_segment: Tensor | None,
    chunk_n: int,
    sample_rows: int,
    block_q: int,
    block_k: int,
) -> None:
    op = "attention_mass"
    checks.check_qkv(op, query, key)
    checks.check_block_size(op, block_q=block_q, block_k=block_k)
    checks.check_block_mask(op, block_mask, query, key.shape[2], block_q, block_k)
    checks.check_segment(op, "key_segment", key_segment, query.shape[0], key.shape[2], query)
    checks.check_at_least(op, 1, chunk_n=chunk_n, sample_rows=sample_rows)


def _check_block_representatives(
    key: Tensor, key_segment: Tensor | None, block_k: int, landmarks: int
) -> None:
    op = "block_representatives"
    checks.check_qkv(op, key, key)
    checks.check_block_size(op, block_k=block_k)
    checks.check_segment(op, "key_segment", key_segment, key.shape[0], key.shape[2], key)
    checks.check_at_least(op, 0, landmarks=landmarks)
    if landmarks > block_k:
        raise ValueError(f"{op}: 'landmarks' must be at most block_k ({block_k}), got {landmarks}")


def _check_select_adaptive(
    query: Tensor,
    key: Tensor,
    representatives: Tensor,
    log_weights: Tensor,
    spreads: Tensor,
    key_segment: Tensor | None,
    block_q: int,
    block_k: int,
    tau: float,
    window_slashes: int,
) -> None:
    op = "select_adaptive"
    checks.check_qkv(op, query, key)
    checks.check_block_size(op, block_q=block_q, block_k=block_k)
    checks.check_representatives(op, representatives, log_weights, spreads, key, block_k)
    checks.check_segment(op, "key_segment", key_segment, query.shape[0], key.shape[2], query)
    checks.check_at_least(op, 0, tau=tau)
    checks.check_at_least(op, 1, window_slashes=window_slashes)


def _no_backward(ctx: object, *grads: Tensor) -> None:
    raise NotImplementedError(
        "sampleattn.block_sparse_attention has no backward: it serves inference, run it under torch.no_grad()"
    )


for _name in _SCHEMAS:
    _module = eager if hasattr(eager, _name) else eager_adaptive
    implement(_name, "CompositeExplicitAutograd", getattr(_module, _name))
torch.library.register_autograd(f"{NAMESPACE}::block_sparse_attention", _no_backward, lib=_library)
_has_cpu_library = load_cpu_library()
cuda_library.register(implement)


def attention_kernel(
    device: torch.device, dtype: torch.dtype, head_dim: int, head_dim_v: int, block_q: int, block_k: int
) -> str:
    """What ``block_sparse_attention`` runs on such tensors: "cpp" on the CPU, or a key of ``choice.KERNELS``.

    "pytorch" is correct everywhere and faster than dense attention nowhere.
    """
    if device.type == "cuda":
        return cuda_library.attention_kernel(device, dtype, head_dim, head_dim_v, block_q, block_k)
    return "cpp" if device.type == "cpu" and _has_cpu_library else "pytorch"


# What a rewritten graph's nodes call.
sample_scores_op = torch.ops.sampleattn.sample_scores.default
select_blocks_op = torch.ops.sampleattn.select_blocks.default
mask_blocks_op = torch.ops.sampleattn.mask_blocks.default
block_sparse_attention_op = torch.ops.sampleattn.block_sparse_attention.default
attention_mass_op = torch.ops.sampleattn.attention_mass.default
block_representatives_op = torch.ops.sampleattn.block_representatives.default
select_adaptive_op = torch.ops.sampleattn.select_adaptive.default


def declare_to_inductor() -> None:
    """Tell Inductor, before it lowers a graph, that the ops read their inputs from memory.

    It learns this by itself when it meets an op for the first time, but then has already decided to compute
    the operands that several ops share (query and key) once for each of them.
    """
    from torch._inductor.lowering import add_needs_realized_inputs

    for name in _SCHEMAS:
        add_needs_realized_inputs(getattr(torch.ops.sampleattn, name).default)


def sample_scores(
    query: Tensor,
    key: Tensor,
    *,
    key_segment: Tensor | None = None,
    scale: float | None = None,
    q_offset: int = 0,
    chunk_n: int = 2,
    sample_rows: int = 128,
    block_k: int = 128,
) -> tuple[Tensor, Tensor]:
    """Attention of sampled rows, summed per key block and per block diagonal (arXiv 2406.15486v3, section 3).

    query [B, Hq, Sq, D], key [B, Hkv, Sk, D] in float32, bfloat16 or float16; ``scale`` None is 1/sqrt(D).
    Returns float32 ``column_scores`` and ``slash_scores`` [B, Hq, ceil(Sk / block_k)]: means over the sampled
    rows that can see the column or slash. Raises ValueError for arguments that do not fit.
    """
    _check_sample_scores(query, key, key_segment, chunk_n, sample_rows, block_k)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    return sample_scores_op(query, key, key_segment, scale, q_offset, chunk_n, sample_rows, block_k)


def select_blocks(
    column_scores: Tensor,
    slash_scores: Tensor,
    *,
    q_len: int,
    k_len: int,
    key_segment: Tensor | None = None,
    q_offset: int = 0,
    block_q: int = 128,
    block_k: int = 128,
    alpha_c: float = 0.9,
    alpha_s: float = 0.9,
    keep_sink: bool = True,
    window_slashes: int = 2,
) -> Tensor:
    """The fewest columns and slashes that reach alpha_c and alpha_s of their total, as a block_mask.

    Scores are float32 [B, Hq, n_key_blocks] from :func:`sample_scores`; returns int32 [B, Hq, n_query_blocks,
    n_words]. An alpha of 1 keeps every block that causality allows. Raises ValueError for arguments that do
    not fit.
    """
    _check_select_blocks(
        column_scores, slash_scores, key_segment, q_len, k_len, block_q, block_k, alpha_c, alpha_s
    )
    return select_blocks_op(
        column_scores,
        slash_scores,
        key_segment,
        q_len,
        k_len,
        q_offset,
        block_q,
        block_k,
        alpha_c,
        alpha_s,
        keep_sink,
        window_slashes,
    )


def mask_blocks(
    query: Tensor,
    key: Tensor,
    *,
    query_segment: Tensor | None = None,
    key_segment: Tensor | None = None,
    causal: bool = True,
    q_offset: int = 0,
    window: int = 0,
    block_q: int = 128,
    block_k: int = 128,
) -> Tensor:
    """The blocks that a mask leaves, as a block_mask int32 [B|1, 1, n_query_blocks, n_words].

    query and key give sizes and device only; ``window <= 0`` is none. With segments a superset may be kept,
    never less. Raises ValueError for arguments that do not fit.
    """
    _check_mask_blocks(query, key, query_segment, key_segment, block_q, block_k)
    return mask_blocks_op(query, key, query_segment, key_segment, causal, q_offset, window, block_q, block_k)


def block_sparse_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    block_mask: Tensor,
    *,
    query_segment: Tensor | None = None,
    key_segment: Tensor | None = None,
    scale: float | None = None,
    causal: bool = True,
    q_offset: int = 0,
    window: int = 0,
    block_q: int = 128,
    block_k: int = 128,
) -> tuple[Tensor, Tensor]:
    """Exact attention over the kept blocks of a block_mask.

    query [B, Hq, Sq, D], key [B, Hkv, Sk, D], value [B, Hkv, Sk, Dv] in float32, bfloat16 or float16;
    ``scale`` None is 1/sqrt(D). Returns ``out`` [B, Hq, Sq, Dv] in query's dtype (memory [B, Sq, Hq, Dv]) and
    float32 ``lse`` [B, Hq, Sq] in natural log; a row that keeps no key gives 0 and -inf. No backward. Raises
    ValueError for arguments that do not fit.
    """
    _check_block_sparse_attention(query, key, value, block_mask, query_segment, key_segment, block_q, block_k)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    return block_sparse_attention_op(
        query,
        key,
        value,
        block_mask,
        query_segment,
        key_segment,
        scale,
        causal,
        q_offset,
        window,
        block_q,
        block_k,
    )


def attention_mass(
    query: Tensor,
    key: Tensor,
    block_mask: Tensor,
    *,
    key_segment: Tensor | None = None,
    scale: float | None = None,
    q_offset: int = 0,
    chunk_n: int = 2,
    sample_rows: int = 128,
    block_q: int = 128,
    block_k: int = 128,
) -> Tensor:
    """Measured CRA: the smallest share of causal attention, over the sampled rows, that lies in kept blocks.

    Arguments as in :func:`sample_scores`, block_mask as in :func:`block_sparse_attention`; returns float32
    [B, Hq]. Source: arXiv 2406.15486, section 3 (CRA). Raises ValueError for arguments that do not fit.
    """
    _check_attention_mass(query, key, block_mask, key_segment, chunk_n, sample_rows, block_q, block_k)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    return attention_mass_op(
        query, key, block_mask, key_segment, scale, q_offset, chunk_n, sample_rows, block_q, block_k
    )


def block_representatives(
    key: Tensor, *, key_segment: Tensor | None = None, block_k: int = 128, landmarks: int = ADAPTIVE_LANDMARKS
) -> tuple[Tensor, Tensor, Tensor]:
    """Keys that stand for the key blocks: the mean of a block's keys, and its ``landmarks`` of largest norm.

    key is [B, Hkv, Sk, D] in float32, bfloat16 or float16. Returns ``representatives`` [B, Hkv, 1 +
    landmarks, n_key_blocks, D] in key's dtype, and float32 ``log_weights`` and ``spreads`` [B, Hkv, 1 +
    landmarks, n_key_blocks]: the logarithm of the number of keys that a representative stands for (the mean:
    the keys that are no landmarks; -inf: none), and the mean squared distance of these keys from it, per
    dimension. Source: docs/accuracy.md. Raises ValueError for arguments that do not fit.
    """
    _check_block_representatives(key, key_segment, block_k, landmarks)
    return block_representatives_op(key, key_segment, block_k, landmarks)


def select_adaptive(
    query: Tensor,
    key: Tensor,
    representatives: tuple[Tensor, Tensor, Tensor],
    *,
    key_segment: Tensor | None = None,
    scale: float | None = None,
    q_offset: int = 0,
    block_q: int = 128,
    block_k: int = 128,
    tau: float = ADAPTIVE_TAU,
    keep_sink: bool = True,
    window_slashes: int = 2,
) -> Tensor:
    """Per query block, the key blocks that its rows are estimated to look for, as a block_mask.

    query [B, Hq, Sq, D], key [B, Hkv, Sk, D]; ``representatives``: :func:`block_representatives` of key.
    A block is kept if the shares of attention that the rows give it reach ``tau`` in their 2-norm: one row
    that gives it tau, or many that give it less. The sink block and ``window_slashes`` >= 1 block
    diagonals are always kept and scored exactly, the others by their representatives. ``tau`` 0 keeps every
    block that causality allows. Returns int32 [B, Hq, n_query_blocks, n_words]. Source: docs/accuracy.md.
    Raises ValueError for arguments that do not fit.
    """
    rest = (block_q, block_k, tau, window_slashes)
    _check_select_adaptive(query, key, *representatives, key_segment, *rest)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    offset = (key_segment, scale, q_offset)
    return select_adaptive_op(
        query, key, *representatives, *offset, block_q, block_k, tau, keep_sink, window_slashes
    )
