"""Times to first token on several ranks: tensor parallel and context parallel beside one of them.

    torchrun --nproc-per-node 2 -m sa_compile.lab.bench.ranks --lengths 131072 --density .1

Random weights and a set density, no KV cache. Four take turns, and medians are written: ``one`` rank, ``cp``
(context parallel) and ``tp`` (tensor parallel), all with our ops, and ``tp_dense``, tensor parallel without.
Model code is uncompiled but for our ops, and ``tp_dense`` is FlashAttention-2 (on a CPU, PyTorch's choice);
with ``--compiled`` all are compiled, ``tp_dense`` by Inductor. Also the time of a layer's attention under
context parallel, what of it is gathering, and how unevenly ranks would keep blocks if rows were dealt out
otherwise. Every number is printed when it is there, and the file is written anew after every length.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from transformers import AutoModelForCausalLM

from sa_compile.chunked_mlp import chunk_mlps
from sa_compile.distributed.attention import context_of
from sa_compile.distributed.layout import in_order, shard_mask
from sa_compile.distributed.model import context_parallel
from sa_compile.distributed.ops import context_attention_op
from sa_compile.distributed.process import join, leave
from sa_compile.distributed.ranks import Ranks
from sa_compile.kernels.shared.blocks import popcount
from sa_compile.lab.bench import competitors
from sa_compile.lab.bench.op_hooks import density_set, random_strips
from sa_compile.lab.bench.rank_shares import add_lengths, check_lengths
from sa_compile.lab.bench.shape import Shape, load_shape
from sa_compile.provenance import provenance

BLOCK = 128
# A set density knows no last rows that are kept whole, which context parallel would add to it.
OPTIONS = {"last_rows": 0}
NAMES = ("one", "cp", "tp", "tp_dense")
UNSAID = ("json", "revision")  # arguments that do not decide the result
LONG = 5.0  # seconds: what takes longer, and is not compiled first, is run once


def main() -> None:
    arguments = _arguments()
    device = join()
    shape = load_shape(arguments.model, layers=arguments.layers, narrow=arguments.narrow)
    program = f"torchrun --nproc-per-node {dist.get_world_size()} -m sa_compile.lab.bench.ranks"
    source = provenance(device, revision=arguments.revision, command=f"{program} {arguments.said}")
    found = {**source, "ranks": dist.get_world_size(), "shape": _described(shape), "rows": []}
    with torch.no_grad():
        bench = _Bench(shape, device, arguments)
        for length, density in zip(arguments.lengths, arguments.density, strict=True):
            found["rows"].append(bench.measured(length, density))
            if dist.get_rank() == 0 and arguments.json:
                arguments.json.write_text(json.dumps(found, indent=1) + "\n")
    leave()


class _Bench:
    """One model in several ways on the ranks."""

    def __init__(self, shape: Shape, device: torch.device, arguments: argparse.Namespace) -> None:
        self.shape, self.device, self.repeats = shape, device, arguments.repeats
        self.compiled, self.chunked_mlp = arguments.compiled, arguments.chunked_mlp
        self.dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        self.ranks = Ranks.of(init_device_mesh(device.type, (dist.get_world_size(),)))
        ours = competitors.OURS if arguments.compiled else "interface"
        names = arguments.only
        self.runs: dict[str, Callable[..., Tensor]] = {}
        if "one" in names:
            self.runs["one"] = competitors.build(ours, self._model(), OPTIONS).run
        if "cp" in names:
            self.shared = self._model()
            context_parallel(self.shared, self.ranks.group, OPTIONS, compile=arguments.compiled)
            self.runs["cp"] = lambda **inputs: self.shared(**inputs).logits
        if "tp" in names or "tp_dense" in names:
            split = self._split_model()
            dense = "inductor" if arguments.compiled else "flash2" if device.type == "cuda" else "eager"
            for name, way in (("tp", ours), ("tp_dense", dense)):
                if name in names:
                    self.runs[name] = competitors.build(way, split, OPTIONS).run

    def _model(self) -> Any:
        """On every rank, with the same weights."""
        return self._chunked(self.shape.build(str(self.device), self.dtype))

    def _split_model(self) -> Any:
        """This rank's part of it."""
        with tempfile.TemporaryDirectory() as folder:
            places: list[Any] = [folder]
            dist.broadcast_object_list(places)
            if dist.get_rank() == 0:
                whole: Any = self.shape.build(str(self.device), self.dtype)
                whole.save_pretrained(places[0])
                del whole
            dist.barrier()
            model = AutoModelForCausalLM.from_pretrained(places[0], dtype=self.dtype, tp_plan="auto").eval()
            dist.barrier()
        return self._chunked(model)

    def _chunked(self, model: Any) -> Any:
        if self.chunked_mlp:
            chunk_mlps(model, self.chunked_mlp)
        return model

    def measured(self, length: int, density: float) -> dict[str, Any]:
        """Everything at one length."""
        vocabulary, generator = self.shape.config.vocab_size, torch.Generator().manual_seed(0)
        tokens = torch.randint(0, vocabulary, (1, length), generator=generator).to(self.device)
        strips = random_strips(
            density, self.shape.config.num_attention_heads, length, length, 0, BLOCK, BLOCK, self.device
        )
        row: dict[str, Any] = {"length": length}
        row["imbalance"] = {str(ranks): imbalances(strips, ranks) for ranks in (2, 4, 8)}
        del strips
        _empty_cache(self.device)
        with density_set(self.device.type, density) as chosen:
            row |= self._times_of_models(tokens)
            if "cp" in self.runs:
                row["attention_of_a_layer"] = self._attention_of_a_layer(length)
                self._say(length, "attention of a layer", row["attention_of_a_layer"])
        assert chosen is not None
        row["density"] = chosen.kept[length] if chosen.kept else None
        return row

    def _times_of_models(self, tokens: Tensor) -> dict[str, Any]:
        times: dict[str, list[float]] = {name: [] for name in self.runs}
        memory: dict[str, float] = {}
        logits: dict[str, Tensor] = {}
        for _ in range(1 + self.repeats):  # the first warms up
            for name, run in self.runs.items():
                if times[name] and times[name][0] > LONG and not self.compiled:
                    continue

                def forward(name: str = name, run: Callable[..., Tensor] = run) -> None:
                    logits[name] = run(input_ids=tokens, use_cache=False, logits_to_keep=1)

                before = _allocated(self.device)
                times[name].append(self._seconds(forward, alone=name == "one"))
                memory[name] = self._largest(_peak(self.device) - before)
                self._say(tokens.shape[1], name, times[name][-1])
        timed = {name: found[1:] or found for name, found in times.items()}
        median = {name: statistics.median(found) for name, found in timed.items()}
        found: dict[str, Any] = {"seconds": timed, "median": median, "peak_bytes_beyond_weights": memory}
        if "one" in median:
            found["times_faster_than_one"] = {name: median["one"] / x for name, x in median.items()}
        if "one" in logits and "cp" in logits:  # the ranks of tp have other blocks: a set density is by head
            found["difference_of_cp"] = _difference(logits["cp"], logits["one"])
        return found

    def _attention_of_a_layer(self, length: int) -> dict[str, float]:
        """Seconds: under context parallel, of it gathering (what is not hidden), and gathering alone."""
        config, module = self.shape.config, self.shared.model.layers[0].self_attn
        context = context_of(module._sampleattn_context)
        rows, dim = context.layout(length).rows_of_a_rank, module.head_dim
        query, key, value = (
            torch.randn(1, rows, heads, dim, device=self.device, dtype=module.q_proj.weight.dtype).transpose(
                1, 2
            )
            for heads in (config.num_attention_heads, config.num_key_value_heads, config.num_key_value_heads)
        )
        mask = shard_mask(None, length, self.device)
        once = _GatheredOnce(self.ranks.group)

        def attend() -> None:
            once.turn = 0
            context_attention_op(query, key, value, mask, None, dim**-0.5, 0, module._sampleattn_context, 0)

        def gather() -> None:
            for wait in [self.ranks.gather(x) for x in (key, value)]:
                in_order(wait(), 2, BLOCK)

        whole = self._median(attend)
        own, context.ranks = context.ranks, once
        try:
            without = self._median(attend)
        finally:
            context.ranks = own
        alone = self._median(gather)
        return {
            "seconds": whole,
            "without_gathering": without,
            "gathering_share": 1 - without / whole,
            "gathering_alone": alone,
        }

    def _median(self, run: Callable[[], Any]) -> float:
        return statistics.median([self._seconds(run) for _ in range(1 + self.repeats)][1:])

    def _seconds(self, run: Callable[[], Any], alone: bool = False) -> float:
        """Of the slowest rank; ``alone``: of the first, while the others wait."""
        dist.barrier()
        _synchronise(self.device)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        begin = time.perf_counter()
        if not alone or dist.get_rank() == 0:
            run()
            _synchronise(self.device)
        return self._largest(time.perf_counter() - begin)

    def _largest(self, number: float) -> float:
        """Of all ranks' numbers."""
        found = torch.tensor([number], device=self.device, dtype=torch.float64)
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return found.item()

    def _say(self, length: int, what: str, number: Any) -> None:
        if dist.get_rank() == 0:
            print(json.dumps([length, what, number]), flush=True)


