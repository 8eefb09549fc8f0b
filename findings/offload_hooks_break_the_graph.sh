#!/usr/bin/env bash
# torch 2.13.0, transformers 5.24.0, accelerate 1.15.0: a Llama of two layers compiles to one graph. After accelerate's
# cpu_offload, whose hooks fetch the weights of each module, model.compile() is accepted and gives 16 graphs, without a
# warning: the two attentions are in graphs of their own, apart from the mask and from everything else.
# Output seen:
#   plain: 1 graph, attentions in it: [2]
#   cpu_offload: 16 graphs, attentions in them: [0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0]
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 transformers==5.24.0 accelerate==1.15.0
cat > "$work/run.py" <<'PY'
import torch
from accelerate import cpu_offload
from torch.nn.functional import scaled_dot_product_attention
from transformers import LlamaConfig, LlamaForCausalLM


def attentions_of_each_graph(offload):
    torch._dynamo.reset()
    shape = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(num_hidden_layers=2, vocab_size=96, **shape)).eval()
    if offload:
        cpu_offload(model, execution_device=torch.device("cpu"))
    counts = []

    def keep(gm, example_inputs):
        counts.append(sum(node.target is scaled_dot_product_attention for node in gm.graph.nodes))
        return gm.forward

    model.compile(backend=keep)
    with torch.no_grad():
        model(torch.arange(12)[None])
    return counts


plain, offloaded = attentions_of_each_graph(False), attentions_of_each_graph(True)
print(f"plain: {len(plain)} graph, attentions in it: {plain}")
print(f"cpu_offload: {len(offloaded)} graphs, attentions in them: {offloaded}")
assert plain == [2], plain
assert offloaded == [0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0], offloaded
PY
cd "$work"
"$work/venv/bin/python" run.py
