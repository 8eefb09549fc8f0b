"""The index: bits equal the set definitions of what they encode."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import create_block_mask

from sa_compile.kernels import ops
from sa_compile.kernels.shared import blocks

LENGTHS = st.integers(1, 150)
OFFSETS = st.integers(-60, 120)
BLOCK = st.sampled_from([16, 32, 64])


def ceil_div(a, b):
    return -(-a // b)


def set_of(mask, n_key_blocks):
    """The kept (i, j) of a [n_query_blocks, n_words] index, read bit by bit."""
    words = mask.tolist()
    assert all(
        (words[i][j // 32] >> (j % 32)) & 1 == 0 for i in range(len(words)) for j in range(n_key_blocks, 32)
    )
    return {
        (i, j) for i in range(len(words)) for j in range(n_key_blocks) if (words[i][j // 32] >> (j % 32)) & 1
    }


@given(n_blocks=st.integers(0, 100), rows=st.integers(0, 3), seed=st.integers(0, 1000))
@settings(max_examples=50, deadline=None)
def test_packing_is_invertible(n_blocks, rows, seed):
    kept = torch.rand(rows, n_blocks, generator=torch.Generator().manual_seed(seed)) < 0.5
    words = blocks.pack_bits(kept)
    assert words.dtype == torch.int32 and words.shape == (rows, max(2, ceil_div(n_blocks, 32)))
    assert torch.equal(blocks.unpack_bits(words, n_blocks), kept)
    assert torch.equal(blocks.popcount(words).sum(-1), kept.sum(-1))


@given(st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=8))
def test_popcount_counts_the_bits_of_a_word(words):
    counts = blocks.popcount(torch.tensor(words, dtype=torch.int32))
    assert counts.tolist() == [bin(word & 0xFFFFFFFF).count("1") for word in words]


@given(q_len=LENGTHS, kv_len=LENGTHS, q_offset=OFFSETS, block_q=BLOCK, block_k=BLOCK, data=st.data())
@settings(max_examples=80, deadline=None)
def test_bits_of_strips(q_len, kv_len, q_offset, block_q, block_k, data):
    n_query_blocks, n_key_blocks = ceil_div(q_len, block_q), ceil_div(kv_len, block_k)
    subsets = st.sets(st.integers(0, n_key_blocks - 1))
    columns, slashes = data.draw(subsets, "columns"), data.draw(subsets, "slashes")

    def flags(kept):
        return torch.tensor([j in kept for j in range(n_key_blocks)])

    mask = blocks.bits_from_strips(flags(columns), flags(slashes), q_len, kv_len, q_offset, block_q, block_k)
    expected = {
        (i, j)
        for i in range(n_query_blocks)
        for j in range(n_key_blocks)
        for positions in [range(i * block_q + q_offset, min((i + 1) * block_q, q_len) + q_offset)]
        if j * block_k <= positions[-1]
        and (j in columns or any(p // block_k - j in slashes for p in positions))
    }
    assert set_of(mask, n_key_blocks) == expected


@given(
    q_len=LENGTHS,
    kv_len=LENGTHS,
    window=st.integers(-1, 200),
    q_offset=OFFSETS,
    block_q=BLOCK,
    block_k=BLOCK,
    sink_blocks=st.integers(0, 2),
)
@settings(max_examples=80, deadline=None)
def test_bits_of_a_window(q_len, kv_len, window, q_offset, block_q, block_k, sink_blocks):
    mask = blocks.bits_from_window(q_len, kv_len, window, q_offset, block_q, block_k, sink_blocks=sink_blocks)
    reach = window if window > 0 else 10**6
    expected = {
        ((p - q_offset) // block_q, k // block_k)
        for p in range(q_offset, q_offset + q_len)
        for k in range(min(kv_len, p + 1))
        if k > p - reach or k // block_k < sink_blocks
    }
    assert set_of(mask[0, 0], ceil_div(kv_len, block_k)) == expected


@pytest.mark.parametrize(
    "mask_mod",
    [
        pytest.param(lambda b, h, q, k: q >= k, id="causal"),
        pytest.param(lambda b, h, q, k: (q >= k) & (q - k < 50), id="window"),
        pytest.param(lambda b, h, q, k: (q + k + h + b) % 97 == 0, id="scattered"),
        pytest.param(lambda b, h, q, k: q < 0, id="nothing"),
        pytest.param(lambda b, h, q, k: q >= 0, id="everything"),
    ],
)
def test_bits_of_a_block_mask(mask_mod):
    batch, heads, q_len, kv_len, block_q, block_k = 2, 3, 250, 300, 32, 64
    mask = create_block_mask(
        mask_mod, batch, heads, q_len, kv_len, device="cpu", BLOCK_SIZE=(block_q, block_k)
    )
    bits = blocks.bits_from_block_mask(mask)
    b, h = torch.arange(batch)[:, None, None, None], torch.arange(heads)[:, None, None]
    allowed = mask_mod(b, h, torch.arange(q_len)[:, None], torch.arange(kv_len))
    allowed = allowed.expand(batch, heads, q_len, kv_len)
    padded = torch.nn.functional.pad(allowed, (0, 20, 0, 6))
    expected = padded.unflatten(3, (-1, block_k)).unflatten(2, (-1, block_q)).any(-1).any(3)
    assert torch.equal(blocks.unpack_bits(bits, 5), expected)


def test_density_counts_kept_blocks_among_those_that_causality_allows():
    everything = torch.full((1, 2, 4, 1), -1, dtype=torch.int32)
    everything[:, 1] = 1  # the second head keeps the first block of every row
    density = blocks.density(everything, 64, 64, 0, 16, 16)
    torch.testing.assert_close(density, torch.tensor([[1.0, 0.4]], dtype=torch.float64))


def test_density_without_any_allowed_block_is_one():
    assert blocks.density(torch.zeros(1, 1, 1, 1, dtype=torch.int32), 16, 16, -100, 16, 16).item() == 1.0


@pytest.mark.parametrize(
    "length, words", [(16, 2), (32 * 16, 2), (64 * 16, 2), (64 * 16 + 1, 3)], ids=["1", "32", "64", "65"]
)
def test_no_row_of_an_index_is_a_single_word(length, words):
    """A size of 1 would cost short prompts a compiled graph of their own."""
    query = torch.randn(1, 2, length, 16)
    sizes = {"block_q": 16, "block_k": 16}
    column_scores, slash_scores = ops.sample_scores(query, query, sample_rows=16, block_k=16)
    selected = ops.select_blocks(column_scores, slash_scores, q_len=length, kv_len=length, **sizes)
    terms = ops.block_representatives(query, block_k=16)
    by_rows = ops.select_adaptive(query, query, terms, **sizes)
    by_peaks = ops.select_peaks(query, query, terms, **sizes)
    allowed = ops.mask_blocks(query, query, **sizes)
    for index in (selected, by_rows, by_peaks, allowed):
        assert index.shape[-1] == words
        assert not blocks.unpack_bits(index, 32 * words)[..., -(-length // 16) :].any()
        out, _ = ops.block_sparse_attention(query, query, query, index, **sizes)
        assert out.isfinite().all()
