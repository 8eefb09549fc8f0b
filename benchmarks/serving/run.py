"""The plug-in beside vLLM's own backend: all of what docs/serving.md says it reaches on GPUs.

    python benchmarks/serving/run.py --json FILE [--only SECTION ...] [--seconds N] [--tensor-parallel N]

Engines start together, each in a process of its own (engine.py), and then work in turn, so that what is
compared was measured side by side: the shipped model, and the shape of Llama-3.1-8B with random weights, of
which a tenth of the blocks is attended (selection runs all the same). One engine serves whole prompts and
chunks: it is started for steps of 131,072 tokens, and the scheduler's budget is set to 16,384, vLLM's default
on such a GPU, where chunks are measured (8,192 for its server). The file is written after each answer; what
takes too long, fails or comes after ``--seconds`` is missing in it, and ``errors`` says why.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import select
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
LLAMA = {
    **{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 128256},
    **{"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32},
    **{"num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128},
    **{"rope_theta": 500000.0, "rms_norm_eps": 1e-5, "max_position_embeddings": 131072},
    **{"hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "tie_word_embeddings": False},
    **{"bos_token_id": 128000, "eos_token_id": 128001, "dtype": "bfloat16"},
}
MODELS = {
    "example": "the shipped model (8 layers, 8 query heads on 2, head dim 64)",
    "llama": "Llama-3.1-8B's shape (32 layers, 32 query heads on 8, head dim 128), random weights",
}
WHOLE, CHUNK, SERVERS_CHUNK = 131072, 16384, 8192
LENGTHS = {"32K": 32768, "128K": 131072 - 64}
EVERYTHING = {"peak": 0}
GIB = 1 << 30
SMALL = "SMALL" in os.environ  # to try this script without a GPU


class Lost(RuntimeError):
    """An engine did not answer in time, or ended."""


class Engine:
    """A process that runs one engine."""

    def __init__(self, name: str, arguments: dict[str, Any], density: float | None, logs: Path) -> None:
        self.name, self.arguments = name, arguments
        plain = "".join(c if c.isalnum() else "_" for c in name)
        self.log = logs / f"{plain}.log"
        environment = {
            **os.environ,
            **{"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "TOKENIZERS_PARALLELISM": "false"},
            "VLLM_CACHE_ROOT": str(Path(tempfile.gettempdir(), "vllm_cache", plain)),
        }
        here, there = os.pipe()
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(HERE / "engine.py"), str(there)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=[there],
                env=environment,
                text=True,
            )
        os.close(there)
        self.answers, self.rest = here, b""
        self._say({"arguments": arguments, "density": density})

    def _say(self, line: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(line) + "\n")
        self.process.stdin.flush()

    def answer(self, deadline: float) -> Any:
        """The next answer; Lost without one, RuntimeError for an error there."""
        while b"\n" not in self.rest:
            ready, _, _ = select.select([self.answers], [], [], max(deadline - time.monotonic(), 0))
            got = os.read(self.answers, 1 << 16) if ready else b""
            if not got:
                self.process.kill()
                why = "did not answer in time" if not ready else "ended"
                raise Lost(f"{self.name} {why}: {self.log.read_text()[-3000:]}")
            self.rest += got
        line, self.rest = self.rest.split(b"\n", 1)
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError(f"{self.name}: {answer['error']}")
        return answer["is"]

    def ask(self, do: str, deadline: float, **arguments: Any) -> Any:
        """Have a method of engine.Engine called."""
        if self.process.poll() is not None:
            raise Lost(f"{self.name} has ended")
        self._say({"do": do, "with": arguments})
        return self.answer(deadline)

    def leave(self) -> None:
        """Nothing more will be asked."""
        with suppress(BrokenPipeError):
            assert self.process.stdin is not None
            self.process.stdin.close()

    def end(self, seconds: float) -> None:
        """End the process, after so many seconds by force."""
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()


class Run:
    """The engines, the time that is left, and what was found."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.end = time.monotonic() + arguments.seconds
        self.path: Path = arguments.json
        self.logs = self.path.parent
        self.eager: bool = arguments.eager
        self.ranks: int = arguments.tensor_parallel
        self.engines: dict[str, Engine] = {}
        self.found: dict[str, Any] = {
            "benchmark": "vllm_engines",
            "command": "python benchmarks/serving/run.py " + " ".join(sys.argv[1:]),
            "revision": arguments.revision,
            "engines": {},
            "sections": {},
            "errors": {},
        }

    def start(self, shape: str) -> None:
        """Both engines of "example" or "llama"; they work on it while others are asked."""
        for attention, backend in (("vLLM's", "FLASH_ATTN"), ("sampleattn", "CUSTOM")):
            name = f"{shape} {attention}"
            arguments = {**_arguments_of(shape, self.logs), "attention_backend": backend}
            if self.eager:
                arguments["enforce_eager"] = True
            if self.ranks > 1:
                arguments.update(tensor_parallel_size=self.ranks, disable_custom_all_reduce=True)
            density = 0.1 if (shape, backend) == ("llama", "CUSTOM") else None
            self.engines[name] = Engine(name, arguments, density, self.logs)
            noted = {**arguments, "model": MODELS[shape]}
            self.found["engines"][name] = {"arguments": noted, "density": density}

    def await_start(self, shape: str) -> None:
        """Until both engines of a shape are there, or one is lost."""
        lost = []
        for name, engine in self.engines.items():
            if name.startswith(shape):
                try:
                    self.found["engines"][name]["started"] = engine.answer(self.end)
                except RuntimeError as error:
                    lost.append(str(error))
        if lost:
            raise Lost("\n".join(lost))

    def ask(self, name: str, do: str, seconds: float = 60, **arguments: Any) -> Any:
        """Ask an engine, for at most so many seconds."""
        deadline = min(time.monotonic() + (900 if SMALL else seconds), self.end)
        return self.engines[name].ask(do, deadline, **arguments)

    def section(self, name: str, measure: Callable[[Run, dict[str, Any]], None]) -> None:
        """Do a part of it; what it has found so far is kept if it fails."""
        started = time.monotonic()
        found = self.found["sections"].setdefault(name, {})
        try:
            if started > self.end - 2:
                raise TimeoutError("no time was left")
            measure(self, found)
        except Exception as error:
            self.found["errors"][name] = f"{type(error).__name__}: {error}"
        found["took_s"] = round(time.monotonic() - started, 1)
        self.count()
        print(name, json.dumps(found)[:500], self.found["errors"].get(name, "")[-1000:], flush=True)

    def count(self) -> None:
        """What each engine has counted so far goes into the file."""
        for name, engine in self.engines.items():
            started = "started" in self.found["engines"][name] and engine.process.poll() is None
            if started and time.monotonic() < self.end - 2:
                try:
                    self.found["engines"][name]["counted"] = self.ask(name, "counted", 10)
                except RuntimeError as error:
                    self.found["errors"][f"counted {name}"] = str(error)
        self.write()

    def write(self) -> None:
        """The file, as far as we are: whole at any time."""
        new = self.path.with_suffix(".new")
        new.write_text(json.dumps(self.found, indent=1))
        new.replace(self.path)

    def stop(self) -> None:
        """End what still runs, with its ranks."""
        for engine in self.engines.values():
            engine.leave()
        deadline = time.monotonic() + 5
        for engine in self.engines.values():
            engine.end(max(deadline - time.monotonic(), 0))


