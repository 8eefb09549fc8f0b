"""Stand between a model and our ops while a benchmark runs: set the density, or take times.

The kernels stay what they are and so does the compiled code; what is replaced is the ops' entry in PyTorch's
dispatcher, for one device, until the ``with`` block ends.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sa_compile.kernels import ops
from sa_compile.kernels.shared import blocks

Kernel = Callable[..., Any]
TIMED = (
    *("sample_scores", "select_blocks", "block_representatives", "select_adaptive", "select_budget"),
    *("mask_blocks", "block_sparse_attention", "block_mean_attention"),
    *("select_peaks", "select_budget_rest", "block_rest_attention"),
)


@contextmanager
def replaced(device: str, wrappers: dict[str, Callable[[Kernel], Kernel]]) -> Iterator[None]:
    """While it lasts, op ``name`` runs ``wrappers[name](kernel)`` on ``device``, given the real kernel."""
    key = torch.device(device).type.upper()
    library = torch.library.Library(ops.NAMESPACE, "IMPL")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a kernel is replaced is the intention
            for name, wrap in wrappers.items():
                op = getattr(torch.ops.sampleattn, name).default
                _replace(library, name, key, torch.library.get_kernel(op, key), wrap)
        yield
    finally:
        library._destroy()


def _replace(library: Any, name: str, key: str, kernel: Any, wrap: Callable[[Kernel], Kernel]) -> None:
    def run(keyset: Any, *arguments: Any) -> Any:
        return wrap(lambda *a: kernel.call_boxed(keyset, *a))(*arguments)

    library.impl(name, run, key, with_keyset=True, allow_override=True)


def random_strips(
    density: float,
    heads: int,
    q_len: int,
    kv_len: int,
    q_offset: int,
    block_q: int,
    block_k: int,
    device: Any,
) -> Tensor:
    """block_mask [1, heads, n_query_blocks, words]: random columns and slashes, as selection makes them.

    Every head has strips of its own; the first column and the two main slashes are kept, and as many others
    as come nearest to ``density`` of the causal blocks. Always the same for the same arguments.
    """
    n_blocks = -(-kv_len // block_k)
    random = torch.Generator().manual_seed(q_len)
    order = torch.rand(2, heads, n_blocks, generator=random)
    order[0, :, 0] = order[1, :, :2] = -1.0
    order = order.to(device)

    def strips(share: float) -> Tensor:
        column, slash = order < share
        sizes = (q_len, kv_len, q_offset, block_q, block_k)
        # A head at a time: at 1M tokens the blocks of all heads as bytes would take gigabytes.
        return torch.stack(
            [blocks.bits_from_strips(c, s, *sizes) for c, s in zip(column, slash, strict=True)]
        )

    low, high = 0.0, 1.0
    for _ in range(12):
        middle = (low + high) / 2
        found = blocks.density(strips(middle), q_len, kv_len, q_offset, block_q, block_k).mean().item()
        low, high = (low, middle) if found > density else (middle, high)
    return strips(high if density >= 1.0 else low)[None]


class SetDensity:
    """Selection at a set density: the real selection runs, and random strips are attended instead.

    ``kept``: the density reached for each length, as a share of the causal blocks.
    """

    def __init__(self, density: float) -> None:
        self.density = density
        self.kept: dict[int, float] = {}
        self._masks: dict[Any, Tensor] = {}

    def wrapper(self, op: str) -> Callable[[Kernel], Kernel]:
        """For :func:`replaced`, of one of the ops that choose blocks."""

        def wrap(kernel: Kernel) -> Kernel:
            def strips(shape: Sequence[int], arguments: Sequence[Any]) -> Tensor:
                sizes, stride = _SIZES[op](*arguments), _stride(op, arguments)
                heads, device = shape[1], arguments[0].device
                key = (heads, *sizes, stride, device)
                if key not in self._masks:
                    self._masks[key] = self._strips(heads, sizes, stride, device)
                # A copy: compiled code may write over an op's output once nothing reads it any more.
                return self._masks[key].expand(shape).clone(memory_format=torch.contiguous_format)

            def select(*arguments: Any) -> Any:
                if op == "select_budget_rest":
                    # Beside the strips everything is left out, and counted as such.
                    names = _names(op)
                    given = dict(zip(names, arguments, strict=False))
                    mask = strips(given["block_mask"].shape, arguments)
                    found = kernel(*{**given, "block_mask": mask, "budget": 1.0, "tau": 1.0}.values())
                    return mask, *found[1:]
                selected = kernel(*arguments)
                return strips(selected.shape, arguments)

            return select

        return wrap

    def _strips(self, heads: int, sizes: Sizes, stride: int, device: Any) -> Tensor:
        """Those of the rows of a call; of query blocks that stand apart, their part of the whole prompt's."""
        q_len, kv_len, q_offset, block_q, block_k = sizes
        first = 0
        if stride != 1:
            first, q_len, q_offset = q_offset // block_q, kv_len, 0
        whole = (q_len, kv_len, q_offset, block_q, block_k)
        mask = random_strips(self.density, heads, *whole, device)
        self.kept[q_len] = blocks.density(mask, *whole).mean().item()
        return mask[:, :, first::stride]


