#!/usr/bin/env bash
# torch 2.13.0, transformers 5.24.0: a Gemma 3 with a vision tower, given text only, compiles to plain causal attention
# (is_causal=True, no mask). Its processor always adds token_type_ids, all zero for text; with them, which change no
# logit, every layer's attention gets a 4-D mask of sequence length squared in the graph, because the values of token_type_ids
# are not known when compiling.
# Output seen:
#   without token_type_ids: [(True, 'no mask'), (True, 'no mask')]
#   with zeros:             [(False, 'mask'), (False, 'mask')]
#   largest difference of the logits: 0.0
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 transformers==5.24.0
cat > "$work/run.py" <<'PY'
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import Gemma3Config, Gemma3ForConditionalGeneration

torch.manual_seed(0)
text = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
text |= {"num_key_value_heads": 2, "head_dim": 16, "vocab_size": 96, "layer_types": ["full_attention"] * 2}
vision = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
vision |= {"image_size": 28, "patch_size": 14}
config = Gemma3Config(text_config=text, vision_config=vision, image_token_id=5, mm_tokens_per_image=4)
model = Gemma3ForConditionalGeneration(config).eval()
ids = torch.randint(10, 96, (1, 24))


def attention(**inputs):
    torch._dynamo.reset()
    calls = []

    def keep(gm, example_inputs):
        calls.extend(node.kwargs for node in gm.graph.nodes if node.target is scaled_dot_product_attention)
        return gm.forward

    with torch.no_grad():
        logits = torch.compile(model, backend=keep)(input_ids=ids, **inputs).logits
    return logits, [(c["is_causal"], "no mask" if c["attn_mask"] is None else "mask") for c in calls]


plain, without = attention()
zeros, with_zeros = attention(token_type_ids=torch.zeros_like(ids))
difference = float((plain - zeros).abs().max())
print("without token_type_ids:", without)
print("with zeros:            ", with_zeros)
print("largest difference of the logits:", difference)
assert without == [(True, "no mask")] * 2, without
assert with_zeros == [(False, "mask")] * 2, with_zeros
assert difference < 1e-5
PY
cd "$work"
"$work/venv/bin/python" run.py
