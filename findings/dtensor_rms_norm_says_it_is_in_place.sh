#!/usr/bin/env bash
# torch 2.13.0, 2 gloo ranks: F.rms_norm of a DTensor that is sharded along the dimension that it normalizes is an
# error, which tells the caller to use "the out-of-place version of this operation": the call is out of place, the
# add_ is inside it. F.layer_norm of the same tensor runs (and gathers it). RMS norm written out of plain operations
# runs, too, and leaves its result sharded.
# Output seen:
#   layer_norm: placements (Replicate(),)
#   rms_norm: RuntimeError: aten.add_.Scalar: in-place operations that require placement changes are not supported. ...
#   written out: placements (Shard(dim=2),)
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
cat > "$work/run.py" <<'PY'
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from torch.nn.functional import layer_norm, rms_norm

EPS = 1e-6
mesh = init_device_mesh("cpu", (2,))
torch.manual_seed(0)
x = torch.randn(4, 6, 8)
sharded = distribute_tensor(x, mesh, [Shard(2)])


def call(what, norm, wanted):
    try:
        out = norm(sharded)
    except RuntimeError as error:
        found = f"RuntimeError: {error}".splitlines()[0]
    else:
        assert (out.full_tensor() - wanted).abs().max() < 1e-5
        found = f"placements {out.placements}"
    if dist.get_rank() == 0:
        print(f"{what}: {found}")
    return found


def written_out(x):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + EPS)


assert call("layer_norm", lambda x: layer_norm(x, (8,)), layer_norm(x, (8,))) == "placements (Replicate(),)"
refused = call("rms_norm", lambda x: rms_norm(x, (8,), eps=EPS), rms_norm(x, (8,), eps=EPS))
assert call("written out", written_out, written_out(x)) == "placements (Shard(dim=2),)"
assert refused.startswith("RuntimeError: aten.add_.Scalar: in-place operations that require placement"), refused
assert "use the out-of-place version of this operation" in refused.lower(), refused
dist.destroy_process_group()
PY
cd "$work"
run=("$work/venv/bin/python" -m torch.distributed.run --nproc-per-node 2 --standalone run.py)
OMP_NUM_THREADS=1 "${run[@]}" 2> errors.txt || { cat errors.txt >&2; exit 1; }
