"""What was tried in one process: a row a function."""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from trial import (
    ALL,
    LENGTH,
    OPTIONS,
    Measured,
    build,
    in_place,
    largest_error,
    logits,
    measure,
    sites,
    step,
    tokens,
    trial,
    wrapped,
)

from sa_compile import report

LOW = {"allowed": 0.05}  # bfloat16 and float16 against themselves, uncompiled


@trial("plain call", "`model.compile(backend=...)`, `torch.no_grad()`", models=ALL)
def plain(name: str) -> Measured:
    return measure(build(name), logits())


@trial("plain call", "`torch.compile(model, backend=...)`, an all-ones mask, `use_cache=False`", models=ALL)
def all_ones(name: str) -> Measured:
    return measure(build(name), logits(attention_mask=torch.ones_like(tokens()), use_cache=False), wrapped)


@trial("plain call", "`torch.inference_mode()`, bfloat16 weights", models=ALL, **LOW)
def inference_mode(name: str) -> Measured:
    def run(model: Any) -> list[Tensor]:
        with torch.inference_mode():
            return [model(tokens()).logits]

    return measure(build(name).bfloat16(), run)


@trial("eager attention", '`attn_implementation="eager"`', models=ALL)
def eager_attention(name: str) -> Measured:
    return measure(build(name, "eager"), logits())


@trial("without torch.compile", '`attn_implementation="sampleattn"`', models=ALL)
def implementation(name: str) -> Measured:
    import sa_compile.hf as hf

    model, ours = build(name), build(name, "sampleattn")
    hf.configure(ours, {key: value for key, value in OPTIONS.items() if key != "inner"})
    with torch.no_grad():
        expected, actual = logits()(model), logits()(ours)
    return Measured(sites(hf.report(ours).compiled), largest_error(actual, expected))


def _autocast(dtype: torch.dtype, name: str) -> Measured:
    def run(model: Any) -> list[Tensor]:
        with torch.autocast("cpu", dtype):
            return [model(tokens()).logits]

    return measure(build(name), run)


@trial("autocast", "bfloat16, around the compiled model", models=ALL, **LOW)
def autocast_bfloat16(name: str) -> Measured:
    return _autocast(torch.bfloat16, name)


@trial("autocast", "float16, around the compiled model", models=ALL, **LOW)
def autocast_float16(name: str) -> Measured:
    return _autocast(torch.float16, name)


def _lora(name: str, *targets: str) -> nn.Module:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    config = LoraConfig(target_modules=list(targets), init_lora_weights=False, r=4)
    return get_peft_model(build(name), config)  # type: ignore[no-any-return]


@trial("LoRA (peft)", "inference", models=ALL, requires=("peft",))
def lora(name: str) -> Measured:
    return measure(_lora(name, "q_proj", "v_proj", "o_proj"), logits(), wrapped)


@trial("LoRA (peft)", "a training step", models=ALL, requires=("peft",), allowed=1e-3)
def lora_step(name: str) -> Measured:
    return measure(_lora(name, "q_proj", "v_proj").train(), step, wrapped, grad=True)


@trial(
    "LoRA (peft)",
    "a training step that changes `o_proj` and `down_proj` alone, `model.eval()`",
    models=ALL,
    requires=("peft",),
    allowed=1e-3,
)
def lora_step_behind_attention(name: str) -> Measured:
    return measure(_lora(name, "o_proj", "down_proj"), step, wrapped, grad=True)


@trial("torchao", "`Int8WeightOnlyConfig`", models=ALL, requires=("torchao",))
def int8_weights(name: str) -> Measured:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    model = build(name)
    quantize_(model, Int8WeightOnlyConfig())
    return measure(model, logits())


@trial("torchao", "`Int8DynamicActivationInt8WeightConfig`", requires=("torchao",), allowed=5e-2)
def int8_activations(name: str) -> Measured:
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    model = build(name)
    quantize_(model, Int8DynamicActivationInt8WeightConfig())
    return measure(model, logits())


@trial("accelerate", "`cpu_offload`: weights come in hooks of each module", requires=("accelerate",))
def offload(name: str) -> Measured:
    from accelerate import cpu_offload

    def compile(model: nn.Module) -> nn.Module:
        cpu_offload(model, execution_device=torch.device("cpu"))
        return in_place(model)  # type: ignore[no-any-return]

    return measure(build(name), logits(attention_mask=torch.ones_like(tokens())), compile)


@trial("training", "a step, `model.train()`", models=ALL, allowed=1e-3)
def training(name: str) -> Measured:
    return measure(build(name).train(), step, grad=True)


def _checkpointed(reentrant: bool, name: str) -> Measured:
    model = build(name).train()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    return measure(model, functools.partial(step, use_cache=False), grad=True)


@trial("checkpointing", "a step, `use_reentrant=False`", models=ALL, allowed=1e-3)
def checkpointed(name: str) -> Measured:
    return _checkpointed(False, name)


@trial("checkpointing", "a step, `use_reentrant=True`", models=ALL, allowed=1e-3)
def checkpointed_reentrant(name: str) -> Measured:
    return _checkpointed(True, name)


def _padding(side: str, name: str) -> Measured:
    ids, mask = tokens(), torch.ones(2, LENGTH, dtype=torch.int64)
    hidden = slice(0, 9) if side == "left" else slice(LENGTH - 9, LENGTH)
    mask[0, hidden] = 0
    seen = mask.bool()
    return measure(build(name), lambda model: [model(ids, attention_mask=mask).logits[seen]])


@trial("padding", "left, a 2-D mask", models=ALL)
def left_padding(name: str) -> Measured:
    return _padding("left", name)


