#!/usr/bin/env bash
# torch 2.13.0, transformers 5.24.0: a compiled model with flex_attention that makes its own DynamicCache (use_cache=True, nothing passed)
# is not one graph: Dynamo meets an AttributeError on an attribute that the cache's layer has just been given. With SDPA, or
# with a new cache passed in, it is one graph. create_block_mask's option _compile, whose warning breaks the graph before
# (flex_mask_warning_breaks_the_graph.sh), is taken out here.
# Output seen:
#   llama sdpa, made inside              one graph
#   llama flex_attention, made inside    'DynamicLayer' object has no attribute 'device'
#   llama flex_attention, passed in      one graph
#   mistral sdpa, made inside            one graph
#   mistral flex_attention, made inside  'DynamicSlidingWindowLayer' object has no attribute 'device'
#   mistral flex_attention, passed in    one graph
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 transformers==5.24.0
cat > "$work/run.py" <<'PY'
import re
from unittest import mock

import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM, masking_utils

shape = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
shape |= {"num_hidden_layers": 2, "vocab_size": 96}
MODELS = {
    "llama": LlamaForCausalLM(LlamaConfig(**shape)),
    "mistral": MistralForCausalLM(MistralConfig(sliding_window=32, **shape)),
}
ids = torch.randint(0, 96, (1, 128))
original = masking_utils.create_block_mask


def without(*args, _compile, **kwargs):
    return original(*args, **kwargs)


for name, model in MODELS.items():
    for attention, place in (("sdpa", "made inside"), ("flex_attention", "made inside"), ("flex_attention", "passed in")):
        torch._dynamo.reset()
        model.eval().set_attn_implementation(attention)
        cache = DynamicCache(config=model.config) if place == "passed in" else None
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        try:
            with torch.no_grad(), mock.patch.object(masking_utils, "create_block_mask", without):
                compiled(ids, past_key_values=cache, use_cache=True)
            found = "one graph"
        except torch._dynamo.exc.Unsupported as error:
            found = re.search(r"""AttributeError\("(.*)"\)""", str(error))[1]
        print(f"{name + ' ' + attention + ', ' + place:36} {found}")
PY
cd "$work"
"$work/venv/bin/python" run.py 2> errors.txt | tee seen || { cat errors.txt >&2; exit 1; }
diff seen - <<'SEEN'
llama sdpa, made inside              one graph
llama flex_attention, made inside    'DynamicLayer' object has no attribute 'device'
llama flex_attention, passed in      one graph
mistral sdpa, made inside            one graph
mistral flex_attention, made inside  'DynamicSlidingWindowLayer' object has no attribute 'device'
mistral flex_attention, passed in    one graph
SEEN
