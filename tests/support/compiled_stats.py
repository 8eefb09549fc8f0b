"""Compiled models and the harness beside each other: the same stats and logits, on any device."""

import pytest
import torch

import sa_compile
from sa_compile.lab.eval.attention import sparse_prefill
from sa_compile.lab.eval.rules import parse_rule

ALPHAS = {"method": "chunked", "alpha_c": 0.6, "alpha_s": 0.6, "last_rows": 0}
EVERY_OPTION = {
    **{"method": "chunked", "alpha_c": 0.5, "alpha_s": 0.8, "chunk_n": 3},
    **{"keep_sink": False, "window_blocks": 1, "last_rows": 0},
}
STRIDE = {"method": "stride", "alpha_c": 0.5, "r_row": 0.1, "r_w": 0.1}
ADAPTIVE = {
    **{"method": "adaptive", "peak": 1.0, "tau": 0.3, "landmarks": 3},
    **{"keep_sink": False, "window_blocks": 1, "last_rows": 20, "chunk_n": 3},
}
PEAKS = {
    **{"peak": 0.9, "landmarks": 1, "budget": 0.9, "budget_tau": 1.0, "budget_rows": 16},
    **{"keep_sink": False, "window_blocks": 1, "last_rows": 20, "chunk_n": 3},
}
# A rule, the options that say the same, and where the compiled model measures CRA: the chunks (None: a tenth
# of the rows, as r_row says) and how many rows at the end of each (None: a block).
CASES = [
    pytest.param("chunked:alpha=0.6,last=0", ALPHAS, (2, None), id="chunked"),
    pytest.param(
        "chunked:alpha_c=0.5,alpha_s=0.8,chunk_n=3,sink=0,window=1,last=0",
        EVERY_OPTION,
        (3, None),
        id="options",
    ),
    pytest.param(
        "chunked:alpha=0.6,sample_rows=40,last=0", {**ALPHAS, "sample_rows": 40}, (2, 40), id="rows"
    ),
    pytest.param("stride:alpha=0.5,r_row=0.1,r_w=0.1", STRIDE, (None, 1), id="stride"),
    pytest.param(
        "adaptive:peak=1,tau=0.3,landmarks=3,sink=0,window=1,last=20,budget=1,means=1",
        {**ADAPTIVE, "budget": 1.0, "means": True},
        (3, None),
        id="adaptive",
    ),
    pytest.param(
        "adaptive:peak=1,tau=0.3,landmarks=3,sink=0,window=1,last=20,budget=0.1,rows_tau=0.3,rows=16",
        {**ADAPTIVE, "budget": 0.1, "budget_tau": 0.3, "budget_rows": 16},
        (3, None),
        id="budget",
    ),
    pytest.param(
        "adaptive:peak=0.9,landmarks=1,sink=0,window=1,last=20,budget=0.9,rows_tau=1,rows=16",
        PEAKS,
        (3, None),
        id="peaks",
    ),
]


def measure(model, tokens, spec, options, where, block, inner):
    """(logits, density of layers and heads, CRA of them) of the harness, and of the compiled model."""
    chunks, tail = where
    rows = {"cra_chunks": chunks or -(-tokens.shape[1] // 10), "cra_rows": tail or block}
    blocks = {"block_q": block, "block_k": block}
    with torch.no_grad(), sparse_prefill(model, parse_rule(spec), **blocks, **rows) as run:
        logits = model(tokens, use_cache=False).logits
    measured = (torch.stack([layer[0].cpu() for layer in layers]) for layers in (run.densities, run.cras))
    harness = (logits, *measured)
    sa_compile.reset_stats()
    torch._dynamo.reset()
    options = {**options, **blocks, "min_seq_len": 32, "inner": inner, "stats": True}
    compiled = torch.compile(model, backend="sampleattn", options=options)
    with torch.no_grad():
        logits = compiled(tokens, use_cache=False).logits
    sites = sa_compile.stats().sites
    stats = ([site.density for site in sites], [site.cra_min for site in sites])
    return harness, (logits, *map(torch.tensor, stats))
