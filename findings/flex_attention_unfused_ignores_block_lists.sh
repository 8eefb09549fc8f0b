#!/usr/bin/env bash
# torch 2.13.0: a BlockMask whose lists leave out a block that its mask_mod allows. Compiled by Inductor, flex_attention
# drops that block; uncompiled, and under torch.compile's backend "eager", it attends to it: there mask_mod alone counts.
# So a mask that selects blocks cannot be tried, or debugged, without Inductor.
# Output seen:
#   inductor: difference from the listed blocks 0.0, from the whole mask_mod 2.1
#   backend eager: difference from the listed blocks 2.1, from the whole mask_mod 0.0
#   uncompiled: difference from the listed blocks 2.1, from the whole mask_mod 0.0
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
cat > "$work/run.py" <<'PY'
import warnings

import torch
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from torch.nn.functional import scaled_dot_product_attention

warnings.simplefilter("ignore")
torch.manual_seed(0)
query, key, value = torch.randn(3, 1, 2, 128, 16)


def causal(b, h, q, k):
    return q >= k


# Two blocks of 64 a row: the second row of blocks lists its own block alone.
counts = torch.tensor([[[1, 1]]], dtype=torch.int32)
columns = torch.tensor([[[[0, 1], [1, 0]]]], dtype=torch.int32)
listed = BlockMask.from_kv_blocks(counts, columns, BLOCK_SIZE=64, mask_mod=causal, seq_lengths=(128, 128))
allowed = torch.ones(128, 128, dtype=torch.bool).tril()
whole = scaled_dot_product_attention(query, key, value, attn_mask=allowed)
allowed[64:, :64] = False
blocks = scaled_dot_product_attention(query, key, value, attn_mask=allowed)


def attend(query, key, value):
    return flex_attention(query, key, value, block_mask=listed)


found = {}
ways = {"inductor": torch.compile(attend), "backend eager": torch.compile(attend, backend="eager"), "uncompiled": attend}
for name, way in ways.items():
    torch._dynamo.reset()
    with torch.no_grad():
        out = way(query, key, value)
    differences = ((out - blocks).abs().max().item(), (out - whole).abs().max().item())
    print(f"{name}: difference from the listed blocks {differences[0]:.1f}, from the whole mask_mod {differences[1]:.1f}")
    found[name] = "listed" if differences[0] < 1e-4 else "whole" if differences[1] < 1e-4 else "other"
assert found == {"inductor": "listed", "backend eager": "whole", "uncompiled": "whole"}, found
PY
cd "$work"
"$work/venv/bin/python" run.py
