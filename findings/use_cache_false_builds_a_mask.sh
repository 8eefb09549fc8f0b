#!/usr/bin/env bash
# torch 2.13.0, transformers 5.24.0: compiled, model(input_ids) is plain causal attention: no mask, is_causal=True,
# grouped heads. model(input_ids, use_cache=False), which asks for less, holds in its graph a 4-D mask of
# sequence length squared, made to tell packed sequences apart by position ids that nobody passed, and repeats the key
# and value heads. The logits are equal.
# Output seen:
#   use_cache=True   mask None is_causal True key heads 2
#   use_cache=False  mask [2, 1, 12, 12] is_causal False key heads 4
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 transformers==5.24.0
cat > "$work/run.py" <<'PY'
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
shape = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
model = LlamaForCausalLM(LlamaConfig(num_hidden_layers=1, vocab_size=96, **shape)).eval()
ids = torch.randint(0, 96, (2, 12))


def attention(use_cache):
    torch._dynamo.reset()
    calls = []

    def keep(gm, example_inputs):
        calls.extend(node for node in gm.graph.nodes if node.target is scaled_dot_product_attention)
        return gm.forward

    with torch.no_grad():
        logits = torch.compile(model, backend=keep)(ids, use_cache=use_cache).logits
    (call,) = calls
    mask = call.kwargs["attn_mask"]
    mask = None if mask is None else list(mask.meta["example_value"].shape)
    return logits, (mask, call.kwargs["is_causal"], call.args[1].meta["example_value"].shape[1])


with_cache, first = attention(True)
without, second = attention(False)
for name, (mask, is_causal, heads) in (("use_cache=True", first), ("use_cache=False", second)):
    print(f"{name:16} mask {mask} is_causal {is_causal} key heads {heads}")
torch.testing.assert_close(with_cache, without)
assert first == (None, True, 2), first
assert second == ([2, 1, 12, 12], False, 4), second
PY
cd "$work"
"$work/venv/bin/python" run.py
