#!/usr/bin/env bash
# triton 3.6.0, compiled for a Hopper GPU (none is needed): a loop multiplies one tile of bytes with many others. If the
# kernel computed that tile, which does not change in the loop, every pass reads it from shared memory into registers
# again; if the kernel loaded the same bytes from memory, the tensor cores read it where it lies. So storing the tile
# and loading it again before the loop makes the loop cheaper.
# Output seen:
#   computed: a read of the tile in the loop: True
#   loaded: a read of the tile in the loop: False
#   stored and loaded: a read of the tile in the loop: False
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet triton==3.6.0
cat > "$work/run.py" <<'PY'
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource


@triton.jit
def multiply(rows, codes, keys, out, n, WAY: tl.constexpr, D: tl.constexpr, N: tl.constexpr):
    dim, row, entry = tl.arange(0, D), tl.arange(0, 128), tl.arange(0, N)
    place = row[:, None] * D + dim[None, :]
    if WAY == "loaded":
        tile = tl.load(codes + place)
    else:
        tile = (tl.load(rows + place) * 2.0).to(tl.int8)
        if WAY == "stored and loaded":
            tl.store(codes + place, tile)
            tl.debug_barrier()
            tile = tl.load(codes + place)
    best = tl.full((128, N), -(2**31), tl.int32)
    for start in range(0, n, N):
        k = tl.load(keys + (start + entry)[None, :] * D + dim[:, None])
        best = tl.maximum(best, tl.dot(tile, k))
    tl.store(out + row[:, None] * N + entry[None, :], best)


types = {"rows": "*fp32", "codes": "*i8", "keys": "*i8", "out": "*i32", "n": "i32"}
found = {}
for way in ("computed", "loaded", "stored and loaded"):
    sizes = {"WAY": way, "D": 128, "N": 64}
    source = ASTSource(
        multiply,
        signature={**types, **{name: "constexpr" for name in sizes}},
        constexprs=sizes,
        attrs={(i,): [["tt.divisibility", 16]] for i in range(len(types))},
    )
    code = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 8}).asm["ttgir"]
    loop = code[code.index("scf.for") : code.index("scf.yield")]
    assert "warp_group_dot" in loop
    found[way] = "ttg.local_load" in loop
    print(f"{way}: a read of the tile in the loop: {found[way]}")
assert found == {"computed": True, "loaded": False, "stored and loaded": False}, found
PY
cd "$work"
TRITON_CACHE_DIR="$work/cache" "$work/venv/bin/python" run.py
