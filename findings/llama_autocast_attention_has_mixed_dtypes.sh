#!/usr/bin/env bash
# torch 2.13.0, transformers 5.24.0: under torch.autocast (bfloat16) the attention of Llama gets query and key in float32 and
# value in bfloat16: the rotary embedding's cosines are float32 and lift query and key. Outside autocast
# scaled_dot_product_attention refuses such operands; inside, it casts them by a rule that leaves no trace in the graph that
# torch.compile hands to a backend. Whoever reads that graph sees an attention of three dtypes.
# Output seen:
#   operands float32 float32 bfloat16, result bfloat16
#   outside autocast: RuntimeError
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 transformers==5.24.0
cat > "$work/run.py" <<'PY'
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import LlamaConfig, LlamaForCausalLM

shape = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
model = LlamaForCausalLM(LlamaConfig(num_hidden_layers=1, vocab_size=96, **shape)).eval()
calls = []


def keep(gm, example_inputs):
    calls.extend(node for node in gm.graph.nodes if node.target is scaled_dot_product_attention)
    return gm.forward


with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
    torch.compile(model, backend=keep)(torch.arange(12)[None])
(call,) = calls
short = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
operands = [short[node.meta["example_value"].dtype] for node in call.args[:3]]
result = short[call.meta["example_value"].dtype]
print("operands", *operands, end=f", result {result}\n")
q, v = torch.randn(1, 2, 8, 16), torch.randn(1, 2, 8, 16, dtype=torch.bfloat16)
try:
    scaled_dot_product_attention(q, q, v)
    outside = "ok"
except RuntimeError:
    outside = "RuntimeError"
print("outside autocast:", outside)
assert (operands, result, outside) == (["float32", "float32", "bfloat16"], "bfloat16", "RuntimeError")
PY
cd "$work"
"$work/venv/bin/python" run.py
