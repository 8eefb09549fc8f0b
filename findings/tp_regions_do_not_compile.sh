#!/usr/bin/env bash
# torch 2.13.0, transformers 5.24.0: a Llama that from_pretrained(tp_plan="auto") split over 2 gloo ranks compiles, and compiles
# likewise one rank alone with its attentions in torch.compiler.nested_compile_region (which makes repeated layers one
# region); both together fail with every backend, "eager" too, since no rule tells invoke_subgraph what a DTensor is.
# Valid input: a tiny Llama, 8 tokens.
# Output seen:
#   split: compiles
#   regions: compiles
#   split, with regions: NotImplementedError: There was no rule registered for HOP invoke_subgraph and subclass DTensor
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 transformers==5.24.0 accelerate==1.15.0
cat > "$work/make.py" <<'PY'
from transformers import LlamaConfig, LlamaForCausalLM

sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 16, "vocab_size": 64}
LlamaForCausalLM(LlamaConfig(num_attention_heads=4, num_key_value_heads=2, **sizes)).save_pretrained("tiny")
PY
cat > "$work/run.py" <<'PY'
import re

import torch
import torch.distributed as dist
from transformers import AutoModelForCausalLM


def region(forward):
    return torch.compiler.nested_compile_region(lambda *args, **kwargs: forward(*args, **kwargs))


def result(split, regions):
    torch._dynamo.reset()
    model = AutoModelForCausalLM.from_pretrained("tiny", **({"tp_plan": "auto"} if split else {})).eval()
    for layer in model.model.layers if regions else ():
        layer.self_attn.forward = region(layer.self_attn.forward)
    try:
        with torch.no_grad():
            torch.compile(model, backend="eager", fullgraph=True)(torch.arange(1, 9)[None], use_cache=False)
    except Exception as error:
        text = re.search(r"There was no rule registered for HOP invoke_subgraph and subclass[^\n]*", str(error))
        assert text, error
        return f"NotImplementedError: {re.sub(r'<class .*[.](DTensor).*', r'DTensor', text[0])}".split(". ")[0]
    return "compiles"


split, both, regions = result(True, False), result(True, True), result(False, True)
if dist.get_rank() == 0:
    print(f"split: {split}\nregions: {regions}\nsplit, with regions: {both}")
dist.destroy_process_group()
PY
cd "$work"
"$work/venv/bin/python" make.py 2> errors.txt || { cat errors.txt >&2; exit 1; }
run=("$work/venv/bin/python" -m torch.distributed.run --nproc-per-node 2 --standalone run.py)
OMP_NUM_THREADS=1 "${run[@]}" 2> errors.txt | tee seen || { cat errors.txt >&2; exit 1; }
diff seen - <<'SEEN'
split: compiles
regions: compiles
split, with regions: NotImplementedError: There was no rule registered for HOP invoke_subgraph and subclass DTensor
SEEN
