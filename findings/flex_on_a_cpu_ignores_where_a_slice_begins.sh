#!/usr/bin/env bash
# torch 2.13.0 and 2.14.1, CPU: compiled by Inductor, flex_attention reads a key or a value that the graph cut out of a wider
# tensor from the wider tensor's beginning. Nothing is raised; the result is that of other numbers. Uncompiled it
# is right, and compiled as well if the slice begins at 0 or is made contiguous.
# Valid input: query [1, 2, 256, 16], key or value the last 16 of 24 numbers of each token, as models cut projections
# (multi-head latent attention has such a value).
# Output seen, the difference from the uncompiled result relative to its norm (2.14.1 the same, by hand):
#   key, from 8        wrong, and that of a key from 0: True
#   value, from 8      wrong, and that of a value from 0: True
#   key, from 0        right
#   key, contiguous    right
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 setuptools==84.2.1
cat > "$work/run.py" <<'PY'
import torch
from torch.nn.attention.flex_attention import flex_attention

torch.manual_seed(0)
query, wide = torch.randn(1, 2, 256, 16), torch.randn(1, 2, 256, 24)
WAYS = {
    "key, from 8": (lambda q, w: flex_attention(q, w[..., 8:], q), lambda q, w: flex_attention(q, w[..., :16], q)),
    "value, from 8": (lambda q, w: flex_attention(q, q, w[..., 8:]), lambda q, w: flex_attention(q, q, w[..., :16])),
    "key, from 0": (lambda q, w: flex_attention(q, w[..., :16], q), None),
    "key, contiguous": (lambda q, w: flex_attention(q, w[..., 8:].contiguous(), q), None),
}


def off(found, expected):
    return ((found - expected).norm() / expected.norm()).item()


for name, (asked, other) in WAYS.items():
    torch._dynamo.reset()
    with torch.no_grad():
        expected, found = asked(query, wide), torch.compile(asked)(query, wide)
        if off(found, expected) < 1e-5:
            print(f"{name:18} right")
        else:
            print(f"{name:18} wrong, and that of a {name.split(',')[0]} from 0: {off(found, other(query, wide)) < 1e-5}")
PY
cd "$work"
export TORCHINDUCTOR_CACHE_DIR="$work/cache"
"$work/venv/bin/python" run.py 2> /dev/null | tee seen
diff seen - <<'SEEN'
key, from 8        wrong, and that of a key from 0: True
value, from 8      wrong, and that of a value from 0: True
key, from 0        right
key, contiguous    right
SEEN
