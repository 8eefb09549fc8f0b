"""Every selection rule keeps what an independent dense reading of it keeps, and never the future."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from support import landmark_readings
from support import rule_readings as readings
from support.rule_readings import Head

from sa_compile.kernels import ops
from sa_compile.kernels.shared.blocks import causal_blocks, pack_bits, unpack_bits
from sa_compile.lab.eval.rules import RULES, forced, parse_rule
from sa_compile.lab.eval.rules import base as rules_base


def attention_inputs(batch=1, heads=2, kv_heads=1, q_len=130, kv_len=130, dim=8, seed=0, dtype=torch.float32):
    """Queries and keys with structure: a sink, neighbours that look alike, and a few keys that stand out."""
    generator = torch.Generator().manual_seed(seed)
    drift = torch.randn(batch, kv_heads, max(q_len, kv_len), dim, generator=generator).cumsum(2) / 4
    key = drift[:, :, :kv_len] + torch.randn(batch, kv_heads, kv_len, dim, generator=generator)
    query = drift.repeat_interleave(heads // kv_heads, 1)[:, :, -q_len:]
    query = query + torch.randn(batch, heads, q_len, dim, generator=generator)
    key[:, :, 0] += query.mean((1, 2))[:, None]
    return query.to(dtype), key.to(dtype)


def heads_of(query, key, segment, q_offset, block_q, block_k, scale):
    group = query.shape[1] // key.shape[1]
    for b in range(query.shape[0]):
        for h in range(query.shape[1]):
            valid = np.ones(key.shape[2], bool) if segment is None else (segment[b] == 0).numpy()
            q, k = query[b, h].double().numpy(), key[b, h // group].double().numpy()
            yield Head(q, k, scale, q_offset, valid, block_q, block_k)


def draws(seed, shape):
    """The directions and the generator that a hashing rule of this seed works with."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator), generator


def hyper_reading(head):
    directions, generator = draws(0, (head.q.shape[1], 3))
    return readings.hyper(
        head,
        directions.numpy(),
        32,
        16,
        48,
        lambda n, count: torch.randperm(n, generator=generator)[:count].tolist(),
    )


def hashsparse_reading(head):
    generator = torch.Generator().manual_seed(0)
    directions = [torch.randn((head.q.shape[1], 2), generator=generator).numpy() for _ in range(2)]
    return readings.hashsparse(head, directions)


