#!/usr/bin/env bash
# torch 2.13.0: a module that is the target of a torch_dynamo_backends entry point, and that also decorates the function with
# register_backend under the same name, breaks the name: the first torch.compile(backend="...") loads the module,
# whose decorator registers the name, and then registers it again, AssertionError: duplicate name. If the user happened to import the
# module first, the same call works, so the author of a backend may never see it.
# Output seen:
#   by name:               AssertionError duplicate name: twice
#   module imported first: ok
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
mkdir "$work/package"
cat > "$work/package/twice_backend.py" <<'PY'
from torch._dynamo import register_backend


@register_backend(name="twice")
def twice(gm, example_inputs):
    return gm.forward
PY
cat > "$work/package/pyproject.toml" <<'TOML'
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"
[project]
name = "twice-backend"
version = "1"
[project.entry-points.torch_dynamo_backends]
twice = "twice_backend:twice"
[tool.setuptools]
py-modules = ["twice_backend"]
TOML
"$work/venv/bin/pip" install --quiet "$work/package"
cat > "$work/run.py" <<'PY'
import subprocess
import sys

CALL = """
import torch
try:
    torch.compile(lambda x: x + 1, backend="twice")(torch.ones(2))
    print("ok")
except AssertionError as error:
    print("AssertionError", error)
"""


def outcome(*lines):
    import textwrap

    source = "\n".join(lines) + textwrap.dedent(CALL)
    return subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True).stdout.strip()


by_name = outcome()
imported = outcome("import twice_backend")
print("by name:              ", by_name)
print("module imported first:", imported)
assert by_name == "AssertionError duplicate name: twice", by_name
assert imported == "ok", imported
PY
cd "$work"
"$work/venv/bin/python" run.py
