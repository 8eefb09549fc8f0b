#!/usr/bin/env bash
# torch 2.13.0: under torch.compile(dynamic=True) a Python float that a module holds becomes an input of the graph, a
# 0-dimensional float64 tensor, and what reads it gets the node of an item() call. So scaled_dot_product_attention(...,
# scale=self.scale) has no known scale when a backend compiles it. Without dynamic=True, and with the length
# marked dynamic instead (mark_dynamic), the scale is the number.
# Output seen:
#   dynamic=None         0.25
#   dynamic=True         node item of placeholder, torch.float64 of shape []
#   mark_dynamic(q, 2)   0.25
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
cat > "$work/run.py" <<'PY'
import torch
from torch.nn.functional import scaled_dot_product_attention


class Attention(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = 0.25

    def forward(self, q):
        return scaled_dot_product_attention(q, q, q, scale=self.scale)


def scale_in_graph(dynamic, mark):
    torch._dynamo.reset()
    graphs = []

    def keep(gm, example_inputs):
        graphs.append(gm.graph)
        return gm.forward

    q = torch.randn(1, 2, 8, 16)
    if mark:
        torch._dynamo.mark_dynamic(q, 2)
    torch.compile(Attention(), backend=keep, dynamic=dynamic)(q)
    (call,) = (node for node in graphs[0].nodes if node.target is scaled_dot_product_attention)
    scale = call.kwargs["scale"]
    if not isinstance(scale, torch.fx.Node):
        return str(scale)
    (source,) = scale.args
    tensor = source.meta["example_value"]
    return f"node {scale.target} of {source.op}, {tensor.dtype} of shape {list(tensor.shape)}"


seen = [scale_in_graph(None, False), scale_in_graph(True, False), scale_in_graph(None, True)]
for name, scale in zip(("dynamic=None", "dynamic=True", "mark_dynamic(q, 2)"), seen):
    print(f"{name:20} {scale}")
assert seen == ["0.25", "node item of placeholder, torch.float64 of shape []", "0.25"], seen
PY
cd "$work"
"$work/venv/bin/python" run.py
