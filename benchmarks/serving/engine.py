"""One vLLM engine that does what it is told: a line of JSON in, a line of JSON out (run.py starts it).

The first line of stdin is the engine's: ``arguments`` of ``vllm.LLM`` and ``density``, the share of the
blocks that are attended (None: as selection chooses). Each line after it names a method of :class:`Engine`
and its arguments. Answers go to the file descriptor of the command line: ``{"is": ...}`` or
``{"error": ...}``.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).parents[2]
# The engine runs in this process, where it can be counted, told other options and made to fail.
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"


class Engine:
    """An engine and what it is asked for. Prompts are numbered: one that comes again is another text."""

    def __init__(self, arguments: dict[str, Any], density: float | None) -> None:
        from vllm import LLM

        start = time.perf_counter()
        self.llm = LLM(**arguments)
        self.seconds = time.perf_counter() - start
        core = self.llm.llm_engine.engine_core.engine_core
        self.scheduler = core.scheduler
        self.runner = core.model_executor.driver_worker.worker.model_runner
        self.layers = self.llm.llm_engine.vllm_config.compilation_config.static_forward_context
        self.sampled = arguments["attention_backend"] == "CUSTOM"
        self.prompts = 0

    def started(self) -> dict[str, Any]:
        """How long it took, and what vLLM made of the arguments."""
        import torch
        import triton
        import vllm

        config = self.llm.llm_engine.vllm_config
        return {
            "seconds": self.seconds,
            "max_num_batched_tokens": config.scheduler_config.max_num_batched_tokens,
            "compilation": str(config.compilation_config.mode),
            "cudagraph_mode": str(config.compilation_config.cudagraph_mode),
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
            "versions": {
                "python": sys.version.split()[0],
                "vllm": vllm.__version__,
                "torch": torch.__version__,
                "triton": triton.__version__,
                "cuda": torch.version.cuda,
            },
        }

    def configure(self, chunk: int, options: dict[str, Any] | None = None) -> None:
        """Tokens of a step from now on, and the plug-in's options."""
        from sa_compile.serving.vllm.backend import SampledBuilder
        from sa_compile.serving.vllm.options import options_of

        self.scheduler.max_num_scheduled_tokens = chunk
        if not self.sampled:
            return
        config = options_of({"sampleattn": options or {}})
        for layer in self.layers.values():
            if hasattr(getattr(layer, "impl", None), "not_sampled"):
                layer.impl.config = config
        for groups in self.runner.attn_groups:
            for group in groups:
                for builder in group.metadata_builders:
                    if isinstance(builder, SampledBuilder):
                        builder._config = config

    def first_token(self, length: int) -> float:
        """Seconds from a prompt of random tokens, or of text where there is a tokenizer, to a token."""
        prompt = self._prompt(length)
        start = time.perf_counter()
        self._generate([prompt], 1)
        return time.perf_counter() - start

    def batch(self, lengths: list[int], new_tokens: int) -> dict[str, Any]:
        """Prompts that come at once: seconds until all have their tokens, and how many have."""
        prompts = [self._prompt(length) for length in lengths]
        start = time.perf_counter()
        outputs = self._generate(prompts, new_tokens)
        seconds = time.perf_counter() - start
        finished = sum(
            output.finished and len(output.outputs[0].token_ids) == new_tokens for output in outputs
        )
        return {"requests": len(prompts), "finished": finished, "seconds": seconds}

    def answers(self, new_tokens: int) -> list[dict[str, Any]]:
        """Greedy tokens of texts of 100 to 12,000 tokens: alone, in one batch, cached, behind a cached one.

        ``gaps``: by how much each token's log-probability is above that of the next best.
        """
        text = self._text()
        places = ((0, 100), (2000, 1500), (4000, 4097), (9000, 6000), (16000, 12000))
        alone = [text[start : start + length] for start, length in places]
        self.llm.reset_prefix_cache()
        outputs = [output for prompt in alone for output in self._generate([prompt], new_tokens, logprobs=2)]
        batch = [[7 + i, *prompt] for i, prompt in enumerate(alone)]
        outputs += self._generate(batch, new_tokens, logprobs=2)
        outputs += self._generate([alone[4]], new_tokens, logprobs=2)
        outputs += self._generate([alone[3] + alone[4][:9000]], new_tokens, logprobs=2)
        return [_tokens_and_gaps(output.outputs[0]) for output in outputs]

    def question(self, length: int, seed: int) -> dict[str, Any]:
        """The demo's question behind a document of so many tokens: is the answer right?"""
        sys.path.insert(0, str(ROOT / "examples"))
        from quickstart import reference_manual_prompt

        tokenizer = self.llm.get_tokenizer()
        demo = reference_manual_prompt(tokenizer, length, seed)
        tokens = tokenizer(demo.document + demo.question).input_ids
        (output,) = self._generate([tokens], 8)
        answer = tokenizer.decode(output.outputs[0].token_ids).strip()
        return {"tokens": len(tokens), "right": answer.startswith(demo.answer.strip()), "answer": answer}

    def failing(self) -> dict[str, Any]:
        """Our attention raises for two requests of one step; then two others come."""
        from sa_compile import prefill

        before = self.counted()
        with mock.patch.object(prefill, "sampled", side_effect=RuntimeError("made to fail")):
            outputs = self._generate([self._prompt(8000), self._prompt(200)], 8)
        between = self.counted()
        outputs += self._generate([self._prompt(8000), self._prompt(200)], 8)
        after = self.counted()
        return {
            "requests": 4,
            "finished": sum(len(output.outputs[0].token_ids) == 8 for output in outputs),
            "failures": between["failures"] - before["failures"],
            "failures_after": after["failures"] - between["failures"],
            "prefills_after": after["prefills"] - between["prefills"],
        }

    def counted(self) -> dict[str, Any]:
        """The plug-in's counters, and the most memory that tensors took, in GiB."""
        import torch

        from sa_compile.serving.vllm import counted

        counts = vars(counted())
        if counts["density"] != counts["density"]:  # JSON has no NaN
            counts = {**counts, "density": None}
        return {**counts, "peak_gib": torch.cuda.max_memory_allocated() / 2**30}

    def layer(self, sizes: list[tuple[int, int]], kernels_of: list[int]) -> dict[str, Any]:
        """The attention of one layer by the clock of the GPU, and the kernels it runs (layer_times.py)."""
        import layer_times

        return layer_times.measure(self.layers, self.runner.attn_groups, sizes, kernels_of)

    def _generate(self, prompts: list[list[int]], new_tokens: int, **more: Any) -> list[Any]:
        from vllm import SamplingParams

        sampling = SamplingParams(
            temperature=0, max_tokens=new_tokens, ignore_eos=True, detokenize=False, **more
        )
        return self.llm.generate(
            [{"prompt_token_ids": prompt} for prompt in prompts], sampling, use_tqdm=False
        )

    def _prompt(self, length: int) -> list[int]:
        self.prompts += 1
        config = self.llm.llm_engine.model_config
        if config.skip_tokenizer_init:
            return random.Random(self.prompts).choices(range(10, config.get_vocab_size()), k=length)
        text = self._text()
        return [text[(self.prompts * 997 + i) % len(text)] for i in range(length)]

    def _text(self) -> list[int]:
        pages = sorted((ROOT / "docs").glob("*.md"))
        return self.llm.get_tokenizer()("\n\n".join(page.read_text() for page in pages)).input_ids


