"""Cases of context parallel on several ranks (see ``ranks``), each beside one rank."""

from __future__ import annotations

import gc
import sys
import time
import weakref
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from support.models import SHAPE, SMALL_BLOCKS, tiny_llama
from support.sinks import tiny_gpt_oss
from torch.distributed.device_mesh import init_device_mesh
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

import sa_compile
import sa_compile.hf
from sa_compile.distributed.attention import context_of

BUDGET = {"budget": 0.3, "budget_tau": 1.0, "last_rows": 20}
OPTIONS = {**SMALL_BLOCKS, "peak": 1.0, "tau": 0.5, **BUDGET}
PEAKS = {**SMALL_BLOCKS, "peak": 0.1, "landmarks": 3, **BUDGET}
GREEDY = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}


def tiny_mistral():
    torch.manual_seed(0)
    return MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=40)).eval()


def tokens(batch, length):
    return torch.randint(1, 96, (batch, length), generator=torch.Generator().manual_seed(length))


def padded(lengths, side):
    width = max(lengths)
    rows = [[0] * (width - n) + [1] * n for n in lengths]
    mask = torch.tensor([row if side == "left" else row[::-1] for row in rows])
    return {"input_ids": tokens(len(lengths), width) * mask, "attention_mask": mask}


def one_rank(make, options=OPTIONS):
    model = make()
    model.set_attn_implementation("sampleattn")
    sa_compile.hf.configure(model, {name: value for name, value in options.items() if name != "inner"})
    return model


def on_ranks(make, options=OPTIONS, compile=False):
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    return sa_compile.context_parallel(make(), mesh, options, compile=compile)


def compare(make, inputs, options=OPTIONS, compile=False):
    """All logits of prompts, the cache, and the model on ranks."""
    expected = one_rank(make, options)(**inputs)
    model = on_ranks(make, options, compile)
    found = model(**inputs, logits_to_keep=0)
    valid = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"])).bool()
    torch.testing.assert_close(found.logits[valid], expected.logits[valid], rtol=1e-5, atol=1e-5)
    for own, other in zip(found.past_key_values.layers, expected.past_key_values.layers, strict=True):
        assert own.keys.shape == other.keys.shape
        if valid.all():
            torch.testing.assert_close(own.keys, other.keys, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(own.values, other.values, rtol=1e-5, atol=1e-5)
    last = model(**inputs).logits
    torch.testing.assert_close(last[valid[:, -1]], found.logits[:, -1:][valid[:, -1]])
    return model


def lengths():
    for length in (200, 64, 33, 17, 5):  # ragged; whole runs; one row in the third run; each rank by itself
        compare(tiny_llama, {"input_ids": tokens(1, length)})


def peaks():
    for inputs in ({"input_ids": tokens(1, 200)}, padded([150, 61, 131], "left")):
        compare(tiny_llama, inputs, PEAKS)
    compare(tiny_gpt_oss, {"input_ids": tokens(1, 150)}, PEAKS)
    model = compare(tiny_llama, {"input_ids": tokens(1, 300)}, {**PEAKS, "inner": "eager"}, compile=True)
    other = tokens(1, 130)
    expected = one_rank(tiny_llama, PEAKS)(other).logits
    torch.testing.assert_close(model(other, logits_to_keep=0).logits, expected, rtol=1e-5, atol=1e-5)


def compiled():
    options = {**OPTIONS, "inner": "aot_eager"}
    model = compare(tiny_llama, {"input_ids": tokens(1, 200)}, options, compile=True)
    other = tokens(1, 130)
    expected = one_rank(tiny_llama)(other).logits
    torch.testing.assert_close(model(other, logits_to_keep=0).logits, expected, rtol=1e-5, atol=1e-5)


def left_padding():
    compare(tiny_llama, padded([150, 61, 131], "left"))


def right_padding():
    compare(tiny_llama, padded([150, 61, 131], "right"))


def windows():
    compare(tiny_mistral, {"input_ids": tokens(2, 150)})


def sinks():
    compare(tiny_gpt_oss, {"input_ids": tokens(1, 150)})


def generate():
    for make in (tiny_llama, tiny_mistral, tiny_gpt_oss):
        for inputs in ({"input_ids": tokens(1, 150)}, padded([150, 61], "left")):
            expected = one_rank(make).generate(**inputs, **GREEDY)
            assert torch.equal(on_ranks(make).generate(**inputs, **GREEDY), expected)


def generate_compiled():
    inputs, options = padded([150, 61], "left"), {**OPTIONS, "inner": "aot_eager"}
    expected = one_rank(tiny_llama).generate(**inputs, **GREEDY)
    assert torch.equal(on_ranks(tiny_llama, options, compile=True).generate(**inputs, **GREEDY), expected)


def static_cache():
    expected = one_rank(tiny_llama).generate(tokens(1, 150), **GREEDY)
    found = on_ranks(tiny_llama).generate(tokens(1, 150), **GREEDY, cache_implementation="static")
    assert torch.equal(found, expected)


def second_turn():
    """Behind what is in the cache every rank computes for itself."""
    model, single = on_ranks(tiny_llama), one_rank(tiny_llama)
    first, more = tokens(1, 100), tokens(1, 50)
    expected = single(more, past_key_values=single(first).past_key_values).logits
    found = model(more, past_key_values=model(first).past_key_values, logits_to_keep=0).logits
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def stats():
    sa_compile.reset_stats()
    model = on_ranks(tiny_llama, {**OPTIONS, "stats": True})
    model(tokens(1, 200))
    densities = sa_compile.stats().density_of_ranks()
    assert len(set(densities)) == len(densities) and all(0 < x < 1 for x in densities)
    assert 1 <= sa_compile.stats().imbalance() < 1.5
    rows = {(s.outcome, s.kv_len, s.spelling) for s in sa_compile.hf.report(model).sites}
    assert rows == {("sampled", 200, "context_parallel")}, rows


def refused(message, call, error=ValueError):
    try:
        call()
    except error as why:
        assert message in str(why), why
    else:
        raise AssertionError(f"no error that says {message!r}")


def refusals():
    ranks = dist.get_world_size()
    refused(
        "of one dimension",
        lambda: sa_compile.context_parallel(tiny_llama(), init_device_mesh("cpu", (1, ranks))),
    )
    refused("must be 'adaptive'", lambda: on_ranks(tiny_llama, {"method": "chunked"}))
    refused(
        "of type 'dynamic'",
        lambda: on_ranks(
            lambda: tiny_llama(rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0})
        ),
    )
    model = on_ranks(tiny_llama)
    refused("already", lambda: on_ranks(lambda: model))
    refused("'labels'", lambda: model(tokens(1, 100), labels=tokens(1, 100)))
    refused("a number of positions", lambda: model(tokens(1, 100), logits_to_keep=torch.tensor([3])))
    refused(
        "'attention_mask' must be [B, 100]", lambda: model(tokens(1, 100), attention_mask=torch.ones(1, 90))
    )


