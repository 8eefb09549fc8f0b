"""What the README and the examples say runs as it stands."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def run(*command: str) -> str:
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-20000:]
    return done.stdout


def test_the_readmes_code_runs_and_its_reports_hold_every_layer():
    compiled, uncompiled = re.findall(
        r"```python\n(import .*?)```", (ROOT / "README.md").read_text(), re.DOTALL
    )
    assert (
        run("-c", compiled + uncompiled).count("model.layers.{0-7}.self_attn") == 3
    )  # prefill; prefill, decode


def test_inspect_rewrite_shows_each_outcome_with_its_reason():
    shown = run("examples/inspect_rewrite.py")
    for words in (
        "2 sites: 2 sampled, 0 exact, 0 kept",
        "2 sites: 0 sampled, 2 exact, 0 kept",
        "1 sites: 0 sampled, 0 exact, 1 kept",
        "shorter than min_seq_len (4096)",
        "bidirectional attention with a mask",
    ):
        assert words in shown
