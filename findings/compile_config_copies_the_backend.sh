#!/usr/bin/env bash
# transformers 5.24.0: CompileConfig(backend=...) takes a callable, but to_dict(), which generate() calls to compile, copies
# it deeply: torch.compile gets another object, and what a stateful backend gathers never reaches the one that was
# passed. The copy is also told mode="reduce-overhead", the default of CompileConfig, for a backend that never asked.
# A backend named by a string, or a plain function, is safe.
# Output seen:
#   same object: False, counted by ours: 0, counted by the copy: 1, mode: reduce-overhead
#   a function is the same object: True
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 transformers==5.24.0
cat > "$work/run.py" <<'PY'
import torch
from transformers import CompileConfig


class Counting:
    def __init__(self):
        self.graphs = 0

    def __call__(self, gm, example_inputs, **kwargs):
        self.graphs += 1
        return gm.forward


def function(gm, example_inputs, **kwargs):
    return gm.forward


ours = Counting()
handed_on = CompileConfig(backend=ours).to_dict()
torch.compile(lambda x: x + 1, **handed_on)(torch.ones(3))
copy = handed_on["backend"]
same, mode = copy is ours, handed_on["mode"]
print(f"same object: {same}, counted by ours: {ours.graphs}, counted by the copy: {copy.graphs}, mode: {mode}")
kept = CompileConfig(backend=function).to_dict()["backend"] is function
print("a function is the same object:", kept)
assert (same, ours.graphs, copy.graphs, mode, kept) == (False, 0, 1, "reduce-overhead", True)
PY
cd "$work"
"$work/venv/bin/python" run.py
