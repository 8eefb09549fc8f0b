"""Which kernel computes an op on CUDA tensors: one table, read in an order of preference.

A kernel fits by op, device, dtype, head dims and block sizes alone, so that a report can name it without
running anything. The order is the environment variable ``SAMPLEATTN_CUDA_KERNELS`` (names separated by
commas) or, inside a ``with preferring(...)`` block, its arguments.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

ENVIRONMENT = "SAMPLEATTN_CUDA_KERNELS"
DEFAULT = ("cuda_sm90", "triton", "pytorch")  # without triton where that is not installed
# Head dims (of query and key, of value) that the CUDA library is compiled for.
CUDA_HEAD_DIMS = ((64, 64), (96, 96), (128, 128), (192, 128), (192, 192), (256, 256), (512, 512))
# Of ``block_representatives``, ``select_adaptive`` and ``select_peaks``, which have no values: both times
# that of queries and keys; and the representatives of a key block, the mean included.
CUDA_ADAPTIVE_HEAD_DIMS = ((64, 64), (96, 96), (128, 128), (192, 192), (256, 256))
CUDA_ADAPTIVE_REPRESENTATIVES = (8, 16)
# Of ``select_budget``, likewise.
CUDA_BUDGET_HEAD_DIMS = ((64, 64), (96, 96), (128, 128), (192, 192), (256, 256))
# Of the ops that know what is left out: those of attention but for the widest.
CUDA_REST_HEAD_DIMS = CUDA_HEAD_DIMS[:-1]
# Of ``block_mean_attention`` in one kernel, for what the selection before it takes.
CUDA_MEAN_HEAD_DIMS = ((64, 64), (128, 128))

_HALF = (torch.bfloat16, torch.float16)
_ATTENTION = ("block_sparse_attention",)
_SELECTION = (
    *("sample_scores", "select_blocks", "block_representatives", "select_adaptive"),
    *("select_peaks", "select_budget", "select_budget_rest"),
)
_ALL = (*_SELECTION, *_ATTENTION, "block_mean_attention", "block_rest_attention")
Capability = tuple[int, int]
HOPPER: Capability = (9, 0)


@dataclass(frozen=True)
class Call:
    """What a kernel is chosen by; None where it does not matter to the op."""

    op: str
    device: torch.device
    dtype: torch.dtype | None = None
    head_dims: tuple[int, int] | None = None
    block_q: int | None = None
    block_k: int | None = None
    representatives: int | None = None  # of a key block, the mean included


@dataclass(frozen=True)
class Kernel:
    """A row of the table; None: anything."""

    ops: tuple[str, ...]
    dtypes: tuple[torch.dtype, ...] | None = None
    head_dims: tuple[tuple[int, int], ...] | None = None
    block_q: tuple[int, ...] | None = None
    block_k: tuple[int, ...] | None = None
    representatives: tuple[int, ...] | None = None
    capability: Capability | None = None
    library_op: str | None = None  # the op of the CUDA library, which may not be installed

    def takes(self, call: Call) -> bool:
        """Is it made for such a call, wherever it runs?"""
        return (
            call.op in self.ops
            and _allowed(call.dtype, self.dtypes)
            and _allowed(call.head_dims, self.head_dims)
            and _allowed(call.block_q, self.block_q)
            and _allowed(call.block_k, self.block_k)
            and _allowed(call.representatives, self.representatives)
        )

    def fits(self, call: Call) -> bool:
        """Can it compute the call, on this machine, as installed?"""
        return (
            self.takes(call)
            and (self.library_op is None or has_library_op(self.library_op))
            and (self.capability is None or self.capability == _capability(call.device))
        )


KERNELS: dict[str, tuple[Kernel, ...]] = {
    # The CUDA library is for Hopper alone: its instructions exist on no other generation.
    "cuda_sm90": (
        Kernel(
            _ATTENTION,
            _HALF,
            CUDA_HEAD_DIMS,
            block_q=(128,),
            block_k=(64, 128),
            capability=HOPPER,
            library_op="block_sparse_attention_sm90",
        ),
        Kernel(
            ("block_representatives",),
            _HALF,
            CUDA_ADAPTIVE_HEAD_DIMS,
            block_k=(128,),
            representatives=CUDA_ADAPTIVE_REPRESENTATIVES,
            capability=HOPPER,
            library_op="block_representatives_cuda",
        ),
        Kernel(
            ("select_adaptive",),
            _HALF,
            CUDA_ADAPTIVE_HEAD_DIMS,
            block_q=(128,),
            block_k=(128,),
            representatives=CUDA_ADAPTIVE_REPRESENTATIVES,
            capability=HOPPER,
            library_op="select_adaptive_sm90",
        ),
        Kernel(
            ("select_peaks",),
            _HALF,
            CUDA_ADAPTIVE_HEAD_DIMS,
            block_q=(128,),
            block_k=(128,),
            representatives=CUDA_ADAPTIVE_REPRESENTATIVES,
            capability=HOPPER,
            library_op="select_peaks_sm90",
        ),
        Kernel(
            ("select_budget",),
            _HALF,
            CUDA_BUDGET_HEAD_DIMS,
            block_q=(128,),
            block_k=(128,),
            capability=HOPPER,
            library_op="select_budget_sm90",
        ),
        Kernel(
            ("select_budget_rest",),
            _HALF,
            CUDA_REST_HEAD_DIMS,
            block_q=(128,),
            block_k=(128,),
            capability=HOPPER,
            library_op="select_budget_rest_sm90",
        ),
        Kernel(
            ("block_mean_attention",),
            _HALF,
            CUDA_MEAN_HEAD_DIMS,
            block_q=(128,),
            block_k=(128,),
            capability=HOPPER,
            library_op="block_mean_attention_sm90",
        ),
        Kernel(
            ("block_rest_attention",),
            _HALF,
            CUDA_REST_HEAD_DIMS,
            block_q=(128,),
            block_k=(64, 128),
            capability=HOPPER,
            library_op="block_rest_attention_sm90",
        ),
    ),
    # Every other generation's. Tiles of float32 spill or do not fit into shared memory: PyTorch is faster.
    "triton": (Kernel(_ALL, _HALF),),
    # Correct everywhere, faster than dense attention nowhere.
    "pytorch": (Kernel(_ALL),),
}


def fits(name: str, call: Call) -> bool:
    """Can this kernel compute the call, on this machine, as installed?"""
    return any(kernel.fits(call) for kernel in KERNELS[name])


def on_hopper(call: Call) -> str:
    """The kernel that :func:`choose` takes on a Hopper GPU with everything installed; asked without one."""
    return next(name for name in DEFAULT if any(kernel.takes(call) for kernel in KERNELS[name]))


def library_op(name: str, op: str) -> Callable:
    """The CUDA library's function behind an op of a kernel that has one there."""
    names = [str(kernel.library_op) for kernel in KERNELS[name] if op in kernel.ops]
    return getattr(torch.ops.sampleattn_cuda, names[0]).default


