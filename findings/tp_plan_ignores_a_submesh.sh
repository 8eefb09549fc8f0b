#!/usr/bin/env bash
# transformers 5.24.0: from_pretrained(tp_plan="auto", device_mesh=mesh["tp"]) of a (2, 2) mesh on 4 gloo ranks. The
# weights are cut into 4 parts, for all ranks, and not into the 2 of the mesh that was given, so a model whose key heads
# divide by 2 and not by 4 fails in its first attention.
# Output seen:
#   the mesh has 2 ranks; k_proj has 8 of 32 rows
#   forward: RuntimeError: shape '[1, 8, -1, 16]' is invalid for input of size 64
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 transformers==5.24.0 accelerate==1.15.0
cat > "$work/make.py" <<'PY'
from transformers import LlamaConfig, LlamaForCausalLM

sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "head_dim": 16, "vocab_size": 64}
LlamaForCausalLM(LlamaConfig(num_attention_heads=4, num_key_value_heads=2, **sizes)).save_pretrained("tiny")
PY
cat > "$work/run.py" <<'PY'
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from transformers import AutoModelForCausalLM

mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))["tp"]
model = AutoModelForCausalLM.from_pretrained("tiny", tp_plan="auto", device_mesh=mesh).eval()
weight = model.model.layers[0].self_attn.k_proj.weight
rows = (weight.to_local() if hasattr(weight, "to_local") else weight).shape[0]
try:
    with torch.no_grad():
        model(torch.arange(1, 9)[None])
    found = "runs"
except RuntimeError as error:
    found = f"RuntimeError: {error}"
if dist.get_rank() == 0:
    print(f"the mesh has {mesh.size()} ranks; k_proj has {rows} of 32 rows")
    print(f"forward: {found}")
assert (mesh.size(), rows) == (2, 8), rows
assert found == "RuntimeError: shape '[1, 8, -1, 16]' is invalid for input of size 64", found
dist.destroy_process_group()
PY
cd "$work"
"$work/venv/bin/python" make.py 2> errors.txt || { cat errors.txt >&2; exit 1; }
run=("$work/venv/bin/python" -m torch.distributed.run --nproc-per-node 4 --standalone run.py)
OMP_NUM_THREADS=1 "${run[@]}" 2> errors.txt || { cat errors.txt >&2; exit 1; }
