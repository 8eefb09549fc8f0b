"""select_blocks: which blocks the rules keep."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.attention_inputs import Case, make_inputs, make_segments
from support.implementations import eager, reference

from sa_compile import metrics
from sa_compile.kernels import ops
from sa_compile.kernels.shared import blocks

SELECT = [pytest.param(ops.select_blocks_op, id="op"), pytest.param(eager.select_blocks, id="eager")]
LENGTHS = st.integers(1, 200)
BLOCK = st.sampled_from([16, 32, 64])
ALPHA = st.sampled_from([0.0, 0.3, 0.5, 0.9, 0.99, 1.0])


def random_scores(n_key_blocks, seed, ties):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(2, 2, 2, n_key_blocks, generator=generator) ** 4
    if ties:
        scores = (scores * 4).round() / 4
    return scores[0].contiguous(), scores[1].contiguous()


@pytest.mark.parametrize("select", SELECT)
@given(
    q_len=LENGTHS,
    kv_len=LENGTHS,
    q_offset=st.integers(-100, 150),
    block_q=BLOCK,
    block_k=BLOCK,
    alpha_c=ALPHA,
    alpha_s=ALPHA,
    keep_sink=st.booleans(),
    window_slashes=st.integers(0, 4),
    last_rows=st.sampled_from([0, 0, 1, 30, 500]),
    padding=st.sampled_from(["none", "left_padding", "right_padding"]),
    ties=st.booleans(),
    seed=st.integers(0, 100),
)
@example(
    q_len=2,
    kv_len=3,
    q_offset=-1,
    block_q=16,
    block_k=16,
    alpha_c=1.0,
    alpha_s=0.0,
    keep_sink=False,
    window_slashes=0,
    last_rows=0,
    padding="left_padding",
    ties=False,
    seed=0,
)
@settings(max_examples=60, deadline=None)
def test_selection_equals_its_definition(
    select,
    q_len,
    kv_len,
    q_offset,
    block_q,
    block_k,
    alpha_c,
    alpha_s,
    keep_sink,
    window_slashes,
    last_rows,
    padding,
    ties,
    seed,
):
    column, slash = random_scores(-(-kv_len // block_k), seed, ties)
    _, key_segment = make_segments(Case(batch=2, kv_len=kv_len, segments=padding))
    arguments = (
        key_segment,
        q_len,
        kv_len,
        q_offset,
        block_q,
        block_k,
        alpha_c,
        alpha_s,
        keep_sink,
        window_slashes,
        last_rows,
    )
    expected = reference.select_blocks(column, slash, *arguments)
    assert torch.equal(select(column, slash, *arguments), expected)


@pytest.mark.parametrize("select", SELECT)
def test_a_tie_keeps_the_lower_index(select):
    column = torch.full((1, 1, 4), 0.25)
    mask = select(column, torch.zeros(1, 1, 4), None, 64, 64, 0, 16, 16, 0.5, 0.0, False, 0, 0)
    kept = blocks.unpack_bits(mask, 4)[0, 0]
    assert kept[3].tolist() == [True, True, False, False]


@pytest.mark.parametrize("select", SELECT)
@pytest.mark.parametrize("alphas", [(1.0, 0.0), (0.0, 1.0)], ids=["columns", "slashes"])
def test_alpha_one_keeps_every_block_that_causality_allows(select, alphas):
    scores = torch.zeros(1, 2, 7)
    mask = select(scores, scores, None, 100, 100, 0, 32, 16, *alphas, False, 0, 0)
    expected = blocks.bits_from_window(100, 100, 0, 0, 32, 16)
    assert torch.equal(mask, expected.expand_as(mask))


@given(seed=st.integers(0, 1000), alphas=st.tuples(st.floats(0.0, 1.0), st.floats(0.0, 1.0)))
@settings(max_examples=25, deadline=None)
def test_density_and_cra_rise_with_alpha(seed, alphas):
    case = Case(q_len=150, kv_len=150, block_q=16, block_k=16)
    inputs = make_inputs(case, seed)
    scores = ops.sample_scores(inputs.query * 3, inputs.key, sample_rows=16, block_k=16)
    measured = []
    for alpha in sorted(alphas):
        mask = ops.select_blocks(
            *scores, q_len=150, kv_len=150, block_q=16, block_k=16, alpha_c=alpha, alpha_s=alpha
        )
        cra = metrics.cra(inputs.query * 3, inputs.key, mask, block_q=16, block_k=16)
        measured.append((blocks.density(mask, 150, 150, 0, 16, 16), cra))
    (low_density, low_cra), (high_density, high_cra) = measured
    assert (low_density <= high_density).all() and (low_cra <= high_cra).all()


@given(seed=st.integers(0, 1000), permutation=st.permutations(range(3)))
@settings(max_examples=10, deadline=None)
def test_batches_and_heads_do_not_interact(seed, permutation):
    case = Case(batch=3, heads=3, kv_heads=3, q_len=100, kv_len=100, block_q=16, block_k=16)
    inputs = make_inputs(case, seed)
    index = torch.tensor(permutation)

    def run(query, key, value):
        scores = ops.sample_scores(query, key, sample_rows=16, block_k=16)
        mask = ops.select_blocks(
            *scores, q_len=100, kv_len=100, block_q=16, block_k=16, alpha_c=0.6, alpha_s=0.6
        )
        out, _ = ops.block_sparse_attention(query, key, value, mask, block_q=16, block_k=16)
        return out

    tensors = (inputs.query, inputs.key, inputs.value)
    out = run(*tensors)
    assert torch.equal(run(*(t[index] for t in tensors)), out[index])
    assert torch.equal(run(*(t[:, index] for t in tensors)), out[:, index])


@given(q_len=st.integers(1, 200), block_q=st.sampled_from([16, 64]), last_rows=st.integers(0, 250))
@settings(max_examples=60, deadline=None)
def test_exactly_the_query_blocks_of_the_last_rows_keep_every_block(q_len, block_q, last_rows):
    scores = torch.zeros(1, 1, -(-q_len // 16))
    sizes = {"q_len": q_len, "kv_len": q_len, "block_q": block_q, "block_k": 16}

    def kept(count):
        forced = {"keep_sink": False, "window_slashes": 0, "last_rows": count}
        return blocks.unpack_bits(ops.select_blocks(scores, scores, **sizes, **forced), scores.shape[-1])

    rows = torch.arange(q_len)
    holds_one = set((rows[rows >= q_len - last_rows] // block_q).tolist())
    allowed = blocks.causal_blocks(q_len, q_len, 0, block_q, 16, torch.device("cpu"))
    whole = torch.tensor([[block in holds_one] for block in range(allowed.shape[0])])
    assert torch.equal(kept(last_rows)[0, 0], kept(0)[0, 0] | (allowed & whole))
