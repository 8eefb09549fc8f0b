"""Times to first token on several ranks: tensor parallel and context parallel beside one of them.

    torchrun --nproc-per-node 2 -m sa_compile.lab.bench.ranks --lengths 131072 --density .1

Random weights and a set density, model code uncompiled but for our ops, no KV cache. The three take turns;
medians are written. Also the time of a layer's attention under context parallel and, alone, of its gathering,
and how unevenly ranks would keep blocks if rows were dealt out otherwise.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from transformers import AutoModelForCausalLM

import sa_compile.hf
from sa_compile.distributed.layout import in_order, shard_mask
from sa_compile.distributed.model import context_parallel
from sa_compile.distributed.ops import context_attention_op
from sa_compile.distributed.ranks import Ranks
from sa_compile.kernels.shared.blocks import popcount
from sa_compile.lab.bench.op_hooks import density_set, random_strips
from sa_compile.lab.bench.shape import Shape, load_shape
from sa_compile.provenance import provenance

BLOCK = 128


def main() -> None:
    arguments = _arguments()
    device = _join()
    shape = load_shape(arguments.model, layers=arguments.layers, narrow=arguments.narrow)
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    with torch.no_grad():
        models = _models(shape, device, mesh)
        rows = [
            _measured(models, shape, mesh, length, density, arguments.repeats)
            for length, density in zip(arguments.lengths, arguments.density, strict=True)
        ]
    if dist.get_rank() == 0:
        program = f"torchrun --nproc-per-node {dist.get_world_size()} -m sa_compile.lab.bench.ranks"
        source = provenance(device, revision=arguments.revision, command=f"{program} {arguments.said}")
        found = {**source, "ranks": dist.get_world_size(), "shape": _described(shape), "rows": rows}
        text = json.dumps(found, indent=1)
        print(text)
        if arguments.json:
            arguments.json.write_text(text + "\n")
    dist.destroy_process_group()


def _measured(
    models: dict[str, Any], shape: Shape, mesh: Any, length: int, density: float, repeats: int
) -> dict[str, Any]:
    device = next(models["one"].parameters()).device
    tokens = torch.randint(
        0, shape.config.vocab_size, (1, length), generator=torch.Generator().manual_seed(0)
    ).to(device)
    times: dict[str, list[float]] = {name: [] for name in models}
    memory, logits = {}, {}
    with density_set(device.type, density) as chosen:
        for repeat in range(1 + repeats):  # the first warms up
            for name, model in models.items():
                _reset_memory(device)

                def forward(model: Any = model, name: str = name) -> None:
                    logits[name] = model(input_ids=tokens, use_cache=False, logits_to_keep=1).logits

                seconds = _seconds(forward, device, alone=name == "one")
                memory[name] = _peak_memory(device)
                times[name] += [seconds] if repeat else []
        attention, gathering = _attention_and_gathering(models["cp"], shape, mesh, length, device, repeats)
    median = {name: statistics.median(values) for name, values in times.items()}
    assert chosen is not None
    return {
        "length": length,
        "density": chosen.kept[length],
        "seconds": times,
        "median": median,
        "times_faster": {name: median["one"] / value for name, value in median.items()},
        "peak_bytes": memory,
        "difference": {name: _difference(logits, name) for name in logits},
        "attention_of_a_layer": attention,
        "gathering_of_a_layer": gathering,
        "imbalance": {str(n): imbalances(_strips(shape, length, density, device), n) for n in (2, 4, 8)},
    }


def imbalances(mask: Tensor, ranks: int) -> dict[str, float]:
    """Most kept blocks of a rank by their mean, for three ways to deal out the rows of a block mask."""
    kept = popcount(mask).sum((0, 1, 3), dtype=torch.float64)
    block = torch.arange(len(kept), device=kept.device)
    part = block * 2 * ranks // len(kept)  # of 2 * ranks equal ones
    owners = {
        "interleaved": block % ranks,
        "contiguous": block * ranks // len(kept),
        "head-tail": torch.minimum(part, 2 * ranks - 1 - part),
    }
    sums = {name: torch.zeros(ranks, dtype=kept.dtype, device=kept.device) for name in owners}
    return {name: (x.index_add_(0, owners[name], kept).max() / x.mean()).item() for name, x in sums.items()}


def _difference(logits: dict[str, Tensor], name: str) -> float:
    """Of the last position's logits from those of one rank, by their largest; NaN where that is not known."""
    if "one" not in logits:
        return float("nan")
    one, other = (logits[key].float() for key in ("one", name))
    return ((other - one).abs().max() / one.abs().max()).item()


