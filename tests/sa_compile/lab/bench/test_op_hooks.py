"""Hooks between a model and our ops: they set the density or take times, and leave no trace."""

import pytest
import torch
from support.models import SMALL_BLOCKS, tiny_llama

from sa_compile.kernels.shared import blocks
from sa_compile.kernels.shared.blocks import unpack_bits
from sa_compile.lab.bench.breakdown import PARTS, REST, median_layers, split
from sa_compile.lab.bench.op_hooks import OpTimes, density_set, op_times, random_strips


@pytest.fixture(params=["chunked", "adaptive"])
def compiled(request, llama):
    options = {**SMALL_BLOCKS, "inner": "aot_eager", "method": request.param}
    return torch.compile(llama, backend="sampleattn", options=options)


@pytest.fixture
def prompt():
    return torch.randint(0, 96, (1, 512), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_a_set_density_reaches_the_attention_and_goes_again(compiled, prompt):
    before = compiled(prompt).logits
    with density_set("cpu", 0.2) as chosen:
        first, second = compiled(prompt).logits, compiled(prompt).logits
    assert chosen.kept[512] == pytest.approx(0.2, abs=0.03)
    assert torch.equal(first, second) and not torch.allclose(first, before)
    assert torch.equal(compiled(prompt).logits, before)


@torch.no_grad()
def test_a_density_of_one_is_dense_attention(compiled, prompt):
    with density_set("cpu", 1.0) as chosen:
        dense = compiled(prompt).logits
    assert chosen.kept[512] == 1.0
    torch.testing.assert_close(dense, tiny_llama()(prompt).logits, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_an_error_inside_leaves_the_ops_as_they_were(compiled, prompt):
    before = compiled(prompt).logits
    with pytest.raises(RuntimeError, match="stop"), density_set("cpu", 0.2):
        raise RuntimeError("stop")
    assert torch.equal(compiled(prompt).logits, before)


@pytest.mark.parametrize("density", [0.1, 0.4, 0.8])
def test_random_strips_are_whole_columns_and_slashes_of_that_density(density):
    sizes = (4096, 4096, 0, 64, 64)
    mask = random_strips(density, 3, *sizes, torch.device("cpu"))
    assert blocks.density(mask, *sizes).mean().item() == pytest.approx(density, abs=0.03)
    kept = unpack_bits(mask, 64)[0]
    causal = torch.ones(64, 64, dtype=torch.bool).tril()
    assert not (kept & ~causal).any()
    assert kept[:, :, 0].all() and kept.diagonal(dim1=1, dim2=2).all()
    distance = (torch.arange(64)[:, None] - torch.arange(64)).clamp(min=0)
    for head in kept:
        column = (head | ~causal).all(0)
        slash = torch.stack([head.diagonal(-s).all() for s in range(64)])
        assert torch.equal(head, (column | slash[distance]) & causal)


@torch.no_grad()
def test_the_parts_of_all_layers_are_the_whole_forward(compiled, prompt):
    compiled(prompt)
    with op_times("cpu") as times:
        begin = times.mark()
        compiled(prompt)
        end = times.mark()
    layers = split(times, begin, end)
    assert len(layers) == 3  # two layers, and what follows
    assert sum(sum(layer.values()) for layer in layers) == pytest.approx(times.milliseconds(begin, end))
    assert all(
        layer["sampling"] > 0 and layer["selection"] > 0 and layer["attention"] > 0 for layer in layers[:2]
    )
    assert set(layers[2]) == {*PARTS.values(), REST} and layers[2]["attention"] == 0


@torch.no_grad()
def test_an_op_that_calls_another_is_one_span(compiled, prompt):
    compiled(prompt)
    with op_times("cpu") as times:
        compiled(prompt)
    attentions = [span.name for span in times.spans if PARTS[span.name] == "attention"]
    assert len(attentions) == 2 and len(set(attentions)) == 1


def test_medians_are_taken_part_by_part():
    runs = [[{"a": 1.0, "b": 9.0}], [{"a": 5.0, "b": 2.0}], [{"a": 3.0, "b": 4.0}]]
    assert median_layers(runs) == [{"a": 3.0, "b": 4.0}]


def test_times_on_a_gpu_are_events(cuda_or_skip):
    times = OpTimes("cuda")
    begin = times.mark()
    end = times.mark()
    torch.cuda.synchronize()
    assert times.milliseconds(begin, end) >= 0


@pytest.fixture
def cuda_or_skip():
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
