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
from pathlib import Path
from typing import Any

import workers

ROOT = Path(__file__).parents[2]
# The engine runs in this process, where its scheduler is.
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"


class Engine:
    """An engine and what it is asked for. Prompts are numbered: one that comes again is another text."""

    def __init__(self, arguments: dict[str, Any], density: float | None) -> None:
        from vllm import LLM

        start = time.perf_counter()
        self.llm = LLM(**arguments)
        self.seconds = time.perf_counter() - start
        self.scheduler = self.llm.llm_engine.engine_core.engine_core.scheduler
        self.sampled = arguments["attention_backend"] == "CUSTOM"
        self.prompts = 0
        if density is not None:
            self._in_workers(workers.attend_so_much, density)

    def started(self) -> dict[str, Any]:
        """How long it took, and what vLLM made of the arguments."""
        config = self.llm.llm_engine.vllm_config
        return {
            "seconds": self.seconds,
            "max_num_batched_tokens": config.scheduler_config.max_num_batched_tokens,
            "compilation": str(config.compilation_config.mode),
            "cudagraph_mode": str(config.compilation_config.cudagraph_mode),
            **self._in_workers(workers.about)[0],
        }

    def configure(self, chunk: int, options: dict[str, Any] | None = None) -> None:
        """Tokens of a step from now on, and the plug-in's options."""
        self.scheduler.max_num_scheduled_tokens = chunk
        if self.sampled:
            self._in_workers(workers.configure, options)

    def first_token(self, length: int) -> float:
        """Seconds from a prompt of random tokens, or of text where there is a tokenizer, to a token."""
        prompt = self._prompt(length)
        start = time.perf_counter()
        self._generate([prompt], 1)
        return time.perf_counter() - start

    def without_attention(self, length: int) -> float:
        """:meth:`first_token` of a model whose attention gives its queries back: the rest of a prefill."""
        self._in_workers(workers.give_queries_back)
        try:
            return self.first_token(length)
        finally:
            self._in_workers(workers.leave, "without attention")

    def warm(self, sizes: list[tuple[int, int]]) -> None:
        """Our attention of one layer for these rows and keys: what has to be compiled for them is."""
        self._in_workers(workers.warm, sizes)

    def batch(self, lengths: list[int], new_tokens: int) -> dict[str, Any]:
        """Prompts that come at once: seconds until all have their tokens, how many have, what was sampled."""
        before = self.counted()
        prompts = [self._prompt(length) for length in lengths]
        start = time.perf_counter()
        outputs = self._generate(prompts, new_tokens)
        seconds = time.perf_counter() - start
        finished = sum(
            output.finished and len(output.outputs[0].token_ids) == new_tokens for output in outputs
        )
        after = self.counted()
        counted = {name: after[name] - before[name] for name in ("prefills", "tokens", "failures")}
        return {"requests": len(prompts), "finished": finished, "seconds": seconds, "sampled": counted}

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
        before = self.counted()
        self._in_workers(workers.fail)
        try:
            outputs = self._generate([self._prompt(8000), self._prompt(200)], 8)
        finally:
            self._in_workers(workers.leave, "failing")
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
        """The plug-in's counters of the first rank, all ranks' failures, and the most GiB of one."""
        ranks = self._in_workers(workers.counted)
        failures = sum(rank["failures"] for rank in ranks)
        return {**ranks[0], "failures": failures, "peak_gib": max(rank["peak_gib"] for rank in ranks)}

    def layer(self, sizes: list[tuple[int, int]], kernels_of: list[int]) -> dict[str, Any]:
        """The attention of one layer by the clock of the GPU, and the kernels it runs (layer_times.py)."""
        return self._in_workers(workers.layer, sizes, kernels_of)[0]

    def _in_workers(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        return self.llm.collective_rpc(function, args=arguments)

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