def _arguments_of(shape: str, logs: Path) -> dict[str, Any]:
    steps: dict[str, Any] = {"max_model_len": WHOLE, "max_num_batched_tokens": WHOLE}
    # Engines share the GPU: the cache has a size of its own, and vLLM asks for no share of the memory.
    steps["gpu_memory_utilization"] = 0.05
    if SMALL:
        steps = {"max_model_len": CHUNK, "max_num_batched_tokens": CHUNK, "enforce_eager": True}
    if shape == "llama" and not SMALL:
        folder = logs / "llama"
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text(json.dumps(LLAMA))
        return {
            **{"model": str(folder), "load_format": "dummy", "skip_tokenizer_init": True},
            **{"max_num_seqs": 128, "kv_cache_memory_bytes": 24 * GIB, "enable_prefix_caching": False},
            **steps,
        }
    if not SMALL:
        steps.update(kv_cache_memory_bytes=2 * GIB, hf_overrides={"max_position_embeddings": WHOLE})
    return {"model": str(ROOT / "examples" / "model"), "max_num_seqs": 64, **steps}


def answers(run: Run, found: dict[str, Any]) -> None:
    """Greedy tokens with nothing left out beside vLLM's own, and vLLM's own in chunks beside themselves."""
    small = {"new_tokens": 16}
    runs = {
        "vLLM's": ("example vLLM's", CHUNK, None),
        "vLLM's, chunks of 2048": ("example vLLM's", 2048, None),
        "sampleattn": ("example sampleattn", CHUNK, EVERYTHING),
        "sampleattn, chunks of 2048": ("example sampleattn", 2048, {**EVERYTHING, "min_seq_len": 2048}),
    }
    prompts = {}
    for name, (engine, chunk, options) in runs.items():
        run.ask(engine, "configure", chunk=chunk, options=options)
        prompts[name] = run.ask(engine, "answers", **small)
    right = prompts["vLLM's"]
    for name, these in prompts.items():
        found[name] = {"prompts": len(these), "equal": 0, "first_differences": []}
        for number, (mine, own) in enumerate(zip(these, right, strict=True)):
            pairs = list(zip(mine["tokens"], own["tokens"], strict=True))
            at = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
            if at is None:
                found[name]["equal"] += 1
            else:
                where = {"prompt": number, "token": at, "gap_of_vllms": own["gaps"][at]}
                found[name]["first_differences"].append(where)


