#!/usr/bin/env bash
# torch 2.13.0: DistributedDataParallel(bucket_cap_mb=0.5) runs and trains; compiled, the same model raises an AssertionError. Dynamo
# splits the graph along DDP's buckets and wants the first one, 1 MB by torch's default and not settable there, to be no larger
# than the others. With bucket_cap_mb=2 it compiles.
# Output seen:
#   bucket_cap_mb=0.5 eager: ok
#   bucket_cap_mb=2 compiled: ok
#   bucket_cap_mb=0.5 compiled: AssertionError: First bucket should be smaller/equal to other buckets
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
cat > "$work/run.py" <<'PY'
import os

import torch
import torch.distributed as dist

os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": "0"}
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)


def outcome(bucket_cap_mb, compiled):
    torch._dynamo.reset()
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 8))
    model = torch.nn.parallel.DistributedDataParallel(model, bucket_cap_mb=bucket_cap_mb)
    if compiled:
        model = torch.compile(model, backend="eager")
    try:
        model(torch.ones(2, 8)).sum().backward()
    except AssertionError as error:
        return f"AssertionError: {str(error).split(' to get')[0].split('Error: ')[-1].strip()}"
    return "ok"


seen = [outcome(0.5, False), outcome(2, True), outcome(0.5, True)]
for name, result in zip(("bucket_cap_mb=0.5 eager", "bucket_cap_mb=2 compiled", "bucket_cap_mb=0.5 compiled"), seen):
    print(f"{name}: {result}")
dist.destroy_process_group()
wanted = "AssertionError: First bucket should be smaller/equal to other buckets"
assert seen == ["ok", "ok", wanted], seen
PY
cd "$work"
"$work/venv/bin/python" run.py
