#!/usr/bin/env bash
# transformers 5.24.0, torch 2.13.0: a 4-D bool attention_mask is a mask for attn_implementation="sdpa". With "eager" its ones
# and zeros are added to the scores: nothing is masked, every position sees later ones, and nobody is told. The same mask
# as floats of 0 and the dtype's lowest number is right with both.
# Output seen:
#   bool mask: sdpa sees later tokens: False, eager sees later tokens: True, largest difference over 0.01: True
#   float mask: sdpa sees later tokens: False, eager sees later tokens: False, largest difference over 0.01: False
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 transformers==5.24.0
cat > "$work/run.py" <<'PY'
import warnings

import torch
from transformers import LlamaConfig, LlamaForCausalLM

sizes = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, vocab_size=128)
torch.manual_seed(0)
weights = LlamaForCausalLM(LlamaConfig(**sizes, initializer_range=0.2)).state_dict()
ids = torch.arange(48)[None]
changed = torch.cat((ids[:, :-1], ids[:, -1:] + 50), 1)
causal = torch.ones(1, 1, 48, 48, dtype=torch.bool).tril()
lowest = torch.zeros(causal.shape).masked_fill(~causal, torch.finfo(torch.float32).min)
found = {}
for name, mask in (("bool", causal), ("float", lowest)):
    logits, looks = {}, {}
    for how in ("sdpa", "eager"):
        model = LlamaForCausalLM(LlamaConfig(**sizes, attn_implementation=how)).eval()
        model.load_state_dict(weights)
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("error")
            logits[how] = model(ids, attention_mask=mask).logits
            other = model(changed, attention_mask=mask).logits
        looks[how] = not torch.allclose(logits[how][:, :-1], other[:, :-1], atol=1e-4)
    apart = bool((logits["sdpa"] - logits["eager"]).abs().max() > 0.01)
    found[name] = (looks["sdpa"], looks["eager"], apart)
    seen = ", ".join(f"{how} sees later tokens: {looks[how]}" for how in looks)
    print(f"{name} mask: {seen}, largest difference over 0.01: {apart}")
assert found == {"bool": (False, True, True), "float": (False, False, False)}
PY
cd "$work"
"$work/venv/bin/python" run.py
