"""The demo: a real document of 16K tokens with a question at its end, and three ways to its first token.

Prefills the shipped model with eager PyTorch, with plain Inductor and with ``backend="sampleattn"``, prints
what the backend did, both answers, the time to first token of each, density, measured CRA and peak memory.
Run it with ``make demo``, or ``python examples/quickstart.py`` where sa_compile is installed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from pydoc_data import topics
from typing import Any

import torch
from tabulate import tabulate
from train_model.tasks import Prompt, build_prompt
from transformers import AutoModelForCausalLM, AutoTokenizer

import sa_compile
from sa_compile.model_call import cache_argument, cache_of

MODEL = Path(__file__).parent / "model"
Prefill = Callable[..., Any]


def main() -> int:
    options = _arguments()
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()
    prompt = reference_manual_prompt(tokenizer, options.length, options.seed)
    tokens = tokenizer(prompt.document + prompt.question, return_tensors="pt").input_ids
    print(f"Document: the Python language reference, {tokens.shape[1]} tokens, with one line hidden in it:")
    print(f"  {prompt.facts[0].strip()}\n{prompt.question} (expected:{prompt.answer})\n")

    with torch.no_grad():
        report, stats = inspect(model, tokens)
        print(f"{report}\n\n{stats}\n")
        prefills: dict[str, Prefill] = {
            "eager": model,
            "inductor": torch.compile(model, dynamic=False),
            "sampleattn": torch.compile(model, backend="sampleattn", dynamic=False),
        }
        answers = {name: answer(tokenizer, model, prefills[name], tokens) for name in ("eager", "sampleattn")}
        rows = measure(prefills, tokens, options.repeat)
    right = all(text.strip() == prompt.answer.strip() for text in answers.values())
    print(f"Answer under full attention: {answers['eager'].strip()}")
    print(f"Answer under SampleAttention: {answers['sampleattn'].strip()}\n")
    print(tabulate(rows, headers="keys", floatfmt=".2f"), "\n")

    times = {row["prefill"]: row["TTFT, s"] for row in rows}
    ratio = min(times["eager"], times["inductor"]) / times["sampleattn"]
    figures = f"ttft_ratio={ratio:.2f} density={stats.density:.3f} cra_min={stats.cra_min:.3f}"
    if right and ratio >= 2.0:
        print(f"demo: ok answer=right {figures}")
        return 0
    print(f"demo: failed answer={'right' if right else 'wrong'} {figures}")
    return 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--length", type=int, default=16384, help="prompt length in tokens (default 16384)")
    parser.add_argument("--seed", type=int, default=0, help="which fact is hidden and asked for (default 0)")
    parser.add_argument("--repeat", type=int, default=2, help="timed prefills of each kind (default 2)")
    return parser.parse_args()


def reference_manual_prompt(tokenizer: Any, length: int, seed: int) -> Prompt:
    """A needle in the Python language reference, which every Python installation carries."""
    manual = "\n\n".join(topics.topics.values())
    return build_prompt("needle", tokenizer, length=length, depth=0.4, seed=seed, haystack=manual)


def inspect(model: Any, tokens: torch.Tensor) -> tuple[sa_compile.Report, sa_compile.Stats]:
    """What the backend does to the model on this prompt, with the density and CRA that it measures."""
    report = sa_compile.explain(model, tokens, logits_to_keep=1, options={"stats": True})
    return report, report.stats()


def answer(tokenizer: Any, model: Any, prefill: Prefill, tokens: torch.Tensor) -> str:
    """Greedy answer: the first token from `prefill`, the following ones decoded eagerly from its cache."""
    output = prefill(tokens, logits_to_keep=1)
    new: list[int] = []
    while len(new) < 12:
        new.append(int(output.logits[0, -1].argmax()))
        if "\n" in tokenizer.decode(new[-1:]) or new[-1] == tokenizer.eos_token_id:
            break
        output = model(torch.tensor([new[-1:]]), **{cache_argument(model): cache_of(output)})
    return tokenizer.decode(new, skip_special_tokens=True)


def measure(prefills: dict[str, Prefill], tokens: torch.Tensor, repeat: int) -> list[dict[str, Any]]:
    """Median time to first token and peak memory of each prefill: warmed up, then timed in turns."""
    compile_seconds = {name: _timed(prefill, tokens)[0] for name, prefill in prefills.items()}
    timed: dict[str, list[tuple[float, float]]] = {name: [] for name in prefills}
    for _ in range(repeat):
        for name, prefill in prefills.items():
            timed[name].append(_timed(prefill, tokens))
    return [
        {
            "prefill": name,
            "TTFT, s": statistics.median(seconds for seconds, _ in runs),
            "peak memory, MiB": max(peak for _, peak in runs),
            "warm-up call, s": compile_seconds[name],
        }
        for name, runs in timed.items()
    ]


def _timed(prefill: Prefill, tokens: torch.Tensor) -> tuple[float, float]:
    """Seconds to the first token, and MiB of resident memory at the peak (NaN where /proc is missing)."""
    _reset_peak_memory()
    start = time.perf_counter()
    prefill(tokens, logits_to_keep=1).logits[0, -1].argmax().item()
    return time.perf_counter() - start, _peak_memory()


def _reset_peak_memory() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:  # Not Linux, or not allowed: the peak is then that of the process so far.
        print("peak memory can not be reset here: the figures are upper bounds", file=sys.stderr)


def _peak_memory() -> float:
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return float("nan")
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


if __name__ == "__main__":
    sys.exit(main())
