"""What of a layer's selection and attention one rank has to do, of several that share a prompt: on one GPU.

    python -m sa_compile.lab.bench.rank_shares --lengths 131072 524288 --density .1 .05

Each rank's rows in turn, all keys and values there already, at a set density: the largest of a number of
ranks beside all rows says how well rows are dealt out. Nothing is gathered (that is ``lab.bench.ranks``).
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sa_compile import prefill
from sa_compile.config import SampleAttentionConfig
from sa_compile.lab.bench.op_hooks import density_set
from sa_compile.lab.tokens import length_from
from sa_compile.prefill import CausalAttention
from sa_compile.provenance import provenance

RANKS = (2, 4)
HEADS, KV_HEADS, DIM = 32, 8, 128


def main() -> None:
    arguments = _arguments()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with torch.no_grad():
        rows = [
            measured(length, density, device)
            for length, density in zip(arguments.lengths, arguments.density, strict=True)
        ]
    what = f"ms of one layer, {HEADS} query and {KV_HEADS} KV heads of {DIM}: all rows, and each rank's"
    sizes = " ".join(map(str, arguments.lengths)), " ".join(map(str, arguments.density))
    command = "python -m sa_compile.lab.bench.rank_shares --lengths {} --density {}".format(*sizes)
    source = provenance(device, revision=arguments.revision, command=command)
    text = json.dumps({**source, "what": what, "rows": rows}, indent=1)
    print(text)
    if arguments.json:
        arguments.json.write_text(text + "\n")


def measured(
    length: int, density: float, device: torch.device, config: SampleAttentionConfig | None = None
) -> dict[str, Any]:
    """Milliseconds of all rows of a prompt, and of each rank's."""
    config = config or SampleAttentionConfig()
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    query, key, value = (
        torch.randn(1, length, heads, DIM, device=device, dtype=dtype).transpose(1, 2)
        for heads in (HEADS, KV_HEADS, KV_HEADS)
    )
    owner = torch.arange(length, device=device) // config.block_q

    def run(attention: CausalAttention) -> Tensor:
        return prefill.over_blocks(attention, config, prefill.keep(attention, config))[0]

    found: dict[str, Any] = {"length": length}
    with density_set(device.type, density) as chosen:
        whole = CausalAttention(query, key, value, DIM**-0.5)
        found["one"] = _milliseconds(lambda: run(whole), device)
        for ranks in RANKS:
            found[str(ranks)] = []
            for rank in range(ranks):
                own = query[:, :, owner % ranks == rank]
                where = (DIM**-0.5, rank * config.block_q, 0, None, None, ranks)
                part = CausalAttention(own, key, value, *where)
                found[str(ranks)].append(_milliseconds(lambda part=part: run(part), device))  # type: ignore[misc]
        assert chosen is not None
        found["density"] = chosen.kept[length]
    return found


def _milliseconds(run: Callable[[], Any], device: torch.device) -> float:
    """The median of three, behind one that warms up."""
    times = []
    for _ in range(4):
        begin = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(1e3 * (time.perf_counter() - begin))
    return statistics.median(times[1:])


def add_lengths(parser: argparse.ArgumentParser) -> None:
    """Arguments: prompt lengths, and the density of each."""
    parser.add_argument(
        "--lengths", type=length_from, nargs="+", required=True, help="prompt lengths in tokens"
    )
    parser.add_argument("--density", type=float, nargs="+", required=True, help="set density, one a length")


def check_lengths(parser: argparse.ArgumentParser, found: argparse.Namespace) -> None:
    """End the program, with the argument's name, unless each length has a density in (0, 1]."""
    if len(found.lengths) != len(found.density):
        parser.error(
            f"--density must be as many numbers as --lengths ({len(found.lengths)}), got {len(found.density)}"
        )
    if not all(0 < density <= 1 for density in found.density):
        parser.error(f"--density must be in (0, 1], got {' '.join(map(str, found.density))}")


def _arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_lengths(parser)
    parser.add_argument("--json", type=Path, help="where the result is written")
    parser.add_argument("--revision", help="the code's commit where git can not tell")
    found = parser.parse_args(given)
    check_lengths(parser, found)
    return found


if __name__ == "__main__":
    main()