READINGS = {
    "full": lambda head: head.cover(lambda r, c: True),
    "oracle:alpha=0.9": lambda head: readings.oracle(head, 0.9),
    "chunked:alpha=0.7,sample_rows=20,last=0": lambda head: readings.chunked(head, 0.7, 2, 20, True, 2),
    "chunked:alpha=0.6,chunk_n=3,sample_rows=16,sink=0,window=0,last=0": lambda head: readings.chunked(
        head, 0.6, 3, 16, False, 0
    ),
    "chunked:alpha=0.7,sample_rows=20,last=21": lambda head: (
        readings.chunked(head, 0.7, 2, 20, True, 2) | head.last_rows(21)
    ),
    "stride:alpha=0.6,r_row=0.1,r_w=0.2": lambda head: readings.stride(head, 0.6, 0.1, 0.2, True),
    "streaming:share=0.25": lambda head: readings.streaming(head, 4, math.ceil(0.25 * head.n_k)),
    "streaming:sink=20,window=19": lambda head: readings.streaming(head, 20, 19),
    "minference:vertical=34,slash=104,rows=16": lambda head: readings.minference(head, 34, 104, 16),
    "flexprefill:gamma=0.8,tau=0.0,min_budget=16": lambda head: readings.flexprefill(head, 0.8, 0.0, 16),
    "flexprefill:gamma=0.7,tau=1.0,min_budget=16": lambda head: readings.flexprefill(head, 0.7, 1.0, 16),
    "flexprefill:min_budget=512": lambda head: readings.flexprefill(head, 0.95, 0.1, 512),
    "xattention:stride=4,tau=0.8": lambda head: readings.xattention(head, 4, 0.8),
    "xattention:stride=8,tau=0.95": lambda head: readings.xattention(head, 8, 0.95),
    "adaptive:peak=1,tau=0.1,landmarks=2,last=0,budget=1": lambda head: landmark_readings.adaptive(
        head, 0.1, 2
    ),
    "adaptive:peak=1,tau=0.4,landmarks=15,last=0,budget=1": lambda head: landmark_readings.adaptive(
        head, 0.4, 16
    ),
    "adaptive:peak=1,tau=0.4,landmarks=15,last=16,budget=1": lambda head: (
        landmark_readings.adaptive(head, 0.4, 16) | head.last_rows(16)
    ),
    "adaptive:peak=1,tau=1,landmarks=15,last=0,budget=0.2,rows_tau=1,rows=8": lambda head: (
        landmark_readings.adaptive(head, 1.0, 16) | readings.budget(head, 0.2, 1, 8)
    ),
    "adaptive:peak=1,tau=1,landmarks=15,last=0,budget=0.9,rows_tau=0.4,rows=8": lambda head: (
        landmark_readings.adaptive(head, 1.0, 16) | readings.budget(head, 0.9, 0.4, 8)
    ),
    "adaptive:peak=0.2,landmarks=3,last=0,budget=1": lambda head: landmark_readings.peaks(head, 0.2, 3),
    "adaptive:peak=0.05,landmarks=7,last=16,budget=0.9,rows_tau=0.4,rows=8": lambda head: (
        landmark_readings.peaks(head, 0.05, 7) | readings.budget(head, 0.9, 0.4, 8) | head.last_rows(16)
    ),
    "xattention:stride=4,tau=0.8+last20": lambda head: readings.xattention(head, 4, 0.8) | head.last_rows(20),
    "flashprefill:alpha=0.3,sink=1,window=2,last_full=1": lambda head: readings.flashprefill(
        head, 0.3, 1, 2, 1
    ),
    "hyper:projections=3,group=32,sample=16,min_seq_len=48": hyper_reading,
    "hashsparse:buckets=4,rounds=2": hashsparse_reading,
}
SHAPES = [
    pytest.param({"q_len": 128, "kv_len": 128}, 0, None, id="whole blocks"),
    pytest.param({"q_len": 131, "kv_len": 131}, 0, None, id="ragged"),
    pytest.param({"q_len": 53, "kv_len": 149}, 96, None, id="chunked prefill"),
    pytest.param(
        {"q_len": 128, "kv_len": 128, "batch": 2, "heads": 2, "kv_heads": 2}, 0, (21, 0), id="left padding"
    ),
]


def left_padding(batch, kv_len, counts):
    segment = torch.zeros(batch, kv_len, dtype=torch.int32)
    for row, count in enumerate(counts):
        segment[row, :count] = -1
    return segment