@dataclass
class _GatheredOnce(Ranks):
    """Ranks that gather in a first turn, and have it all in those that follow."""

    kept: list[Tensor] = field(default_factory=list)
    turn: int = 0  # gathers of this turn

    def gather(self, x: Tensor) -> Callable[[], Tensor]:
        x, self.turn = x.contiguous(), self.turn + 1
        if len(self.kept) < self.turn:
            self.kept.append(super().gather(x)())
        parts = self.kept[self.turn - 1]
        return lambda: parts


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


def _difference(found: Tensor, expected: Tensor) -> float:
    """Of logits, by the largest of those that are expected."""
    return ((found.float() - expected.float()).abs().max() / expected.float().abs().max()).item()


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _empty_cache(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _allocated(device: torch.device) -> int:
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def _peak(device: torch.device) -> int:
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


def _arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """Of the command line; ``said`` is what of it decides the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="llama-3.1-8b", help="a shape (default llama-3.1-8b)")
    parser.add_argument("--layers", type=int, default=2, help="layers that are built (default 2)")
    parser.add_argument("--narrow", action="store_true", help="small heads, MLP and vocabulary, for tests")
    add_lengths(parser)
    parser.add_argument("--only", nargs="+", choices=NAMES, default=list(NAMES), help="what is measured")
    parser.add_argument("--compiled", action="store_true", help="compile the models")
    parser.add_argument("--chunked-mlp", type=int, help="run MLPs so many rows at a time")
    parser.add_argument("--repeats", type=int, default=3, help="timed turns (default 3)")
    parser.add_argument("--json", type=Path, help="where the result is written")
    parser.add_argument("--revision", help="the code's commit where git can not tell")
    found = parser.parse_args(given)
    check_lengths(parser, found)
    if found.repeats < 1:
        parser.error(f"--repeats must be at least 1, got {found.repeats}")
    said = []
    for name, value in vars(found).items():
        if name not in UNSAID and value is not None and value is not False:
            values = value if isinstance(value, list) else [] if value is True else [value]
            said += [f"--{name.replace('_', '-')}", *map(str, values)]
    found.said = " ".join(said)
    return found


if __name__ == "__main__":
    main()
