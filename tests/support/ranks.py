"""Cases on several ranks (gloo), all in one launch: the tests' side, and that of the ranks.

    torchrun --nproc-per-node N tests/support/ranks.py FOLDER FILE.CASE [FILE.CASE ..]

Every rank runs every case, a function of ``tests/support/FILE.py``, and rank r writes ``FOLDER/r.json``: of
each case the error, or "".
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import traceback
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

TESTS = Path(__file__).resolve().parents[1]


def torchrun(ranks, *command):
    """What became of a program on so many ranks."""
    launch = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={ranks}", "--standalone"]
    return subprocess.run([*launch, *command], cwd=TESTS.parent, capture_output=True, text=True, timeout=600)


def launched(ranks, cases, folder):
    """What failed, or "", of every case on every rank."""
    done = torchrun(ranks, __file__, str(folder), *cases)
    assert done.returncode == 0, done.stderr[-20000:]
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(ranks)]


def run_cases(names, run, folder):
    """On a rank: run every case, and write what is found after each."""
    found = {}
    for name in names:
        try:
            run(name)
            found[name] = ""
        except Exception:
            found[name] = traceback.format_exc()
        print(name, found[name] or "ok", flush=True)
        Path(folder, f"{dist.get_rank()}.json").write_text(json.dumps(found))


@torch.no_grad()
def main():
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=120))
    run_cases(sys.argv[2:], _run, sys.argv[1])
    end()


def _run(name):
    file, case = name.split(".")
    getattr(importlib.import_module(f"support.{file}"), case)()


if __name__ == "__main__":
    sys.path.insert(0, str(TESTS))
    from sa_compile.distributed.process import end

    main()
