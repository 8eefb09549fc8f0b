"""flex_attention: its mask_mod is proven, its block lists are read when the graph runs."""

import pytest
import torch
from support.graphs import PassesBackend, compile_with_passes
from torch.nn.attention.flex_attention import (
    AuxRequest,
    BlockMask,
    and_masks,
    create_block_mask,
    flex_attention,
    or_masks,
)

TOKENS, DIM, BLOCK = 80, 16, 32
pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without")


def heads(batch=1, q_heads=4, kv_heads=2, keys=TOKENS, tokens=TOKENS):
    query = torch.randn(batch, q_heads, tokens, DIM)
    return query, torch.randn(batch, kv_heads, keys, DIM), torch.randn(batch, kv_heads, keys, DIM)


def causal(b, h, q, k):
    return q >= k


def window(b, h, q, k):
    return q - k < 24


def before(limit):
    return lambda b, h, q, k: k < limit


def block_mask(mask_mod, batch=None, tokens=TOKENS, keys=TOKENS, block=BLOCK):
    return create_block_mask(mask_mod, batch, None, tokens, keys, device="cpu", BLOCK_SIZE=block)


def attention(mask_mod, batch=None, tokens=TOKENS, keys=TOKENS, **options):
    mask = block_mask(mask_mod, batch, tokens, keys)
    return lambda q, k, v: flex_attention(q, k, v, block_mask=mask, enable_gqa=True, **options)


def the_record(function, *inputs, **options):
    """The one row of a function that equals the uncompiled one."""
    backend = compile_with_passes(function, *inputs, **{"min_seq_len": 2, **options})
    (record,) = backend.records
    return record


def test_causal_is_sampled_when_it_runs():
    backend = compile_with_passes(attention(causal), *heads(), min_seq_len=2)
    (record,) = backend.records
    assert (record.spelling, record.mask) == ("flex_attention", "causal")
    assert (record.outcome, record.form) == ("sampled", "late") and record.kv_heads == 2
    assert record.reason.endswith("; if its block lists, read when it runs, are those of its mask_mod")
    targets = [str(node.target) for node in backend.after[-1].graph.nodes]
    assert "sampleattn.listed_attention.default" in targets and "flex_attention" not in targets
    assert not backend.score_shaped()


@pytest.mark.parametrize("batch", [1, 2])
def test_padding_is_part_of_the_mask(batch):
    pad = torch.ones(batch, TOKENS, dtype=torch.bool)
    pad[0, :37] = False
    mask_mod = and_masks(causal, lambda b, h, q, k: pad[b, k])
    record = the_record(attention(mask_mod, batch), *heads(batch))
    assert (record.outcome, record.mask) == ("sampled", "causal & key_valid")


def test_keys_by_number_are_part_of_the_mask():
    record = the_record(attention(lambda b, h, q, k: (q >= k) & (k % 2 == 0)), *heads())
    assert (record.outcome, record.mask) == ("sampled", "causal & key_valid")


def test_an_offset_is_part_of_the_mask():
    mask_mod = lambda b, h, q, k: q + 40 >= k  # noqa: E731
    function = attention(mask_mod, keys=TOKENS + 40)
    record = the_record(function, *heads(keys=TOKENS + 40))
    assert (record.outcome, record.mask) == ("sampled", "causal(offset=40)")


def test_an_offset_in_a_tensor_is_read_when_it_runs():
    start = torch.tensor(40)
    function = attention(lambda b, h, q, k: q + start >= k, keys=TOKENS + 60)
    record = the_record(function, *heads(keys=TOKENS + 60))
    assert (record.outcome, record.mask) == ("sampled", "causal(offset read when it runs)")


def test_a_score_mod_that_scales_is_part_of_the_scale():
    function = attention(causal, score_mod=lambda s, b, h, q, k: 3 * s / 2.0 * 0.5, scale=0.4)
    assert the_record(function, *heads()).outcome == "sampled"


def test_lists_that_the_graph_makes_are_read_too():
    ids = torch.zeros(1, TOKENS, dtype=torch.int32)

    def forward(q, k, v, valid):
        mask = block_mask(and_masks(causal, lambda b, h, q, k: valid[b, k]), q.shape[0])
        return flex_attention(q, k, v, block_mask=mask, enable_gqa=True)

    record = the_record(forward, *heads(), ids == 0)
    assert (record.outcome, record.mask) == ("sampled", "causal & key_valid")


