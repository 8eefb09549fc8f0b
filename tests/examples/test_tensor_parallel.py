"""Tensor parallel on two processes (gloo): the example, and that results are those of one process."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.models import SMALL_BLOCKS, tiny_llama
from support.sinks import tiny_gpt_oss

ROOT = Path(__file__).resolve().parents[2]
RANK = """
import json, sys
import torch, torch.distributed as dist
from transformers import AutoModelForCausalLM
from sa_compile import report
from sa_compile.distributed.process import leave
torch.set_num_threads(1)
dist.init_process_group("gloo")
folder, options = sys.argv[1], json.loads(sys.argv[2])
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, tp_plan="auto").eval()
model.compile(backend="sampleattn", options=options)
prompts = torch.load(folder + "/prompts.pt")
with torch.no_grad(), report.collect() as reports:
    logits = [model(prompt, use_cache=False).logits for prompt in prompts]
    tokens = model.generate(prompts[0], max_new_tokens=4, do_sample=False)
if dist.get_rank() == 0:
    sites = [(site.outcome, site.q_heads, site.kv_heads) for graph in reports for site in graph.sites]
    torch.save({"logits": logits, "tokens": tokens, "sites": sites}, folder + "/result.pt")
leave()
"""


def torchrun(ranks, *command):
    launch = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={ranks}", "--standalone"]
    return subprocess.run([*launch, *command], cwd=ROOT, capture_output=True, text=True, timeout=600)


@torch.no_grad()
@pytest.mark.parametrize(
    "make, shares",
    [
        pytest.param(tiny_llama, 2, id="llama"),
        # The plan of gpt-oss splits no attention (transformers 5.24): every rank has all heads and sinks.
        pytest.param(tiny_gpt_oss, 1, id="sinks"),
    ],
)
def test_two_ranks_compute_what_one_process_computes_each_its_heads(make, shares, tmp_path):
    model = make()
    model.save_pretrained(tmp_path)
    generator = torch.Generator().manual_seed(0)
    prompts = [torch.randint(0, 96, (1, length), generator=generator) for length in (200, 130)]
    torch.save(prompts, tmp_path / "prompts.pt")
    (tmp_path / "rank.py").write_text(RANK)
    options = {**SMALL_BLOCKS, "tau": 0.5, "budget": 0.3, "budget_tau": 1.0, "inner": "eager"}
    done = torchrun(2, str(tmp_path / "rank.py"), str(tmp_path), json.dumps(options))
    assert done.returncode == 0, done.stderr[-20000:]
    found = torch.load(tmp_path / "result.pt")
    model.compile(backend="sampleattn", options=options)
    for logits, prompt in zip(found["logits"], prompts, strict=True):
        torch.testing.assert_close(logits, model(prompt, use_cache=False).logits, rtol=1e-4, atol=1e-5)
    assert torch.equal(found["tokens"], model.generate(prompts[0], max_new_tokens=4, do_sample=False))
    heads = (model.config.num_attention_heads // shares, model.config.num_key_value_heads // shares)
    sampled = [site[1:] for site in found["sites"] if site[0] == "sampled"]
    assert sampled and set(sampled) == {heads}


def test_the_example_answers_and_says_how_uneven_the_ranks_are():
    done = torchrun(2, "examples/tensor_parallel.py", "--length", "4400")
    assert done.returncode == 0, done.stderr[-20000:]
    assert re.search(r"model\.layers\.\{0-7\}\.self_attn +sdpa +4/1 .* sampled", done.stdout)
    kept = [float(x) for x in re.search(r"kept on each rank: ([\d., ]+);", done.stdout)[1].split(", ")]
    imbalance = float(re.search(r"largest / mean: ([\d.]+)", done.stdout)[1])
    assert len(set(kept)) == 2 and abs(imbalance - 2 * max(kept) / sum(kept)) < 0.005
    answer, expected = re.search(r"Answer: *(.+?) \(expected: *(.+)\)", done.stdout).groups()
    assert answer.strip() == expected.strip()


def test_heads_that_do_not_divide_are_an_error_that_says_so():
    done = torchrun(3, "examples/tensor_parallel.py")
    assert done.returncode != 0
    assert "must divide the model's 2 key/value heads, got 3 ranks" in done.stderr
