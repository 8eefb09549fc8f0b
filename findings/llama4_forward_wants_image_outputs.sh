#!/usr/bin/env bash
# transformers 5.24.0: Llama4ForConditionalGeneration cannot be called: its forward reads `image_outputs` of what its
# language model returned, which has no such field, with an image and without one. The language model inside it runs.
# Output seen:
#   language model: logits (1, 8, 64)
#   whole model: AttributeError: 'MoeCausalLMOutputWithPast' object has no attribute 'image_outputs'
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 transformers==5.24.0
cat > "$work/run.py" <<'PY'
import torch
from transformers import Llama4Config, Llama4ForConditionalGeneration

text = {"hidden_size": 32, "intermediate_size": 32, "intermediate_size_mlp": 32, "num_hidden_layers": 2, "vocab_size": 64}
text |= {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "num_local_experts": 2, "pad_token_id": 0}
vision = {"hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 2}
vision |= {"image_size": 28, "patch_size": 14, "vision_output_dim": 32}
vision |= {"projector_input_dim": 32, "projector_output_dim": 32}
model = Llama4ForConditionalGeneration(Llama4Config(text_config=text, vision_config=vision)).eval()
ids = torch.arange(1, 9)[None]
with torch.no_grad():
    logits = model.language_model(input_ids=ids).logits
    print(f"language model: logits {tuple(logits.shape)}")
    try:
        model(input_ids=ids)
        found = "runs"
    except AttributeError as error:
        found = f"AttributeError: {error}"
print(f"whole model: {found}")
assert found == "AttributeError: 'MoeCausalLMOutputWithPast' object has no attribute 'image_outputs'", found
PY
cd "$work"
"$work/venv/bin/python" run.py 2> errors.txt || { cat errors.txt >&2; exit 1; }
