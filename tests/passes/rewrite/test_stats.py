"""stats=True measures without changing what the graph computes."""

import torch
import torch.nn.functional as F
from support.attention import grouped, left_padding
from support.graphs import PassesBackend, compile_with_passes

from sa_compile.passes.rewrite.outputs import without_outputs
from sa_compile.passes.rewrite.stats import COLUMNS


def two_layers(q, k, v):
    for _ in range(2):
        q = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    return q


def padded(q, k, v, padding):
    length = q.shape[2]
    mask = torch.ones(length, length, dtype=torch.bool).tril()[None, None] & padding.bool()[:, None, None]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)


def collect(function, *args, **options):
    collected = []
    passes = PassesBackend({"stats": True, **options})

    def backend(gm, example_inputs):
        compiled = passes(gm, example_inputs)
        count = sum(record.has_stats for record in passes.records)
        return without_outputs(compiled, count, lambda stats: collected.append([s.clone() for s in stats]))

    with torch.no_grad():
        result = torch.compile(function, backend=backend)(*args)
    return result, collected


def test_one_row_a_head_for_each_sampled_site():
    _, (stats,) = collect(two_layers, *grouped())
    assert [tuple(site.shape) for site in stats] == [(4, len(COLUMNS))] * 2


def test_everything_kept_is_density_one_and_cra_one():
    for function, args in ((two_layers, grouped()), (padded, (*grouped(), left_padding()))):
        _, (stats,) = collect(function, *args)
        torch.testing.assert_close(stats[0], torch.ones(4, 3))


def test_less_is_kept_with_a_lower_alpha_and_results_stay():
    options = {"method": "chunked", "alpha_c": 0.2, "alpha_s": 0.2, "window_blocks": 1}
    tensors = tuple(torch.randn(2, heads, 320, 16) for heads in (4, 2, 2))
    result, (stats,) = collect(two_layers, *tensors, **options)
    density, cra_min, cra_mean = stats[0].unbind(1)
    assert (density < 1).all() and (cra_min < 1).all() and (cra_min <= cra_mean).all()
    torch._dynamo.reset()
    with torch.no_grad():
        without = torch.compile(two_layers, backend=PassesBackend(options))(*tensors)
    assert torch.equal(result, without)


def test_no_outputs_without_the_option():
    backend = compile_with_passes(two_layers, *grouped())
    assert not any(record.has_stats for record in backend.records)
