#!/usr/bin/env bash
# triton 3.6.0 (its ptxas), compiled for several GPUs (none is needed): the maximum of three numbers. Hopper has one
# instruction for integers and two for floats, datacenter Blackwell one for either, consumer Blackwell two for either, as
# Ampere and Ada. So on Hopper a maximum of many is half as long before the numbers become floats, and a kernel that is
# tuned on sm_90 or sm_100 finds another balance on sm_120.
# Output seen:
#   cc 80: int32 IMNMX IMNMX; fp32 FMNMX FMNMX
#   cc 89: int32 IMNMX IMNMX; fp32 FMNMX FMNMX
#   cc 90: int32 VIMNMX3; fp32 FMNMX FMNMX
#   cc 100: int32 VIMNMX3; fp32 FMNMX3
#   cc 120: int32 VIMNMX VIMNMX; fp32 FMNMX FMNMX
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet triton==3.6.0
cat > "$work/run.py" <<'PY'
import re
import subprocess
from pathlib import Path

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource


@triton.jit
def largest(numbers, out):
    i = tl.arange(0, 128)
    a, b, c = tl.load(numbers + i), tl.load(numbers + 128 + i), tl.load(numbers + 256 + i)
    tl.store(out + i, tl.maximum(tl.maximum(a, b), c))


cuobjdump = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
found = {}
for capability in (80, 89, 90, 100, 120):
    for kind, name in (("i32", "int32"), ("fp32", "fp32")):
        source = ASTSource(largest, signature={"numbers": f"*{kind}", "out": f"*{kind}"}, constexprs={})
        compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": 4})
        cubin = Path("largest.cubin")
        cubin.write_bytes(compiled.asm["cubin"])
        sass = subprocess.run([cuobjdump, "-sass", cubin], check=True, capture_output=True, text=True).stdout
        found[capability, name] = re.findall(r"\b[A-Z]*MNMX3?\b", sass)
    print(f"cc {capability}:", "; ".join(f"{name} {' '.join(found[capability, name])}" for name in ("int32", "fp32")))
one_for = {key for key, names in found.items() if len(names) == 1}
assert one_for == {(90, "int32"), (100, "int32"), (100, "fp32")}, found
PY
cd "$work"
TRITON_CACHE_DIR="$work/cache" "$work/venv/bin/python" run.py