def choose(call: Call) -> str:
    """The first kernel in the order of preference that fits; ValueError if none does."""
    return _first_fitting(call, preference())


@lru_cache(maxsize=1024)
def _first_fitting(call: Call, names: tuple[str, ...]) -> str:
    for name in names:
        if fits(name, call):
            return name
    raise ValueError(
        f"{call.op}: none of the kernels asked for ({', '.join(names)}) takes {call.dtype}, head dims "
        f"{call.head_dims}, block_q {call.block_q}, block_k {call.block_k}"
        + (f" and {call.representatives} representatives" if call.representatives is not None else "")
        + f" on {call.device}; "
        f"add 'pytorch', which takes everything, to {ENVIRONMENT}"
    )


_preferred: ContextVar[tuple[str, ...] | None] = ContextVar("sampleattn_cuda_kernels", default=None)


def preference() -> tuple[str, ...]:
    """Names of the kernels that may be used, most preferred first."""
    return _preferred.get() or _from_environment()


@contextmanager
def preferring(*names: str) -> Iterator[None]:
    """Use these kernels, in this order, in the ``with`` block; ValueError for a name that is none."""
    token = _preferred.set(_checked(names, "preferring"))
    try:
        yield
    finally:
        _preferred.reset(token)


@lru_cache(maxsize=1)
def _from_environment() -> tuple[str, ...]:
    text = os.environ.get(ENVIRONMENT)
    if text is not None:
        return _checked(tuple(text.split(",")), ENVIRONMENT)
    return tuple(name for name in DEFAULT if name != "triton" or _has_triton())


def _checked(names: tuple[str, ...], source: str) -> tuple[str, ...]:
    unknown = [name for name in names if name not in KERNELS]
    if unknown or not names:
        raise ValueError(f"{source} must name kernels out of {', '.join(KERNELS)}, got {unknown or 'none'}")
    if "triton" in names and not _has_triton():
        raise ImportError(f"{source} names triton, but the package triton is not installed")
    return names


def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


@lru_cache(maxsize=1)
def load_library() -> bool:
    """Load the CUDA library (ops of the namespace ``sampleattn_cuda``); False if it is not installed."""
    spec = importlib.util.find_spec(f"{__package__}._C_cuda")
    if torch.version.cuda is None or spec is None or spec.origin is None:
        return False
    torch.ops.load_library(spec.origin)
    return True


def has_library_op(name: str) -> bool:
    """Was the CUDA library built with this kernel?"""
    return load_library() and hasattr(torch.ops.sampleattn_cuda, name)


@lru_cache
def _capability(device: torch.device) -> Capability:
    return torch.cuda.get_device_capability(device)


@lru_cache
def shared_memory(device: torch.device) -> int:
    """Bytes that a thread block can have."""
    properties: Any = torch.cuda.get_device_properties(device)  # torch's stub lacks the field
    return properties.shared_memory_per_block_optin


def _allowed(value: object, allowed: tuple | None) -> bool:
    return allowed is None or value is None or value in allowed
