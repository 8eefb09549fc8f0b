"""The ops as torch sees them: opcheck, strides of fakes, dynamic shapes, layouts under Inductor, errors."""

import pytest
import torch
from support.attention_inputs import Case, make_inputs
from torch._dynamo.testing import CompileCounterWithBackend
from torch._inductor.utils import run_and_get_code
from torch.library import opcheck

from sa_compile.kernels import dispatch, ops
from sa_compile.kernels.select_adaptive.op import Arguments as Adaptive
from sa_compile.kernels.select_budget.op import Arguments as Budget
from sa_compile.kernels.select_budget_rest.op import Arguments as BudgetRest
from sa_compile.kernels.select_peaks.op import Arguments as Peaks

CASES = {
    "plain": Case(dtype=torch.bfloat16),
    "padded": Case(batch=2, segments="left_padding"),
    "packed": Case(segments="packed"),
    "sinks": Case(sinks=True),
}


def calls():
    """Arguments of every op, with and without segments."""
    for name, case in CASES.items():
        x = make_inputs(case)
        key_segment = x.key_segment
        sizes = (case.q_len, case.kv_len, case.q_offset, case.block_q, case.block_k)
        masked = (x.query_segment, x.key_segment, True, 0, 0, case.block_q, case.block_k)
        sample = (key_segment, case.scale, 0, 2, 32)
        scores = ops.sample_scores_op(x.query, x.key, *sample, case.block_k)
        yield f"sample_scores-{name}", ops.sample_scores_op, (x.query, x.key, *sample, case.block_k)
        selection = (*scores, key_segment, *sizes, 0.9, 0.8, True, 2, 20)
        yield f"select_blocks-{name}", ops.select_blocks_op, selection
        yield f"mask_blocks-{name}", ops.mask_blocks_op, (x.query, x.key, *masked)
        attention = x.attention_arguments(case)
        yield f"block_sparse_attention-{name}", ops.block_sparse_attention_op, attention
        means = (x.query, x.key, x.value, x.block_mask, key_segment, x.sinks, case.scale, 0)
        blocks = (case.block_q, case.block_k)
        yield f"block_mean_attention-{name}", ops.block_mean_attention_op, (*means, *blocks)
        mass = (x.query, x.key, x.block_mask, *sample, case.block_q, case.block_k)
        yield f"attention_mass-{name}", ops.attention_mass_op, mass
        represented = (x.key, key_segment, case.block_k, 4)
        yield f"block_representatives-{name}", ops.block_representatives_op, represented
        terms = ops.block_representatives_op(*represented)
        adaptive = Adaptive(
            x.query,
            x.key,
            *terms,
            key_segment,
            case.scale,
            0,
            case.block_q,
            case.block_k,
            0.3,
            True,
            2,
            20,
            sinks=x.sinks,
        )
        yield f"select_adaptive-{name}", ops.select_adaptive_op, adaptive
        yield f"select_peaks-{name}", ops.select_peaks_op, Peaks(*adaptive)
        budget = Budget(x.query, x.key, key_segment, case.scale, 0, *blocks, 0.1, 0.3, 8, True, 2)
        budget = budget._replace(sinks=x.sinks)
        yield f"select_budget-{name}", ops.select_budget_op, budget
        rest = BudgetRest(*budget[:2], x.value, x.block_mask, *budget[2:])
        yield f"select_budget_rest-{name}", ops.select_budget_rest_op, rest
        left = ops.select_budget_rest_op(*rest)
        parts = (x.query, x.key, x.value, *left, key_segment, x.sinks, case.scale, 0.5, 0, *blocks)
        yield f"block_rest_attention-{name}", ops.block_rest_attention_op, parts


@pytest.mark.parametrize(
    ("op", "arguments"), [pytest.param(op, arguments, id=name) for name, op, arguments in calls()]
)
def test_opcheck(op, arguments):
    assert set(opcheck(op, arguments).values()) == {"SUCCESS"}


@pytest.mark.parametrize(
    ("op", "arguments"), [pytest.param(op, arguments, id=name) for name, op, arguments in calls()]
)
def test_autocast_changes_nothing(op, arguments):
    expected = op(*arguments)
    with torch.autocast("cpu", torch.bfloat16):
        actual = op(*arguments)
    torch.testing.assert_close(actual, expected, atol=0, rtol=0)


def prefill(x):
    """Heads as views of [B, S, H, D] memory, as models make them."""
    return attend(*(t.transpose(1, 2) for t in x.split([4, 2, 2], dim=2)))