@trial("padding", "right, a 2-D mask", models=ALL)
def right_padding(name: str) -> Measured:
    return _padding("right", name)


@trial("padding", "a ready-made 4-D bool mask", models=ALL)
def ready_made_mask(name: str) -> Measured:
    mask = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril().expand(2, 1, -1, -1)
    return measure(build(name), logits(attention_mask=mask))


@trial("packing", "two sequences in a row by `position_ids`, `use_cache=False`", models=ALL)
def packing(name: str) -> Measured:
    positions = (torch.arange(LENGTH) % (LENGTH // 2)).expand(2, -1)
    return measure(build(name), logits(position_ids=positions, use_cache=False))


@trial("vmap", "`torch.func.vmap` around SDPA")
def vmap(name: str) -> Measured:
    q, k, v = torch.randn(3, 2, 2, 4, LENGTH, 16).unbind(0)
    attention = functools.partial(F.scaled_dot_product_attention, is_causal=True)

    def run(function: Any) -> list[Tensor]:
        return [function(q, k, v)]

    return measure(torch.func.vmap(attention), run, wrapped)


def _marked(bounds: dict[str, int], name: str) -> Measured:
    def run(model: Any) -> list[Tensor]:
        ids = tokens()
        torch._dynamo.mark_dynamic(ids, 1, **bounds)
        return [model(ids).logits]

    return measure(build(name), run)


@trial("dynamic shapes", "`mark_dynamic(input_ids, 1)`", models=ALL)
def marked(name: str) -> Measured:
    return _marked({}, name)


@trial("dynamic shapes", "`mark_dynamic(input_ids, 1, min=2, max=512)`", models=("Llama", "Qwen3", "Mistral"))
def marked_within_bounds(name: str) -> Measured:
    return _marked({"min": 2, "max": 512}, name)


@trial("dynamic shapes", "`dynamic=True`", models=ALL)
def dynamic(name: str) -> Measured:
    return measure(build(name), logits(), functools.partial(wrapped, dynamic=True))


@trial("dynamic shapes", "prompts of 40, 96, 20, 64, 33 tokens, one after the other", models=ALL)
def lengths(name: str) -> Measured:
    return measure(build(name), lambda model: [model(tokens(length=n)).logits for n in (40, 96, 20, 64, 33)])


@trial("FlexAttention", '`attn_implementation="flex_attention"`')
def flex_model(name: str) -> Measured:
    return measure(build(name, "flex_attention"), logits())


@trial("FlexAttention", "`flex_attention` with a causal `BlockMask`")
def flex(name: str) -> Measured:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    q, k, v = torch.randn(3, 1, 4, 128, 16).unbind(0)
    mask = create_block_mask(lambda b, h, q, k: q >= k, None, None, 128, 128, device="cpu")

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return flex_attention(q, k, v, block_mask=mask)  # type: ignore[return-value]

    return measure(attention, lambda function: [function(q, k, v)], wrapped)


@trial("nn.MultiheadAttention", "`is_causal=True` and the mask it asks for")
def multihead(name: str) -> Measured:
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(64, 4, batch_first=True).eval()
    x, mask = torch.randn(2, LENGTH, 64), nn.Transformer.generate_square_subsequent_mask(LENGTH)

    def run(layer: Any) -> list[Tensor]:
        return [layer(x, x, x, attn_mask=mask, is_causal=True, need_weights=False)[0]]

    return measure(layer, run, wrapped)


@trial("nn.TransformerEncoderLayer", "a causal mask")
def encoder_layer(name: str) -> Measured:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(64, 4, 64, dropout=0.0, batch_first=True).eval()
    x, mask = torch.randn(2, LENGTH, 64), nn.Transformer.generate_square_subsequent_mask(LENGTH)
    return measure(layer, lambda layer: [layer(x, mask, is_causal=True)], wrapped)


def _by_layer(model: Any) -> Any:
    for layer in model.model.layers:
        in_place(layer)
    return model


@trial("one layer at a time", "`layer.compile(backend=...)` for each, without a mask", models=ALL)
def by_layer(name: str) -> Measured:
    return measure(build(name), logits(), _by_layer)


@trial("one layer at a time", "the same, with left padding", models=ALL)
def by_layer_padded(name: str) -> Measured:
    mask = torch.ones_like(tokens())
    mask[0, :9] = 0
    return measure(build(name), logits(attention_mask=mask), _by_layer)


def _region(forward: Any) -> Any:
    """A bound method can not be marked, a function can."""
    return torch.compiler.nested_compile_region(lambda *args, **kwargs: forward(*args, **kwargs))


@trial("nested_compile_region", "each layer's attention a region", models=ALL)
def regions(name: str) -> Measured:
    def compile(model: Any) -> Any:
        for layer in model.model.layers:
            layer.self_attn.forward = _region(layer.self_attn.forward)
        return in_place(model)

    return measure(build(name), logits(use_cache=False), compile)


@trial("torch.export", "of a model after `model.compile(backend=...)`: exports the model as it is")
def export(name: str) -> Measured:
    model = build(name)
    with torch.no_grad(), report.collect() as reports:
        expected = model(tokens(), use_cache=False).logits
        in_place(model)
        program = torch.export.export(model, (tokens(),), {"use_cache": False}, strict=False)
        actual = program.module()(tokens(), use_cache=False).logits
    foreign = [str(n.target) for n in program.graph.nodes if "sampleattn" in str(n.target)]
    return Measured(sites(reports), largest_error([actual], [expected]), f"{len(foreign)} of our ops in it")
