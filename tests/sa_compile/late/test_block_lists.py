"""``read_block_lists`` and ``listed_attention``: what the lists of flex_attention are, and what they mean."""

import pytest
import torch
import torch.nn.functional as F
from support.attention import full, grouped
from support.models import LOSSLESS
from torch.nn.attention.flex_attention import create_block_mask

from sa_compile.config import SampleAttentionConfig
from sa_compile.late.attention import options_text
from sa_compile.late.block_lists import OTHER_BLOCKS
from sa_compile.late.ops import listed_attention_op, read_block_lists_op

OPTIONS = options_text(SampleAttentionConfig(**LOSSLESS))
LENGTH = 48
PADDED = torch.ones(2, LENGTH, dtype=torch.bool)
PADDED[1, :21] = False
PADDED[0, 30] = False


def lists_of(mask_mod, batch=1, q_len=LENGTH, kv_len=LENGTH, block=16):
    mask = create_block_mask(mask_mod, batch, None, q_len, kv_len, device="cpu", BLOCK_SIZE=block)
    return mask.kv_num_blocks, mask.kv_indices, mask.full_kv_num_blocks, mask.full_kv_indices


def read(lists, valid=None, start=None, q_len=LENGTH, kv_len=LENGTH, offset=0, block=16):
    return read_block_lists_op(*lists, valid, start, q_len, kv_len, offset, block, block, "a site")


def causal(b, h, q, k):
    return q >= k


def padded(b, h, q, k):
    return (q >= k) & PADDED[b, k]


@pytest.mark.parametrize("block", [16, 32, 128])
def test_lists_of_the_mask_are_found_to_be(block):
    found, listed, full_ = read(lists_of(causal, block=block), block=block)
    assert found.tolist() == [0, 0, 0]
    assert listed.shape == full_.shape == (1, 1, -(-LENGTH // block), -(-LENGTH // block))
    found, *_ = read(lists_of(padded, 2, block=block), PADDED, block=block)
    assert found.tolist() == [0, 0, 1]


def test_an_offset_may_be_in_a_tensor():
    lists = lists_of(lambda b, h, q, k: q + 21 >= k, kv_len=LENGTH + 21)
    for start, offset in ((None, 21), (torch.tensor(20), 1)):
        assert read(lists, None, start, kv_len=LENGTH + 21, offset=offset)[0].tolist() == [21, 0, 0]


@pytest.mark.parametrize(
    "mask_mod",
    [
        lambda b, h, q, k: q - 1 >= k,
        lambda b, h, q, k: q + 20 >= k,
        lambda b, h, q, k: (q >= k) & (q - k < 24),
        lambda b, h, q, k: q < k,
    ],
    ids=["behind", "before", "window", "not causal"],
)
@pytest.mark.filterwarnings("ignore:sampleattn")
@pytest.mark.parametrize("operands", [full, grouped])
def test_the_attention_of_other_lists_is_theirs(mask_mod, operands):
    """Listed blocks under the causal mask, and full ones without."""
    query, key, value = operands()
    found, listed, full_ = read(lists_of(mask_mod))
    entries = [x.repeat_interleave(16, -1).repeat_interleave(16, -2) for x in (listed, full_)]
    allowed = entries[1] | (entries[0] & torch.ones(LENGTH, LENGTH).tril().bool())
    arguments = (query, key, value, found, listed, full_, None, 16, 16, 0.3, OPTIONS)
    out, stats = listed_attention_op(*arguments)
    expected = F.scaled_dot_product_attention(query, key, value, allowed, scale=0.3, enable_gqa=True)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)
    assert out.transpose(1, 2).is_contiguous() and stats.shape == (0, 3)


def test_other_lists_are_said():
    with pytest.warns(UserWarning, match="block lists of a site, read when it ran, are not those of its"):
        found, *_ = read(lists_of(lambda b, h, q, k: (q >= k) & (q - k < 16)))
    assert found[0] == OTHER_BLOCKS


@pytest.mark.parametrize("mask_mod, valid", [(causal, None), (padded, PADDED)])
def test_attention_in_the_lists_of_the_mask_is_sdpas(mask_mod, valid):
    query, key, value = grouped()
    valid = valid if query.shape[0] == 2 or valid is None else valid[: query.shape[0]]
    lists = lists_of(mask_mod, query.shape[0])
    out, _ = listed_attention_op(query, key, value, *read(lists, valid), valid, 16, 16, 0.3, OPTIONS)
    mask = torch.ones(LENGTH, LENGTH).tril().bool()
    mask = mask if valid is None else mask & valid[:, None, None]
    expected = F.scaled_dot_product_attention(query, key, value, mask, scale=0.3, enable_gqa=True)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)


def test_ops_are_what_pytorch_asks_of_ops():
    query, key, value = grouped()
    lists = lists_of(causal)
    arguments = (*lists, None, None, LENGTH, LENGTH, 0, 16, 16, "")
    torch.library.opcheck(read_block_lists_op, arguments)
    torch.library.opcheck(read_block_lists_op, (*lists[:2], None, None, *arguments[4:]))
    read_ = read_block_lists_op(*arguments)
    torch.library.opcheck(listed_attention_op, (query, key, value, *read_, None, 16, 16, 0.3, OPTIONS))


def test_broken_lists_are_errors():
    counts, indices, *_ = lists_of(causal)
    with pytest.raises(ValueError, match="have 3 rows of blocks, expected 2 for 32 query rows"):
        read((counts, indices, None, None), q_len=32)
    twice = torch.zeros_like(indices)
    with pytest.raises(ValueError, match="name a block twice"):
        read((torch.full_like(counts, 2), twice, None, None))
    with pytest.raises(ValueError, match="name a block twice"):
        read((counts, indices, counts, indices))


def test_there_is_no_backward():
    query, key, value = (x.requires_grad_() for x in grouped())
    out, _ = listed_attention_op(query, key, value, *read(lists_of(causal)), None, 16, 16, 0.3, OPTIONS)
    with pytest.raises(NotImplementedError, match="listed_attention has no backward"):
        out.sum().backward()
