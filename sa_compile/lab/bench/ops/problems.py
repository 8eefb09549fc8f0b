"""What a case runs: from sizes and a device to functions that take nothing, with the work that each does.

A problem kind is a function ``(shape, density, against, device) -> Problem``. Tensors live in the functions,
so dropping the problem frees them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import Tensor

from sa_compile.kernels import choice, ops
from sa_compile.kernels.defaults import ADAPTIVE_LANDMARKS, ADAPTIVE_PEAK, BUDGET, BUDGET_TAU
from sa_compile.kernels.shared import blocks
from sa_compile.lab.bench.ops import competitors, inputs
from sa_compile.lab.bench.ops.inputs import Shape

HEAD_DIMS = ((64, 64), (96, 96), (128, 128), (192, 192), (192, 128), (256, 256))
KERNELS = ("cuda_sm90", "triton")
SELECTION_HEAD_DIMS = (64, 96, 128, 192, 256, 512)
FEWER = 7
IN_TRITON = ", triton"  # behind the name of a step that another kernel takes, too
FEWER_LANDMARKS = f", {FEWER} landmarks"  # behind the names of method C's steps


@dataclass(frozen=True)
class Run:
    """``flops``: effective floating-point operations of one call, if TFLOP/s are wanted."""

    function: Callable[[], Any]
    flops: int | None = None


@dataclass(frozen=True)
class Problem:
    """``kept``: share of the causal blocks, mean of the heads. ``workspace``: the run whose memory counts."""

    runs: dict[str, Run]
    kept: float
    workspace: str | None = None


def random_lists(shape: Shape, density: float, against: tuple[str, ...], device: str) -> Problem:
    """Our kernel on random blocks, and FlexAttention ("flex") and dense SDPA ("cudnn", "fa2") beside it."""
    query, key, value = inputs.qkv(shape, device)
    kept = inputs.random_blocks(shape.heads, shape.length, density, device)
    mask = blocks.pack_bits(kept)
    runs = {"ours": _attention(query, key, value, mask, shape)}
    for name in against:
        if name == "flex":
            flops = runs["ours"].flops
            runs[name] = Run(competitors.flex_attention(query, key, value, kept), flops)
        else:
            runs[name] = _dense(name, query, key, value, shape)
    return Problem(runs, _share(mask, shape))


def selected_and_random(shape: Shape, density: float, against: tuple[str, ...], device: str) -> Problem:
    """Columns and slashes as selection makes them, and random blocks, as many in every row of every head."""
    query, key, value = inputs.qkv(shape, device)
    selected = inputs.selected_blocks(shape.heads, shape.length, density, device)
    kept = blocks.unpack_bits(selected, shape.length // inputs.BLOCK)
    scattered = blocks.pack_bits(inputs.blocks_as_many_as(kept, shape.length))
    runs = {
        name: _attention(query, key, value, mask, shape)
        for name, mask in (("selected", selected), ("random", scattered))
    }
    return Problem(runs, _share(selected, shape))


def key_blocks(shape: Shape, density: float, against: tuple[str, ...], device: str) -> Problem:
    """128-wide key blocks, the same elements as pairs of 64-wide ones, and as many 64-wide ones anywhere."""
    query, key, value = inputs.qkv(shape, device)
    kept = inputs.random_blocks(shape.heads, shape.length, density, device)
    scattered = inputs.blocks_as_many_as(kept, shape.length, block_k=64, blocks_each=2)
    wide, pairs, anywhere = map(blocks.pack_bits, (kept, kept.repeat_interleave(2, -1), scattered))
    runs = {
        "128": _attention(query, key, value, wide, shape),
        "64, in pairs": _attention(query, key, value, pairs, shape, block_k=64),
        "64, anywhere": _attention(query, key, value, anywhere, shape, block_k=64),
    }
    return Problem(runs, _share(wide, shape))


def head_dims(shape: Shape, density: float, against: tuple[str, ...], device: str) -> Problem:
    """The same random blocks for every head dim up to 256 that has a kernel; :func:`wide_heads` has 512."""
    mask = blocks.pack_bits(inputs.random_blocks(shape.heads, shape.length, density, device))
    runs = {}
    for head_dim, value_head_dim in HEAD_DIMS:
        own = replace(shape, head_dim=head_dim, value_head_dim=value_head_dim)
        name = str(head_dim) if head_dim == value_head_dim else f"{head_dim}/{value_head_dim}"
        runs[name] = _attention(*inputs.qkv(own, device), mask, own)
    return Problem(runs, _share(mask, shape))


def wide_heads(shape: Shape, density: float, against: tuple[str, ...], device: str) -> Problem:
    """Random blocks at head dims of 128 to 512, with as many columns of all heads: ``shape`` says of 128.

    512 once more in Triton, which every device without the CUDA library runs.
    """
    kept = inputs.random_blocks(shape.heads, shape.length, density, device)
    runs = {}
    for head_dim in (128, 256, 512):
        own = _with_head_dim(shape, head_dim)
        mask = blocks.pack_bits(kept[:, : own.heads])
        runs[str(head_dim)] = _attention(*inputs.qkv(own, device), mask, own)
    widest = runs["512"]
    runs[f"512{IN_TRITON}"] = Run(partial(_on, "triton", widest.function), widest.flops)
    return Problem(runs, _share(blocks.pack_bits(kept), shape))


def selection_head_dims(shape: Shape, density: float, against: tuple[str, ...], device: str) -> Problem:
    """The ops of the default's selection at head dims of 64 to 512, with as many columns of all heads."""
    runs: dict[str, Run] = {}
    for head_dim in SELECTION_HEAD_DIMS:
        query, key, _ = inputs.qkv(_with_head_dim(shape, head_dim), device)
        budget = partial(ops.select_budget, query, key, budget=BUDGET, tau=BUDGET_TAU)
        runs |= _selection(query, key, ADAPTIVE_LANDMARKS, f", {head_dim}")
        runs[f"select_budget, {head_dim}"] = Run(budget)
    return Problem(runs, 1.0)


