"""Operations that are called like torch's and compute something else: none may be taken for torch's.

Each exists as a custom op (``torch.ops.fuzz.softmax``, and as its packet) and as a function of the same name
that Dynamo puts into the graph as it is (``in_graph.softmax``). The results are far from torch's, so that a
rewrite which trusts the name shows.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def softmax(x: Tensor, dim: int) -> Tensor:
    """Shares of the positive parts."""
    positive = torch.relu(x) + 0.01
    return positive / positive.sum(dim, keepdim=True)


def matmul(x: Tensor, other: Tensor) -> Tensor:
    """The sine of the product."""
    return torch.sin(torch.matmul(x, other)) + 0.5


def bmm(x: Tensor, mat2: Tensor) -> Tensor:
    """The sine of the product."""
    return torch.sin(torch.bmm(x, mat2)) + 0.5


def where(condition: Tensor, x: Tensor, other: Tensor) -> Tensor:
    """Chooses by the condition of the mirrored row."""
    return torch.where(condition.flip(-2), x, other)


def masked_fill(x: Tensor, mask: Tensor, value: float) -> Tensor:
    """Fills what the mirrored mask says."""
    return torch.masked_fill(x, mask.flip(-1).flip(-2), value)


def tril(x: Tensor, diagonal: int) -> Tensor:
    """Three diagonals more."""
    return torch.tril(x, diagonal + 3)


def triu(x: Tensor, diagonal: int) -> Tensor:
    """Three diagonals fewer."""
    return torch.triu(x, diagonal + 3)


def transpose(x: Tensor, dim0: int, dim1: int) -> Tensor:
    """Transposed, and shifted by one."""
    return torch.transpose(x, dim0, dim1).roll(1, -1).clone()


def repeat_interleave(x: Tensor, repeats: int, dim: int) -> Tensor:
    """Repeated in the order of ``Tensor.repeat``, and shifted."""
    return torch.cat([x.roll(1, dim)] * repeats, dim)


def le(x: Tensor, other: Tensor) -> Tensor:
    """Lower or equal, but for two more."""
    return torch.le(x, other + 2)


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """The attention of the negative query."""
    return F.scaled_dot_product_attention(
        -query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
    ).clone(memory_format=torch.contiguous_format)


FUNCTIONS: tuple[Callable[..., Any], ...] = (
    *(softmax, matmul, bmm, where, masked_fill, tril, triu, transpose, repeat_interleave, le),
    scaled_dot_product_attention,
)


def _custom(function: Callable[..., Any]) -> Any:
    op = torch.library.custom_op(f"fuzz::{function.__name__}", function, mutates_args=())
    op.register_fake(function)
    return op


custom_ops = [_custom(function) for function in FUNCTIONS]
in_graph = SimpleNamespace(
    **{function.__name__: torch.compiler.allow_in_graph(function) for function in FUNCTIONS}
)


class ByFunction(Tensor):
    """A tensor whose softmax, also inside a compiled function, is not torch's."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") == "softmax":
            dim = args[1] if len(args) > 1 else kwargs["dim"]
            positive = torch.relu(args[0]) + 0.01
            return positive / positive.sum(dim, keepdim=True)
        return super().__torch_function__(func, types, args, kwargs)


class ByDispatch(Tensor):
    """A wrapper around a tensor that computes every product of matrices with the opposite sign."""

    @staticmethod
    def __new__(cls, inner: Tensor) -> ByDispatch:
        return Tensor._make_wrapper_subclass(  # type: ignore[attr-defined, no-any-return]
            cls,
            inner.shape,
            strides=inner.stride(),
            dtype=inner.dtype,
            device=inner.device,
            storage_offset=inner.storage_offset(),
        )

    def __init__(self, inner: Tensor) -> None:
        self.inner = inner

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["inner"], None

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, Tensor], meta: Any, size: Any, stride: Any) -> ByDispatch:
        return ByDispatch(inner["inner"])

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tree = torch.utils._pytree
        plain_args, plain_kwargs = tree.tree_map_only(cls, lambda x: x.inner, (args, kwargs or {}))
        out = func(*plain_args, **plain_kwargs)
        if func in (torch.ops.aten.bmm.default, torch.ops.aten.mm.default):
            out = -out
        return tree.tree_map_only(Tensor, cls, out)
