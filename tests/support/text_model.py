"""A tokenizer and a model small enough that the harness runs in seconds."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from sa_compile.lab.eval.tasks import words

_WORDS = [*words.NOUNS, *words.ADJECTIVES, *words.SECRETS, *words.PEOPLE, *words.PLACES]


def long_text(lines: int, seed: int = 0) -> str:
    """Lines of random words, for a haystack."""
    rng = random.Random(seed)
    return "".join(" ".join(rng.choices(_WORDS, k=rng.randint(3, 9))) + "\n" for _ in range(lines))


def small_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE over the words of the tasks; newlines and digits stand alone, texts begin with <s>."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split("\n", "isolated"),
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([long_text(300)], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )


def small_model(vocabulary: int) -> LlamaForCausalLM:
    """An untrained Llama of two layers, four query and two key-value heads."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
        initializer_range=0.4,
    )
    return LlamaForCausalLM(config).eval()


def small_hybrid(
    vocabulary: int,
    layer_types: Sequence[str] = ("sliding_attention", "full_attention", "sliding_attention"),
) -> Gemma3ForCausalLM:
    """An untrained Gemma 3 with windows of 48 tokens, four query heads and one key-value head of 256."""
    torch.manual_seed(0)
    config = Gemma3TextConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=len(layer_types),
        layer_types=list(layer_types),
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=256,
        query_pre_attn_scalar=256,
        sliding_window=48,
        max_position_embeddings=4096,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
        initializer_range=0.3,
    )
    return Gemma3ForCausalLM(config).eval()
