"""One vLLM engine in a process of its own: reads what to do as JSON, writes what came out as JSON.

    python serving_engine.py job.json result.json

The job: ``engine``, arguments of ``vllm.LLM``; ``steps``, each ``prompts`` (lists of tokens, one batch),
``max_tokens``, and ``fails``: our attention raises while it runs. The result: ``tokens`` of each prompt of
each step, and ``counted`` after each.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import nullcontext
from pathlib import Path
from unittest import mock

# The engine runs in this process, where it can be looked at and made to fail.
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")


def main() -> None:
    from vllm import LLM, SamplingParams

    from sa_compile import prefill
    from sa_compile.serving.vllm import counted

    job = json.loads(Path(sys.argv[1]).read_text())
    engine = LLM(**job["engine"])
    tokens, counts = [], []
    for step in job["steps"]:
        sampling = SamplingParams(temperature=0, max_tokens=step["max_tokens"], ignore_eos=True)
        prompts = [{"prompt_token_ids": prompt} for prompt in step["prompts"]]
        failing = mock.patch.object(prefill, "sampled", side_effect=RuntimeError("made to fail"))
        with failing if step.get("fails") else nullcontext():
            outputs = engine.generate(prompts, sampling, use_tqdm=False)
        tokens.append([list(output.outputs[0].token_ids) for output in outputs])
        counts.append(vars(counted()))
    Path(sys.argv[2]).write_text(json.dumps({"tokens": tokens, "counted": counts}))


if __name__ == "__main__":
    main()
