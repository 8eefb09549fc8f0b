"""The ops as PyTorch knows them: schemas, fakes, and which function computes them where.

Importing it defines the ops of the namespace ``sampleattn``, registers the PyTorch implementations
(``eager.py``) for every device and the kernels for CUDA, and loads the C++ library for the CPU. A call comes
as the schema's values and goes on as the op's record, ``Arguments``; the CUDA library's ops take the values.
"""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import choice
from .attention_mass import op as attention_mass
from .block_mean_attention import op as block_mean_attention
from .block_representatives import op as block_representatives
from .block_rest_attention import op as block_rest_attention
from .block_sparse_attention import op as block_sparse_attention
from .mask_blocks import op as mask_blocks
from .sample_scores import op as sample_scores
from .select_adaptive import op as select_adaptive
from .select_blocks import op as select_blocks
from .select_budget import op as select_budget
from .select_budget_rest import op as select_budget_rest
from .select_peaks import op as select_peaks
from .shared.record import schema

NAMESPACE = "sampleattn"
OPS: tuple[Any, ...] = (
    sample_scores,
    select_blocks,
    mask_blocks,
    block_sparse_attention,
    block_mean_attention,
    attention_mass,
    block_representatives,
    select_adaptive,
    select_budget,
    select_budget_rest,
    select_peaks,
    block_rest_attention,
)

SCHEMAS = {op.NAME: schema(op.Arguments, op.RETURNS) for op in OPS}

_library = torch.library.Library(NAMESPACE, "DEF")
for _name, _schema in SCHEMAS.items():
    # Implementations take any strides whose last dimension is contiguous, so the order of strides is all that
    # Inductor has to keep: views such as [B, S, H, D].transpose(1, 2) reach them uncopied.
    _library.define(_name + _schema, tags=(torch.Tag.needs_fixed_stride_order, torch.Tag.pt2_compliant_tag))


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


def refuse_backward(name: str, library: torch.library.Library) -> None:
    """Make the backward of the op ``name`` of our namespace an error that says so; ``library`` defines it."""

    def no_backward(ctx: object, *grads: Tensor) -> None:
        raise NotImplementedError(
            f"{NAMESPACE}.{name} has no backward: it serves inference, run it under torch.no_grad()"
        )

    torch.library.register_autograd(f"{NAMESPACE}::{name}", no_backward, lib=library)


def implementation(op: str, file: str) -> Callable:
    """The function that computes an op, of its record, in ``<op>/<file>.py``."""
    return getattr(importlib.import_module(f".{op}.{file}", __package__), op)


def on_cuda(op: Any) -> Callable:
    """An op on CUDA tensors, of its record: by the kernel that ``choice`` names for ``op.kernel``."""
    plain = implementation(op.NAME, "eager")

    def run(a: Any) -> Any:
        call = op.kernel(a)
        kernel = "pytorch" if call is None else choice.choose(call)
        if kernel == "pytorch":
            return plain(a)
        if kernel == "triton":
            return implementation(op.NAME, "triton")(a)
        return choice.library_op(kernel, op.NAME)(*a)

    return run


def _register(op: Any, dispatch_key: str, run: Callable) -> None:
    """Register ``run``, a function of the op's record, for a dispatch key such as "CUDA".

    Must run before a graph is captured. Under autocast, which knows none of the ops, it computes as without.
    """

    def without_autocast(*values: Any) -> Any:
        with torch._C._DisableAutocast():
            return run(op.Arguments(*values))

    _library.impl(op.NAME, without_autocast, dispatch_key)


def _register_fake(op: Any) -> None:
    def fake(*values: Any) -> Any:
        return op.fake(op.Arguments(*values))

    torch.library.register_fake(f"{NAMESPACE}::{op.NAME}", fake, lib=_library)


for _op in OPS:
    _register_fake(_op)
    _register(_op, "CompositeExplicitAutograd", implementation(_op.NAME, "eager"))
    if torch.version.cuda is not None and hasattr(_op, "kernel"):
        _register(_op, "CUDA", on_cuda(_op))
for _op in (block_sparse_attention, block_mean_attention, block_rest_attention):
    refuse_backward(_op.NAME, _library)
HAS_CPU_LIBRARY = load_cpu_library()
