#!/usr/bin/env bash
# torch 2.13.0, CPU: compiled by Inductor, flex_attention fails if its query is an input of three dimensions that the graph views
# as heads (view and transpose, what models do with a projection), sliced or not. Uncompiled it works;
# compiled it works if the query is made contiguous, and for a key that is viewed alike.
# Valid input: query, key and value [1, 2, 256, 16]; the projection [1, 256, 32], or [1, 256, 48] of which a slice is taken.
# Output seen:
#   query, whole      not enough values to unpack (expected 4, got 3)
#   query, sliced     not enough values to unpack (expected 4, got 3)
#   query, contiguous right
#   key, sliced       right
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 setuptools==84.2.1
cat > "$work/run.py" <<'PY'
import torch
from torch.nn.attention.flex_attention import flex_attention

torch.manual_seed(0)
other, narrow, wide = torch.randn(1, 2, 256, 16), torch.randn(1, 256, 32), torch.randn(1, 256, 48)


def heads(x):
    return x.view(1, 256, 2, -1).transpose(1, 2)


WAYS = {
    "query, whole": lambda x: flex_attention(heads(x), other, other),
    "query, sliced": lambda x: flex_attention(heads(x)[..., :16], other, other),
    "query, contiguous": lambda x: flex_attention(heads(x)[..., :16].contiguous(), other, other),
    "key, sliced": lambda x: flex_attention(other, heads(x)[..., :16], other),
}
for name, way in WAYS.items():
    torch._dynamo.reset()
    projected = narrow if name == "query, whole" else wide
    with torch.no_grad():
        expected = way(projected)
        try:
            torch.testing.assert_close(torch.compile(way)(projected), expected)
            found = "right"
        except torch._inductor.exc.InductorError as error:
            found = next(line for line in str(error).splitlines() if "Error" in line).split("ValueError: ")[-1]
    print(f"{name:17} {found}")
PY
cd "$work"
export TORCHINDUCTOR_CACHE_DIR="$work/cache"
"$work/venv/bin/python" run.py 2> errors.txt | tee seen || { cat errors.txt >&2; exit 1; }
diff seen - <<'SEEN'
query, whole      not enough values to unpack (expected 4, got 3)
query, sliced     not enough values to unpack (expected 4, got 3)
query, contiguous right
key, sliced       right
SEEN
