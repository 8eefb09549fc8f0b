#!/usr/bin/env bash
# torch 2.13.0, transformers 5.24.0: torch.compile(model).generate(...) compiles nothing and says nothing: the wrapper hands out
# the generate method of the model inside, which calls the model and not the wrapper. model.compile(), which
# compiles in place, is what generate sees.
# Output seen:
#   torch.compile(model).generate: 0 graphs
#   model.compile() and model.generate: 3 graphs
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 transformers==5.24.0
cat > "$work/run.py" <<'PY'
import torch
from transformers import LlamaConfig, LlamaForCausalLM

shape = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
model = LlamaForCausalLM(LlamaConfig(num_hidden_layers=1, vocab_size=96, **shape)).eval()
graphs = []


def keep(gm, example_inputs):
    graphs.append(gm)
    return gm.forward


inputs = {"inputs": torch.arange(12)[None], "attention_mask": torch.ones(1, 12, dtype=torch.int64)}
settings = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
torch.compile(model, backend=keep).generate(**inputs, **settings)
wrapped = len(graphs)
print(f"torch.compile(model).generate: {wrapped} graphs")
model.compile(backend=keep)
model.generate(**inputs, **settings)
in_place = len(graphs) - wrapped
print(f"model.compile() and model.generate: {in_place} graphs")
assert (wrapped, in_place) == (0, 3)
PY
cd "$work"
"$work/venv/bin/python" run.py