def questions(run: Run, found: dict[str, Any]) -> None:
    """The demo's question, with the defaults."""
    for engine in ("example vLLM's", "example sampleattn"):
        run.ask(engine, "configure", chunk=CHUNK)
        lengths = (5000,) if SMALL else (16384, 16384, 32000, 32000)
        found[engine] = [run.ask(engine, "question", length=n, seed=i) for i, n in enumerate(lengths)]


def failing(run: Run, found: dict[str, Any]) -> None:
    """An error in our attention costs no request."""
    run.ask("example sampleattn", "configure", chunk=CHUNK)
    found.update(run.ask("example sampleattn", "failing"))


def first_token(
    shape: str, length: int, chunk: int, rounds: int, methods: bool = False
) -> Callable[[Run, dict[str, Any]], None]:
    """Seconds to the first token, engines in turn."""

    if SMALL:
        shape, length, chunk, rounds = "example", 6000, min(chunk, 2 * CHUNK) // 8, 1

    def measure(run: Run, found: dict[str, Any]) -> None:
        of = {"vLLM's": (f"{shape} vLLM's", None), "sampleattn": (f"{shape} sampleattn", {})}
        if methods:
            of["sampleattn, method chunked"] = (f"{shape} sampleattn", {"method": "chunked"})
        seconds: dict[str, list[float]] = {name: [] for name in of}
        found.update(length=length, chunk=chunk, seconds=seconds)
        # Round 0 warms up. Prompts that take seconds do so in one layer, and vLLM's attention needs none.
        for turn in range(rounds + 1):
            for name, (engine, options) in of.items():
                run.ask(engine, "configure", chunk=chunk, options=options)
                if turn == 0 and shape == "llama" and length > 100_000:
                    if options is not None:
                        run.ask(engine, "warm", sizes=_steps_of(length, chunk))
                    continue
                took = run.ask(engine, "first_token", length=length)
                if turn > 0:
                    seconds[name].append(took)
                    of_vllms = {
                        n: statistics.median(seconds["vLLM's"]) / statistics.median(s)
                        for n, s in seconds.items()
                        if s
                    }
                    found["times_sooner"] = {n: times for n, times in of_vllms.items() if n != "vLLM's"}
                    run.write()

    return measure


def _steps_of(length: int, chunk: int) -> list[tuple[int, int]]:
    """Rows and keys of each step that a prompt takes."""
    return [(min(chunk, length - start), min(start + chunk, length)) for start in range(0, length, chunk)]


def without_attention(run: Run, found: dict[str, Any]) -> None:
    """What no attention can be faster than: the same prompts with one that copies its queries."""
    engine = "example vLLM's" if SMALL else "llama vLLM's"
    run.ask(engine, "configure", chunk=CHUNK if SMALL else WHOLE)
    for name, length in {"6K": 6000}.items() if SMALL else LENGTHS.items():
        times = 2 if length > 100_000 else 4
        found[name] = [run.ask(engine, "without_attention", length=length) for _ in range(times)][1:]
        run.write()


def _lengths(count: int, least: int, below: int) -> list[int]:
    chosen = random.Random(count)
    return [chosen.randrange(least, below) for _ in range(count)]


def short_requests(run: Run, found: dict[str, Any]) -> None:
    """A mix of requests none of which is long enough to be sampled."""
    lengths = _lengths(4 if SMALL else 96, 64, 2048)
    shape = "example" if SMALL else "llama"
    seconds: dict[str, list[float]] = {f"{shape} vLLM's": [], f"{shape} sampleattn": []}
    found.update(requests=len(lengths), new_tokens=64, prompt_tokens=sum(lengths), seconds=seconds)
    for turn in range(4):
        for engine, took in seconds.items():
            run.ask(engine, "configure", chunk=CHUNK)
            done = run.ask(engine, "batch", lengths=lengths if turn else lengths[:16], new_tokens=64)
            if turn > 0:
                took.append(done["seconds"])
                run.write()
        if turn > 0:
            own, ours = (statistics.median(took) for took in seconds.values())
            found["throughput_of_vllms"] = own / ours


