"""The harness's rules are what compiled models run: same blocks, same stats, same outputs."""

import pytest
import torch

import sa_compile
from sa_compile.eval.attention import sparse_prefill
from sa_compile.eval.rules import parse_rule

BLOCKS = {"block_q": 16, "block_k": 16}
EVERY_OPTION = {"alpha_c": 0.5, "alpha_s": 0.8, "chunk_n": 3, "keep_sink": False, "window_blocks": 1}
STRIDE = {"method": "stride", "alpha_c": 0.5, "r_row": 0.1, "r_w": 0.1}
ADAPTIVE = {
    **{"method": "adaptive", "tau": 0.3, "landmarks": 3},
    **{"keep_sink": False, "window_blocks": 1, "chunk_n": 3},
}
CASES = [
    pytest.param("chunked:alpha=0.6", {"alpha_c": 0.6, "alpha_s": 0.6}, (2, 16), id="chunked"),
    pytest.param(
        "chunked:alpha_c=0.5,alpha_s=0.8,chunk_n=3,sink=0,window=1", EVERY_OPTION, (3, 16), id="options"
    ),
    pytest.param("stride:alpha=0.5,r_row=0.1,r_w=0.1", STRIDE, (21, 1), id="stride"),
    pytest.param("adaptive:tau=0.3,landmarks=3,sink=0,window=1", ADAPTIVE, (3, 16), id="adaptive"),
]


@pytest.mark.parametrize("spec, options, cra", CASES)
def test_compiled_stats_and_logits_equal_the_harness(model, spec, options, cra):
    tokens = torch.randint(2, 300, (1, 208), generator=torch.Generator().manual_seed(0))
    rows = {"cra_chunks": cra[0], "cra_rows": cra[1]}
    with torch.no_grad(), sparse_prefill(model, parse_rule(spec), **BLOCKS, **rows) as run:
        expected = model(tokens, use_cache=False).logits
    sa_compile.reset_stats()
    options = {**options, **BLOCKS, "min_seq_len": 32, "inner": "eager", "stats": True}
    compiled = torch.compile(model, backend="sampleattn", options=options)
    with torch.no_grad():
        torch.testing.assert_close(compiled(tokens, use_cache=False).logits, expected, rtol=1e-3, atol=1e-3)
    sites = sa_compile.stats().sites
    assert len(sites) == len(run.densities) == 2
    for site, density, measured in zip(sites, run.densities, run.cras, strict=True):
        assert site.density == pytest.approx(density[0].tolist(), abs=1e-5)
        assert site.cra_min == pytest.approx(measured[0].tolist(), abs=1e-4)
        assert 0 < min(site.density) < 1
