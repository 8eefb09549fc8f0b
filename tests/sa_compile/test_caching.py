"""A second process finds the first one's compiled code, unless options or kernels changed in between."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.models import LOSSLESS, tiny_llama
from support.profiles import model_of, write_profile

import sa_compile.kernels
import sa_compile.passes
from sa_compile.caching import KernelFingerprintPass, hash_sources, kernel_fingerprint

LOSSLESS_RANGE = {name: value for name, value in LOSSLESS.items() if name != "min_seq_len"}
CHILD = f"""
import json, sys
options, package = json.loads(sys.argv[1]), sys.argv[2]
if package:  # a copy of the package instead of the installed one
    sys.meta_path[:] = [f for f in sys.meta_path if not type(f).__module__.startswith("_editable_skbc")]
    sys.path.insert(0, package)
import torch
from torch._dynamo.utils import counters
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from support.models import tiny_llama
with torch.no_grad():
    model, tokens = tiny_llama(), torch.arange(64)[None]
    torch.compile(model, backend="sampleattn", options=options)(tokens)
import sa_compile.kernels
print(json.dumps({{
    "fx": {{k[14:]: v for k, v in counters["inductor"].items() if k.startswith("fxgraph_cache_")}},
    "aot": {{k[15:]: v for k, v in counters["aot_autograd"].items() if k.startswith("autograd_cache_")}},
    "kernels": sa_compile.kernels.__file__,
}}))
"""


def run_process(cache: Path, options: dict, package: Path | None = None) -> dict:
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(cache)}
    arguments = [sys.executable, "-c", CHILD, json.dumps(options), str(package or "")]
    result = subprocess.run(arguments, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(result.stdout.strip().splitlines()[-1])


def copy_package(folder: Path) -> Path:
    """The installed package as plain folders, so that a test may change it."""
    target = folder / "sa_compile"
    for name, package in (("", sa_compile), ("passes", sa_compile.passes), ("kernels", sa_compile.kernels)):
        for source in package.__path__:
            if name or Path(source).name == "sa_compile":
                ignore = shutil.ignore_patterns("__pycache__", "csrc")
                shutil.copytree(source, target / name, ignore=ignore, dirs_exist_ok=True)
    return folder


def test_caches_hit_on_a_warm_start_and_miss_when_options_or_kernels_change(tmp_path):
    cache, package = tmp_path / "cache", copy_package(tmp_path / "package")

    cold = run_process(cache, LOSSLESS, package)
    assert cold["kernels"].startswith(str(package))
    assert cold["aot"] == {"miss": 1, "saved": 1}
    assert cold["fx"]["miss"] == 1

    warm = run_process(cache, LOSSLESS, package)
    assert warm["aot"] == {"hit": 1}
    assert warm["fx"].get("miss", 0) == 0 and warm["fx"].get("hit", 0) >= 1

    changed_options = run_process(cache, {**LOSSLESS, "peak": 0.5}, package)
    assert changed_options["aot"].get("hit", 0) == 0 and changed_options["aot"]["miss"] == 1

    with (package / "sa_compile" / "kernels" / "ops.py").open("a") as source:
        source.write("\n# A changed kernel.\n")
    changed_kernel = run_process(cache, LOSSLESS, package)
    assert changed_kernel["aot"].get("hit", 0) == 0 and changed_kernel["aot"]["miss"] == 1


def test_a_changed_profile_misses(tmp_path):
    ranges = [(32, None, {**LOSSLESS_RANGE, "landmarks": 3})]
    model = model_of(tiny_llama(), torch.arange(64)[None])
    options = {"profile": write_profile(tmp_path / "profile.json", model, ranges)}
    cache = tmp_path / "cache"

    assert run_process(cache, options)["aot"] == {"miss": 1, "saved": 1}
    assert run_process(cache, options)["aot"] == {"hit": 1}

    data = json.loads((tmp_path / "profile.json").read_text())
    data["ranges"][0]["measured"] = "another run"  # nothing that the graph would show
    (tmp_path / "profile.json").write_text(json.dumps(data))
    changed = run_process(cache, options)
    assert changed["aot"].get("hit", 0) == 0 and changed["aot"]["miss"] == 1


def test_the_fingerprint_follows_names_and_contents(tmp_path):
    (tmp_path / "a.py").write_text("1")
    first = hash_sources([tmp_path])
    assert hash_sources([tmp_path]) == first
    (tmp_path / "notes.txt").write_text("not a source")
    assert hash_sources([tmp_path]) == first
    (tmp_path / "a.py").write_text("2")
    assert hash_sources([tmp_path]) != first


class Wrapped:
    calls = 0

    def __call__(self, graph):
        Wrapped.calls += 1


def test_a_pass_that_was_there_before_still_runs_and_decides_about_the_cache():
    ours = KernelFingerprintPass(Wrapped())
    ours(None)
    assert Wrapped.calls == 1
    assert ours.uuid() is None  # Inductor bypasses its cache for a pass without a uuid
    nested = KernelFingerprintPass(KernelFingerprintPass())
    assert nested.uuid() == (kernel_fingerprint(), kernel_fingerprint())


@pytest.mark.parametrize("part", ["0.1.0-"])
def test_the_fingerprint_holds_the_version(part):
    assert kernel_fingerprint().startswith(part)