@pytest.mark.parametrize("shape, q_offset, padding", SHAPES)
@pytest.mark.parametrize("spec", READINGS)
def test_rule_equals_its_dense_reading(spec, shape, q_offset, padding):
    query, key = attention_inputs(**shape)
    segment = None if padding is None else left_padding(query.shape[0], key.shape[2], padding)
    scale = 0.7
    mask = parse_rule(spec).select(
        query, key, scale=scale, q_offset=q_offset, key_segment=segment, block_q=16, block_k=16
    )
    kept = unpack_bits(mask, -(-key.shape[2] // 16)).expand(*query.shape[:2], -1, -1).numpy()
    for n, head in enumerate(heads_of(query, key, segment, q_offset, 16, 16, scale)):
        expected = READINGS[spec](head) & head.allowed()
        np.testing.assert_array_equal(kept.reshape(-1, *kept.shape[2:])[n], expected)


def test_bigbird_keeps_window_global_and_as_many_random_blocks_as_asked():
    query, key = attention_inputs(q_len=256, kv_len=256)
    rule = parse_rule("bigbird:window_blocks=2,global_blocks=1,random_blocks=3,seed=5")
    kept = unpack_bits(rule.select(query, key, block_q=16, block_k=16), 16)[0]
    for i in range(16):
        near = {0, i, max(i - 1, 0)}
        for head in kept:
            blocks = set(head[i].nonzero().flatten().tolist())
            assert near <= blocks and max(blocks) == i
            assert len(blocks) == min(i + 1, len(near) + 3)
    assert not torch.equal(kept[0], kept[1]), "each head draws its own blocks"
    assert torch.equal(kept, unpack_bits(rule.select(query, key, block_q=16, block_k=16), 16)[0])


def test_union_of_chunks_lets_every_chunk_reach_alpha_on_its_own():
    query, key = attention_inputs(q_len=128, kv_len=128)
    options = {"alpha": 0.6, "sample_rows": 16, "sink": False, "window": 0, "last": 0}
    union = dataclasses.replace(parse_rule("chunked"), chunk_n=2, union=True, **options)
    kept = unpack_bits(union.select(query, key, block_q=16, block_k=16), 8)
    for h, head in enumerate(heads_of(query, key, None, 0, 16, 16, 8**-0.5)):
        whole = readings.chunked(head, 0.6, 1, 16, False, 0)
        half = Head(head.q[:64], head.k[:64], head.scale, 0, head.valid[:64], 16, 16)
        column, slash = readings.sampled(half, range(48, 64))
        first = readings.strips(
            head,
            set(readings.greedy(column, 0.6 * sum(column))),
            set(readings.greedy(slash, 0.6 * sum(slash))),
            False,
            0,
        )
        np.testing.assert_array_equal(kept[0, h].numpy(), whole | first)


ALL_SPECS = [
    *READINGS,
    "bigbird",
    "chunked:alpha=0.7,sample_rows=16,union=1",
    "xattention:stride=8,tau=0.5+sink+w2",
]


@pytest.mark.parametrize("spec", ALL_SPECS)
def test_kept_blocks_are_causal(spec):
    query, key = attention_inputs(q_len=80, kv_len=130, heads=4, kv_heads=2)
    mask = parse_rule(spec).select(query, key, q_offset=40, block_q=32, block_k=16)
    causal = pack_bits(causal_blocks(80, 130, 40, 32, 16, query.device))
    assert not (mask & ~causal).any()


@pytest.mark.parametrize("spec", ALL_SPECS)
def test_tokens_after_the_last_row_change_nothing(spec):
    """Keys behind the last query row's position are the future of every row: no rule may look at them."""
    query, key = attention_inputs(q_len=64, kv_len=128)
    rule = parse_rule(spec)
    moved = key.clone()
    moved[:, :, 96:] = 7 * torch.randn(moved[:, :, 96:].shape, generator=torch.Generator().manual_seed(9))
    before, after = (rule.select(query, k, q_offset=32, block_q=16, block_k=16) for k in (key, moved))
    assert torch.equal(before, after)


# Rules whose choice for a query block rests on that block's rows and earlier keys only. The others sample
# the last rows (or, FlexPrefill and HyperAttention, rank all blocks at once): their kept set for early
# rows may change with late tokens, and what must hold for them is the test after this one.
PER_BLOCK = [
    "full",
    "oracle:alpha=0.9",
    "streaming:sink=4,window=19",
    "bigbird",
    "xattention:stride=4,tau=0.8",
    "hashsparse:buckets=4,rounds=2",
    "adaptive:peak=1,tau=0.1,landmarks=2",
    "adaptive:peak=0.2,landmarks=2",
    "flashprefill:alpha=0.3,sink=1,window=2,last_full=1",
]


@pytest.mark.parametrize("spec", PER_BLOCK)
def test_future_tokens_do_not_change_the_choice_for_earlier_blocks(spec):
    query, key = attention_inputs(q_len=128, kv_len=128)
    moved_query, moved_key = query.clone(), key.clone()
    noise = torch.Generator().manual_seed(3)
    moved_query[:, :, 96:] = 3 * torch.randn(query[:, :, 96:].shape, generator=noise)
    moved_key[:, :, 96:] = 3 * torch.randn(key[:, :, 96:].shape, generator=noise)
    rule = parse_rule(spec)
    before = rule.select(query, key, block_q=16, block_k=16)[:, :, :6]
    after = rule.select(moved_query, moved_key, block_q=16, block_k=16)[:, :, :6]
    assert torch.equal(before, after)


@pytest.mark.parametrize("looked_for", ["peak=1,tau=1", "peak=0.9,landmarks=7"])
def test_future_blocks_do_not_change_the_output_of_earlier_ones(looked_for):
    """Selection, attention and what stands for the blocks that are left out."""
    query, key = attention_inputs(q_len=128, kv_len=128)
    value = torch.randn(key.shape, generator=torch.Generator().manual_seed(4))
    rule = parse_rule(f"adaptive:budget=0.3,rows_tau=1,{looked_for},last=0,window=1")
    sizes, outputs = {"block_q": 16, "block_k": 16}, []
    for changed in (1.0, -7.0):
        q, k, v = (torch.cat((x[:, :, :96], changed * x[:, :, 96:]), 2) for x in (query, key, value))
        kept = rule.keep(q, k, v, **sizes)
        assert (kept.rest[1] > 0).any()
        outputs.append(rule.attend(q, k, v, kept, **sizes)[:, :, :96])
    assert torch.equal(*outputs)


@pytest.mark.parametrize("spec", ALL_SPECS)
def test_given_the_mask_a_row_does_not_feel_later_tokens(spec):
    query, key = attention_inputs(q_len=96, kv_len=96)
    value = torch.randn(key.shape, generator=torch.Generator().manual_seed(4))
    mask = parse_rule(spec).select(query, key, block_q=16, block_k=16)
    options = {"block_q": 16, "block_k": 16}
    before, _ = ops.block_sparse_attention(query, key, value, mask, **options)
    moved_key, moved_value = key.clone(), value.clone()
    moved_key[:, :, 41:], moved_value[:, :, 41:] = -9.0, 100.0
    after, _ = ops.block_sparse_attention(query, moved_key, moved_value, mask, **options)
    torch.testing.assert_close(before[:, :, :41], after[:, :, :41])


@pytest.mark.parametrize(
    "spec",
    [
        *("oracle:alpha=1.0", "xattention:tau=1.0", "chunked:alpha=1.0", "full"),
        *("adaptive:peak=1,tau=0.0", "adaptive:peak=0"),
    ],
)
def test_asked_for_everything_a_rule_keeps_everything(spec):
    query, key = attention_inputs(q_len=96, kv_len=96)
    mask = parse_rule(spec).select(query, key, block_q=16, block_k=16)
    assert torch.equal(
        unpack_bits(mask, 6).expand(1, 2, -1, -1), torch.ones(6, 6).tril().bool().expand(1, 2, -1, -1)
    )


@pytest.mark.parametrize("spec", [*READINGS, "bigbird"])
def test_long_inputs_in_chunks_of_rows_give_the_same_blocks(spec, monkeypatch):
    query, key = attention_inputs(q_len=131, kv_len=131)
    rule = parse_rule(spec)
    whole = rule.select(query, key, block_q=16, block_k=16)
    monkeypatch.setitem(rules_base.SCORE_BYTES, "cpu", 4 * 2 * 131 * 20)
    assert torch.equal(whole, rule.select(query, key, block_q=16, block_k=16))


def test_forced_adds_the_sink_and_the_window_and_nothing_else():
    query, key = attention_inputs(q_len=128, kv_len=128, batch=2)
    segment = left_padding(2, 128, (40, 0))
    rule = parse_rule("xattention:stride=8,tau=0.4")
    options = {"key_segment": segment, "block_q": 16, "block_k": 16}
    plain, more = (
        unpack_bits(r.select(query, key, **options), 8) for r in (rule, forced(rule, window_blocks=3))
    )
    extra = torch.zeros(2, 1, 8, 8, dtype=torch.bool)
    for b, first in enumerate((2, 0)):  # 40 padded keys fill blocks 0 and 1, and half of block 2
        for i in range(first, 8):
            extra[b, 0, i, first] = True
            extra[b, 0, i, max(i - 2, first) : i + 1] = True
    assert torch.equal(more, plain | extra)


def test_blocks_are_not_added_to_a_rule_that_counts_what_it_leaves_out():
    query, key = attention_inputs(q_len=128, kv_len=128)
    where = {"block_q": 16, "block_k": 16}
    with pytest.raises(ValueError, match="rule 'adaptive.*w3': blocks cannot be added .* give it rest=0"):
        parse_rule("adaptive+w3").keep(query, key, key, **where)
    kept = parse_rule("adaptive:rest=0+w3").keep(query, key, key, **where)
    assert torch.equal(kept.block_mask, parse_rule("adaptive+w3").select(query, key, **where))


def test_blocks_are_added_to_what_the_rule_keeps_which_is_asked_once(monkeypatch):
    query, key = attention_inputs(q_len=128, kv_len=128, batch=2)
    where = {"key_segment": left_padding(2, 128, (40, 0)), "block_q": 16, "block_k": 16}
    rule, asked = parse_rule("xattention:stride=8,tau=0.4+sink+w3+last20"), []
    expected, real = rule.select(query, key, **where), rule.rule.blocks
    monkeypatch.setattr(type(rule.rule), "blocks", lambda _, problem: asked.append(1) or real(problem))
    assert torch.equal(rule.keep(query, key, key, **where).block_mask, expected)
    assert len(asked) == 1


@pytest.mark.parametrize(
    "spec",
    [
        *RULES,
        "chunked:alpha=0.95,chunk_n=4,union=1",
        "xattention:stride=16,tau=0.9+sink+w2",
        "streaming+w3+last128",
    ],
)
def test_a_rules_spec_names_it(spec):
    assert parse_rule(parse_rule(spec).spec) == parse_rule(spec)


@pytest.mark.parametrize(
    "spec, message",
    [
        pytest.param("xatention", "unknown selection rule 'xatention'; known: full", id="rule"),
        pytest.param(
            "xattention:alpha=1",
            "unknown setting 'alpha' of rule 'xattention'; known: stride, tau",
            id="setting",
        ),
        pytest.param("chunked:chunk_n=x", "chunked:chunk_n must be of type int, got 'x'", id="value"),
        pytest.param("chunked:sink=yes", "chunked:sink must be 0 or 1, got 'yes'", id="bool"),
        pytest.param(
            "adaptive:peak=0.2,landmarks=0", "'peak' below 1 .* got peak=0.2 with landmarks=0", id="landmarks"
        ),
        pytest.param(
            "adaptive:tau=2", r"rule 'adaptive': option 'tau' must be in \[0, 1\], got 2.0", id="tau"
        ),
        pytest.param(
            "adaptive:landmarks=200", r"'landmarks' must be in \[0, 128\], got 200", id="many-landmarks"
        ),
        pytest.param("chunked:alpha=1.5", r"'alpha_c' must be in \(0, 1\], got 1.5", id="alpha"),
        pytest.param("stride:alpha=0", r"'alpha_c' must be in \(0, 1\], got 0.0", id="alpha-of-stride"),
        pytest.param("stride:r_row=0", r"'r_row' must be in \(0, 1\], got 0.0", id="r_row"),
        pytest.param("full+v2", "after '\\+' comes 'sink', 'wN' or 'lastN', got 'v2'", id="forced"),
    ],
)
def test_a_wrong_spec_is_an_error_that_names_what_is_known(spec, message):
    with pytest.raises(ValueError, match=message):
        parse_rule(spec)


def test_a_setting_that_others_leave_without_effect_is_a_warning():
    with pytest.warns(UserWarning, match="tau=0.3,peak=0.2': tau has no effect with peak=0.2"):
        assert parse_rule("adaptive:tau=0.3,peak=0.2").peak == 0.2


def test_a_stride_that_does_not_divide_the_blocks_is_an_error():
    query, key = attention_inputs()
    with pytest.raises(ValueError, match="'stride' must divide block_q"):
        parse_rule("xattention:stride=24").select(query, key)
