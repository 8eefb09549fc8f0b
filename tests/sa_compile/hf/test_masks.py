"""CausalMask: a mask that is its meaning, and dense entries for whoever asks for them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import masking_utils

from sa_compile.hf.masks import CausalMask, mask_function_for_sampleattn

FUNCTIONS = {
    "causal": masking_utils.causal_mask_function,
    "window": masking_utils.sliding_window_causal_mask_function(3),
    "wide-window": masking_utils.sliding_window_causal_mask_function(99),
    "chunked": masking_utils.chunked_causal_mask_function(3, torch.zeros(2, dtype=torch.int)),
    "bidirectional": masking_utils.bidirectional_mask_function,
    "a-users": lambda b, h, q, k: (k <= q) & (k != 1),
    "a-users-window": masking_utils.and_masks(
        lambda b, h, q, k: k > q - 3, masking_utils.causal_mask_function
    ),
}
TRUSTED = ("causal", "window", "wide-window")


def both(function, q_length, kv_length, q_offset, padding, **rest):
    """Our answer, and sdpa_mask's: without its shortcut where we take our own."""
    arguments = {
        "batch_size": 2,
        "q_length": q_length,
        "kv_length": kv_length,
        "q_offset": q_offset,
        "mask_function": function,
        "attention_mask": padding,
        "device": torch.device("cpu"),
    }
    own = q_length > 1 and function in [FUNCTIONS[name] for name in TRUSTED]
    expected = masking_utils.sdpa_mask(**arguments, **({"allow_is_causal_skip": False} if own else {}))
    return mask_function_for_sampleattn(**{**arguments, **rest}), expected


@settings(max_examples=150, deadline=None)
@given(
    name=st.sampled_from(sorted(FUNCTIONS)),
    q_length=st.integers(1, 7),
    behind=st.integers(0, 4),
    q_offset=st.integers(0, 5),
    padding=st.sampled_from(["none", "all", "left", "right", "short"]),
    tensor_offset=st.booleans(),
)
def test_whatever_comes_back_means_what_sdpas_mask_means(
    name, q_length, behind, q_offset, padding, tensor_offset
):
    seen = q_offset + q_length
    kv_length = seen + behind
    mask = None
    if padding != "none":
        mask = torch.ones(2, kv_length if padding != "short" else seen, dtype=torch.bool)
        if padding in ("left", "right"):
            mask[1, : min(2, kv_length)] = False
        mask = mask.flip(1) if padding == "right" else mask
    offset = torch.tensor(q_offset) if tensor_offset else q_offset
    ours, expected = both(FUNCTIONS[name], q_length, kv_length, offset, mask)
    if ours is None and expected is not None:  # what SDPA's is_causal does: aligned top left
        causal = torch.ones(q_length, kv_length, dtype=torch.bool).tril()
        assert q_length > 1 and torch.equal(expected, causal.expand_as(expected))
        return
    if expected is None:
        assert ours is None
        return
    assert ours.shape == expected.shape and ours.dtype == torch.bool
    dense = ours.dense() if isinstance(ours, CausalMask) else ours
    assert torch.equal(dense, expected)


@pytest.mark.parametrize(
    ("name", "rest", "lazy"),
    [
        pytest.param("causal", {}, True, id="causal"),
        pytest.param("window", {}, True, id="window"),
        pytest.param("a-users", {}, False, id="a-users-function"),
        pytest.param("a-users-window", {}, False, id="a-users-functions-joined-by-theirs"),
        pytest.param("chunked", {}, False, id="chunked"),
        pytest.param("causal", {"allow_is_causal_skip": False}, False, id="needed-as-tensor"),
        pytest.param("causal", {"use_vmap": True}, False, id="vmap"),
        pytest.param("causal", {"kv_offset": 1}, False, id="keys-do-not-start-at-zero"),
    ],
)
def test_only_transformers_own_functions_of_whole_caches_are_trusted(name, rest, lazy):
    ours, _ = both(FUNCTIONS[name], 4, 8, 3, None, **rest)
    assert isinstance(ours, CausalMask) == lazy


@pytest.fixture
def mask():
    valid = torch.tensor([[True] * 5, [False, True, True, True, True]])
    return CausalMask((2, 1, 3, 5), 2, None, valid, torch.device("cpu"))


def test_moving_it_keeps_the_meaning_and_the_entries_unmade(mask):
    moved = mask.to(torch.device("cpu"), copy=True)
    assert isinstance(moved, CausalMask) and moved.meaning_holds and mask.meaning_holds
    assert (moved.q_offset, moved.shape) == (2, (2, 1, 3, 5))
    assert moved.to("meta").device.type == "meta"


def test_reading_it_gives_the_entries_and_ends_the_meaning(mask):
    assert mask.meaning_holds
    part = mask[:, :, :, :4]
    assert type(part) is torch.Tensor and part.tolist()[1][0][0] == [False, True, True, False]
    assert not mask.meaning_holds
    assert torch.equal(torch.where(mask, 0.0, -1.0) == 0.0, mask.dense())


def test_writing_to_it_is_not_lost(mask):
    before = mask.dense().clone()
    fresh = CausalMask((2, 1, 3, 5), 2, None, mask.key_valid, torch.device("cpu"))
    fresh[:, :, 0, 3] = True
    fresh |= torch.zeros(5, dtype=torch.bool)
    assert not fresh[..., 0, 3].logical_not().any() and not before[..., 0, 3].any()


def test_it_prints_its_meaning(mask):
    assert repr(mask) == "CausalMask((2, 1, 3, 5), q_offset=2, window=None, padded)"
    assert mask.meaning_holds


def test_our_own_reading_does_not_end_the_meaning(mask):
    assert mask.dense() is mask.dense() and mask.meaning_holds
