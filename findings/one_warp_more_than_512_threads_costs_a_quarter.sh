#!/usr/bin/env bash
# triton 3.6.0 (its ptxas 12.8), compiled for sm_90a (no GPU is needed): registers that a thread gets, by the launch bound,
# of a kernel that wants more than there are. A multiprocessor has 65,536, which four partitions share out by warps: 513
# threads are 17 warps, five in one partition, and get what 640 get. 65,536 / 544 would be 120. So one producer warp beside
# four consumer warp groups costs every thread 32 registers, as a whole warp group more does.
# Output seen:
#   256 threads: 255 registers, 288: 168, 384: 168, 512: 128, 513: 96, 544: 96, 608: 96, 640: 96
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
VALUES = 300  # that live at the same time


def registers(threads):
    loads = [f"ld.volatile.global.f32 %f{i}, [%a+{4 * i}];" for i in range(VALUES)]
    stores = [f"st.volatile.global.f32 [%a+{4 * i}], %f{i};" for i in reversed(range(VALUES))]
    text = [
        ".version 8.4\n.target sm_90a\n.address_size 64",
        f".visible .entry kernel(.param .u64 p) .maxntid {threads} .minnctapersm 1 {{",
        f".reg .b64 %a;\n.reg .f32 %f<{VALUES}>;\nld.param.u64 %a, [p];\ncvta.to.global.u64 %a, %a;",
        *loads,
        *stores,
        "ret;\n}\n",
    ]
    Path("kernel.ptx").write_text("\n".join(text))
    command = [ptxas, "-v", "-arch=sm_90a", "kernel.ptx", "-o", "kernel.cubin"]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    return int(re.search(r"Used (\d+) registers", said)[1])


found = {threads: registers(threads) for threads in (256, 288, 384, 512, 513, 544, 608, 640)}
(first, most), *others = found.items()
print(f"{first} threads: {most} registers,", ", ".join(f"{threads}: {count}" for threads, count in others))
assert found == {256: 255, 288: 168, 384: 168, 512: 128, 513: 96, 544: 96, 608: 96, 640: 96}, found
PY
cd "$work"
"$work/venv/bin/python" run.py
