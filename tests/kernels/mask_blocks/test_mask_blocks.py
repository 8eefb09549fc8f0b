"""mask_blocks: never less than the blocks that a mask leaves, and exactly these without segments."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.implementations import reference

from sa_compile.kernels import ops
from sa_compile.kernels.shared import blocks

LENGTHS = st.integers(1, 200)
BLOCK = st.sampled_from([16, 32, 64])


@given(
    q_len=LENGTHS,
    kv_len=LENGTHS,
    causal=st.booleans(),
    q_offset=st.integers(-100, 150),
    window=st.integers(-1, 90),
    block_q=BLOCK,
    block_k=BLOCK,
)
@settings(max_examples=80, deadline=None)
def test_mask_blocks_without_segments_is_exact(q_len, kv_len, causal, q_offset, window, block_q, block_k):
    query, key = torch.empty(2, 2, q_len, 8), torch.empty(2, 1, kv_len, 8)
    arguments = (query, key, None, None, causal, q_offset, window, block_q, block_k)
    mask = ops.mask_blocks_op(*arguments)
    assert mask.shape[:2] == (1, 1)
    assert torch.equal(mask, reference.mask_blocks(*arguments))


@given(
    batches=st.sampled_from([(1, 1), (2, 1), (1, 2), (2, 2)]),
    given_sides=st.sampled_from(["query", "key", "both"]),
    sorted_ids=st.booleans(),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60, deadline=None)
def test_mask_blocks_never_drops_a_visible_entry(batches, given_sides, sorted_ids, seed):
    generator = torch.Generator().manual_seed(seed)

    def ids(batch, length):
        drawn = torch.randint(-1, 4, (batch, length), generator=generator, dtype=torch.int32)
        return drawn.sort(-1).values if sorted_ids else drawn

    query_segment = ids(batches[0], 90) if given_sides != "key" else None
    key_segment = ids(batches[1], 120) if given_sides != "query" else None
    arguments = (
        torch.empty(2, 2, 90, 8),
        torch.empty(2, 1, 120, 8),
        query_segment,
        key_segment,
        True,
        30,
        0,
        16,
        16,
    )
    mask, exact = ops.mask_blocks_op(*arguments), reference.mask_blocks(*arguments)
    assert mask.shape == exact.shape
    assert torch.equal(mask & exact, exact)


def test_mask_blocks_of_packed_documents_keeps_only_their_blocks():
    segment = (torch.arange(128) // 32).int()[None]
    query = torch.empty(1, 1, 128, 8)
    mask = ops.mask_blocks(query, query, query_segment=segment, key_segment=segment, block_q=32, block_k=32)
    assert torch.equal(blocks.unpack_bits(mask, 4)[0, 0], torch.eye(4, dtype=torch.bool))
