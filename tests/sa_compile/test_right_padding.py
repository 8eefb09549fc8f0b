"""A short prompt in a batch that is padded on the right is answered as it is alone."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "examples" / "model"
LONG, SHORT = 640, 300
OPTIONS = {"min_seq_len": 256, "inner": "eager", "block_q": 32, "block_k": 32}
METHODS = {
    "adaptive": {
        **{"peak": 1.0, "tau": 0.3, "landmarks": 7, "last_rows": 64},
        **{"budget": 1.0, "means": True},
    },
    "budget": {
        **{"peak": 1.0, "tau": 1.0, "landmarks": 7, "last_rows": 64},
        **{"budget": 0.05, "budget_tau": 0.3},
    },
    "peaks": {"peak": 0.2, "landmarks": 7, "last_rows": 64, "budget": 0.05, "budget_tau": 0.3},
    "chunked": {"alpha_c": 0.8, "alpha_s": 0.8, "sample_rows": 32, "last_rows": 64},
}


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32, num_hidden_layers=4).eval()


@pytest.fixture(scope="module")
def tokens():
    text = (ROOT / "docs" / "kernels.md").read_text()
    return AutoTokenizer.from_pretrained(MODEL)(text, return_tensors="pt").input_ids[0, : LONG + SHORT]


@pytest.mark.parametrize("method", METHODS)
@torch.no_grad()
def test_a_padded_prompts_divergence_is_that_of_the_prompt_alone(method, model, tokens):
    torch._dynamo.reset()
    kind = "chunked" if method == "chunked" else "adaptive"
    compiled = torch.compile(
        model, backend="sampleattn", options={**OPTIONS, "method": kind, **METHODS[method]}
    )
    long, short = tokens[:LONG], tokens[LONG:]
    batch = torch.stack([torch.nn.functional.pad(short, (0, LONG - SHORT)), long])
    mask = torch.ones_like(batch)
    mask[0, SHORT:] = 0
    full = model(input_ids=short[None]).logits[0].log_softmax(-1)

    def divergence(logits):
        return (full.exp() * (full - logits.log_softmax(-1))).sum(-1)

    alone = compiled(input_ids=short[None]).logits[0]
    padded = compiled(input_ids=batch, attention_mask=mask).logits[0, :SHORT]
    assert divergence(alone).mean() > 1e-5, "nothing was left out"
    torch.testing.assert_close(divergence(padded), divergence(alone), rtol=1e-2, atol=1e-4)
