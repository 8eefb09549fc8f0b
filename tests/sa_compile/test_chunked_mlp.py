"""chunk_mlps: the same results, fewer rows at a time."""

import pytest
import torch
from support.models import tiny_llama

from sa_compile.chunked_mlp import ChunkedMLP, chunk_mlps


@pytest.mark.parametrize("tokens", [1, 7, 32, 63, 64, 1000])
@torch.no_grad()
def test_the_logits_are_the_same(llama, tokens):
    prompt = torch.arange(64)[None].expand(2, -1)
    expected = llama(prompt).logits
    assert chunk_mlps(llama, tokens) == 2
    torch.testing.assert_close(llama(prompt).logits, expected, atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_no_more_rows_than_asked_for_reach_the_mlp(llama, tokens):
    rows = []
    chunk_mlps(llama, 24)
    for module in llama.modules():
        if isinstance(module, ChunkedMLP):
            module.mlp.register_forward_pre_hook(lambda module, args: rows.append(args[0].shape[1]))
    llama(tokens)
    assert rows == [24, 24, 16] * 2


@torch.no_grad()
def test_compiled_models_take_it(llama, tokens):
    expected = llama(tokens).logits
    chunk_mlps(llama, 24)
    compiled = torch.compile(llama, backend="sampleattn", options={"inner": "aot_eager"})
    torch.testing.assert_close(compiled(tokens).logits, expected, atol=1e-5, rtol=1e-4)


def test_gradients_are_the_same(tokens):
    models = [tiny_llama(), tiny_llama()]
    chunk_mlps(models[0], 24)
    for model in models:
        model(tokens).logits.square().mean().backward()
    for ours, theirs in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_a_second_call_finds_nothing_left_to_do(llama):
    chunk_mlps(llama, 24)
    with pytest.raises(ValueError, match="no MLP found"):
        chunk_mlps(llama, 24)


def test_bad_arguments_are_named(llama):
    with pytest.raises(ValueError, match="'tokens' must be at least 1, got 0"):
        chunk_mlps(llama, 0)
    with pytest.raises(ValueError, match="no MLP found in Linear"):
        chunk_mlps(torch.nn.Linear(2, 2), 8)
    assert chunk_mlps(llama, 8, is_mlp=lambda module: isinstance(module, torch.nn.Embedding)) == 1
