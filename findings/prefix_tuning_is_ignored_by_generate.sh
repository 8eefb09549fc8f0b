#!/usr/bin/env bash
# peft 0.21.2, transformers 5.24.0: generate() of a model with prefix tuning (PrefixTuningConfig) ignores the prefix: its
# tokens are the base model's. peft hands the prefix over as the cache "past_key_values"; transformers 5.24 has one in
# "cache", its new name, and takes that. All that tells is a FutureWarning that both are set. Calling the model uses the
# prefix, so that training and evaluation by logits look right. With transformers 5.17.0 generate() follows the logits.
# Output seen:
#   transformers 5.24.0: logits differ from the base model's: True
#   generate() gives the base model's tokens: True; the greedy tokens of the logits: False
#   transformers 5.17.0: logits differ from the base model's: True
#   generate() gives the base model's tokens: False; the greedy tokens of the logits: True
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 transformers==5.24.0 accelerate==1.15.0 peft==0.21.2
"$work/venv/bin/pip" install --quiet httpx
older=(transformers==5.17.0 huggingface_hub==1.33.0)
"$work/venv/bin/pip" install --quiet --no-deps --target "$work/older" "${older[@]}"
cat > "$work/run.py" <<'PY'
import copy
import sys

import torch
import transformers
from peft import PrefixTuningConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 64}
config = LlamaConfig(num_attention_heads=2, num_key_value_heads=2, bos_token_id=None, eos_token_id=None, **sizes)
base = LlamaForCausalLM(config).eval()
prefix = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=8)
tuned = get_peft_model(copy.deepcopy(base), prefix).eval()
with torch.no_grad():
    for weight in tuned.prompt_encoder.parameters():
        weight.mul_(10)  # a prefix that is heard, as one is after training
    ids = torch.arange(1, 9)[None]
    differ = bool((tuned(input_ids=ids).logits - base(input_ids=ids).logits).abs().max() > 1e-2)
    wanted = ids
    for _ in range(8):
        wanted = torch.cat([wanted, tuned(input_ids=wanted).logits[:, -1:].argmax(-1)], 1)
    how = {"max_new_tokens": 8, "do_sample": False}
    tokens = tuned.generate(input_ids=ids, **how)
    ignored = torch.equal(tokens, base.generate(input_ids=ids, **how))
    right = torch.equal(tokens, wanted)
print(f"transformers {transformers.__version__}: logits differ from the base model's: {differ}")
print(f"generate() gives the base model's tokens: {ignored}; the greedy tokens of the logits: {right}")
assert (transformers.__version__, differ, ignored, right) == {
    "newer": ("5.24.0", True, True, False),
    "older": ("5.17.0", True, False, True),
}[sys.argv[1]]
PY
cd "$work"
"$work/venv/bin/python" run.py newer 2> errors.txt || { cat errors.txt >&2; exit 1; }
PYTHONPATH="$work/older" "$work/venv/bin/python" run.py older 2> errors.txt || { cat errors.txt >&2; exit 1; }
