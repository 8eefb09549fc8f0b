#!/usr/bin/env bash
# torch 2.13.0: the key of the cache of compiled code (AOTAutograd) holds neither a custom op's schema nor its fake kernel. A wrong
# fake kernel (here: strides), mended and run again, finds the code compiled with the wrong one and raises as before; with
# an empty cache the mended program works.
# Output seen:
#   wrong fake, new cache:   AssertionError
#   mended fake, same cache: AssertionError
#   mended fake, new cache:  ok
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
cat > "$work/run.py" <<'PY'
import os
import subprocess
import sys
import tempfile

PROGRAM = """
import sys
import torch

@torch.library.custom_op("demo::turned", mutates_args=())
def turned(x: torch.Tensor) -> torch.Tensor:
    return x.t().contiguous()

@turned.register_fake
def _(x):
    out = x.new_empty(x.shape[1], x.shape[0])
    return out if sys.argv[1] == "mended" else x.new_empty(x.shape).t()

try:
    torch.compile(lambda x: turned(x) + 1)(torch.ones(3, 5))
    print("ok")
except AssertionError:
    print("AssertionError")
"""


def outcome(fake, cache):
    import textwrap

    command = [sys.executable, "-c", textwrap.dedent(PROGRAM), fake]
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": cache}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.strip()


with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
    seen = [outcome("wrong", first), outcome("mended", first), outcome("mended", second)]
for name, result in zip(("wrong fake, new cache:", "mended fake, same cache:", "mended fake, new cache:"), seen):
    print(f"{name:24} {result}")
assert seen == ["AssertionError", "AssertionError", "ok"], seen
PY
cd "$work"
"$work/venv/bin/python" run.py
