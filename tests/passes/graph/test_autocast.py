"""Under torch.autocast the operands are what autocast would make of them, whatever the form."""

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from support.graphs import PassesBackend, compile_with_passes
from support.models import SHAPE
from torch.utils.checkpoint import checkpoint
from transformers import AutoConfig, AutoModelForCausalLM

LENGTH = 72
LAYERS = {"sliding_window": 24, "layer_types": ["sliding_attention", "full_attention"]}
MODELS = [
    pytest.param("llama", {}, 2, id="llama"),
    pytest.param("qwen3", {}, 2, id="qwen3"),
    pytest.param("gemma3_text", LAYERS, 1, id="gemma3"),
    pytest.param("mistral", {"sliding_window": None}, 2, id="mistral"),
]
PADDED = {"attention_mask": torch.arange(LENGTH).repeat(2, 1).ge(torch.tensor([[9], [0]])).long()}
BF16 = {"tolerance": 1e-2}


@pytest.mark.parametrize(
    ("dtype", "inputs"),
    [
        pytest.param(torch.bfloat16, {}, id="bf16"),
        pytest.param(torch.float16, PADDED, id="fp16-left-padded"),
    ],
)
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize(("model_type", "sizes", "sampled"), MODELS)
@torch.no_grad()
def test_models_are_sampled_as_precisely_as_without_us(
    model_type, sizes, sampled, implementation, inputs, dtype
):
    torch._dynamo.reset()
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **SHAPE, head_dim=16, **sizes)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=implementation).eval()
    backend = PassesBackend()
    ids = torch.randint(3, SHAPE["vocab_size"], (2, LENGTH), generator=torch.Generator().manual_seed(1))
    valid = inputs.get("attention_mask", torch.ones(2, LENGTH)).bool()
    exact = model(ids, **inputs).logits[valid]
    with torch.autocast("cpu", dtype):
        theirs = model(ids, **inputs).logits[valid]
        ours = torch.compile(model, backend=backend)(ids, **inputs).logits[valid]
    assert ours.dtype == theirs.dtype
    assert (ours - exact).norm() <= 1.1 * (theirs - exact).norm()
    assert [record.outcome for record in backend.records].count("sampled") == sampled
    assert {record.dtype for record in backend.records} == {str(dtype).removeprefix("torch.")}


def operands(*dtypes, kv_heads=2):
    torch.manual_seed(0)
    sizes = (4, kv_heads, kv_heads)
    return [torch.randn(1, heads, 64, 16, dtype=dtype) for heads, dtype in zip(sizes, dtypes, strict=True)]


MIXED = (torch.float32, torch.float32, torch.bfloat16)


def repeated(x):
    return x[:, :, None].expand(1, 2, 2, 64, 16).reshape(1, 4, 64, 16)


def rows_and_keys():
    return torch.arange(64)[:, None], torch.arange(64)[None]


def causal(q, k, v):
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)


def windowed(q, k, v):
    row, key = rows_and_keys()
    mask = (key <= row) & (key > row - 20)
    return F.scaled_dot_product_attention(q, repeated(k), repeated(v), attn_mask=mask)


def unmasked(q, k, v):
    return F.scaled_dot_product_attention(q, repeated(k), repeated(v))


def written_out(q, k, v):
    row, key = rows_and_keys()
    scores = q @ repeated(k).transpose(-1, -2) / 4 + torch.zeros(64, 64).masked_fill(key > row, -torch.inf)
    return scores.softmax(-1, dtype=torch.float32).to(q.dtype) @ repeated(v)


FORMS = [
    pytest.param(causal, {}, ("sampled", "sampled"), id="sampled"),
    pytest.param(causal, {"min_seq_len": 4096}, ("exact", "unchanged"), id="unchanged"),
    pytest.param(written_out, {}, ("sampled", "sampled"), id="written-out-sampled"),
    pytest.param(written_out, {"min_seq_len": 4096}, ("exact", "sdpa_causal"), id="written-out-exact"),
    pytest.param(unmasked, {}, ("exact", "sdpa_full"), id="sdpa_full"),
    pytest.param(windowed, {}, ("exact", "block_sparse"), id="block_sparse"),
]


@pytest.mark.parametrize("dtypes", [MIXED, (torch.float32,) * 3], ids=["mixed", "float32"])
@pytest.mark.parametrize("where", ["around", "inside"])
@pytest.mark.parametrize(("attention", "options", "outcome"), FORMS)
def test_every_form_casts_inside_and_around_a_region(attention, options, outcome, where, dtypes):
    def function(q, k, v):
        with torch.autocast("cpu", torch.bfloat16) if where == "inside" else nullcontext():
            return attention(q, k, v)

    with torch.autocast("cpu", torch.bfloat16) if where == "around" else nullcontext():
        backend = compile_with_passes(function, *operands(*dtypes), **BF16, **options)
    assert backend.outcomes == [outcome]
    if outcome[1] != "unchanged":
        (gm,) = backend.after
        assert {node.meta["example_value"].dtype for node in attention_operands(gm)} == {torch.bfloat16}


def attention_operands(gm):
    """Query, key and value of what computes the attention."""
    names = ("block_rest_attention", "block_sparse_attention", "scaled_dot_product_attention")
    (node,) = [n for n in gm.graph.nodes if any(name in str(n.target) for name in names)]
    return node.args[:3]


def test_what_autocast_leaves_alone_stays_in_its_dtype():
    def function(q, k, v):
        with torch.autocast("cpu", torch.bfloat16):
            with torch.autocast("cpu", enabled=False):
                off = causal(q, k, v)
            with torch.autocast("cpu", torch.float16):
                inner = causal(q, k, v)
            with torch.autocast("cpu"):
                outer = causal(q, k, v)
            double = causal(q.double(), k.double(), v.double())
        return off, inner, outer, double, causal(q, k, v)

    backend = compile_with_passes(function, *operands(*(torch.float32,) * 3), **BF16)
    expected = ["float32", "float16", "bfloat16", "float64", "float32"]
    assert [record.dtype for record in backend.records] == expected
    assert [record.outcome for record in backend.records] == ["sampled"] * 3 + ["kept", "sampled"]


@pytest.mark.filterwarnings("ignore:.*CUDA is not available")
def test_autocast_for_another_device_casts_nothing():
    def function(q, k, v):
        with torch.autocast("cuda", torch.bfloat16):
            return causal(q, k, v)

    backend = compile_with_passes(function, *operands(*(torch.float32,) * 3))
    assert backend.records[0].dtype == "float32"


@pytest.mark.parametrize("in_child", [False, True], ids=["graph", "child-graph"])
def test_a_float32_mask_is_cast_only_where_autocast_is_on(in_child):
    """finfo.min of float32 is -inf in bfloat16, so rows without keys become zero instead of a mean."""
    valid = torch.arange(64) >= 9  # rows 0 to 8 see no key

    def attention(q, k, v):
        row, key = rows_and_keys()
        allowed = (key <= row) & valid
        mask = torch.zeros(64, 64).masked_fill(~allowed, torch.finfo(torch.float32).min)
        return F.scaled_dot_product_attention(q, repeated(k), repeated(v), attn_mask=mask)

    def call(q, k, v):
        return checkpoint(attention, q, k, v, use_reentrant=False) if in_child else attention(q, k, v)

    def function(q, k, v):
        with torch.autocast("cpu", torch.bfloat16):
            inside = call(q, k, v)
        return inside, call(q, k, v)

    backend = compile_with_passes(function, *operands(*(torch.bfloat16,) * 3), **BF16)
    assert backend.outcomes == [("sampled", "sampled")] * 2