Sizes = tuple[int, int, int, int, int]  # q_len, kv_len, q_offset, block_q, block_k


def _sizes_of_strips(*arguments: Any) -> Sizes:
    q_len, kv_len, q_offset, block_q, block_k = arguments[3:8]
    return int(q_len), int(kv_len), int(q_offset), int(block_q), int(block_k)


def _sizes_by_rows(query: Tensor, key: Tensor, *rest: Any) -> Sizes:
    return _sizes_behind(rest[5:8], query, key)


def _sizes_by_sample(query: Tensor, key: Tensor, *rest: Any) -> Sizes:
    return _sizes_behind(rest[2:5], query, key)


def _sizes_with_rest(query: Tensor, key: Tensor, *rest: Any) -> Sizes:
    return _sizes_behind(rest[4:7], query, key)


def _sizes_behind(sizes: Sequence[Any], query: Tensor, key: Tensor) -> Sizes:
    q_offset, block_q, block_k = sizes
    return int(query.shape[2]), int(key.shape[2]), int(q_offset), int(block_q), int(block_k)


# Op that chooses blocks -> how to read the sizes off its arguments.
_SIZES: dict[str, Callable[..., Sizes]] = {
    "select_blocks": _sizes_of_strips,
    "select_adaptive": _sizes_by_rows,
    "select_peaks": _sizes_by_rows,
    "select_budget": _sizes_by_sample,
    "select_budget_rest": _sizes_with_rest,
}


def _names(op: str) -> list[str]:
    """Those of an op's arguments."""
    return [argument.name for argument in getattr(torch.ops.sampleattn, op).default._schema.arguments]


def _stride(op: str, arguments: Sequence[Any]) -> int:
    """Of query blocks that stand apart: the last argument of ops that know them, left out where it is 1."""
    names = _names(op)
    place = names.index("q_stride") if "q_stride" in names else len(arguments)
    return int(arguments[place]) if place < len(arguments) else 1


@contextmanager
def density_set(device: str, density: float | None) -> Iterator[SetDensity | None]:
    """Attention at a set density while it lasts; None: what selection chooses."""
    if density is None:
        yield None
        return
    chosen = SetDensity(density)
    with replaced(device, {op: chosen.wrapper(op) for op in _SIZES}):
        yield chosen


@dataclass
class _Span:
    name: str
    begin: Any
    end: Any


class OpTimes:
    """Begin and end of every op call of one forward, without waiting for the device in between.

    Ops that an op calls itself are part of it and have no span.
    """

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)
        self.spans: list[_Span] = []
        self._inside = False

    def mark(self) -> Any:
        """A point in time: a CUDA event, or seconds on the CPU."""
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def wrapper(self, name: str) -> Callable[[Kernel], Kernel]:
        def wrap(kernel: Kernel) -> Kernel:
            def run(*arguments: Any) -> Any:
                if self._inside:
                    return kernel(*arguments)
                begin, self._inside = self.mark(), True
                try:
                    out = kernel(*arguments)
                finally:
                    self._inside = False
                self.spans.append(_Span(name, begin, self.mark()))
                return out

            return run

        return wrap

    def milliseconds(self, begin: Any, end: Any) -> float:
        """Time between two marks; the device must have reached them."""
        return begin.elapsed_time(end) if self.device.type == "cuda" else 1e3 * (end - begin)


@contextmanager
def op_times(device: str) -> Iterator[OpTimes]:
    """Take the time of every call of our ops while it lasts."""
    times = OpTimes(device)
    with replaced(device, {name: times.wrapper(name) for name in TIMED}):
        yield times
