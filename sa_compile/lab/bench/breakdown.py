"""Where a prefill's time goes, layer by layer: ``python -m sa_compile bench breakdown``.

A run of its own, with a mark before and after each of our ops: CUDA events on a GPU, read after the forward,
so nothing waits for the device in between. The whole forward is timed by the same marks. What lies between
two ops is the rest: projections, norms, RoPE, the MLP.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate

from sa_compile.config import SampleAttentionConfig
from sa_compile.lab.bench import competitors, density
from sa_compile.lab.bench.op_hooks import OpTimes, density_set, op_times
from sa_compile.lab.bench.ttft import parse_options, prepare, wait
from sa_compile.provenance import provenance

PARTS = {
    "sample_scores": "sampling",
    "select_blocks": "selection",
    "block_representatives": "sampling",
    "select_adaptive": "selection",
    "select_peaks": "selection",
    "select_budget": "selection",
    "select_budget_rest": "selection",
    "mask_blocks": "mask blocks",
    "block_sparse_attention": "attention",
    "block_mean_attention": "attention",
    "block_rest_attention": "attention",
}
REST = "rest"


def split(times: OpTimes, begin: Any, end: Any) -> list[dict[str, float]]:
    """Milliseconds of each part, a dict a layer, from the marks of one forward.

    A layer ends with its attention; its rest is what runs between the layer before and that, outside our ops.
    The last entry holds what follows the last attention. The sum over all is the whole forward.
    """
    layers, layer, last = [], _empty(), begin
    for span in times.spans:
        layer[REST] += times.milliseconds(last, span.begin)
        layer[PARTS[span.name]] += times.milliseconds(span.begin, span.end)
        last = span.end
        if PARTS[span.name] == "attention":
            layers.append(layer)
            layer = _empty()
    layer[REST] += times.milliseconds(last, end)
    return [*layers, layer]


def _empty() -> dict[str, float]:
    return dict.fromkeys([*PARTS.values(), REST], 0.0)


def median_layers(runs: list[list[dict[str, float]]]) -> list[dict[str, float]]:
    """The median of every part of every layer over several forwards."""
    return [
        {part: statistics.median(layer[part] for layer in same) for part in same[0]}
        for same in zip(*runs, strict=True)
    ]


@torch.no_grad()
def measure(run: Any, inputs: dict[str, Any], device: str, rounds: int) -> dict[str, Any]:
    """``layers`` (see :func:`split`), and ``whole_ms`` of the forward without marks; medians of rounds."""
    run(**inputs)
    marked, whole = [], []
    for _ in range(rounds):
        clock = OpTimes(device)
        begin = clock.mark()
        run(**inputs)
        end = clock.mark()
        wait(device)
        whole.append(clock.milliseconds(begin, end))
        with op_times(device) as times:
            begin = times.mark()
            run(**inputs)
            end = times.mark()
            wait(device)
            marked.append(split(times, begin, end))
    return {"layers": median_layers(marked), "whole_ms": statistics.median(whole)}


def table(result: dict[str, Any]) -> str:
    """Markdown: milliseconds of each part for every layer, their sum, and its share of the whole."""
    layers = result["layers"]
    parts = [part for part in layers[0] if any(layer[part] for layer in layers)]
    names = [*(str(number) for number in range(len(layers) - 1)), "after the last"]
    lines = [
        [name, *(f"{layer[part]:.3f}" for part in parts)] for name, layer in zip(names, layers, strict=True)
    ]
    total = {part: sum(layer[part] for layer in layers) for part in parts}
    whole = sum(total.values())
    lines.append(["sum", *(f"{total[part]:.3f}" for part in parts)])
    lines.append(["share", *(f"{total[part] / whole:.1%}" for part in parts)])
    caption = (
        f"{result['model']}, {result['length']} tokens, {result['device']}; milliseconds; the same forward "
    )
    caption += f"without marks takes {result['whole_ms']:.1f} ms, with them {whole:.1f} ms."
    headers = ["layer", *parts]
    return f"{caption}\n\n" + tabulate(lines, headers, tablefmt="github", disable_numparse=True)


def chart(result: dict[str, Any], path: Path) -> Path:
    """PNG: a stacked bar for each layer."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    layers = result["layers"][:-1]
    figure, axis = pyplot.subplots(figsize=(8, 3.5), layout="constrained")
    bottom = [0.0] * len(layers)
    for part in layers[0]:
        heights = [layer[part] for layer in layers]
        if any(heights):
            axis.bar(range(len(layers)), heights, bottom=bottom, label=part)
            bottom = [low + height for low, height in zip(bottom, heights, strict=True)]
    axis.set(xlabel="layer", ylabel="milliseconds", title=f"{result['model']}, {result['length']} tokens")
    axis.legend(frameon=False, ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.18))
    figure.savefig(path, dpi=110, metadata={"Software": None})
    pyplot.close(figure)
    return path


def run(arguments: argparse.Namespace) -> int:
    """``bench breakdown``: measure one length, print the table, write JSON and chart."""
    shape, model = prepare(arguments)
    length = arguments.lengths[0]
    set_density, source = density.for_length(arguments, length)
    options = parse_options(arguments.option)
    competitor = competitors.build(competitors.OURS, model, options)
    tokens = torch.randint(0, shape.config.vocab_size, (arguments.batch, length)).to(arguments.device)
    inputs = {"input_ids": tokens, "logits_to_keep": 1, "use_cache": True}
    with density_set(arguments.device, set_density):
        measured = measure(competitor.run, inputs, arguments.device, arguments.rounds)
    result = {
        **provenance(arguments.device, revision=arguments.revision),
        "benchmark": "breakdown",
        "model": shape.name,
        "narrow": arguments.narrow,
        "length": length,
        "batch": arguments.batch,
        "density": set_density,
        "density_source": source,
        "method": SampleAttentionConfig.from_options(options).method,
        **measured,
    }
    print(table(result))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")
    if arguments.chart:
        chart(result, arguments.chart)
    return 0
