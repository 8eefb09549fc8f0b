"""The evaluation harness on a GPU: what it measures is what compiled models run, and it does not wait."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support import compiled_stats
from transformers import AutoModelForCausalLM, AutoTokenizer

from sa_compile.kernels import choice
from sa_compile.lab.eval.attention import sparse_prefill
from sa_compile.lab.eval.rules import RULES, parse_rule

MODEL = Path(__file__).parents[2] / "examples" / "model"
LENGTH = 2000  # ragged


@pytest.fixture(scope="module")
def model():
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.bfloat16).to("cuda").eval()


@pytest.fixture(scope="module")
def tokens():
    return torch.randint(2, 4000, (1, LENGTH), generator=torch.Generator().manual_seed(0)).cuda()


@pytest.mark.parametrize("kernels", [("cuda_sm90", "pytorch"), ("triton", "pytorch")], ids="-".join)
@pytest.mark.parametrize("spec, options, where", compiled_stats.CASES)
def test_compiled_stats_equal_the_harness(model, tokens, spec, options, where, kernels):
    """The graph as it was rewritten, run op by op: the same numbers come to the same kernels."""
    with choice.preferring(*kernels):
        harness, compiled = compiled_stats.measure(model, tokens, spec, options, where, 128, "eager")
    assert torch.equal(compiled[0], harness[0])
    torch.testing.assert_close(compiled[1], harness[1], rtol=0, atol=1e-5)
    torch.testing.assert_close(compiled[2], harness[2], rtol=0, atol=1e-4)
    assert harness[1].shape == (8, 8) and (harness[1] < 1).any()


@pytest.mark.parametrize("spec, options, where", compiled_stats.CASES)
def test_stats_behind_inductor_equal_the_harness_up_to_its_rounding(model, tokens, spec, options, where):
    """Inductor fuses what eager PyTorch rounds to bfloat16 in between: blocks at a threshold may differ."""
    harness, compiled = compiled_stats.measure(model, tokens, spec, options, where, 128, "inductor")
    assert (compiled[1] - harness[1]).abs().mean() < 0.01
    assert (compiled[2] - harness[2]).abs().mean() < 0.02


@pytest.mark.parametrize("kernels", [("cuda_sm90", "triton"), ("triton",), ("pytorch",)], ids="-".join)
@pytest.mark.parametrize("method", ["adaptive", "chunked"])
@torch.no_grad()
def test_a_prompt_padded_on_the_right_diverges_no_more_than_alone(model, method, kernels):
    """From full attention, over all of its rows and over the last of them."""
    torch._dynamo.reset()
    text = (MODEL.parents[1] / "docs" / "accuracy.md").read_text()
    ids = AutoTokenizer.from_pretrained(MODEL)(text, return_tensors="pt").input_ids[0].cuda()
    long, short = ids[:5000], ids[5000:7000]
    batch = torch.stack([torch.nn.functional.pad(short, (0, 3000)), long])
    mask = torch.ones_like(batch)
    mask[0, 2000:] = 0
    full = model(input_ids=short[None]).logits[0].float().log_softmax(-1)

    def divergence(logits):
        rows = (full.exp() * (full - logits.float().log_softmax(-1))).sum(-1)
        return torch.stack((rows.mean(), rows[-128:].mean()))

    with choice.preferring(*kernels):
        options = {"method": method, "min_seq_len": 1024, "inner": "eager"}
        compiled = torch.compile(model, backend="sampleattn", options=options)
        alone = divergence(compiled(input_ids=short[None]).logits[0])
        padded = divergence(compiled(input_ids=batch, attention_mask=mask).logits[0, :2000])
    assert (padded <= 1.2 * alone + 5e-4).all(), (padded, alone)


@pytest.mark.parametrize("spec", [*RULES, "xattention:tau=0.9+sink+w2"])
@torch.no_grad()
def test_a_prefill_does_not_wait_for_the_device(model, tokens, spec):
    with choice.preferring("cuda_sm90", "triton", "pytorch"):
        for mode in ("default", "error"):
            torch.cuda.synchronize()
            torch.cuda.set_sync_debug_mode(mode)
            try:
                with sparse_prefill(model, parse_rule(spec), cra_chunks=16, cra_rows=4) as run:
                    model(input_ids=tokens, use_cache=False, logits_to_keep=torch.arange(5, device="cuda"))
                densities = run.densities
            finally:
                torch.cuda.set_sync_debug_mode("default")
    assert len(densities) == 8 and all(layer.shape == (1, 8) for layer in densities)
