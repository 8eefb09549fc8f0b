"""Which methods count attention sinks when they choose blocks, on tensors."""

from dataclasses import replace

import pytest
import torch
from support.attention_inputs import SELECTION, make_inputs

from sa_compile import prefill
from sa_compile.config import SampleAttentionConfig
from sa_compile.kernels.shared.blocks import popcount
from sa_compile.prefill import CausalAttention

BY_TAU = {"peak": 1.0, "landmarks": 15}
SMALL = {"block_q": 32, "block_k": 16, "min_seq_len": 1, "last_rows": 0, "window_blocks": 1}


def attention(sinks, q_stride=1):
    inputs = make_inputs(SELECTION)
    tensors = (2 * inputs.query, inputs.key, inputs.value)
    a = CausalAttention(*tensors, SELECTION.scale, sinks=sinks)
    if q_stride == 1:
        return a
    first_of_two = torch.arange(SELECTION.q_len) // 32 % q_stride == 0
    return replace(a, query=a.query[:, :, first_of_two], q_stride=q_stride)


def kept(options, sinks, q_stride=1):
    config = SampleAttentionConfig(**SMALL, **options)
    return prefill.keep(attention(sinks, q_stride), config).block_mask


@pytest.mark.parametrize("q_stride", [1, 2])
@pytest.mark.parametrize(
    "options",
    [
        pytest.param({**BY_TAU, "budget": 1.0, "tau": 0.5}, id="tau"),
        pytest.param({"peak": 0.1, "landmarks": 7, "budget": 1.0}, id="peak"),
        pytest.param({**BY_TAU, "tau": 1.0, "budget": 0.2, "budget_tau": 0.3, "rest": 0.0}, id="budget"),
        pytest.param({**BY_TAU, "tau": 1.0, "budget": 0.2, "budget_tau": 0.3, "rest": 0.5}, id="rest"),
    ],
)
def test_adaptive_keeps_less_beside_a_sink_that_takes_much(options, q_stride):
    options = {"method": "adaptive", **options}
    none = kept(options, None, q_stride)
    assert torch.equal(kept(options, torch.tensor([-torch.inf]), q_stride), none)
    some, most = (kept(options, torch.full((2,), sink), q_stride) for sink in (5.0, 60.0))
    counts = [int(popcount(mask).sum()) for mask in (none, some, most)]
    assert counts[0] > counts[1] > counts[2]


@pytest.mark.parametrize("method", ["chunked", "stride"])
def test_methods_that_keep_a_share_of_what_keys_get_look_at_no_sink(method):
    """Of that share a sink takes as much from what is kept as from what is not."""
    options = {"method": method, "alpha_c": 0.5}
    assert torch.equal(kept(options, torch.full((2,), 3.0)), kept(options, None))
