"""Parts of transformers' models as the benchmarks run them, the same in every way that is compared."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

NO_ATTENTION = "no_attention"
_RULE = "torch_chunk_gated_delta_rule"  # transformers' name, whatever runs behind it


def register_no_attention() -> None:
    """Make ``attn_implementation="no_attention"`` known: attention returns queries, no mask is made."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NO_ATTENTION, _queries)
    AttentionMaskInterface.register(NO_ATTENTION, _no_mask)


def _queries(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
    return query[..., : value.shape[-1]].transpose(1, 2).contiguous(), None


def _no_mask(*args: Any, **kwargs: Any) -> None:
    return None


@contextmanager
def block_mask_in_one_graph() -> Iterator[None]:
    """While it is on, transformers' Flex mask asks for no compiling of its own.

    Inside a compiled model that option does nothing but warn, and in torch 2.13 the warning breaks the graph
    there, layer for layer: FlexAttention would run uncompiled.
    """
    from transformers import masking_utils

    original = masking_utils.create_block_mask

    def create_block_mask(*args: Any, _compile: bool = False, **kwargs: Any) -> Any:
        return original(*args, **kwargs)

    with mock.patch.object(masking_utils, "create_block_mask", create_block_mask):
        yield


@contextmanager
def delta_rule_as_one_op(model: nn.Module) -> Iterator[bool]:
    """While it is on, flash-linear-attention's gated delta rule is one operator in the graphs of ``model``.

    The package keeps Dynamo out of it (``torch.compiler.disable``), which breaks the graph in every layer
    with one; as an operator it runs the same kernels. Yields whether there is any; without the package
    nothing changes.
    """
    with ExitStack() as stack:
        found = False
        for name in sorted({type(module).__module__ for module in model.modules()}):
            rule = getattr(sys.modules[name], _RULE, None)
            if rule is not None and "fla.ops.gated_delta_rule" in sys.modules:
                stack.enter_context(mock.patch.object(sys.modules[name], _RULE, _as_one_op(rule)))
                found = True
        yield found


@cache
def _as_one_op(rule: Any) -> Any:
    @torch.library.custom_op("sa_compile_bench::gated_delta_rule", mutates_args=())
    def op(
        query: Tensor, key: Tensor, value: Tensor, g: Tensor, beta: Tensor, norm: bool
    ) -> tuple[Tensor, Tensor]:
        out, state = rule(
            query, key, value, g=g, beta=beta, output_final_state=True, use_qk_l2norm_in_kernel=norm
        )
        return out, state

    @op.register_fake
    def _(
        query: Tensor, key: Tensor, value: Tensor, g: Tensor, beta: Tensor, norm: bool
    ) -> tuple[Tensor, Tensor]:
        state = (value.shape[0], value.shape[2], key.shape[3], value.shape[3])
        return query.new_empty(value.shape), query.new_empty(state, dtype=torch.float32)

    def wrapped(query: Tensor, key: Tensor, value: Tensor, *, g: Tensor, beta: Tensor, **more: Any) -> Any:
        if not more.get("output_final_state") or more.get("initial_state") is not None:
            raise ValueError("the benchmarks' gated delta rule begins a new cache; got none, or one begun")
        return op(query, key, value, g, beta, bool(more.get("use_qk_l2norm_in_kernel")))

    return wrapped
