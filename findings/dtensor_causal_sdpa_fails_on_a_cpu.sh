#!/usr/bin/env bash
# torch 2.13.0, 2 gloo ranks: SDPA of DTensors whose heads are sharded, on a CPU. Without a mask it runs, but gathers
# query, key and value: every rank computes all heads, and the output is replicated. With is_causal=True it is an error,
# and with the math backend, which needs no kernel of its own, another one. The same causal mask as a replicated bool
# tensor is taken. So a model of DTensors that is tried on gloo fails where its attention is causal.
# Output seen:
#   no mask: placements (Replicate(),), 3 all-gathers
#   is_causal=True: NotImplementedError: Operator aten._scaled_dot_product_flash_attention_for_cpu.default does not
#     have a sharding strategy registered.
#   is_causal=True, math backend: RuntimeError: aten.add.Tensor got mixed torch.Tensor and DTensor, need to convert ...
#   causal bool mask: placements (Replicate(),), 3 all-gathers
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
cat > "$work/run.py" <<'PY'
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

mesh = init_device_mesh("cpu", (2,))
torch.manual_seed(0)
tensors = [torch.randn(2, 4, 64, 16) for _ in range(3)]
sharded = [distribute_tensor(tensor, mesh, [Shard(1)]) for tensor in tensors]
allowed = torch.ones(64, 64, dtype=torch.bool).tril()
mask = distribute_tensor(allowed, mesh, [Replicate()])
causal = scaled_dot_product_attention(*tensors, is_causal=True)


def attend(what, wanted, **arguments):
    try:
        with CommDebugMode() as sent:
            out = scaled_dot_product_attention(*sharded, **arguments)
    except (NotImplementedError, RuntimeError) as error:
        found = f"{type(error).__name__}: {error}".splitlines()[0]
    else:
        counts = {str(op).split(".")[-1]: count for op, count in sent.get_comm_counts().items()}
        assert list(counts) == ["all_gather_into_tensor"], counts
        found = f"placements {out.placements}, {sent.get_total_counts()} all-gathers"
        assert (out.full_tensor() - wanted).abs().max() < 1e-5
    if dist.get_rank() == 0:
        print(f"{what}: {found}")
    return found


runs = "placements (Replicate(),), 3 all-gathers"
assert attend("no mask", scaled_dot_product_attention(*tensors)) == runs
refused = attend("is_causal=True", causal, is_causal=True)
with sdpa_kernel(SDPBackend.MATH):
    mixed = attend("is_causal=True, math backend", causal, is_causal=True)
assert attend("causal bool mask", causal, attn_mask=mask) == runs
name = "aten._scaled_dot_product_flash_attention_for_cpu.default"
assert refused == f"NotImplementedError: Operator {name} does not have a sharding strategy registered.", refused
assert mixed.startswith("RuntimeError: aten.add.Tensor got mixed torch.Tensor and DTensor"), mixed
dist.destroy_process_group()
PY
cd "$work"
run=("$work/venv/bin/python" -m torch.distributed.run --nproc-per-node 2 --standalone run.py)
OMP_NUM_THREADS=1 "${run[@]}" 2> errors.txt || { cat errors.txt >&2; exit 1; }