def _tokens_and_gaps(completion: Any) -> dict[str, Any]:
    tokens = list(completion.token_ids)
    gaps = []
    for token, position in zip(tokens, completion.logprobs, strict=True):
        others = [entry.logprob for other, entry in position.items() if other != token]
        gaps.append(position[token].logprob - max(others))
    return {"tokens": tokens, "gaps": gaps}


def _obey(engine: Engine, command: dict[str, Any]) -> Any:
    method: Callable[..., Any] = getattr(engine, command["do"])
    return method(**command.get("with", {}))


def main() -> None:
    reply = os.fdopen(int(sys.argv[1]), "w")

    def say(answer: dict[str, Any]) -> None:
        reply.write(json.dumps(answer) + "\n")
        reply.flush()

    job = json.loads(sys.stdin.readline())
    with ExitStack() as stack:
        if job["density"] is not None:
            import torch

            from sa_compile.lab.bench.op_hooks import density_set

            device = "cuda" if torch.cuda.is_available() else "cpu"
            stack.enter_context(density_set(device, job["density"]))
        try:
            engine = Engine(job["arguments"], job["density"])
            say({"is": engine.started()})
        except Exception:
            say({"error": traceback.format_exc()[-3000:]})
            raise
        for line in sys.stdin:
            try:
                say({"is": _obey(engine, json.loads(line))})
            except Exception:
                say({"error": traceback.format_exc()[-3000:]})


if __name__ == "__main__":
    main()