def test_layers_read_their_lists_once():
    mask = block_mask(causal)

    def forward(q, k, v):
        for _ in range(3):
            q = flex_attention(q, k, v, block_mask=mask, enable_gqa=True)
        return q

    backend = compile_with_passes(forward, *heads(), min_seq_len=2)
    targets = [str(node.target) for node in backend.after[-1].graph.nodes]
    assert targets.count("sampleattn.read_block_lists.default") == 1
    assert targets.count("sampleattn.listed_attention.default") == 3
    assert {record.mask_read for record in backend.records} == {0}


def test_repeated_heads_are_not_read():
    mask = block_mask(causal)

    def forward(q, k, v):
        k, v = (x[:, :, None].expand(-1, -1, 3, -1, -1).reshape(1, 6, TOKENS, DIM) for x in (k, v))
        return flex_attention(q, k, v, block_mask=mask)

    record = the_record(forward, *heads(q_heads=6))
    assert record.outcome == "sampled" and record.kv_heads == 2


def test_a_logsumexp_that_nobody_reads_is_not_in_the_way():
    mask = block_mask(causal)

    def forward(q, k, v):
        out, aux = flex_attention(q, k, v, block_mask=mask, enable_gqa=True, return_aux=AuxRequest(lse=True))
        aux.lse.to(torch.float16)
        return out

    assert the_record(forward, *heads()).outcome == "sampled"


KEPT_MASKS = {
    "window": (and_masks(causal, window), "not plain causal: causal & window(24)"),
    "window or prefix": (or_masks(and_masks(causal, window), before(4)), "mask not proven"),
    "bidirectional": (before(70), "bidirectional attention with a mask"),
    "of the head": (lambda b, h, q, k: (q >= k) | (h == 1), "mask not proven: the mask depends on the head"),
    "key after": (lambda b, h, q, k: q <= k, "mask not proven"),
    "negative offset": (lambda b, h, q, k: q - 3 >= k, "causal offset -3 is negative"),
}


@pytest.mark.parametrize("mask_mod, reason", KEPT_MASKS.values(), ids=KEPT_MASKS.keys())
def test_other_masks_stay(mask_mod, reason):
    record = the_record(attention(mask_mod), *heads())
    assert record.outcome == "kept" and not record.rewritten and record.reason.startswith(reason)


def test_documents_stay():
    ids = torch.arange(TOKENS)[None] // 30
    record = the_record(attention(and_masks(causal, lambda b, h, q, k: ids[b, q] == ids[b, k])), *heads())
    assert (record.outcome, record.mask) == ("kept", "causal & segments")


def test_no_mask_stays():
    record = the_record(lambda q, k, v: flex_attention(q, k, v, enable_gqa=True), *heads())
    assert (record.outcome, record.reason) == ("kept", "bidirectional attention, nothing masked")


def test_entries_of_a_tensor_stay():
    allowed = torch.ones(TOKENS, TOKENS).tril().bool()
    record = the_record(attention(lambda b, h, q, k: allowed[q, k]), *heads())
    assert record.outcome == "kept" and record.reason.startswith("mask not proven")


def test_a_part_of_a_tensor_is_not_understood():
    allowed = torch.ones(1, TOKENS, TOKENS).tril().bool()
    record = the_record(attention(lambda b, h, q, k: allowed[b][q, k]), *heads())
    assert record.outcome == "kept" and record.reason.startswith("flex_attention: its mask_mod is not unders")


SCORE_MODS = {
    "softcap": lambda s, b, h, q, k: 5 * torch.tanh(s / 5),
    "bias of the distance": lambda s, b, h, q, k: s + (k - q),
    "alibi": lambda s, b, h, q, k: s * (h + 1),
    "added number": lambda s, b, h, q, k: s + 1.0,
    "mask": lambda s, b, h, q, k: torch.where(q - k < 5, s, -torch.inf),
    "square": lambda s, b, h, q, k: s * s,
    "number by score": lambda s, b, h, q, k: 1.0 / s,
}


@pytest.mark.parametrize("score_mod", SCORE_MODS.values(), ids=SCORE_MODS.keys())
def test_a_score_mod_that_changes_scores_stays(score_mod):
    record = the_record(attention(causal, score_mod=score_mod), *heads())
    assert record.reason == "flex_attention: its score_mod does more than multiply by a constant"


