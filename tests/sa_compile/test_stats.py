"""Stats: what they say is what the harness would measure, and gathering them changes nothing."""

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from support.models import LOSSLESS, SMALL_BLOCKS, tiny_llama

import sa_compile


@pytest.fixture(autouse=True)
def no_stats_from_before():
    sa_compile.reset_stats()


def compiled(model, **options):
    return torch.compile(
        model, backend="sampleattn", options={**SMALL_BLOCKS, "inner": "aot_eager", **options}
    )


@torch.no_grad()
def test_gathering_stats_does_not_change_the_logits(llama, tokens):
    plain = compiled(llama)(tokens).logits
    torch._dynamo.reset()
    assert torch.equal(compiled(llama, stats=True)(tokens).logits, plain)


@torch.no_grad()
@pytest.mark.parametrize("inner", ["inductor", "aot_eager", "eager"])
def test_there_is_an_entry_for_each_layer_and_head(llama, tokens, inner):
    model = compiled(llama, stats=True, inner=inner)
    for _ in range(3):
        model(tokens)
    stats = sa_compile.stats()
    assert [site.module_path for site in stats.sites] == [
        "model.layers.0.self_attn",
        "model.layers.1.self_attn",
    ]
    for site in stats.sites:
        assert site.calls == 3
        assert (
            len(site.density) == len(site.cra_min) == len(site.cra_mean) == llama.config.num_attention_heads
        )
        assert all(0 < share <= 1 for share in site.density + site.cra_min + site.cra_mean)
    assert "model.layers.1.self_attn" in str(stats)


@torch.no_grad()
def test_everything_kept_is_density_one_and_cra_one(llama, tokens):
    report = sa_compile.explain(llama, tokens, options={**LOSSLESS, "stats": True})
    stats = report.stats()
    assert stats.density == 1.0
    assert stats.cra_min == pytest.approx(1.0, abs=1e-5)
    assert sa_compile.stats() == stats


@torch.no_grad()
def test_fewer_blocks_keep_less_of_the_attention(tokens):
    model = tiny_llama()
    tokens = tokens.repeat(1, 4)
    sparse = sa_compile.explain(
        model, tokens, options={**SMALL_BLOCKS, "peak": 1.0, "tau": 1.0, "budget": 1.0, "stats": True}
    )
    assert sparse.stats().density < 0.9
    assert sparse.stats().cra_min < 1.0


def test_without_the_option_there_is_nothing_to_read(llama, tokens):
    with torch.no_grad():
        compiled(llama)(tokens)
    stats = sa_compile.stats()
    assert stats.sites == () and stats.density != stats.density
    assert "stats" in str(stats)


class Layer(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.projection = torch.nn.Linear(32, 32)

    def forward(self, x):
        heads = self.projection(x).unflatten(-1, (2, 16)).transpose(1, 2)
        return F.scaled_dot_product_attention(heads, heads, heads, is_causal=True).transpose(1, 2).flatten(2)


class TwoLayers(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = Layer(), Layer()

    def forward(self, x):
        return self.second(self.first(x))


@torch.no_grad()
@pytest.mark.parametrize("inner", ["inductor", "aot_eager"])
def test_what_ddps_optimizer_runs_with_fake_tensors_is_not_counted(monkeypatch, inner):
    monkeypatch.setattr(dist, "_DEFAULT_FIRST_BUCKET_BYTES", 1024)  # a graph for each layer
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    try:
        model = torch.nn.parallel.DistributedDataParallel(TwoLayers(), bucket_cap_mb=0.002).eval()
        parallel = compiled(model, stats=True, inner=inner)
        for _ in range(2):
            parallel(torch.randn(1, 64, 32))
    finally:
        dist.destroy_process_group()
    assert [site.calls for site in sa_compile.stats().sites] == [2, 2]


def test_stats_of_ranks_need_a_process_group():
    with pytest.raises(ValueError, match="need a process group, got none"):
        sa_compile.stats().imbalance()
