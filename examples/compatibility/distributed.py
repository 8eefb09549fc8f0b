"""What was tried on two processes (gloo), each of them a run of this file."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from trial import ALL, OPTIONS, Measured, build, in_place, largest_error, sites, step, tokens, trial

from sa_compile import report
from sa_compile.distributed.process import leave

RANKS = 2


def _launch(what: str, name: str) -> Measured:
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        command = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={RANKS}", "--standalone"]
        command += [__file__, what, name, str(result)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=500)
        if not result.exists():
            raise RuntimeError(_last_error(done.stderr))
        data = json.loads(result.read_text())
    return Measured([tuple(site) for site in data["sites"]], data["error"], data["note"])


def _last_error(text: str) -> str:
    errors = [line for line in text.splitlines() if "Error" in line and "ChildFailed" not in line]
    return errors[-1].split("]:")[-1].strip() if errors else text[-300:]


@trial("DDP", "2 ranks, gloo: `no_grad`, left padding", models=ALL)
def ddp(name: str) -> Measured:
    return _launch("ddp", name)


@trial("DDP", "2 ranks, gloo: a training step", models=ALL, allowed=1e-3)
def ddp_step(name: str) -> Measured:
    return _launch("ddp_step", name)


@trial("FSDP2", "2 ranks, gloo: `fully_shard` of each layer and the model, left padding", models=ALL)
def fsdp(name: str) -> Measured:
    return _launch("fsdp", name)


@trial("FSDP2", "2 ranks, gloo: a training step", models=ALL, allowed=1e-3)
def fsdp_step(name: str) -> Measured:
    return _launch("fsdp_step", name)


@trial("tensor parallel", '2 ranks, gloo: `tp_plan="auto"`', models=ALL, requires=("accelerate",))
def tensor_parallel(name: str) -> Measured:
    return _launch("tp", name)


def _padded() -> dict[str, Any]:
    mask = torch.ones_like(tokens())
    mask[0, :9] = 0
    return {"attention_mask": mask}


def _forward(wrap: Callable[[Any], Any], name: str) -> tuple[list[Any], list[Any]]:
    with torch.no_grad():
        expected = [build(name)(tokens(), **_padded()).logits]
        return [wrap(build(name))(tokens(), **_padded()).logits], expected


def _step(wrap: Callable[[Any], Any], name: str) -> tuple[list[Any], list[Any]]:
    """Every rank has the same batch, so that the mean gradient is the gradient of one."""
    expected = step(build(name).train())
    actual = [x.full_tensor() if hasattr(x, "full_tensor") else x for x in step(wrap(build(name).train()))]
    return actual, expected


def _ddp(model: Any) -> Any:
    """In buckets as small as the model, so that Dynamo splits the graph as it does those of large models."""
    dist._DEFAULT_FIRST_BUCKET_BYTES = 20_000  # no bucket may be smaller than the first
    parallel = torch.nn.parallel.DistributedDataParallel(model, bucket_cap_mb=0.02)
    return torch.compile(parallel, backend="sampleattn", options=OPTIONS)


def _fsdp(model: Any) -> Any:
    from torch.distributed.fsdp import fully_shard

    for layer in model.model.layers:
        fully_shard(layer)
    fully_shard(model)
    return in_place(model)


def _tensor_parallel(name: str) -> tuple[list[Any], list[Any]]:
    folder = [tempfile.mkdtemp()] if dist.get_rank() == 0 else [""]
    dist.broadcast_object_list(folder)
    if dist.get_rank() == 0:
        build(name).save_pretrained(folder[0])
    dist.barrier()
    model = type(build(name)).from_pretrained(folder[0], tp_plan="auto").eval()
    with torch.no_grad():
        return [in_place(model)(tokens()).logits], [build(name)(tokens()).logits]


_WORK: dict[str, Callable[[str], tuple[list[Any], list[Any]]]] = {
    "ddp": lambda name: _forward(_ddp, name),
    "ddp_step": lambda name: _step(_ddp, name),
    "fsdp": lambda name: _forward(_fsdp, name),
    "fsdp_step": lambda name: _step(_fsdp, name),
    "tp": _tensor_parallel,
}


def main(what: str, name: str, result: str) -> None:
    """One rank."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    with report.collect() as reports:
        actual, expected = _WORK[what](name)
    error = largest_error(actual, expected)
    if dist.get_rank() == 0:
        heads = {str(s.q_heads) for graph in reports for s in graph.sites}
        note = f"{len(reports)} graphs, {' and '.join(sorted(heads))} query heads on a rank"
        Path(result).write_text(json.dumps({"sites": sites(reports), "error": error, "note": note}))
    leave()


if __name__ == "__main__":
    main(*sys.argv[1:])