def attend(query, key, value):
    """Every op once, on [B, H, S, D] tensors."""
    length = query.shape[2]
    scores = ops.sample_scores_op(query, key, None, 0.2, 0, 2, 32, 32)
    mask = ops.select_blocks_op(*scores, None, length, length, 0, 64, 32, 0.9, 0.9, True, 2, 20)
    where = (None, None, None, 0.2, True, 0, 0, 64, 32)
    out, lse = ops.block_sparse_attention_op(query, key, value, mask, *where)
    means = ops.block_mean_attention_op(query, key, value, mask, None, None, 0.2, 0, 64, 32)
    window = ops.mask_blocks_op(query, key, None, None, True, 0, 40, 64, 32)
    mass = ops.attention_mass_op(query, key, window, None, 0.2, 0, 2, 32, 64, 32)
    terms = ops.block_representatives_op(key, None, 32, 4)
    adaptive = Adaptive(query, key, *terms, None, 0.2, 0, 64, 32, 0.3, True, 2, 20)
    budget = Budget(query, key, None, 0.2, 0, 64, 32, 0.1, 0.3, 8, True, 2)
    chosen = ops.select_adaptive_op(*adaptive), ops.select_peaks_op(*adaptive), ops.select_budget_op(*budget)
    rest = ops.select_budget_rest_op(*budget[:2], value, mask, *budget[2:])
    parts = ops.block_rest_attention_op(query, key, value, *rest, None, None, 0.2, 0.5, 0, 64, 32)
    return out, lse, *means, mask, window, mass, *terms, *chosen, *rest, *parts


