#!/usr/bin/env bash
# transformers 5.24.0: the tensor-parallel plan of GptOssConfig, which tp_plan="auto" takes, names the embedding alone.
# Attention and experts, nearly all of the model, are in none of its entries, so every rank holds all of them; Llama's plan
# names each projection.
# Output seen:
#   gpt-oss: {'embed_tokens': 'embedding_rowwise'}
#   llama: 7 entries, q_proj in it: True
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 transformers==5.24.0
cat > "$work/run.py" <<'PY'
from transformers import GptOssConfig, LlamaConfig

gpt_oss, llama = GptOssConfig().base_model_tp_plan, LlamaConfig().base_model_tp_plan
print("gpt-oss:", gpt_oss)
print(f"llama: {len(llama)} entries, q_proj in it: {any('q_proj' in name for name in llama)}")
assert gpt_oss == {"embed_tokens": "embedding_rowwise"}, gpt_oss
assert len(llama) == 7 and "layers.*.self_attn.q_proj" in llama, llama
PY
cd "$work"
"$work/venv/bin/python" run.py
