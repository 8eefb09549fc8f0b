"""Find attention that one call hides: a row for the report, and nothing to rewrite.

``nn.MultiheadAttention`` and the encoder layer's fast path, ``varlen_attn``, kernels of
SDPA called by name, and custom ops: the graph does not hold what they compute::

    %mha = torch.nn.functional.multi_head_attention_forward(%q, %k, %v, 512, 8, ...)
    %output = operator.getitem(%mha, 0)

becomes ``AttentionSite(output=%output, obstacle="nn.MultiheadAttention: ...")``.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import fx
from torch._ops import HigherOrderOperator

from ..graph.nodes import is_tensor, module_path, rank, value
from ..graph.operations import called, calls, is_torchs, label, operation, qualified_name
from ..graph.scan import GraphScan
from ..site import AttentionSite

_MHA = "nn.MultiheadAttention: projections and attention are one call"
_ONE_CALL = {
    "multi_head_attention_forward": _MHA,
    "_native_multi_head_attention": _MHA,
    "_transformer_encoder_layer_fwd": "nn.TransformerEncoderLayer's fast path: the layer is one call",
}
_KERNEL = re.compile(r"_(scaled_dot_product_.*|flash_|efficient_|cudnn_|triton_.*)attention(_forward)?(_.+)?")
_VARLEN = ("torch_attn::_varlen_attn", "torch_attn::_varlen_attn_out")
_OURS = "sampleattn::"


def find(scan: GraphScan) -> list[AttentionSite]:
    """Every such call of this graph, in order; child graph modules are not entered."""
    sites = []
    for node in scan.captured:
        if node.op not in ("call_function", "call_method"):
            continue
        reason = _reason(node)
        result = _result(node) if reason is not None else None
        if reason is not None and result is not None:
            sites.append(_site(node, result, reason))
    return sites


def _reason(node: fx.Node) -> str | None:
    """Why this call, which computes attention, can not be rewritten; None for other nodes."""
    known = called(node)
    if known == "scaled_dot_product_attention":
        return None if operation(node) else f"SDPA on tensors of a class of its own: {_classes(node)}"
    if known in _ONE_CALL:
        return _ONE_CALL[known]
    if _KERNEL.fullmatch(known) and not known.endswith("_backward"):
        return f"{known} is one kernel of SDPA, called by its name"
    if qualified_name(node.target) in _VARLEN:
        return "varlen_attn: packed sequences, whose ends are data"
    if _is_foreign_attention(node):
        return f"{label(node)} is not torch's: what it computes is not in the graph"
    return None


def _is_foreign_attention(node: fx.Node) -> bool:
    """Someone else's function on query, key and value whose name says that it is attention."""
    if node.op != "call_function" or isinstance(node.target, HigherOrderOperator) or is_torchs(node.target):
        return False
    named = label(node)
    if named.startswith(_OURS) or not re.search("attention|attn", named.lower()):
        return False
    return len(_operands(node)) >= 3


def _operands(node: fx.Node) -> list[fx.Node]:
    """Arguments that may be query, key and value."""
    arguments: tuple[Any, ...] = (*node.args, *node.kwargs.values())
    tensors = filter(is_tensor, arguments)
    return [tensor for tensor in tensors if value(tensor).dtype.is_floating_point and rank(tensor) >= 3]


def _result(node: fx.Node) -> fx.Node | None:
    """The attention's result: the call itself, or the first tensor that is taken from it."""
    if is_tensor(node):
        return node
    items = [reader for reader in node.users if calls(reader, "getitem") and is_tensor(reader)]
    return min(items, key=lambda item: (item.args[1] != 0, item), default=None)


def _site(node: fx.Node, result: fx.Node, reason: str) -> AttentionSite:
    operands = _operands(node) or [result]
    query, key, value_ = (operands[min(position, len(operands) - 1)] for position in range(3))
    return AttentionSite(
        spelling=label(node).strip("_"),
        output=result,
        query=query,
        key=key,
        value=value_,
        mask=None,
        is_causal=False,
        scale=None,
        dropout_p=0.0,
        covered=(),
        module_path=module_path(node),
        obstacle=reason,
    )


def _classes(node: fx.Node) -> str:
    held = map(value, node.all_input_nodes)
    names = {type(x).__name__ for x in held if isinstance(x, torch.Tensor)} - {"Tensor", "FakeTensor"}
    return ", ".join(sorted(names))
