#!/usr/bin/env bash
# transformers 5.24.0: an attention registered with AttentionInterface.register gets attention_mask=None, whatever mask
# the caller passed, unless a mask function is registered under the same name with AttentionMaskInterface. A function
# that only forwards to the library's own SDPA attention is then silently wrong for every padded batch, and equal
# without padding. No warning is given.
# Output seen:
#   mask that the function got: None
#   equal without padding: True, with padding: False
#   equal with padding once the mask function is registered: True
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 transformers==5.24.0
cat > "$work/run.py" <<'PY'
import torch
from transformers import AttentionInterface, AttentionMaskInterface, LlamaConfig, LlamaForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

masks = []


def forwarding(module, query, key, value, attention_mask, **kwargs):
    masks.append(attention_mask)
    return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)


def model(implementation):
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = LlamaConfig(num_hidden_layers=1, vocab_size=96, attn_implementation=implementation, **shape)
    return LlamaForCausalLM(config).eval()


AttentionInterface.register("forwarding", forwarding)
library, ours = model("sdpa"), model("forwarding")
ids = torch.randint(0, 96, (2, 12))
padding = torch.ones_like(ids)
padding[0, :5] = 0


@torch.no_grad()
def equal(**inputs):
    return torch.allclose(library(ids, **inputs).logits, ours(ids, **inputs).logits, atol=1e-4)


without, padded = equal(), equal(attention_mask=padding)
print("mask that the function got:", masks[-1])
print(f"equal without padding: {without}, with padding: {padded}")
assert (masks[-1] is None, without, padded) == (True, True, False)
AttentionMaskInterface.register("forwarding", sdpa_mask)
mended = equal(attention_mask=padding)
print("equal with padding once the mask function is registered:", mended)
assert mended == True
PY
cd "$work"
"$work/venv/bin/python" run.py
