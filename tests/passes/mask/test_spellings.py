"""Every way to write a mask that must be proven, and what it means."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from support.mask_graphs import assert_predicates_are_the_masks, capture, proofs
from torch import Tensor

from sa_compile.passes.mask.predicate import MaskPredicate

BATCH, HEADS, Q_LEN, K_LEN, HEAD_DIM = 2, 2, 5, 9, 4
MIN = torch.finfo(torch.float32).min
INF = float("inf")

Build = Callable[..., Tensor]


def rows(query: Tensor) -> Tensor:
    return torch.arange(query.shape[2], device=query.device)[:, None]


def columns(key: Tensor) -> Tensor:
    return torch.arange(key.shape[2], device=key.device)[None, :]


def additive(allowed: Tensor, masked: float = -INF) -> Tensor:
    return torch.zeros(allowed.shape).masked_fill(~allowed, masked)


def prove(build: Build, q_len: int, kv_len: int, *extra: Tensor, dynamic: bool = False) -> MaskPredicate:
    """The proof of SDPA with the mask that ``build(query, key, *extra)`` makes, compared with that mask."""

    def attention(query: Tensor, key: Tensor, value: Tensor, *extra: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=build(query, key, *extra))

    query = torch.randn(BATCH, HEADS, q_len, HEAD_DIM)
    key, value = torch.randn(2, BATCH, HEADS, kv_len, HEAD_DIM)
    captured = capture(attention, query, key, value, *extra, dynamic=dynamic)
    (proof,) = proofs(captured)
    assert isinstance(proof, MaskPredicate), str(proof)
    assert assert_predicates_are_the_masks(captured) == 1
    return proof


def square_prove(build: Build, *extra: Tensor, dynamic: bool = False) -> MaskPredicate:
    return prove(build, K_LEN, K_LEN, *extra, dynamic=dynamic)


def size_ones(query: Tensor, key: Tensor) -> Tensor:
    return torch.ones(query.shape[2], key.shape[2], dtype=torch.bool)


CAUSAL = [
    pytest.param(lambda q, k: columns(k) <= rows(q), id="k<=q"),
    pytest.param(lambda q, k: rows(q) >= columns(k), id="q>=k"),
    pytest.param(lambda q, k: columns(k) < rows(q) + 1, id="k<q+1"),
    pytest.param(lambda q, k: rows(q) - columns(k) >= 0, id="q-k>=0"),
    pytest.param(lambda q, k: columns(k) - rows(q) < 1, id="k-q<1"),
    pytest.param(lambda q, k: ~(columns(k) > rows(q)), id="not k>q"),
    pytest.param(lambda q, k: torch.logical_not(torch.gt(columns(k), rows(q))), id="logical_not(gt)"),
    pytest.param(lambda q, k: columns(k).le(rows(q)), id="le method"),
    pytest.param(lambda q, k: -columns(k) >= -rows(q), id="-k>=-q"),
    pytest.param(lambda q, k: torch.arange(1, k.shape[2] + 1) <= rows(q) + 1, id="arange(start, end)"),
    pytest.param(lambda q, k: size_ones(q, k).tril(), id="ones.tril()"),
    pytest.param(lambda q, k: torch.tril(size_ones(q, k)), id="torch.tril"),
    pytest.param(lambda q, k: size_ones(q, k).triu(1).logical_not(), id="not triu(1)"),
    pytest.param(lambda q, k: torch.triu(size_ones(q, k), diagonal=1) == 0, id="triu(1) == 0"),
    pytest.param(
        lambda q, k: torch.ones(q.shape[2], k.shape[2]).tril().to(torch.bool), id="float ones tril to bool"
    ),
    pytest.param(lambda q, k: size_ones(q, k).tril()[None, None], id="with leading axes"),
    pytest.param(
        lambda q, k: (columns(k) <= rows(q)).expand(q.shape[0], 1, q.shape[2], k.shape[2]), id="expanded"
    ),
    pytest.param(
        lambda q, k: (columns(k) <= rows(q))[None].repeat(q.shape[0], 1, 1).unsqueeze(1), id="repeated"
    ),
    pytest.param(lambda q, k: (rows(q).T >= columns(k).T).mT, id="transposed"),
    pytest.param(lambda q, k: (rows(q).transpose(0, 1) >= columns(k).t()).permute(1, 0), id="permuted"),
    pytest.param(lambda q, k: (columns(k) <= rows(q)).view(1, 1, q.shape[2], k.shape[2]), id="view"),
    pytest.param(lambda q, k: (columns(k) <= rows(q)).reshape(1, q.shape[2], -1).squeeze(0), id="squeezed"),
    pytest.param(lambda q, k: torch.where(columns(k) <= rows(q), True, False), id="where bool"),
    pytest.param(lambda q, k: (columns(k) <= rows(q)) & (columns(k) <= rows(q) + 3), id="implied bound"),
    pytest.param(lambda q, k: (columns(k) <= rows(q)) & (columns(k) >= 0) & (rows(q) >= 0), id="tautologies"),
    pytest.param(lambda q, k: (columns(k) <= rows(q)) | (columns(k) < 0), id="contradiction in or"),
    pytest.param(lambda q, k: (columns(k) <= rows(q)) * (columns(k) <= rows(q)), id="product of bools"),
    pytest.param(lambda q, k: (columns(k) <= rows(q)) == True, id="== True"),  # noqa: E712
    pytest.param(lambda q, k: columns(k).int() <= rows(q).to(torch.int32), id="int32"),
    pytest.param(lambda q, k: size_ones(q, k).tril().contiguous().clone().detach(), id="copies"),
    pytest.param(lambda q, k: torch.full_like(size_ones(q, k), True).tril(), id="full_like"),
    pytest.param(lambda q, k: q.new_ones(q.shape[2], k.shape[2], dtype=torch.bool).tril(), id="new_ones"),
    pytest.param(lambda q, k: q.new_full((q.shape[2], k.shape[2]), 1).tril() != 0, id="new_full"),
    pytest.param(
        lambda q, k: torch.zeros_like(size_ones(q, k)).logical_or(columns(k) <= rows(q)), id="or False"
    ),
    pytest.param(
        lambda q, k: torch.cat([torch.arange(0), torch.arange(k.shape[2])]) <= rows(q), id="cat empty"
    ),
    pytest.param(
        lambda q, k: torch.arange(64)[: k.shape[2]] <= torch.arange(64)[: q.shape[2], None], id="sliced"
    ),
    pytest.param(
        lambda q, k: (torch.arange(64) <= torch.arange(64)[:, None])[: q.shape[2], : k.shape[2]], id="cut"
    ),
    pytest.param(
        lambda q, k: torch.tril(torch.ones(64, 64))[: q.shape[2], : k.shape[2]].bool(), id="cut buffer"
    ),
    pytest.param(
        lambda q, k: (torch.arange(16)[None] <= torch.arange(16)[:, None])[rows(q), columns(k)], id="gathered"
    ),
    pytest.param(
        lambda q, k: torch.arange(k.shape[2]).index_select(0, columns(k)[0]) <= rows(q), id="index_select"
    ),
    pytest.param(lambda q, k: F.pad(columns(k), (0, 3))[:, :-3] <= rows(q), id="padded and cut"),
    pytest.param(
        lambda q, k: columns(k).select(0, 0).narrow(0, 0, k.shape[2]) <= rows(q), id="select, narrow"
    ),
    pytest.param(lambda q, k: (columns(k) > rows(q)) ^ True, id="xor True"),
]


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("build", CAUSAL)
def test_causal(build: Build, dynamic: bool) -> None:
    assert str(square_prove(build, dynamic=dynamic)) == "causal"


ADDITIVE = [
    pytest.param(lambda ok: additive(ok), "-inf", id="masked_fill(~, -inf)"),
    pytest.param(lambda ok: additive(ok, MIN), "finfo.min", id="masked_fill(~, min)"),
    pytest.param(
        lambda ok: torch.full(ok.shape, MIN).masked_fill(ok, 0), "finfo.min", id="masked_fill(ok, 0)"
    ),
    pytest.param(lambda ok: torch.where(ok, 0.0, -INF), "-inf", id="where(0, -inf)"),
    pytest.param(lambda ok: torch.where(ok, torch.tensor(0.0), MIN), "finfo.min", id="where(tensor 0, min)"),
    pytest.param(lambda ok: torch.where(ok, torch.zeros(()), MIN), "finfo.min", id="where(zeros, min)"),
    pytest.param(lambda ok: (1.0 - ok.float()) * MIN, "finfo.min", id="(1-ok)*min"),
    pytest.param(lambda ok: (1.0 - ok.to(torch.float32)).masked_fill(~ok, -INF), "-inf", id="1-ok filled"),
    pytest.param(lambda ok: ~ok * torch.tensor(MIN), "finfo.min", id="bool times min"),
    pytest.param(lambda ok: torch.minimum(additive(ok), torch.tensor(0.0)), "-inf", id="minimum"),
    pytest.param(lambda ok: additive(ok) + additive(ok), "-inf", id="sum of two"),
    pytest.param(lambda ok: additive(ok, MIN) + additive(ok, MIN), "-inf", id="min + min is -inf"),
    pytest.param(lambda ok: additive(ok, MIN).clamp(min=MIN), "finfo.min", id="clamp"),
    pytest.param(lambda ok: additive(ok, MIN).double().float(), "finfo.min", id="through float64"),
    pytest.param(lambda ok: (additive(ok, -INF) * 2) / 4, "-inf", id="scaled"),
]


@pytest.mark.parametrize(("spell", "masked_value"), ADDITIVE)
def test_additive(spell: Callable[[Tensor], Tensor], masked_value: str) -> None:
    valid = torch.rand(BATCH, K_LEN) < 0.7

    def build(query: Tensor, key: Tensor, valid: Tensor) -> Tensor:
        return spell((columns(key) <= rows(query)) & valid[:, None, None, :])

    proof = square_prove(build, valid)
    assert str(proof) == "causal & key_valid"
    assert proof.masked_value == masked_value


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_finfo_min_is_that_of_the_masks_own_dtype(dtype: torch.dtype) -> None:
    valid = torch.rand(BATCH, K_LEN) < 0.7

    def attention(query: Tensor, valid: Tensor) -> Tensor:
        allowed = (columns(query) <= rows(query)) & valid[:, None, None, :]
        mask = torch.where(allowed, torch.tensor(0.0, dtype=dtype), torch.finfo(dtype).min)
        return F.scaled_dot_product_attention(query, query, query, attn_mask=mask)

    (proof,) = proofs(capture(attention, torch.randn(BATCH, HEADS, K_LEN, HEAD_DIM, dtype=dtype), valid))
    assert isinstance(proof, MaskPredicate) and proof.masked_value == "finfo.min"


def test_finfo_min_of_float32_is_minus_infinity_in_float16() -> None:
    def attention(query: Tensor, valid: Tensor) -> Tensor:
        mask = torch.where(valid[:, None, None, :], 0.0, MIN).to(torch.float16)
        return F.scaled_dot_product_attention(query, query, query, attn_mask=mask)

    query = torch.randn(BATCH, HEADS, K_LEN, HEAD_DIM, dtype=torch.float16)
    (proof,) = proofs(capture(attention, query, torch.rand(BATCH, K_LEN) < 0.7))
    assert isinstance(proof, MaskPredicate) and proof.masked_value == "-inf"


OFFSETS = [
    pytest.param(lambda q, k: columns(k) <= rows(q) + 4, 4, id="k<=q+4"),
    pytest.param(lambda q, k: columns(k) - 4 <= rows(q), 4, id="k-4<=q"),
    pytest.param(lambda q, k: columns(k) < rows(q) + 4, 3, id="k<q+4 is offset 3"),
    pytest.param(lambda q, k: columns(k) < rows(q), -1, id="k<q is offset -1"),
    pytest.param(lambda q, k: size_ones(q, k).tril(4), 4, id="tril(4)"),
    pytest.param(lambda q, k: size_ones(q, k).tril(diagonal=k.shape[2] - q.shape[2]), 4, id="bottom right"),
    pytest.param(lambda q, k: columns(k) <= torch.arange(4, 4 + q.shape[2])[:, None], 4, id="arange(4, 4+n)"),
    pytest.param(lambda q, k: columns(k) <= (torch.arange(q.shape[2]) + 4).view(-1, 1), 4, id="arange+4"),
]


@pytest.mark.parametrize(("build", "offset"), OFFSETS)
def test_causal_with_offset(build: Build, offset: int) -> None:
    proof = prove(build, Q_LEN, K_LEN)
    assert proof.causal and proof.q_offset == offset
    assert proof.may_have_empty_rows == (offset < 0)


def test_causal_offset_keeps_the_shape_symbols() -> None:
    proof = prove(lambda q, k: columns(k) <= rows(q) + (k.shape[2] - q.shape[2]), Q_LEN, K_LEN, dynamic=True)
    assert len(proof.q_offset.free_symbols) == 2


WINDOWS = [
    pytest.param(lambda q, k: columns(k) > rows(q) - 3, 3, id="k>q-3"),
    pytest.param(lambda q, k: columns(k) >= rows(q) - 3, 4, id="k>=q-3 is a window of 4"),
    pytest.param(lambda q, k: rows(q) - columns(k) < 3, 3, id="q-k<3"),
    pytest.param(lambda q, k: ~(columns(k) <= rows(q) - 3), 3, id="not k<=q-3"),
    pytest.param(lambda q, k: size_ones(q, k).triu(-2), 3, id="triu(-2)"),
    pytest.param(lambda q, k: ~size_ones(q, k).tril(-3), 3, id="not tril(-3)"),
    pytest.param(
        lambda q, k: (columns(k) > rows(q) - 3) & (columns(k) > rows(q) - 7), 3, id="the tighter of two"
    ),
]


@pytest.mark.parametrize(("build", "window"), WINDOWS)
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_window(build: Build, window: int, dynamic: bool) -> None:
    proof = square_prove(lambda q, k: build(q, k) & (columns(k) <= rows(q)), dynamic=dynamic)
    assert str(proof) == f"causal & window({window})"


def test_window_with_offset_counts_from_the_position() -> None:
    def build(query: Tensor, key: Tensor) -> Tensor:
        position = rows(query) + 4
        return (columns(key) <= position) & (columns(key) > position - 3)

    assert str(prove(build, Q_LEN, K_LEN)) == "causal(offset=4) & window(3)"


def test_window_of_all_keys_is_no_window() -> None:
    assert str(square_prove(lambda q, k: (columns(k) <= rows(q)) & (columns(k) > rows(q) - 100))) == "causal"


PADDING = [
    pytest.param(lambda valid: valid[:, None, None, :], id="None axes"),
    pytest.param(lambda valid: valid.unsqueeze(1).unsqueeze(2), id="unsqueeze"),
    pytest.param(lambda valid: valid.view(valid.shape[0], 1, 1, valid.shape[1]), id="view"),
    pytest.param(lambda valid: valid[:, None, None].expand(-1, -1, valid.shape[1], -1), id="expand"),
    pytest.param(lambda valid: ~(~valid)[:, None, None, :], id="not not"),
    pytest.param(lambda valid: valid[torch.arange(2)[:, None, None, None], torch.arange(9)], id="gathered"),
    pytest.param(lambda valid: F.pad(valid, (0, 2))[:, None, None, :-2], id="padded and cut"),
    pytest.param(lambda valid: valid.long()[:, None, None, :] == 1, id="== 1"),
    pytest.param(lambda valid: valid.float()[:, None, None, :] > 0.5, id="> 0.5"),
    pytest.param(lambda valid: valid[..., :][:, None, None, ...], id="ellipsis"),
]


@pytest.mark.parametrize("spell", PADDING)
def test_key_padding(spell: Callable[[Tensor], Tensor]) -> None:
    valid = torch.rand(BATCH, K_LEN) < 0.7
    assert str(square_prove(lambda q, k, valid: spell(valid), valid)) == "key_valid"
    causal = square_prove(lambda q, k, valid: spell(valid) & (columns(k) <= rows(q)), valid)
    assert str(causal) == "causal & key_valid"
    assert causal.is_plain_causal and causal.may_have_empty_rows


INT_PADDING = [
    pytest.param(lambda mask: mask[:, None, None, :] != 0, id="!= 0"),
    pytest.param(lambda mask: mask[:, None, None, :].bool(), id="bool after"),
    pytest.param(lambda mask: mask.bool()[:, None, None, :], id="bool before"),
    pytest.param(lambda mask: mask[:, None, None, :] == 1, id="== 1"),
    pytest.param(lambda mask: mask[:, None, None, :] > 0, id="> 0"),
    pytest.param(lambda mask: mask[:, None, None, :].float() == 1.0, id="float == 1.0"),
    pytest.param(
        lambda mask: (1.0 - mask[:, None, None, :].float()).masked_fill(
            (1.0 - mask[:, None, None, :].float()).to(torch.bool), MIN
        ),
        id="inverted and filled",
    ),
]


@pytest.mark.parametrize("spell", INT_PADDING)
@pytest.mark.parametrize("highest", [1, 3], ids=["0 and 1", "any integers"])
def test_integer_padding(spell: Callable[[Tensor], Tensor], highest: int) -> None:
    mask = torch.randint(0, highest + 1, (BATCH, K_LEN))
    assert str(square_prove(lambda q, k, mask: spell(mask), mask)) == "key_valid"


def test_padding_shorter_than_the_keys_is_padded_with_false() -> None:
    def build(query: Tensor, key: Tensor, valid: Tensor) -> Tensor:
        padded = F.pad(valid, (0, key.shape[2] - valid.shape[1]))
        return padded[:, None, None, :] & (columns(key) <= rows(query))

    proof = prove(build, Q_LEN, K_LEN, torch.rand(BATCH, Q_LEN) < 0.7)
    assert str(proof) == "causal & key_valid"
    assert proof.key_valid is not None and proof.key_valid.meta["example_value"].shape == (BATCH, K_LEN)


def test_padding_longer_than_the_keys_is_cut() -> None:
    def build(query: Tensor, key: Tensor, valid: Tensor) -> Tensor:
        return valid[:, None, None, 2 : 2 + key.shape[2]] & (columns(key) <= rows(query))

    proof = square_prove(build, torch.rand(BATCH, K_LEN + 5) < 0.7)
    assert str(proof) == "causal & key_valid"
    assert proof.key_valid is not None and proof.key_valid.meta["example_value"].shape == (BATCH, K_LEN)


def test_lengths_as_key_padding() -> None:
    def build(query: Tensor, key: Tensor, lengths: Tensor) -> Tensor:
        return (columns(key) < lengths[:, None])[:, None, None, :]

    assert str(square_prove(build, torch.tensor([3, 7]))) == "key_valid"


def test_two_paddings_are_one() -> None:
    valid, other = torch.rand(2, BATCH, K_LEN) < 0.7
    proof = square_prove(lambda q, k, a, b: (a & b)[:, None, None, :], valid, other)
    assert str(proof) == "key_valid"
    apart = square_prove(lambda q, k, a, b: a[:, None, None, :] & b[:, None, None, :], valid, other)
    assert str(apart) == "key_valid"


CHUNKS = [
    pytest.param(lambda q, k: columns(k) // 4 == rows(q) // 4, id="//"),
    pytest.param(
        lambda q, k: torch.floor_divide(rows(q), 4) == torch.floor_divide(columns(k), 4), id="floor_divide"
    ),
    pytest.param(
        lambda q, k: torch.div(rows(q), 4, rounding_mode="floor").eq(
            torch.div(columns(k), 4, rounding_mode="floor")
        ),
        id="div floor",
    ),
]


@pytest.mark.parametrize("build", CHUNKS)
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_chunk(build: Build, dynamic: bool) -> None:
    proof = square_prove(lambda q, k: build(q, k) & (columns(k) <= rows(q)), dynamic=dynamic)
    assert str(proof) == "causal & chunk(4)"
    assert proof.chunk is not None and proof.chunk.left_pad is None


def test_chunk_from_the_first_token_of_each_row() -> None:
    def build(query: Tensor, key: Tensor, pad: Tensor) -> Tensor:
        pad = pad[:, None, None, None]
        return ((columns(key) - pad) // 4 == (rows(query) - pad) // 4) & (columns(key) <= rows(query))

    proof = square_prove(build, torch.tensor([0, 3]))
    assert str(proof) == "causal & chunk(4)"
    assert proof.chunk is not None and proof.chunk.left_pad is not None


def test_chunk_of_a_cache_that_starts_later() -> None:
    def build(query: Tensor, key: Tensor) -> Tensor:
        position, key_position = rows(query) + 7, columns(key) + 3
        return (key_position // 4 == position // 4) & (key_position <= position)

    proof = prove(build, Q_LEN, K_LEN)
    assert str(proof) == "causal(offset=4) & chunk(4)"


def packed(ids: Tensor) -> Tensor:
    return (torch.diff(ids, prepend=ids[:, :1] - 1, dim=-1) != 1).cumsum(-1)


def test_segments_of_position_ids() -> None:
    ids = torch.cat([torch.arange(4), torch.arange(5)]).expand(BATCH, -1)

    def build(query: Tensor, key: Tensor, ids: Tensor) -> Tensor:
        segment = packed(ids)
        return (segment[:, None, :, None] == segment[:, None, None, :]) & (columns(key) <= rows(query))

    proof = square_prove(build, ids)
    assert str(proof) == "causal & segments"
    assert proof.segments is not None and proof.segments.query_id is proof.segments.key_id


def test_position_ids_compared_inside_their_segments_are_indices() -> None:
    ids = torch.cat([torch.arange(4), torch.arange(5)]).expand(BATCH, -1)

    def build(query: Tensor, key: Tensor, ids: Tensor) -> Tensor:
        segment = packed(ids)
        same = segment[:, None, :, None] == segment[:, None, None, :]
        return same & (ids[:, None, None, :] <= ids[:, None, :, None])

    assert str(square_prove(build, ids)) == "causal & segments"


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_segments_of_an_arange_are_one_segment(dynamic: bool) -> None:
    def build(query: Tensor, key: Tensor) -> Tensor:
        ids = torch.arange(query.shape[2])[None].expand(query.shape[0], -1) + 3
        segment = packed(ids)
        return (segment[:, None, :, None] == segment[:, None, None, :]) & (columns(key) <= rows(query))

    assert str(square_prove(build, dynamic=dynamic)) == "causal"


def test_segment_ids_given_as_a_tensor() -> None:
    document = torch.randint(0, 3, (BATCH, K_LEN)).sort().values

    def build(query: Tensor, key: Tensor, document: Tensor) -> Tensor:
        return (document[:, :, None] == document[:, None, :])[:, None] & (columns(key) <= rows(query))

    assert str(square_prove(build, document)) == "causal & segments"


def test_running_sum_of_a_constant() -> None:
    build = lambda q, k: torch.ones(k.shape[2], dtype=torch.long).cumsum(0) - 1 <= rows(q)  # noqa: E731
    assert str(square_prove(build)) == "causal"


def test_everything_in_any_order() -> None:
    valid = torch.rand(BATCH, K_LEN) < 0.7

    def build(query: Tensor, key: Tensor, valid: Tensor) -> Tensor:
        chunk = columns(key) // 6 == rows(query) // 6
        window = columns(key) > rows(query) - 3
        return valid[:, None, None, :] & window & (columns(key) <= rows(query)) & chunk & window

    assert str(square_prove(build, valid)) == "causal & window(3) & chunk(6) & key_valid"


def test_no_mask() -> None:
    captured = capture(lambda q: F.scaled_dot_product_attention(q, q, q), torch.randn(1, 2, 5, 4))
    (proof,) = proofs(captured)
    assert isinstance(proof, MaskPredicate) and proof.is_full and str(proof) == "none"


def test_is_causal_is_aligned_top_left() -> None:
    query, key = torch.randn(1, 2, 5, 4), torch.randn(1, 2, 9, 4)
    captured = capture(lambda q, k: F.scaled_dot_product_attention(q, k, k, is_causal=True), query, key)
    (proof,) = proofs(captured)
    assert isinstance(proof, MaskPredicate) and str(proof) == "causal" and proof.q_offset == 0
    assert assert_predicates_are_the_masks(captured) == 1


def test_mask_of_true_is_no_mask() -> None:
    assert square_prove(lambda q, k: size_ones(q, k)).is_full
    assert square_prove(lambda q, k: torch.zeros(q.shape[2], k.shape[2])).is_full


def test_last_row_of_a_cache_sees_everything() -> None:
    assert prove(lambda q, k: columns(k) <= rows(q) + (k.shape[2] - 1), 1, K_LEN).is_full