def two_long_of_200(run: Run, found: dict[str, Any]) -> None:
    """200 requests at once, two of them long."""
    lengths = _lengths(10 if SMALL else 200, 16, 2048)
    long = (6000, 5000) if SMALL else tuple(LENGTHS.values())
    lengths[2 if SMALL else 20], lengths[5 if SMALL else 120] = long
    shape = "example" if SMALL else "llama"
    found.update(long=long, prompt_tokens=sum(lengths))
    for attention in ("sampleattn", "vLLM's"):
        run.ask(f"{shape} {attention}", "configure", chunk=CHUNK)
        found[attention] = run.ask(f"{shape} {attention}", "batch", 90, lengths=lengths, new_tokens=16)
        run.write()


def layer(run: Run, found: dict[str, Any]) -> None:
    """One layer's attention, and its kernels, by method."""
    whole = [(n, n) for n in (4096, *LENGTHS.values())]
    parts = [(1024, 131072), (CHUNK, 32768), (CHUNK, 131072)]
    engine, lengths = "llama sampleattn", list(LENGTHS.values())
    run.ask(engine, "configure", chunk=CHUNK)
    found["default"] = run.ask(engine, "layer", 90, sizes=whole + parts, kernels_of=lengths)
    run.write()
    run.ask(engine, "configure", chunk=CHUNK, options={"method": "chunked"})
    found["method chunked"] = run.ask(engine, "layer", 90, sizes=[], kernels_of=lengths)


LLAMA_SECTIONS: dict[str, Callable[..., None]] = {
    "llama, 32K, whole": first_token("llama", LENGTHS["32K"], WHOLE, 4, methods=True),
    "llama, 32K, chunks": first_token("llama", LENGTHS["32K"], CHUNK, 4, methods=True),
    "llama, 128K, chunks": first_token("llama", LENGTHS["128K"], CHUNK, 2, methods=True),
    "llama, 128K, whole": first_token("llama", LENGTHS["128K"], WHOLE, 2, methods=True),
    "two long of 200": two_long_of_200,
    "short requests": short_requests,
    "without attention": without_attention,
    "layer": layer,
}
EXAMPLE_TIMES: dict[str, Callable[..., None]] = {
    f"example, {name}, {way}": first_token("example", length, chunk, rounds)
    for name, length, rounds in (("32K", LENGTHS["32K"], 20), ("128K", LENGTHS["128K"], 6))
    for way, chunk in (("whole", WHOLE), ("chunks", CHUNK))
}
LAST_SECTIONS: dict[str, Callable[..., None]] = {
    "llama, 128K, server's chunks": first_token("llama", LENGTHS["128K"], SERVERS_CHUNK, 1),
}
EXAMPLE_SECTIONS = {"answers": answers, "questions": questions, "failing": failing}
SECTIONS = (*EXAMPLE_SECTIONS, *LLAMA_SECTIONS, *EXAMPLE_TIMES, *LAST_SECTIONS)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--json", type=Path, required=True, help="where what was found goes; logs go beside it"
    )
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS, help="sections")
    parser.add_argument("--seconds", type=float, default=900, help="after which nothing more is begun")
    parser.add_argument(
        "--tensor-parallel", type=int, default=1, metavar="N", help="GPUs, each a rank of both engines"
    )
    parser.add_argument("--eager", action="store_true", help="no compilation and no CUDA graphs")
    parser.add_argument("--revision", default="", help="what to note as the commit")
    arguments = parser.parse_args()
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    run = Run(arguments)
    wanted = set(arguments.only)
    shapes = [
        shape
        for shape, sections in (
            ("llama", {*LLAMA_SECTIONS, *LAST_SECTIONS} if not SMALL else ()),
            ("example", {*EXAMPLE_SECTIONS, *EXAMPLE_TIMES, *(SECTIONS if SMALL else ())}),
        )
        if wanted & set(sections)
    ]
    try:
        for shape in shapes:
            run.start(shape)
        if "example" in shapes:
            run.section("example starts", lambda run, _: run.await_start("example"))
            for name in [name for name in EXAMPLE_SECTIONS if name in wanted]:
                run.section(name, EXAMPLE_SECTIONS[name])
        if "llama" in shapes:
            run.section("llama starts", lambda run, _: run.await_start("llama"))
        for name, measure in {**LLAMA_SECTIONS, **EXAMPLE_TIMES, **LAST_SECTIONS}.items():
            if name in wanted:
                run.section(name, measure)
    finally:
        run.stop()


if __name__ == "__main__":
    main()
