#!/usr/bin/env bash
# torch 2.13.0, CPU: scaled_dot_product_attention(..., is_causal=True) with a scale of 0 (all visible keys weigh alike) or a
# negative one is NaN in every row but the last. The same operands are right under SDPBackend.MATH, and on the default path
# if the causal mask is passed as a tensor.
# Output seen:
#   scale 0.25: rows with NaN: is_causal 0, math 0, mask tensor 0
#   scale 0.0: rows with NaN: is_causal 47, math 0, mask tensor 0
#   scale -0.25: rows with NaN: is_causal 47, math 0, mask tensor 0
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
cat > "$work/run.py" <<'PY'
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

torch.manual_seed(0)
query, key, value = (torch.randn(2, 4, 48, 16) for _ in range(3))
mask = torch.ones(48, 48, dtype=torch.bool).tril()
for scale in (0.25, 0.0, -0.25):
    causal = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale)
    with sdpa_kernel(SDPBackend.MATH):
        math = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale)
    masked = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)
    rows = [int(out[0, 0].isnan().any(-1).sum()) for out in (causal, math, masked)]
    print("scale {}: rows with NaN: is_causal {}, math {}, mask tensor {}".format(scale, *rows))
    assert rows == [0 if scale > 0 else 47, 0, 0]
    torch.testing.assert_close(masked, math, atol=1e-5, rtol=1e-4)
PY
cd "$work"
"$work/venv/bin/python" run.py
