#!/usr/bin/env bash
# torch 2.13.0: create_block_mask(..., device="cpu") inside torch.compile with Inductor, for 200 query rows and 256 keys,
# numbers that a mask with an offset has. The C++ that Inductor writes is no C++: both sides of a `?:` are masks of
# vectors of different types. Uncompiled it works, and so it does compiled by the backend "aot_eager".
# Output seen:
#   uncompiled: (1, 1, 2)
#   aot_eager: (1, 1, 2)
#   inductor: C++ compile error
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
cat > "$work/run.py" <<'PY'
import torch
from torch.nn.attention.flex_attention import create_block_mask


def causal(b, h, q, k):
    return q + 56 >= k


def mask():
    return create_block_mask(causal, None, None, 200, 256, device="cpu")


ways = {
    "uncompiled": mask,
    "aot_eager": torch.compile(mask, backend="aot_eager"),
    "inductor": torch.compile(mask),
}
found = {}
for name, way in ways.items():
    torch._dynamo.reset()
    try:
        found[name] = str(tuple(way().kv_num_blocks.shape))
    except Exception as error:  # Inductor's own class
        found[name] = "C++ compile error" if "C++ compile error" in str(error) else repr(error)
    print(f"{name}: {found[name]}")
assert found == {"uncompiled": "(1, 1, 2)", "aot_eager": "(1, 1, 2)", "inductor": "C++ compile error"}, found
PY
cd "$work"
TORCHINDUCTOR_CACHE_DIR="$work/cache" "$work/venv/bin/python" run.py 2> errors.txt || { cat errors.txt >&2; exit 1; }