def test_a_logsumexp_that_is_read_stays():
    def forward(q, k, v):
        out, aux = flex_attention(q, k, v, block_mask=mask, enable_gqa=True, return_aux=AuxRequest(lse=True))
        return out, aux.lse

    mask = block_mask(causal)
    assert the_record(forward, *heads()).reason == "flex_attention: its logsumexp are read too"


def test_a_pinned_backend_stays():
    record = the_record(attention(causal, kernel_options={"BACKEND": "TRITON"}), *heads())
    assert record.reason == "pinned backend of flex_attention: TRITON"


def test_short_prompts_and_decode_stay():
    record = the_record(attention(causal), *heads(), min_seq_len=128)
    assert record.outcome == "kept" and record.reason.startswith("shorter than min_seq_len")
    mask_mod = lambda b, h, q, k: q + TOKENS - 1 >= k  # noqa: E731
    record = the_record(attention(mask_mod, tokens=1), *heads(tokens=1))
    assert record.reason == "decode: one query row"


def listed(blocks, mask_mod=causal, full=None):
    """A BlockMask of lists that are made by hand, from bool [rows, columns]."""

    def lists(blocks):
        blocks = blocks[None, None]
        return blocks.sum(-1).int(), torch.argsort(blocks.int(), dim=-1, descending=True, stable=True).int()

    other = lists(full) if full is not None else ()
    return BlockMask.from_kv_blocks(
        *lists(blocks), *other, BLOCK_SIZE=BLOCK, mask_mod=mask_mod, seq_lengths=(TOKENS, TOKENS)
    )


def expected_of(mask, q, k, v, allowed):
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=allowed, enable_gqa=True)


def entries(blocks):
    return blocks.repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)[:TOKENS, :TOKENS]


TRIANGLE = torch.ones(3, 3).tril().bool()
ROW_BY_ROW = torch.ones(TOKENS, TOKENS).tril().bool()
LEFT_OUT = torch.tensor([[1, 0, 0], [1, 1, 0], [0, 1, 1]]).bool()
UNMASKED = torch.tensor([[0, 0, 0], [0, 1, 0], [1, 0, 0]]).bool()
OTHER_LISTS = {
    "a block is left out": (LEFT_OUT, None, entries(LEFT_OUT) & ROW_BY_ROW),
    "a full block is not full": (
        TRIANGLE & ~UNMASKED,
        UNMASKED,
        entries(UNMASKED) | (entries(TRIANGLE & ~UNMASKED) & ROW_BY_ROW),
    ),
}


@pytest.mark.parametrize("blocks, full, allowed", OTHER_LISTS.values(), ids=OTHER_LISTS.keys())
def test_other_lists_are_what_they_say(blocks, full, allowed):
    """As the fused kernels have it; the unfused reference of FlexAttention does not read the lists."""
    torch._dynamo.reset()
    mask, inputs = listed(blocks, full=full), heads()
    backend = PassesBackend({"min_seq_len": 2})
    compiled = torch.compile(
        lambda q, k, v: flex_attention(q, k, v, block_mask=mask, enable_gqa=True), backend=backend
    )
    with torch.no_grad(), pytest.warns(UserWarning, match="are not those of its mask_mod"):
        actual = compiled(*inputs)
    torch.testing.assert_close(actual, expected_of(mask, *inputs, allowed), atol=1e-5, rtol=1e-4)
    assert [record.outcome for record in backend.records] == ["sampled"]


def test_partial_blocks_may_be_full_and_more_may_be_listed():
    """Lists that compute more than they need to are those of the mask."""
    mask = listed(torch.ones(3, 3).bool())
    record = the_record(lambda q, k, v: flex_attention(q, k, v, block_mask=mask, enable_gqa=True), *heads())
    assert record.outcome == "sampled"


def test_dynamic_lengths():
    masks = {tokens: block_mask(causal, tokens=tokens, keys=tokens) for tokens in (64, 80, 96)}

    def forward(q, k, v):
        return flex_attention(q, k, v, block_mask=masks[q.shape[2]], enable_gqa=True)

    torch._dynamo.reset()
    backend = PassesBackend({"min_seq_len": 2})
    compiled = torch.compile(forward, backend=backend)
    for tokens in masks:
        inputs = heads(tokens=tokens, keys=tokens)
        with torch.no_grad():
            torch.testing.assert_close(compiled(*inputs), forward(*inputs), atol=1e-5, rtol=1e-4)
    assert {record.outcome for record in backend.records} == {"sampled"}
