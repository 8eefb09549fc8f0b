#!/usr/bin/env bash
# torch 2.13.0: torch._dynamo.mark_dynamic(x, dim) lets compiled code branch on the size (the branch becomes a guard);
# with min and max given, the very same branch raises ConstraintViolationError, also where the branch only splits the
# declared range in two; with only one of the two given, it dies with an AssertionError inside the shape solver.
# Valid input: a function that doubles long vectors, of a length inside the declared range.
# Output seen:
#   no bounds        ok
#   min=2, max=8192  ConstraintViolationError
#   min=2            AssertionError: not simple sympy type <class 'NoneType'>: None
#   max=8192         AssertionError: not simple sympy type <class 'NoneType'>: None
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
cat > "$work/run.py" <<'PY'
import logging

import torch

logging.disable(logging.CRITICAL)


def double_if_long(x):
    return x * 2 if x.shape[0] >= 32 else x + 1


def outcome(bounds):
    torch._dynamo.reset()
    x = torch.randn(64)
    torch._dynamo.mark_dynamic(x, 0, **bounds)
    try:
        torch.compile(double_if_long, backend="eager")(x)
    except Exception as error:
        first = str(error).strip().splitlines()[0]
        return f"{type(error).__name__}: {first}" if "sympy" in first else type(error).__name__
    return "ok"


cases = {"no bounds": {}, "min=2, max=8192": {"min": 2, "max": 8192}, "min=2": {"min": 2}, "max=8192": {"max": 8192}}
seen = {name: outcome(bounds) for name, bounds in cases.items()}
for name, result in seen.items():
    print(f"{name:16} {result}")
one_sided = "AssertionError: not simple sympy type <class 'NoneType'>: None"
assert list(seen.values()) == ["ok", "ConstraintViolationError", one_sided, one_sided], seen
PY
cd "$work"
"$work/venv/bin/python" run.py