def soft_caps():
    torch.manual_seed(0)
    config = Gemma2Config(**SHAPE, head_dim=16, sliding_window=40)
    model = on_ranks(lambda: Gemma2ForCausalLM(config).eval())
    refused("tanh softcap", lambda: model(tokens(1, 100)), NotImplementedError)


def other_prompts():
    """Ranks with prompts of different lengths; the next call is none the worse for it."""
    model = on_ranks(tiny_llama)
    refused("all ranks must be given the same", lambda: model(tokens(1, 100 + dist.get_rank())))
    assert model(tokens(1, 100)).logits.shape == (1, 1, 96)


def forgotten():
    """With the model goes what the op knows of it."""
    for compile in (False, True):
        model = on_ranks(tiny_llama, {**OPTIONS, "inner": "eager"}, compile)
        model(tokens(1, 100))
        context = weakref.ref(context_of(model.model.layers[0].self_attn._sampleattn_context))
        assert context() is not None
        del model
        gc.collect()
        assert context() is None, f"compile={compile}: {gc.get_referrers(context())}"


class LocallyCausal(torch.nn.Module):
    """Attention that is causal in the order of the rows it is given, and nothing more."""

    layer_idx = 1

    def forward(self, hidden_states, **kwargs):
        rows = hidden_states[:, None]
        return F.scaled_dot_product_attention(rows, rows, rows, is_causal=True)[:, 0], None


def local_order():
    """A mask that is causal in local order alone is never taken for causal, compiled or not."""
    for compile in (False, True):
        model = tiny_llama()
        sa_compile.context_parallel(
            model,
            init_device_mesh("cpu", (dist.get_world_size(),)),
            {**OPTIONS, "inner": "eager"},
            compile=compile,
        )
        model.model.layers[1].self_attn = LocallyCausal()
        refused("layers [1] computed no attention", lambda model=model: model(tokens(1, 100)))


def failure():
    """What one rank raises in its second layer ends all, soon, with its name."""
    model = on_ranks(tiny_llama)
    last, begin = dist.get_world_size() - 1, time.monotonic()
    if dist.get_rank() == last:

        def fail(*args):
            raise OSError("the disk is full")

        model.model.layers[1].register_forward_pre_hook(fail)
        refused("the disk is full", lambda: model(tokens(1, 200)), OSError)
    else:
        message = f"rank {last} of {last + 1} raised OSError: the disk is full"
        refused(message, lambda: model(tokens(1, 200)), RuntimeError)
    assert time.monotonic() - begin < 20


def tensor_parallel_inside():
    """A mesh of 2 x 2: the ranks of a row share the heads, those of a column the prompt."""
    from transformers.distributed import DistributedConfig  # transformers 5.17 has none

    folder = Path(sys.argv[1])
    if dist.get_rank() == 0:
        tiny_llama().save_pretrained(folder / "model")
    dist.barrier()
    model = AutoModelForCausalLM.from_pretrained(
        folder / "model", distributed_config=DistributedConfig(tp_size=2, dp_replicate_size=2)
    ).eval()
    mesh = model._mesh_manager.get_mesh("dp_replicate")
    model = sa_compile.context_parallel(model, mesh, OPTIONS, compile=False)
    inputs, single = tokens(1, 200), one_rank(tiny_llama)
    found = model(inputs, logits_to_keep=0).logits
    torch.testing.assert_close(found, single(inputs).logits, rtol=1e-4, atol=1e-5)
    assert torch.equal(model.generate(inputs, **GREEDY), single.generate(inputs, **GREEDY))
