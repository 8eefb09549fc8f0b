"""Cases of tensor parallel as transformers does it, on two ranks (see ``ranks``), each beside one rank."""

from __future__ import annotations

import functools
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from support.context_ranks import GREEDY, OPTIONS, one_rank, tokens
from support.graphs import PassesBackend
from support.models import SHAPE, tiny_llama
from support.sinks import tiny_gpt_oss
from torch import fx
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM

from sa_compile import report

LENGTHS = (200, 130)


def tiny_qwen3():
    torch.manual_seed(0)
    return Qwen3ForCausalLM(Qwen3Config(**SHAPE, head_dim=16)).eval()


def part_of(make):
    """This rank's part of a model."""
    folder = Path(sys.argv[1], make.__name__)
    if dist.get_rank() == 0:
        make().save_pretrained(folder)
    dist.barrier()
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, tp_plan="auto").eval()


def compare_logits(make, model):
    single = one_rank(make)
    for length in LENGTHS:
        prompt = tokens(1, length)
        expected = single(prompt, use_cache=False).logits
        torch.testing.assert_close(model(prompt, use_cache=False).logits, expected, rtol=1e-4, atol=1e-5)


def compare(make, shares):
    """Logits and greedy tokens, and that a rank samples its share of the heads."""
    model = part_of(make)
    heads = (model.config.num_attention_heads // shares, model.config.num_key_value_heads // shares)
    model.compile(backend="sampleattn", options={**OPTIONS, "inner": "eager"})
    prompt = tokens(1, LENGTHS[0])
    with report.collect() as reports:
        compare_logits(make, model)
        assert torch.equal(model.generate(prompt, **GREEDY), one_rank(make).generate(prompt, **GREEDY))
    sites = [site for graph in reports for site in graph.sites if site.outcome == "sampled"]
    assert {(site.q_heads, site.kv_heads) for site in sites} == {heads}, sites


def llama():
    compare(tiny_llama, shares=2)


def qwen3():
    compare(tiny_qwen3, shares=2)


def sinks():
    """The plan of gpt-oss splits no attention (transformers 5.24): every rank has all heads and sinks."""
    compare(tiny_gpt_oss, shares=1)


def attention(x, w_q, w_k, w_v, w_o):
    """Of the heads whose weights are given, [.., 64] of two or four heads."""
    q, k, v = (F.linear(x, w).unflatten(-1, (-1, 16)).transpose(1, 2) for w in (w_q, w_k, w_v))
    out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    return F.linear(out.transpose(1, 2).flatten(2), w_o)


def on_ranks(*given):
    out = attention(*given)
    dist.all_reduce(out)
    return out


def all_reduces(gm):
    """Those of a graph, and those of its regions."""
    found = {"its own": 0, "of regions": 0}
    for name, module in gm.named_modules():
        if isinstance(module, fx.GraphModule):
            where = "of regions" if name else "its own"
            found[where] += sum("all_reduce" in str(node.target) for node in module.graph.nodes)
    return found


def compare_regions(region):
    """Heads split by hand, in two layers, each a region: its collective stays in it.

    What transformers split can be in no region, whatever the backend: its parameters are DTensors, which
    torch takes into no ``nested_compile_region``, and its modules are written to, which Dynamo refuses in a
    checkpoint.
    """
    torch.manual_seed(0)
    weights = [torch.randn(n, 64) / 8 for n in (64, 32, 32, 64)]
    rank = dist.get_rank()
    own = [w.chunk(2)[rank] for w in weights[:3]] + [weights[3].chunk(2, 1)[rank].contiguous()]
    one, backend = PassesBackend(OPTIONS), PassesBackend(OPTIONS)

    def layers(x, weights, layer):
        return layer(x + layer(x, *weights), *weights)

    whole, split = (torch.compile(layers, backend=b, fullgraph=True, dynamic=False) for b in (one, backend))
    for length in LENGTHS:
        x = torch.randn(1, length, 64)
        expected = whole(x, weights, attention)
        torch.testing.assert_close(split(x, own, region(on_ranks)), expected, rtol=1e-4, atol=1e-5)
    before, after = ([all_reduces(gm) for gm in graphs] for graphs in (backend.before, backend.after))
    assert before == after and len(after) == len(LENGTHS), (before, after)
    assert all(found["its own"] == 0 and found["of regions"] > 0 for found in after), after
    assert {record.outcome for record in backend.records} == {"sampled"}


def checkpointed():
    compare_regions(lambda layer: functools.partial(checkpoint, layer, use_reentrant=False))


def nested_regions():
    compare_regions(torch.compiler.nested_compile_region)
