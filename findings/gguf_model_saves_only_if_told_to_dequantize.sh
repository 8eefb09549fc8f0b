#!/usr/bin/env bash
# transformers 5.24.0, accelerate 1.15.0, gguf 0.19.0: from_pretrained(folder, gguf_file=...) on a machine without the matching kernels unpacks
# the weights and gives a plain float model: no parameter is quantised. save_pretrained refuses it all the same, as
# "not serializable". The same file loaded with GgufConfig(dequantize=True) gives the same weights and can be saved.
# Output seen:
#   kind of q_proj Linear float32, save: ValueError
#   with GgufConfig(dequantize=True): kind of q_proj Linear float32, save: ok, same weights: True
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 transformers==5.24.0 accelerate==1.15.0 gguf==0.19.0
cat > "$work/run.py" <<'PY'
import gguf
import numpy
import torch
from transformers import GgufConfig, LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
shape = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
config = LlamaConfig(num_hidden_layers=1, vocab_size=96, tie_word_embeddings=False, **shape)
source = LlamaForCausalLM(config)
names = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
layer = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v"}
layer |= {"self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up"}
layer |= {"mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
names |= {f"model.layers.0.{ours}": f"blk.0.{theirs}" for ours, theirs in layer.items()}
writer = gguf.GGUFWriter("tiny.gguf", "llama")
writer.add_block_count(1)
writer.add_context_length(128)
writer.add_embedding_length(64)
writer.add_feed_forward_length(64)
writer.add_head_count(4)
writer.add_head_count_kv(2)
writer.add_layer_norm_rms_eps(1e-6)
writer.add_rope_dimension_count(16)
writer.add_vocab_size(96)
for name, parameter in source.named_parameters():
    array = parameter.detach().numpy()
    to = names[name.removesuffix(".weight")] + ".weight"
    if array.ndim == 2 and "embd" not in to:
        packed = gguf.quants.quantize(array, gguf.GGMLQuantizationType.Q8_0)
        writer.add_tensor(to, packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    else:
        writer.add_tensor(to, array.astype(numpy.float32))
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()


def load_and_save(**kwargs):
    model = LlamaForCausalLM.from_pretrained(".", gguf_file="tiny.gguf", config=config, **kwargs)
    q_proj = model.model.layers[0].self_attn.q_proj
    try:
        model.save_pretrained("saved")
        saved = "ok"
    except ValueError:
        saved = "ValueError"
    kind = f"{type(q_proj).__name__} {str(q_proj.weight.dtype).removeprefix('torch.')}"
    return model, f"kind of q_proj {kind}, save: {saved}"


first, said = load_and_save()
print(said)
second, said_dequantized = load_and_save(quantization_config=GgufConfig(dequantize=True))
same = all(map(torch.equal, first.state_dict().values(), second.state_dict().values()))
print(f"with GgufConfig(dequantize=True): {said_dequantized}, same weights: {same}")
assert said == "kind of q_proj Linear float32, save: ValueError", said
assert said_dequantized == "kind of q_proj Linear float32, save: ok", said_dequantized
assert same == True
PY
cd "$work"
"$work/venv/bin/python" run.py
