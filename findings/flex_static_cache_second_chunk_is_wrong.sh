#!/usr/bin/env bash
# transformers 5.24.0, torch 2.13.0: a prompt in two chunks into a StaticCache, uncompiled. With SDPA the logits are those
# of the whole prompt; with attn_implementation="flex_attention" those of the second chunk are not.
# Output seen:
#   sdpa: first chunk 0.000, second chunk 0.000
#   flex_attention: first chunk 0.000, second chunk 0.036
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 transformers==5.24.0
cat > "$work/run.py" <<'PY'
import warnings

import torch
from transformers import LlamaConfig, LlamaForCausalLM, StaticCache

warnings.simplefilter("ignore")
shape = {"hidden_size": 64, "intermediate_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
config = LlamaConfig(vocab_size=64, num_hidden_layers=1, **shape)
ids = torch.randint(0, 64, (2, 256), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def logits(implementation, *chunks):
    config._attn_implementation = implementation
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval()
    cache = StaticCache(config=config, max_cache_len=256)
    return torch.cat([model(chunk, past_key_values=cache).logits for chunk in chunks], 1)


expected = logits("sdpa", ids)
found = {}
for implementation in ("sdpa", "flex_attention"):
    difference = (logits(implementation, ids[:, :128], ids[:, 128:]) - expected).abs()
    found[implementation] = (difference[:, :128].max().item(), difference[:, 128:].max().item())
    print("{}: first chunk {:.3f}, second chunk {:.3f}".format(implementation, *found[implementation]))
assert max(*found["sdpa"], found["flex_attention"][0]) < 1e-5 < 1e-3 < found["flex_attention"][1], found
PY
cd "$work"
"$work/venv/bin/python" run.py