def _strips(shape: Shape, length: int, density: float, device: torch.device) -> Tensor:
    return random_strips(density, shape.config.num_attention_heads, length, length, 0, BLOCK, BLOCK, device)


def _attention_and_gathering(
    model: Any, shape: Shape, mesh: Any, length: int, device: torch.device, repeats: int
) -> tuple[float, float]:
    """Seconds of one layer's attention on ranks, and of gathering its keys and values alone."""
    ranks, config, module = Ranks.of(mesh), shape.config, model.model.layers[0].self_attn
    rows, dim, dtype = length // ranks.size, module.head_dim, module.q_proj.weight.dtype
    query = torch.randn(1, rows, config.num_attention_heads, dim, device=device, dtype=dtype).transpose(1, 2)
    key, value = (
        torch.randn(1, rows, config.num_key_value_heads, dim, device=device, dtype=dtype).transpose(1, 2)
        for _ in range(2)
    )
    mask, where = shard_mask(None, length, device), (None, dim**-0.5, 0, module._sampleattn_context, 0)

    def gather() -> None:
        for wait in [ranks.gather(x) for x in (key, value)]:
            in_order(wait(), 2, BLOCK)

    def median(run: Callable[[], Any]) -> float:
        return statistics.median(_seconds(run, device) for _ in range(1 + repeats))

    return median(lambda: context_attention_op(query, key, value, mask, *where)), median(gather)


def _models(shape: Shape, device: torch.device, mesh: Any) -> dict[str, Any]:
    """One rank's model, and the same on all ranks in two ways."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    one: Any = shape.build(str(device), dtype)
    shared: Any = shape.build(str(device), dtype)
    one.set_attn_implementation(sa_compile.hf.NAME)
    context_parallel(shared, mesh, compile=False)
    with tempfile.TemporaryDirectory() as folder:
        places: list[Any] = [folder]
        dist.broadcast_object_list(places)
        if dist.get_rank() == 0:
            one.save_pretrained(places[0])
        dist.barrier()
        split = AutoModelForCausalLM.from_pretrained(places[0], dtype=dtype, tp_plan="auto").eval()
        dist.barrier()
    split.set_attn_implementation(sa_compile.hf.NAME)
    return {"one": one, "cp": shared, "tp": split}


def _seconds(run: Callable[[], Any], device: torch.device, alone: bool = False) -> float:
    """Of the slowest rank; ``alone``: of the first, while the others wait."""
    dist.barrier()
    _synchronise(device)
    begin = time.perf_counter()
    if not alone or dist.get_rank() == 0:
        run()
        _synchronise(device)
    seconds = torch.tensor([time.perf_counter() - begin], device=device)
    dist.all_reduce(seconds, dist.ReduceOp.MAX)
    return seconds.item()


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _reset_memory(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def _peak_memory(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0


def _described(shape: Shape) -> dict[str, Any]:
    names = ("hidden_size", "num_attention_heads", "num_key_value_heads", "vocab_size")
    sizes = {name: getattr(shape.config, name) for name in names}
    return {
        "name": shape.name,
        "layers": shape.layers,
        "of": shape.all_layers,
        "weights": shape.weights,
        **sizes,
    }


def _join() -> torch.device:
    if not torch.cuda.is_available():
        torch.set_num_threads(1)
        dist.init_process_group("gloo")
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    torch.cuda.set_device(device)
    dist.init_process_group("nccl", device_id=device)
    return device


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="llama-3.1-8b", help="a shape (default llama-3.1-8b)")
    parser.add_argument("--layers", type=int, default=2, help="layers that are built (default 2)")
    parser.add_argument("--narrow", action="store_true", help="small heads, MLP and vocabulary, for tests")
    parser.add_argument("--lengths", type=int, nargs="+", required=True, help="prompt lengths in tokens")
    parser.add_argument("--density", type=float, nargs="+", required=True, help="set density, one a length")
    parser.add_argument("--repeats", type=int, default=3, help="timed turns (default 3)")
    parser.add_argument("--json", type=Path, help="where the result is written")
    parser.add_argument("--revision", help="the code's commit where git can not tell")
    found = parser.parse_args()
    given = vars(found)
    names = ("model", "layers", "lengths", "density", "repeats")
    shown = ((name, given[name] if isinstance(given[name], list) else [given[name]]) for name in names)
    found.said = " ".join(f"--{name} {' '.join(map(str, values))}" for name, values in shown)
    return found


if __name__ == "__main__":
    main()
