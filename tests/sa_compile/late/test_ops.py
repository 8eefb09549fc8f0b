"""``read_mask`` and ``late_attention``: what PyTorch asks of ops, and what they compute."""

import pytest
import torch
import torch.nn.functional as F
from support.attention import full, grouped
from support.models import LOSSLESS

from sa_compile.config import SampleAttentionConfig
from sa_compile.late.attention import options_text
from sa_compile.late.ops import late_attention_op, read_mask_op

CONFIG = SampleAttentionConfig(**LOSSLESS)
OPTIONS = options_text(CONFIG)
LENGTH = 48


def causal(keys=LENGTH, window=0):
    mask = torch.ones(LENGTH, keys, dtype=torch.bool).tril(keys - LENGTH)
    return mask.triu(keys - LENGTH - window + 1) if window else mask


def padded():
    mask = causal().expand(2, 1, -1, -1).clone()
    mask[1, ..., :7] = False
    return mask


MASKS = {
    "causal": causal()[None, None],
    "without dims in front": causal(),
    "window": causal(window=20)[None],
    "padded": padded(),
    "not causal": causal().flip(0)[None, None],
}


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS.keys())
@pytest.mark.parametrize("operands", [full, grouped])
@pytest.mark.filterwarnings("ignore:sampleattn")
def test_attention_under_a_mask_is_sdpas(mask, operands):
    query, key, value = operands()
    found, key_valid = read_mask_op(mask, "a site")
    out, stats = late_attention_op(query, key, value, mask, found, key_valid, None, 0.3, OPTIONS)
    expected = F.scaled_dot_product_attention(query, key, value, mask, scale=0.3, enable_gqa=True)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)
    assert out.transpose(1, 2).is_contiguous() and stats.shape == (0, 3)


def test_ops_are_what_pytorch_asks_of_ops():
    query, key, value = grouped()
    found, key_valid = read_mask_op(padded(), "")
    torch.library.opcheck(read_mask_op, (padded(), ""))
    arguments = (query, key, value, padded(), found, key_valid, None, 0.3, OPTIONS)
    torch.library.opcheck(late_attention_op, arguments)
    with_stats = options_text(SampleAttentionConfig(**LOSSLESS, stats=True))
    torch.library.opcheck(
        late_attention_op, (*arguments[:3], None, torch.tensor(0), None, None, 0.3, with_stats)
    )


def test_what_is_not_causal_is_said():
    with pytest.warns(UserWarning, match="the mask of layers.0, read when it ran, is not causal"):
        read_mask_op(MASKS["not causal"], "layers.0")


def at(start, keys=LENGTH):
    query, key, value = full()
    key, value = (F.pad(x, (0, 0, 0, keys - LENGTH)) for x in (key, value))
    out, _ = late_attention_op(query, key, value, None, torch.tensor(start), None, None, 0.3, OPTIONS)
    mask = torch.arange(keys) <= torch.arange(LENGTH)[:, None] + start
    return out, F.scaled_dot_product_attention(query, key, value, mask, scale=0.3)


@pytest.mark.parametrize("start, keys", [(0, 48), (9, 80), (9, 57), (9, 50)])
def test_offsets_that_a_tensor_holds(start, keys):
    torch.testing.assert_close(*at(start, keys), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("start, keys", [(0, 48), (9, 57), (9, 50)])
def test_sinks_at_an_offset_that_a_tensor_holds(start, keys):
    query, key, value = full()
    key, value = (F.pad(x, (0, 0, 0, keys - LENGTH), value=0.5) for x in (key, value))
    sinks = torch.tensor([0.5, -1.0, 3.0, -torch.inf])
    arguments = (query, key, value, None, torch.tensor(start), None, sinks, 0.3, OPTIONS)
    mask = torch.arange(keys) <= torch.arange(LENGTH)[:, None] + start
    scores = (query @ key.mT * 0.3).masked_fill(~mask, -torch.inf)
    scores = torch.cat([scores, sinks.view(1, -1, 1, 1).expand(*scores.shape[:3], 1)], -1)
    expected = scores.softmax(-1)[..., :-1] @ value
    torch.testing.assert_close(late_attention_op(*arguments)[0], expected, atol=1e-5, rtol=1e-5)
    torch.library.opcheck(late_attention_op, arguments)


def test_an_offset_that_hides_the_first_key_is_an_error():
    with pytest.raises(ValueError, match="must be at least 0, got -3"):
        at(-3)
