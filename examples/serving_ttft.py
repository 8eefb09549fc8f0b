"""Time to first token in vLLM, with its own attention backend and with the plug-in.

    python examples/serving_ttft.py [--model FOLDER] [--lengths 8192 16384] [--options '{"peak": 0.2}']

Each engine runs in a process of its own, one after the other: a warm-up, then ``--repeat`` prompts of each
length, none of which begins like another, so that nothing comes from the prefix cache. Needs vLLM beside
sa_compile (docs/serving.md). ``--load-format dummy`` measures a shape whose weights are not at hand, a folder
with nothing but a config.json: prompts are random tokens, and since random weights keep what no model keeps,
``--density`` sets the share of the blocks that are attended (selection runs all the same).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from tabulate import tabulate

MODEL = Path(__file__).parent / "model"
DOCS = Path(__file__).parents[1] / "docs"
ENGINES = {"vLLM's own": None, "sampleattn": "CUSTOM"}


def main() -> None:
    arguments = _arguments()
    if arguments.engine is not None:
        print(json.dumps(measure(arguments)))
        return
    measured = {name: _in_a_process(name) for name in ENGINES}
    own, ours = measured["vLLM's own"], measured["sampleattn"]
    rows = [
        {
            "tokens": length,
            "vLLM's own, s": own["ttft"][str(length)],
            "sampleattn, s": ours["ttft"][str(length)],
            "times sooner": own["ttft"][str(length)] / ours["ttft"][str(length)],
            "first tokens": "equal"
            if own["tokens"][str(length)] == ours["tokens"][str(length)]
            else "differ",
        }
        for length in arguments.lengths
    ]
    print(tabulate(rows, headers="keys", floatfmt=".3g"))
    print(ours["counted"])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=MODEL, help="a model folder (default: the shipped one)")
    parser.add_argument("--load-format", default="auto", help="vLLM's: 'dummy' for random weights")
    parser.add_argument("--lengths", type=int, nargs="+", default=[8192, 16384], help="prompts, in tokens")
    parser.add_argument("--options", type=json.loads, default={}, help="of sampleattn, as JSON")
    parser.add_argument(
        "--density", type=float, help="share of the blocks that are attended (default: chosen)"
    )
    parser.add_argument("--engine-arguments", type=json.loads, default={}, help="of vLLM's LLM, as JSON")
    parser.add_argument("--repeat", type=int, default=2, help="timed prompts of each length (default 2)")
    parser.add_argument("--engine", choices=ENGINES, help=argparse.SUPPRESS)
    return parser.parse_args()


def _in_a_process(name: str) -> dict[str, Any]:
    command = [sys.executable, __file__, *sys.argv[1:], "--engine", name]
    # vLLM logs to stdout as well: what was measured is the last line.
    output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    return json.loads(output.strip().splitlines()[-1])


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Median seconds to the first token and the first tokens of each length, and what was counted."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # counted() reads this process
    from vllm import LLM, SamplingParams

    from sa_compile.serving.vllm import counted

    with _set_density(arguments.density):
        engine = LLM(
            model=str(arguments.model),
            load_format=arguments.load_format,
            skip_tokenizer_init=arguments.load_format == "dummy",
            attention_backend=ENGINES[arguments.engine],
            additional_config={"sampleattn": arguments.options} if ENGINES[arguments.engine] else {},
            max_model_len=max(arguments.lengths) + 16,
            **arguments.engine_arguments,
        )
        text = _tokens(engine, arguments)
        sampling = SamplingParams(temperature=0, max_tokens=1, detokenize=False)
        ttft: dict[int, float] = {}
        tokens: dict[int, list[int]] = {}
        started = 0
        for length in arguments.lengths:
            seconds, tokens[length] = [], []
            for _ in range(arguments.repeat + 1):
                started += 1
                prompt = [text[(started * 997 + i) % len(text)] for i in range(length)]
                start = time.perf_counter()
                (output,) = engine.generate([{"prompt_token_ids": prompt}], sampling, use_tqdm=False)
                seconds.append(time.perf_counter() - start)
                tokens[length].extend(output.outputs[0].token_ids)
            ttft[length] = statistics.median(seconds[1:])
    return {"ttft": ttft, "tokens": tokens, "counted": str(counted())}


def _tokens(engine: Any, arguments: argparse.Namespace) -> list[int]:
    """What prompts are cut from: the documentation's text, or random tokens where there is no tokenizer."""
    if arguments.load_format == "dummy":
        vocabulary = engine.llm_engine.model_config.get_vocab_size()
        return random.Random(0).choices(range(vocabulary), k=max(arguments.lengths) + 1)
    return engine.get_tokenizer()("\n\n".join(x.read_text() for x in sorted(DOCS.glob("*.md")))).input_ids


def _set_density(density: float | None) -> AbstractContextManager[Any]:
    if density is None:
        return nullcontext()
    from sa_compile.lab.bench.op_hooks import SetDensity, replaced

    chosen = SetDensity(density)
    by_landmarks = ("select_adaptive", "select_peaks")
    selections = (*by_landmarks, "select_budget", "select_budget_rest", "select_blocks")
    return replaced("cuda", {op: chosen.wrapper(op) for op in selections})


if __name__ == "__main__":
    main()