def test_one_dynamic_graph_serves_every_length():
    """Of more than 32 key blocks: an index of one word has another shape class for torch."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(prefill, backend=counter, dynamic=True, fullgraph=True)
    for length in (1500, 1100, 3001):
        x = torch.randn(2, length, 8, 16)
        for got, expected in zip(compiled(x), prefill(x), strict=True):
            torch.testing.assert_close(got, expected)
            assert got.stride() == expected.stride()
    assert counter.frame_count == 1


def test_inductor_computes_operands_once_and_copies_no_transposed_view():
    torch._dynamo.reset()
    ops.declare_to_inductor()

    def layer(x, shift, *weights):
        query, key, value = (torch.unflatten(x @ w, -1, (-1, 16)).transpose(1, 2) for w in weights)
        return (
            attend(query.sin() * shift + shift, key.sin() * shift + shift, value)[0]
            .transpose(1, 2)
            .flatten(2)
        )

    arguments = [
        torch.randn(1, 300, 24),
        torch.randn(300, 16),
        *(torch.randn(24, 16 * heads) for heads in (4, 2, 2)),
    ]
    with torch.no_grad(), torch._inductor.config.patch(force_disable_caches=True):
        out, (code,) = run_and_get_code(torch.compile(layer, dynamic=True), *arguments)
    torch.testing.assert_close(out, layer(*arguments), rtol=1e-3, atol=1e-3)
    floats = [line for line in code.splitlines() if "= empty_strided" in line and "torch.float32" in line]
    assert len(floats) <= 5, "three products, the query and the key: nothing else is written to memory"


Q = torch.zeros(2, 4, 64, 16)
K = torch.zeros(2, 2, 64, 16)
MASK = torch.zeros(1, 1, 4, 2, dtype=torch.int32)
SCORES = torch.zeros(2, 4, 4)
SEGMENT = torch.zeros(2, 64, dtype=torch.int32)
TERMS = ops.block_representatives(K, block_k=16, landmarks=2)


def attention(query=Q, key=K, value=K, block_mask=MASK, **options):
    return ops.block_sparse_attention(
        query, key, value, block_mask, **{"block_q": 16, "block_k": 16, **options}
    )


def mean_attention(query=Q, key=K, value=K, block_mask=MASK, **options):
    return ops.block_mean_attention(
        query, key, value, block_mask, **{"block_q": 16, "block_k": 16, **options}
    )


def select(column=SCORES, slash=SCORES, **options):
    return ops.select_blocks(
        column, slash, **{"q_len": 64, "kv_len": 64, "block_q": 16, "block_k": 16, **options}
    )


def adaptive(terms=TERMS, **options):
    return ops.select_adaptive(Q, K, terms, **{"block_q": 16, "block_k": 16, **options})


def peaks(terms=TERMS, query=Q, key=K, **options):
    return ops.select_peaks(query, key, terms, **{"block_q": 16, "block_k": 16, **options})


ERRORS = {
    "dtype": (lambda: attention(Q.double()), "'query'.*float32, bfloat16 or float16.*float64"),
    "query-3d": (lambda: attention(Q[0]), r"'query' must be a \[B, Hq, Sq, D\]"),
    "key-dtype": (lambda: attention(key=K.half()), "'key'.*query's dtype.*float16"),
    "head-dim": (lambda: attention(key=K[..., :8]), r"'key' must have .*batch and head_dim \(2, 16\)"),
    "heads": (lambda: attention(key=Q[:, :3]), "'key'.*divides query's .4., got 3"),
    "value": (lambda: attention(value=K[:, :, :5]), "'value' must have key's batch, heads and length"),
    "block-size": (lambda: attention(block_q=48), "'block_q' must be one of 16, 32, 64, 128, got 48"),
    "index-dtype": (lambda: attention(block_mask=MASK.long()), "'block_mask' must be an int32"),
    "index-size": (lambda: attention(block_mask=MASK[:, :, :3]), "'block_mask'.*size 4 in dimension 2"),
    "segment-dtype": (lambda: attention(key_segment=SEGMENT.bool()), "'key_segment' must be an int32"),
    "segment-size": (lambda: attention(query_segment=SEGMENT[:, :9]), "'query_segment'.*size 64 in dim"),
    "segment-batch": (lambda: attention(key_segment=SEGMENT.repeat(2, 1)), "'key_segment'.*size 1 or 2"),
    "device": (lambda: attention(Q.to("meta")), "'key' must be on meta .*, got cpu"),
    "means-value": (lambda: mean_attention(value=K[:, :1]), "block_mean_attention: 'value' must have key's"),
    "means-index": (lambda: mean_attention(block_mask=MASK.long()), "'block_mask' must be an int32"),
    "means-segment": (lambda: mean_attention(key_segment=SEGMENT[:, :9]), "'key_segment'.*size 64 in dim"),
    "means-block": (lambda: mean_attention(block_q=48), "'block_q' must be one of 16, 32, 64, 128, got 48"),
    "chunk-n": (lambda: ops.sample_scores(Q, K, chunk_n=0), "'chunk_n' must be >= 1, got 0"),
    "sample-rows": (lambda: ops.sample_scores(Q, K, sample_rows=0), "'sample_rows' must be >= 1"),
    "scores-dtype": (lambda: select(SCORES.double()), "'column_scores' must be a float32"),
    "scores-size": (lambda: select(SCORES[..., :3]), "'column_scores'.*size 4 in dimension 2"),
    "scores-batch": (lambda: select(slash=SCORES[:1]), "'slash_scores'.*size 2 in dimension 0"),
    "landmarks": (
        lambda: ops.block_representatives(K, block_k=16, landmarks=17),
        "'landmarks' .* most block_k",
    ),
    "tau": (lambda: ops.select_adaptive(Q, K, TERMS, block_k=16, tau=-1.0), "'tau' must be >= 0, got -1.0"),
    "last_rows": (lambda: adaptive(last_rows=-1), "'last_rows' must be >= 0, got -1"),
    "window": (lambda: adaptive(window_slashes=0), "'window_slashes' must be >= 1, got 0"),
    "terms-size": (lambda: adaptive((TERMS[0], TERMS[1][..., :3], TERMS[2])), "'log_weights'.*size 4 in dim"),
    "terms-dtype": (lambda: adaptive((TERMS[0], TERMS[1], TERMS[2].half())), "'spreads' must be a float32"),
    "sinks": (lambda: adaptive(sinks=torch.zeros(3)), "'sinks' must have size 4 or 1 in dimension 0"),
    "representatives": (lambda: adaptive((TERMS[0][0], *TERMS[1:])), "'representatives' must be a .B, Hkv"),
    "peak": (lambda: peaks(peak=-0.1), "select_peaks: 'peak' must be >= 0, got -0.1"),
    "peak-nan": (lambda: peaks(peak=float("nan")), "'peak' must be >= 0, got nan"),
    "peaks-key": (lambda: peaks(key=K.half()), "select_peaks: 'key'.*query's dtype.*float16"),
    "peaks-landmarks": (
        lambda: peaks(ops.block_representatives(K, block_k=16, landmarks=0)),
        "'representatives' must hold at least one landmark, got 0",
    ),
    "peaks-terms": (lambda: peaks((TERMS[0][..., :8], *TERMS[1:])), "'representatives'.*size 16 in dim"),
    "peaks-segment": (lambda: peaks(key_segment=SEGMENT[:, :9]), "'key_segment'.*size 64 in dim"),
    "peaks-block": (lambda: peaks(block_q=48), "'block_q' must be one of 16, 32, 64, 128, got 48"),
    "peaks-last-rows": (lambda: peaks(last_rows=-1), "'last_rows' must be >= 0, got -1"),
    "peaks-window": (lambda: peaks(window_slashes=0), "'window_slashes' must be >= 1, got 0"),
    "peaks-sinks": (lambda: peaks(sinks=torch.zeros(3)), "'sinks' must have size 4 or 1 in dimension 0"),
    "alpha": (lambda: select(alpha_c=-0.1), "'alpha_c' must be >= 0, got -0.1"),
    "alpha-nan": (lambda: select(alpha_s=float("nan")), "'alpha_s' must be >= 0, got nan"),
}


@pytest.mark.parametrize(("call", "message"), ERRORS.values(), ids=ERRORS.keys())
def test_errors_name_the_argument_and_what_is_allowed(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def direct_calls():
    """Calls that pass by the Python checks and must not reach memory that is not theirs."""
    tail = (None, None, None, 0.1, True, 0, 0, 16, 16)
    yield "head_dim", lambda: ops.block_sparse_attention_op(Q, K[..., :8], K, MASK, *tail)
    yield "value", lambda: ops.block_sparse_attention_op(Q, K, K[:, :1], MASK, *tail)
    yield "index", lambda: ops.block_sparse_attention_op(Q, K, K, MASK[:, :, :1], *tail)
    yield "segment", lambda: ops.block_sparse_attention_op(Q, K, K, MASK, None, SEGMENT[:, :3], *tail[2:])
    for sinks in (torch.zeros(2), torch.zeros(4, 1), torch.zeros(4).half()):
        arguments = (Q, K, K, MASK, None, None, sinks, *tail[3:])
        yield "sinks", lambda arguments=arguments: ops.block_sparse_attention_op(*arguments)
        selection = Budget(Q, K, None, 0.1, 0, 16, 16, 0.1, 0.1, 8, True, 2, sinks=sinks)
        yield "sinks of a selection", lambda given=selection: ops.select_budget_op(*given)
    yield "means", lambda: ops.block_mean_attention_op(Q, K, K[:, :1], MASK, None, None, 0.1, 0, 16, 16)
    budget = (None, 0.1, 0, 16, 16, 0.1, 0.1, 8, True, 2)
    yield "rest index", lambda: ops.select_budget_rest_op(Q, K, K, MASK[:, :, :1], *budget)
    rest = (torch.zeros(2, 4, 4, 16), torch.zeros(2, 4, 3), torch.zeros(2, 4, 4))
    end = (None, None, 0.1, 0.5, 0, 16, 16)
    yield "rest share", lambda: ops.block_rest_attention_op(Q, K, K, MASK, *rest, *end)
    yield "dtype", lambda: ops.sample_scores_op(Q.double(), K.double(), None, 0.1, 0, 2, 8, 16)
    yield "block size", lambda: ops.sample_scores_op(Q, K, None, 0.1, 0, 2, 8, 17)
    yield "landmarks", lambda: ops.block_representatives_op(K, None, 16, -1)
    where = (None, 0.1, 0, 16, 16, 0.1, True, 2, 0)
    short = (TERMS[0], TERMS[1][..., :1], TERMS[2])
    no_landmarks = ops.block_representatives(K, block_k=16, landmarks=0)
    yield "terms", lambda: ops.select_adaptive_op(Q, K, *short, *where)
    yield "terms of peaks", lambda: ops.select_peaks_op(Q, K, *short, *where)
    yield "landmarks of peaks", lambda: ops.select_peaks_op(Q, K, *no_landmarks, *where)
    yield "window of peaks", lambda: ops.select_peaks_op(Q, K, *TERMS, *where[:-2], 0, 0)
    yield "sinks of peaks", lambda: ops.select_peaks_op(Q, K, *TERMS, *where, 1, torch.zeros(3))
    yield "chunk_n", lambda: ops.sample_scores_op(Q, K, None, 0.1, 0, 0, 8, 16)
    yield (
        "scores",
        lambda: ops.select_blocks_op(SCORES, SCORES, None, 64, 99, 0, 16, 16, 0.9, 0.9, True, 2, 20),
    )


@pytest.mark.parametrize("call", [pytest.param(call, id=name) for name, call in direct_calls()])
def test_native_kernels_check_what_they_rely_on(call):
    with pytest.raises(RuntimeError, match="must"):
        call()


def test_a_missing_library_is_said(monkeypatch):
    monkeypatch.setattr(dispatch.importlib.util, "find_spec", lambda name: None)
    with pytest.warns(UserWarning, match="C\\+\\+ library for the CPU is not installed"):
        assert dispatch.load_cpu_library() is False
