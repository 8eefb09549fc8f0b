"""Run under torchrun, a GPU a rank: what two ranks compute in bf16 beside one; failures go to a file.

    torchrun --nproc-per-node 2 tests/support/ranks_on_gpus.py FOLDER CASE [CASE ..]

As ``context_ranks``, which compares fp32 on gloo; without GPUs these cases run in fp32 on gloo too.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from transformers import AutoModelForCausalLM, AutoTokenizer

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
from quickstart import MODEL, reference_manual_prompt
from support.ranks import run_cases

import sa_compile
import sa_compile.hf
from sa_compile.config import SampleAttentionConfig
from sa_compile.distributed import attention
from sa_compile.distributed.attention import Context
from sa_compile.distributed.layout import Layout, in_order, shard_mask
from sa_compile.distributed.ops import context_attention_op
from sa_compile.distributed.process import end, join
from sa_compile.distributed.ranks import Ranks
from sa_compile.kernels.block_sparse_attention import reference
from sa_compile.kernels.block_sparse_attention.op import Arguments
from sa_compile.kernels.shared import blocks
from sa_compile.lab.bench.op_hooks import replaced
from sa_compile.prefill import CausalAttention, sampled

LENGTH = 6000  # ragged in runs of 128 rows
GREEDY = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 1}


def say(name, **numbers):
    if dist.get_rank() == 0:
        print(name, json.dumps(numbers), flush=True)


def attention_over_ranks():
    """Blocks of one rank, to the bit; and their attention within twice the error of one rank's kernel."""
    config, length, heads, dim = SampleAttentionConfig(), LENGTH, (8, 2), 128
    torch.manual_seed(0)
    query, key, value = (
        torch.randn(1, length, n, dim, device=DEVICE, dtype=DTYPE).transpose(1, 2)
        for n in (heads[0], *heads[1:] * 2)
    )
    direction = torch.randn(dim, device=DEVICE, dtype=DTYPE)
    query += direction
    key[:, :, ::1500] += direction  # columns that every row looks at: selection has something to find
    masks = []
    ranks = Ranks.of(init_device_mesh(DEVICE.type, (dist.get_world_size(),)))
    layout = Layout(length, ranks.size, config.block_q)
    module = torch.nn.Module()
    context = Context(ranks, config, {0: module})
    own = [layout.of_rank(x, 2, ranks.rank) for x in (query, key, value)]

    def noting(kernel):
        def run(*arguments):
            masks.append(arguments[3])
            return kernel(*arguments)

        return run

    with replaced(DEVICE.type, {"block_sparse_attention": noting}):
        one, _ = sampled(CausalAttention(query, key, value, dim**-0.5), config)
        name = attention.register(context)
        where = (shard_mask(None, length, DEVICE), None, dim**-0.5, 0, name, 0)
        part = context_attention_op(*own, *where)
    of_rank = masks[0][:, :, ranks.rank :: ranks.size]
    assert torch.equal(masks[1], of_rank), "blocks differ from those of one rank"
    found = in_order(ranks.gather(part)(), 2, layout.run)[:, :, :length]
    exact = (None, None, None, dim**-0.5, True, 0, 0, config.block_q, config.block_k)
    expected, _ = reference.block_sparse_attention(Arguments(query, key, value, masks[0], *exact))
    error, error_of_one = ((x.double() - expected).abs().max().item() for x in (found, one))
    n = -(-length // config.block_q)
    density = blocks.popcount(masks[0]).sum().item() / (heads[0] * n * (n + 1) / 2)
    say("attention", error=error, error_of_one=error_of_one, density=density)
    assert error <= 2 * error_of_one + 1e-7


def _prompt():
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    prompt = reference_manual_prompt(tokenizer, length=LENGTH, seed=1)
    return tokenizer(prompt.document + prompt.question, return_tensors="pt").input_ids.to(DEVICE)


def _one(dtype):
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=dtype).eval().to(DEVICE)
    model.set_attn_implementation("sampleattn")
    return model


def _compare(name, model, **more):
    """Logits of the last 64 positions, nearer to one rank's than those to fp32; and greedy tokens."""
    tokens = _prompt()
    one = _one(DTYPE)
    near, far, found = (
        run(tokens, logits_to_keep=64, use_cache=False).logits.float()
        for run in (one, _one(torch.float32), model)
    )
    difference, rounding = (found - near).abs().max().item(), (near - far).abs().max().item()
    expected, greedy = (x.generate(tokens, **GREEDY)[0, tokens.shape[1] :].tolist() for x in (one, model))
    say(name, difference=difference, of_bf16_from_fp32=rounding, tokens=greedy, expected=expected, **more)
    assert greedy == expected
    # In fp32, where the first is 0, sums over ranks round otherwise.
    assert difference <= 2 * rounding + 1e-5 * far.abs().max().item()


def context_parallel():
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=DTYPE).eval().to(DEVICE)
    sa_compile.context_parallel(
        model, init_device_mesh(DEVICE.type, (dist.get_world_size(),)), {"stats": True}, compile=False
    )
    _compare("context_parallel", model)
    outcomes = {
        site.outcome for site in sa_compile.hf.report(model).sites if site.spelling == "context_parallel"
    }
    assert outcomes == {"sampled"}, outcomes
    kept = sa_compile.stats().density_of_ranks()
    say("kept", of_ranks=kept, imbalance=sa_compile.stats().imbalance())


def tensor_parallel():
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=DTYPE, tp_plan="auto").eval()
    model.set_attn_implementation("sampleattn")
    _compare("tensor_parallel", model)


def failure():
    """What one rank raises in its second layer ends all, soon, with its name."""
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=DTYPE).eval().to(DEVICE)
    mesh = init_device_mesh(DEVICE.type, (dist.get_world_size(),))
    sa_compile.context_parallel(model, mesh, compile=False)
    last, raised = dist.get_world_size() - 1, None
    if dist.get_rank() == last:

        def fail(*args):
            raise OSError("the disk is full")

        model.model.layers[1].register_forward_pre_hook(fail)
    tokens = _prompt()
    dist.barrier()
    begin = time.monotonic()
    try:
        model(tokens)
    except Exception as error:
        raised = error
    seconds = time.monotonic() - begin
    say("failure", seconds=seconds, raised=f"{type(raised).__name__}: {raised}")
    assert "the disk is full" in str(raised) and seconds < 10


@torch.no_grad()
def main():
    run_cases(sys.argv[2:], lambda name: globals()[name](), sys.argv[1])
    end()


if __name__ == "__main__":
    DEVICE = join()
    DTYPE = torch.bfloat16 if DEVICE.type == "cuda" else torch.float32
    main()
