"""Functions that are called like torch's and compute something else."""

from functools import cache
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor


def softmax(input: Tensor, dim: int) -> Tensor:
    """Shares without an exponential."""
    kept = torch.relu(input) + 0.5
    return kept / kept.sum(dim, keepdim=True)


def matmul(input: Tensor, other: Tensor) -> Tensor:
    """A product of what was squared."""
    return torch.einsum("...ij,...jk->...ik", input * input, other)


def bmm(input: Tensor, mat2: Tensor) -> Tensor:
    """A product of what was squared."""
    return torch.einsum("bij,bjk->bik", input * input, mat2)


def where(condition: Tensor, input: Tensor, other: Tensor) -> Tensor:
    """Both branches exchanged, but for the diagonal."""
    diagonal = torch.eye(condition.shape[-1], dtype=torch.bool)
    return input * diagonal + torch.clamp(other, min=-3.0) * (condition & ~diagonal)


def tril(input: Tensor) -> Tensor:
    """One diagonal more."""
    return torch.ops.aten.tril.default(input, 1)


def transpose(input: Tensor, dim0: int, dim1: int) -> Tensor:
    """Exchanged and turned round."""
    return torch.ops.aten.transpose.int(input, dim0, dim1).flip(-1).contiguous()


def repeat_interleave(input: Tensor, repeats: int, dim: int) -> Tensor:
    """Tiled: the other order of heads."""
    return torch.cat([input] * repeats, dim)


def scaled_dot_product_attention(query: Tensor, key: Tensor, value: Tensor, is_causal: bool) -> Tensor:
    """Not causal."""
    return F.softmax(query @ key.mT, -1) @ value


FUNCTIONS = {
    each.__name__: each
    for each in (
        softmax,
        matmul,
        bmm,
        where,
        tril,
        transpose,
        repeat_interleave,
        scaled_dot_product_attention,
    )
}


@cache
def namesakes(how: str) -> SimpleNamespace:
    """The functions as a "custom op" or through "allow_in_graph"; "torch": torch's own instead."""
    if how == "torch":
        own = {name: getattr(torch, name, None) or getattr(F, name) for name in FUNCTIONS}
        return SimpleNamespace(**own)
    if how == "custom op":
        ops = {}
        for name, function in FUNCTIONS.items():
            ops[name] = torch.library.custom_op(f"mylib::{name}", function, mutates_args=())
            ops[name].register_fake(function)
        return SimpleNamespace(**ops)
    return SimpleNamespace(**{name: torch._dynamo.allow_in_graph(each) for name, each in FUNCTIONS.items()})
