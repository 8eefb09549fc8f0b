"""Attributes that transpose, as torch 2.13 writes them into a graph (``getattr``) and as 2.14 does (ATen)."""

import builtins

import pytest
import torch
from support.graphs import PassesBackend

TOKENS, DIM = 24, 8
_ATEN = {
    "mT": torch.ops.aten.mT,
    "mH": torch.ops.aten.mH,
    "T": torch.ops.aten.numpy_T,
    "H": torch.ops.aten.matrix_H,
}


class AsCapturedBy(PassesBackend):
    """Rewrites attributes of the captured graph to one torch's spelling, then runs the passes."""

    def __init__(self, release):
        super().__init__({"min_seq_len": 2})
        self.release = release
        self.attributes = 0

    def __call__(self, gm, example_inputs):
        for node in gm.graph.nodes:
            if node.target is builtins.getattr and node.args[1] in _ATEN:
                name = node.args[1]
            elif node.target in _ATEN.values():
                name = next(name for name, packet in _ATEN.items() if packet is node.target)
            else:
                continue
            self.attributes += 1
            if self.release == "2.14":
                node.target, node.args = _ATEN[name], node.args[:1]
            else:
                node.target, node.args = builtins.getattr, (node.args[0], name)
        gm.recompile()
        return super().__call__(gm, example_inputs)


def pairs():
    return torch.ones(TOKENS, TOKENS, dtype=torch.bool)


def mt(q, k, v):
    return (q @ k.mT * 0.25).masked_fill(~pairs().tril(), -torch.inf).softmax(-1) @ v


def mh(q, k, v):
    return (q @ k.mH * 0.25).masked_fill(~pairs().tril(), -torch.inf).softmax(-1) @ v


def t_of_matrices(q, k, v):
    return (q[0, 0] @ k[0, 0].T * 0.25).masked_fill(~pairs().tril(), -torch.inf).softmax(-1) @ v[0, 0]


def h_of_matrices(q, k, v):
    return (q[0, 0] @ k[0, 0].H * 0.25).masked_fill(~pairs().tril(), -torch.inf).softmax(-1) @ v[0, 0]


def sdpa(q, k, v, mask):
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def mask_by_mt(q, k, v):
    return sdpa(q, k, v, pairs().triu().mT)


def mask_by_mh(q, k, v):
    return sdpa(q, k, v, pairs().triu()[None].mH)


def mask_by_t(q, k, v):
    return sdpa(q, k, v, pairs().triu().T)


def mask_by_h(q, k, v):
    return sdpa(q, k, v, pairs().triu().H)


@pytest.mark.parametrize("release", ["2.13", "2.14"])
@pytest.mark.parametrize(
    "function",
    [mt, mh, t_of_matrices, h_of_matrices, mask_by_mt, mask_by_mh, mask_by_t, mask_by_h],
    ids=lambda function: function.__name__,
)
def test_matchers_and_prover_read_both(function, release):
    torch._dynamo.reset()
    inputs = [torch.randn(1, 2, TOKENS, DIM) for _ in range(3)]
    backend = AsCapturedBy(release)
    with torch.no_grad():
        expected, actual = function(*inputs), torch.compile(function, backend=backend)(*inputs)
    torch.testing.assert_close(actual, expected)
    (record,) = backend.records
    assert (record.outcome, record.mask) == ("sampled", "causal") and backend.attributes == 1


@pytest.mark.parametrize("release", ["2.13", "2.14"])
def test_a_transposed_causal_mask_is_not_causal(release):
    torch._dynamo.reset()
    inputs = [torch.randn(1, 2, TOKENS, DIM) for _ in range(3)]
    backend = AsCapturedBy(release)

    def function(q, k, v):
        return sdpa(q, k, v, pairs().tril().mT)

    with torch.no_grad():
        expected, actual = function(*inputs), torch.compile(function, backend=backend)(*inputs)
    torch.testing.assert_close(actual, expected)
    assert [record.outcome for record in backend.records] == ["kept"]