def _with_head_dim(shape: Shape, head_dim: int) -> Shape:
    """As many columns in all, rounded down to whole groups of query heads."""
    group = shape.heads // shape.kv_heads
    kv_heads = max(shape.kv_heads * shape.head_dim // head_dim, 1)
    return replace(
        shape, head_dim=head_dim, value_head_dim=head_dim, heads=kv_heads * group, kv_heads=kv_heads
    )


def sampling(shape: Shape, density: float, against: tuple[str, ...], device: str) -> Problem:
    """Sampling and selection with default settings, each alone, beside attention over random blocks."""
    query, key, value = inputs.qkv(shape, device)
    _, scores = inputs.spread_scores(
        inputs.flat_scores(shape.heads, shape.length, device), shape.length, density
    )
    mask = blocks.pack_bits(inputs.random_blocks(shape.heads, shape.length, density, device))
    runs = {
        "sample_scores": Run(lambda: ops.sample_scores(query, key)),
        "select_blocks": Run(lambda: _select(*scores, shape.length)),
        "block_sparse_attention": _attention(query, key, value, mask, shape),
    }
    return Problem(runs, _share(mask, shape))


def adaptive(shape: Shape, density: float, against: tuple[str, ...], device: str) -> Problem:
    """Method C's selection, its three ops, with default settings and with fewer landmarks, beside attention
    over random blocks, with the rest of all other blocks and with their means. Of the random blocks alone
    ``select_budget_rest`` is given those, and finds all others to be left out.

    "whole" is the method with default settings: its three ops (of ``select_adaptive`` and ``select_peaks``
    the one that these settings call) and attention over the random blocks, since random keys have flat
    scores, of which nearly all blocks would be kept.
    """
    query, key, value = inputs.qkv(shape, device)
    mask = blocks.pack_bits(inputs.random_blocks(shape.heads, shape.length, density, device))
    selection = _selection(query, key, ADAPTIVE_LANDMARKS, "")
    none_but_these = partial(ops.select_budget_rest, query, key, value, mask, budget=1.0, tau=1.0)
    rest = none_but_these()[1:]
    selection["select_budget_rest"] = Run(none_but_these)
    attention = Run(lambda: ops.block_rest_attention(query, key, value, mask, *rest))

    unused = "select_adaptive" if ADAPTIVE_PEAK < 1 else "select_peaks"

    def whole() -> None:
        for run in (*(run for name, run in selection.items() if name != unused), attention):
            run.function()

    runs = {
        **selection,
        **_selection(query, key, FEWER, FEWER_LANDMARKS),
        "select_budget": Run(lambda: ops.select_budget(query, key, budget=BUDGET, tau=BUDGET_TAU)),
        "block_rest_attention": attention,
        "block_sparse_attention": _attention(query, key, value, mask, shape),
        "block_mean_attention": Run(lambda: ops.block_mean_attention(query, key, value, mask)),
        "whole": Run(whole),
    }
    runs |= {name: _dense(name, query, key, value, shape) for name in against}
    return Problem(runs, _share(mask, shape))


def _selection(query: Tensor, key: Tensor, landmarks: int, note: str) -> dict[str, Run]:
    representatives = ops.block_representatives(key, landmarks=landmarks)
    return {
        f"block_representatives{note}": Run(lambda: ops.block_representatives(key, landmarks=landmarks)),
        f"select_adaptive{note}": Run(lambda: ops.select_adaptive(query, key, representatives)),
        f"select_peaks{note}": Run(lambda: ops.select_peaks(query, key, representatives)),
    }


def whole_attention(shape: Shape, density: float, against: tuple[str, ...], device: str) -> Problem:
    """Sampling, selection and attention in sequence, and dense attention.

    Random keys have flat scores, of which nearly all would be kept: the sampled scores are multiplied by
    weights that make selection keep ``density``. All three ops do their full work.
    """
    query, key, value = inputs.qkv(shape, device)
    (column_weights, slash_weights), _ = inputs.spread_scores(
        ops.sample_scores(query, key), shape.length, density
    )

    def select() -> Tensor:
        columns, slashes = ops.sample_scores(query, key)
        return _select(columns * column_weights, slashes * slash_weights, shape.length)

    runs = {"whole": Run(lambda: ops.block_sparse_attention(query, key, value, select()))}
    runs |= {name: _dense(name, query, key, value, shape) for name in against}
    return Problem(runs, _share(select(), shape), workspace="whole")


def each_kernel(shape: Shape, density: float, against: tuple[str, ...], device: str) -> Problem:
    """The same random blocks on every kernel that this device can run."""
    query, key, value = inputs.qkv(shape, device)
    mask = blocks.pack_bits(inputs.random_blocks(shape.heads, shape.length, density, device))
    run = _attention(query, key, value, mask, shape)
    return Problem(
        {name: Run(partial(_on, name, run.function), run.flops) for name in KERNELS}, _share(mask, shape)
    )


def portable_attention(shape: Shape, density: float, against: tuple[str, ...], device: str) -> Problem:
    """Triton's kernel on random blocks, and FlexAttention ("flex") on the same."""
    query, key, value = inputs.qkv(shape, device)
    kept = inputs.random_blocks(shape.heads, shape.length, density, device)
    mask = blocks.pack_bits(kept)
    run = _attention(query, key, value, mask, shape)
    runs = {"triton": Run(partial(_on, "triton", run.function), run.flops)}
    runs |= {name: Run(competitors.flex_attention(query, key, value, kept), run.flops) for name in against}
    return Problem(runs, _share(mask, shape))


def portable_selection(shape: Shape, density: float, against: tuple[str, ...], device: str) -> Problem:
    """Method C's ops on landmarks with default settings, and in Triton; the share is of no block mask."""
    query, key, _ = inputs.qkv(shape, device)
    runs = _selection(query, key, ADAPTIVE_LANDMARKS, "")
    runs |= {f"{name}{IN_TRITON}": Run(partial(_on, "triton", run.function)) for name, run in runs.items()}
    return Problem(runs, 1.0)


def _on(kernel: str, function: Callable[[], Any]) -> Any:
    with choice.preferring(kernel):
        return function()


def _attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, shape: Shape, block_k: int = inputs.BLOCK
) -> Run:
    flops = inputs.attention_flops(inputs.kept_entries(mask, shape.length, block_k), shape)
    return Run(lambda: ops.block_sparse_attention(query, key, value, mask, block_k=block_k), flops)


def _dense(name: str, query: Tensor, key: Tensor, value: Tensor, shape: Shape) -> Run:
    flops = inputs.attention_flops(inputs.causal_entries(shape), shape)
    return Run(competitors.dense_attention(name, query, key, value), flops)


def _select(columns: Tensor, slashes: Tensor, length: int) -> Tensor:
    return ops.select_blocks(columns, slashes, q_len=length, kv_len=length)


def _share(mask: Tensor, shape: Shape) -> float:
    density = blocks.density(mask, shape.length, shape.length, 0, inputs.BLOCK, inputs.BLOCK)
    return density.mean().item()
