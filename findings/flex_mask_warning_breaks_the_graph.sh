#!/usr/bin/env bash
# torch 2.13.0, transformers 5.17.0 and 5.24.0: with attn_implementation="flex_attention", the way to a compiled sparse mask, a
# compiled Llama is not one graph. transformers makes its BlockMask by create_block_mask(..., _compile=True); torch answers this
# option with a warning, and Dynamo can not trace warnings.warn. fullgraph=True fails, and without it nobody says anything.
# With the option taken out, and nothing else changed, it is one graph with the same logits. (With use_cache=True there is one more
# cause: flex_makes_a_cache_lose_its_attributes.sh.)
# Output seen:
#   5.17.0 sdpa                      graphs 1 fullgraph works
#   5.17.0 flex_attention            graphs 5 fullgraph fails at warnings.warn( in create_block_mask
#   5.17.0 flex_attention, no option graphs 1 fullgraph works
#   logits equal
#   5.24.0 the same
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 transformers==5.17.0
cat > "$work/run.py" <<'PY'
from unittest import mock

import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM, masking_utils

torch.manual_seed(0)
shape = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
model = LlamaForCausalLM(LlamaConfig(num_hidden_layers=2, vocab_size=96, **shape)).eval()
ids = torch.randint(0, 96, (1, 128))
original = masking_utils.create_block_mask
EXPECTED = {"sdpa": (1, "works"), "flex_attention": (5, "fails"), "flex_attention, no option": (1, "works")}


def without(*args, _compile, **kwargs):
    return original(*args, **kwargs)


def compiled(**options):
    torch._dynamo.reset()
    graphs = []

    def keep(gm, example_inputs):
        graphs.append(gm)
        return gm.forward

    with torch.no_grad():
        return torch.compile(model, backend=keep, **options)(ids, use_cache=False).logits, len(graphs)


logits = {}
for name, (expected_graphs, expected_whole) in EXPECTED.items():
    model.set_attn_implementation(name.split(",")[0])
    create = without if name.endswith("no option") else original
    with mock.patch.object(masking_utils, "create_block_mask", create):
        logits[name], graphs = compiled()
        try:
            compiled(fullgraph=True)
            whole, place = "works", ""
        except torch._dynamo.exc.Unsupported as error:
            lines = str(error).splitlines()
            (at,) = (i for i, line in enumerate(lines) if "in create_block_mask" in line)
            whole, place = "fails", f" at {lines[at + 1].strip()} in create_block_mask"
    print(f"{transformers.__version__} {name:25} graphs {graphs} fullgraph {whole}{place}")
    assert (graphs, whole) == (expected_graphs, expected_whole), name
torch.testing.assert_close(logits["flex_attention"], logits["flex_attention, no option"])
print("logits equal")
PY
cd "$work"
"$work/venv/bin/python" run.py 2> errors.txt || { cat errors.txt >&2; exit 1; }
"$work/venv/bin/pip" install --quiet transformers==5.24.0
"$work/venv/bin/python" run.py 2> errors.txt > newer || { cat newer errors.txt >&2; exit 1; }
echo "5.24.0 the same"
