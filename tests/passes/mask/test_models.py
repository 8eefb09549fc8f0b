"""The masks that real transformers models make, under SDPA and eager, static and dynamic shapes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.mask_graphs import assert_predicates_are_the_masks, capture, proofs
from transformers import (
    BertConfig,
    BertModel,
    BloomConfig,
    BloomForCausalLM,
    DynamicCache,
    FalconConfig,
    FalconForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    Llama4ForCausalLM,
    Llama4TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    StaticCache,
    T5Config,
    T5EncoderModel,
)

from sa_compile.passes.mask.predicate import MaskPredicate, NotProven

BATCH, LENGTH, CACHE, WINDOW = 2, 16, 32, 8
TINY: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED = {**TINY, "num_key_value_heads": 2}
TWO_KINDS = {**GROUPED, "num_hidden_layers": 2, "head_dim": 8}
HEADS_ONLY = {"vocab_size": 64, "hidden_size": 32}

MODELS: dict[str, Callable[[], tuple[type[PreTrainedModel], Any]]] = {
    "llama": lambda: (LlamaForCausalLM, LlamaConfig(**GROUPED)),
    "mistral": lambda: (MistralForCausalLM, MistralConfig(**GROUPED, sliding_window=WINDOW)),
    "qwen2": lambda: (
        Qwen2ForCausalLM,
        Qwen2Config(**GROUPED, sliding_window=WINDOW, use_sliding_window=True, max_window_layers=0),
    ),
    "gemma3": lambda: (
        Gemma3ForCausalLM,
        Gemma3TextConfig(
            **TWO_KINDS, sliding_window=WINDOW, layer_types=["sliding_attention", "full_attention"]
        ),
    ),
    "llama4": lambda: (
        Llama4ForCausalLM,
        Llama4TextConfig(
            **TWO_KINDS,
            attention_chunk_size=WINDOW,
            num_local_experts=2,
            intermediate_size_mlp=32,
            layer_types=["chunked_attention", "full_attention"],
            no_rope_layers=[1, 0],
        ),
    ),
    "gpt_neox": lambda: (GPTNeoXForCausalLM, GPTNeoXConfig(**TINY)),
    "falcon": lambda: (
        FalconForCausalLM,
        FalconConfig(**HEADS_ONLY, num_hidden_layers=1, num_attention_heads=4),
    ),
    "gpt2": lambda: (GPT2LMHeadModel, GPT2Config(vocab_size=64, n_embd=32, n_layer=1, n_head=4)),
    "bert": lambda: (BertModel, BertConfig(**TINY)),
    "bloom": lambda: (BloomForCausalLM, BloomConfig(**HEADS_ONLY, n_layer=1, n_head=4)),
    "t5": lambda: (
        T5EncoderModel,
        T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=4),
    ),
}


def make(name: str, spelling: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    cls, config = MODELS[name]()
    config._attn_implementation = spelling
    torch.manual_seed(0)
    return cls(config).eval().to(dtype)


def token_ids() -> torch.Tensor:
    return torch.randint(3, 64, (BATCH, LENGTH))


def padding(left: int = 0, right: int = 0, length: int = LENGTH) -> torch.Tensor:
    mask = torch.ones(BATCH, length, dtype=torch.long)
    mask[0, :left] = 0
    mask[0, length - right :] = 0
    return mask


def filled_cache(model: PreTrainedModel) -> DynamicCache:
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(token_ids(), past_key_values=cache)
    return cache


def static_cache(model: PreTrainedModel) -> StaticCache:
    return StaticCache(config=model.config, max_cache_len=CACHE)


POSITIONS = torch.cat([torch.arange(6), torch.arange(4), torch.arange(6)])[None]

# What the model is called with besides the tokens.
CALLS: dict[str, Callable[[PreTrainedModel], dict[str, Any]]] = {
    "plain": lambda model: {},
    "no cache": lambda model: {"use_cache": False},
    "left padding": lambda model: {"attention_mask": padding(left=3)},
    "right padding": lambda model: {"attention_mask": padding(right=3)},
    "packed": lambda model: {"position_ids": POSITIONS.repeat(BATCH, 1), "use_cache": False},
    "packed, one row of ids": lambda model: {"position_ids": POSITIONS, "use_cache": False},
    "second chunk": lambda model: {"past_key_values": filled_cache(model)},
    "second chunk, padded": lambda model: {
        "past_key_values": filled_cache(model),
        "attention_mask": padding(left=3, length=2 * LENGTH),
    },
    "static cache": lambda model: {"past_key_values": static_cache(model)},
    "static cache, padded": lambda model: {
        "past_key_values": static_cache(model),
        "attention_mask": padding(left=3),
    },
}

dynamic_shapes = pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
spellings = pytest.mark.parametrize("spelling", ["sdpa", "eager"])


def prove(
    name: str, call: str, spelling: str, dynamic: bool, dtype: torch.dtype = torch.float32
) -> list[MaskPredicate | NotProven]:
    """The proofs of all layers, each compared with the mask of the run."""
    model = make(name, spelling, dtype)
    captured = capture(model, token_ids(), dynamic=dynamic, **CALLS[call](model))
    found = proofs(captured)
    assert assert_predicates_are_the_masks(captured) == sum(isinstance(p, MaskPredicate) for p in found)
    return found


def parts(proof: MaskPredicate | NotProven) -> str:
    """The predicate without the value of its offset, which the comparison with the mask checks."""
    assert isinstance(proof, MaskPredicate), str(proof)
    first = str(proof).split(" & ")[0]
    return str(proof).replace(first, "causal+offset") if first.startswith("causal(") else str(proof)


LLAMA = {
    "plain": "causal",
    "no cache": "causal",
    "left padding": "causal & key_valid",
    "right padding": "causal & key_valid",
    "packed": "causal & segments",
    "packed, one row of ids": "causal & segments",
    "second chunk": "causal+offset",
    "second chunk, padded": "causal+offset & key_valid",
    "static cache": "causal",
    "static cache, padded": "causal & key_valid",
}


@dynamic_shapes
@spellings
@pytest.mark.parametrize("call", LLAMA)
def test_llama(call: str, spelling: str, dynamic: bool) -> None:
    (proof,) = prove("llama", call, spelling, dynamic)
    assert parts(proof) == LLAMA[call]
    assert isinstance(proof, MaskPredicate)
    if proof.may_have_empty_rows:
        assert proof.masked_value == {"sdpa": "-inf", "eager": "finfo.min"}[spelling]


WINDOWED = {
    "plain": "causal & window(8)",
    "left padding": "causal & window(8) & key_valid",
    "packed": "causal & window(8) & segments",
    "second chunk": "causal+offset & window(8)",
    "second chunk, padded": "causal+offset & window(8) & key_valid",
    "static cache, padded": "causal & window(8) & key_valid",
}


@dynamic_shapes
@pytest.mark.parametrize("call", WINDOWED)
def test_mistral(call: str, dynamic: bool) -> None:
    (proof,) = prove("mistral", call, "sdpa", dynamic)
    assert parts(proof) == WINDOWED[call]


OTHER_MODELS = [
    pytest.param("qwen2", "left padding", ["causal & window(8) & key_valid"], id="qwen2 padded"),
    pytest.param("gemma3", "plain", ["causal & window(8)", "causal"], id="gemma3"),
    pytest.param(
        "gemma3", "left padding", ["causal & window(8) & key_valid", "causal & key_valid"], id="gemma3 padded"
    ),
    pytest.param("llama4", "plain", ["causal & chunk(8)", "causal"], id="llama4"),
    pytest.param(
        "llama4", "left padding", ["causal & chunk(8) & key_valid", "causal & key_valid"], id="llama4 padded"
    ),
    pytest.param(
        "llama4", "second chunk", ["causal+offset & chunk(8)", "causal+offset"], id="llama4 second chunk"
    ),
    pytest.param("gpt_neox", "left padding", ["causal & key_valid"], id="gpt_neox padded"),
    pytest.param("falcon", "left padding", ["causal & key_valid"], id="falcon padded"),
    pytest.param("gpt2", "left padding", ["causal & key_valid"], id="gpt2 padded"),
    pytest.param("bert", "plain", ["none"], id="bert"),
    pytest.param("bert", "left padding", ["key_valid"], id="bert padded"),
]


@pytest.mark.parametrize(("spelling", "dynamic"), [("sdpa", True), ("eager", False)], ids=["sdpa", "eager"])
@pytest.mark.parametrize(("name", "call", "expected"), OTHER_MODELS)
def test_other_models(name: str, call: str, expected: list[str], spelling: str, dynamic: bool) -> None:
    assert [parts(proof) for proof in prove(name, call, spelling, dynamic)] == expected


@spellings
def test_bfloat16(spelling: str) -> None:
    (proof,) = prove("llama", "left padding", spelling, dynamic=True, dtype=torch.bfloat16)
    assert parts(proof) == "causal & key_valid"
    assert isinstance(proof, MaskPredicate)
    assert proof.masked_value == {"sdpa": "-inf", "eager": "finfo.min"}[spelling]


def test_length_marked_dynamic() -> None:
    model, ids, mask = make("llama", "sdpa"), token_ids(), padding(left=3)
    for tensor in (ids, mask):
        torch._dynamo.mark_dynamic(tensor, 1)
    captured = capture(model, ids, attention_mask=mask)
    assert [parts(proof) for proof in proofs(captured)] == ["causal & key_valid"]
    assert assert_predicates_are_the_masks(captured) == 1


def test_alibi_is_not_proven() -> None:
    (proof,) = prove("bloom", "left padding", "eager", dynamic=False)
    assert isinstance(proof, NotProven) and ("ALiBi" in proof.reason or proof.reason.startswith("bias"))


@spellings
def test_relative_bias_is_a_bias(spelling: str) -> None:
    (proof,) = prove("t5", "left padding", spelling, dynamic=False)
    assert isinstance(proof, NotProven) and proof.reason.startswith("bias") and "embedding" in proof.reason


def test_four_dimensional_mask_is_an_input() -> None:
    model = make("llama", "sdpa")
    mask = torch.ones(BATCH, 1, LENGTH, LENGTH, dtype=torch.bool).tril()
    (proof,) = proofs(capture(model, token_ids(), attention_mask=mask))
    assert isinstance(proof, NotProven) and proof.reason == "the mask is an input of the graph"
