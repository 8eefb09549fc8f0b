#!/usr/bin/env bash
# torch 2.13.0, setuptools 84.2.1, Python 3.11: after importlib.util.find_spec("pip"), which imports nothing, the first
# compilation with Inductor on a CPU fails with an AssertionError about the standard library's distutils. setuptools'
# import hook takes the look-up for pip running, and gives up its own distutils for the rest of the process; Inductor
# imports setuptools when it first needs a C++ compiler, and setuptools then asserts that distutils is its own.
# Valid input: a program that asks whether pip is installed, then compiles x + 1. Python 3.12 has no distutils: all is well.
# Output seen:
#   without the question   ok
#   find_spec('pip')       BackendCompilerFailed: AssertionError: .../distutils/core.py
#   setuptools first       ok
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 setuptools==84.2.1
cat > "$work/run.py" <<'PY'
import importlib.util
import re
import sys

if sys.version_info >= (3, 12):
    sys.exit("needs Python 3.10 or 3.11: later ones have no distutils")
if sys.argv[1] == "setuptools first":
    import setuptools
if sys.argv[1] != "without the question":
    assert importlib.util.find_spec("pip") is not None

import torch

try:
    torch.compile(lambda x: x + 1)(torch.zeros(8))
    print("ok")
except Exception as error:
    (said,) = re.findall(r"AssertionError: .*", str(error))
    print(f"{type(error).__name__}: {re.sub(r'/.*(?=/distutils)', '...', said)}")
PY
cd "$work"
export TORCHINDUCTOR_CACHE_DIR="$work/cache"
for way in "without the question" "find_spec('pip')" "setuptools first"; do
  printf '%-22s %s\n' "$way" "$("$work/venv/bin/python" run.py "$way" 2> /dev/null)"
done | tee seen.txt
diff - seen.txt <<'EOF'
without the question   ok
find_spec('pip')       BackendCompilerFailed: AssertionError: .../distutils/core.py
setuptools first       ok
EOF
