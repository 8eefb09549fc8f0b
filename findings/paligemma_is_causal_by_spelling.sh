#!/usr/bin/env bash
# transformers 5.24.0: PaliGemma called without token_type_ids is bidirectional with SDPA and causal with eager attention: another last token
# changes what the first one predicts with one and not with the other, with a mask of ones or without. With token types of zeros (a prefix,
# which is bidirectional) both agree.
# Output seen:
#   input_ids alone       sdpa   the first token sees the last: True
#   input_ids alone       eager  the first token sees the last: False
#   mask of ones          sdpa   the first token sees the last: True
#   mask of ones          eager  the first token sees the last: False
#   token types of zeros  sdpa   the first token sees the last: True
#   token types of zeros  eager  the first token sees the last: True
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 transformers==5.24.0
cat > "$work/run.py" <<'PY'
import torch
from transformers import PaliGemmaConfig, PaliGemmaForConditionalGeneration

torch.manual_seed(0)
text = {"model_type": "gemma", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 16}
text |= {"num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 100, "pad_token_id": 0}
vision = {"model_type": "siglip_vision_model", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
vision |= {"num_attention_heads": 2, "image_size": 28, "patch_size": 14, "projection_dim": 32}
config = PaliGemmaConfig(text_config=text, vision_config=vision, image_token_id=99, projection_dim=32)
model = PaliGemmaForConditionalGeneration(config).eval()
ids = torch.arange(1, 21)[None]
changed = ids.clone()
changed[0, -1] = 50


def moved(attention, **given):
    """Does another last token change what the first one predicts?"""
    model.set_attn_implementation(attention)
    with torch.no_grad():
        first, second = (model(input_ids=x, **{k: v.clone() for k, v in given.items()}).logits[:, 0] for x in (ids, changed))
    return not torch.equal(first, second)


for name, given in (
    ("input_ids alone", {}),
    ("mask of ones", {"attention_mask": torch.ones_like(ids)}),
    ("token types of zeros", {"attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}),
):
    for attention in ("sdpa", "eager"):
        print(f"{name:21} {attention:6} the first token sees the last: {moved(attention, **given)}")
PY
cd "$work"
"$work/venv/bin/python" run.py 2> errors.txt | tee seen || { cat errors.txt >&2; exit 1; }
diff seen - <<'SEEN'
input_ids alone       sdpa   the first token sees the last: True
input_ids alone       eager  the first token sees the last: False
mask of ones          sdpa   the first token sees the last: True
mask of ones          eager  the first token sees the last: False
token types of zeros  sdpa   the first token sees the last: True
token types of zeros  eager  the first token sees the last: True
SEEN
