#!/usr/bin/env bash
# triton 3.6.0 (its ptxas 12.8), compiled for sm_90a (no GPU is needed): a kernel of 640 threads, of which a warp group gives
# registers away by setmaxnreg and four get them. ptxas allocates each branch within its own bound: the one raised to 112
# uses more than the 96 that it reports for the kernel, and the one left with 24 spills although 96 are reported, as a
# kernel's total, which does not say where. A producer that computes a little more makes the whole kernel "spill".
# Output seen:
#   24 and 112 registers, 16 and 104 values: 96 reported, 0 bytes spilled
#   24 and 112 registers, 30 and 40 values: 96 reported, 44 bytes spilled
#   40 and 112 registers, 30 and 40 values: 96 reported, 0 bytes spilled
#   24 and 104 registers, 16 and 104 values: 96 reported, 20 bytes spilled
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

ptxas = Path(triton.__file__).parent / "backends/nvidia/bin/ptxas"


def all_at_once(values):
    loads = [f"ld.volatile.global.f32 %f{i}, [%a+{4 * i}];" for i in range(values)]
    return loads + [f"st.volatile.global.f32 [%a+{4 * i}], %f{i};" for i in reversed(range(values))]


def compiled(few, many, values_of_few, values_of_many):
    text = [
        ".version 8.4\n.target sm_90a\n.address_size 64",
        ".visible .entry kernel(.param .u64 p) .maxntid 640 .minnctapersm 1 {",
        ".reg .b64 %a;\n.reg .b32 %t;\n.reg .pred %q;\n.reg .f32 %f<128>;",
        "ld.param.u64 %a, [p];\ncvta.to.global.u64 %a, %a;",
        "mov.u32 %t, %tid.x;\nsetp.ge.u32 %q, %t, 128;\n@%q bra MANY;",
        f"setmaxnreg.dec.sync.aligned.u32 {few};",
        *all_at_once(values_of_few),
        "bra END;\nMANY:",
        f"setmaxnreg.inc.sync.aligned.u32 {many};",
        *all_at_once(values_of_many),
        "END:\nret;\n}\n",
    ]
    Path("kernel.ptx").write_text("\n".join(text))
    command = [ptxas, "-v", "-arch=sm_90a", "kernel.ptx", "-o", "kernel.cubin"]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    return int(re.search(r"Used (\d+) registers", said)[1]), int(re.search(r"(\d+) bytes spill stores", said)[1])


for case, spills in {
    (24, 112, 16, 104): False,
    (24, 112, 30, 40): True,
    (40, 112, 30, 40): False,
    (24, 104, 16, 104): True,
}.items():
    reported, spilled = compiled(*case)
    print("{} and {} registers, {} and {} values:".format(*case), f"{reported} reported, {spilled} bytes spilled")
    assert reported == 96 and (spilled > 0) == spills, (case, reported, spilled)
PY
cd "$work"
"$work/venv/bin/python" run.py
