"""``read_causal``: what it says of a mask is true of every entry, and it knows the masks that matter."""

import pytest
import torch

from sa_compile.late import causal_entries
from sa_compile.late.causal_entries import read_causal


def built(q_offset, window, key_valid, q_len):
    """The mask of these numbers, bool [B, Sq, Sk]."""
    position = torch.arange(q_len)[:, None] + q_offset
    key = torch.arange(key_valid.shape[1])
    allowed = (key <= position) & ((key > position - window) if window else True)
    return allowed & key_valid[:, None]


def draw(generator, high):
    return int(torch.randint(0, high, (), generator=generator))


@pytest.mark.parametrize("slab", [3, 1024])
def test_what_is_said_is_every_entry(monkeypatch, slab):
    monkeypatch.setattr(causal_entries, "_ROWS_AT_ONCE", slab)
    generator, found = torch.Generator().manual_seed(0), 0
    for case in range(400):
        q_len, batch = 2 + draw(generator, 10), 1 + draw(generator, 2)
        kv_len = q_len + draw(generator, 8)
        q_offset, window = draw(generator, kv_len - q_len + 1), draw(generator, 2) * draw(generator, 12)
        key_valid = torch.rand(batch, kv_len, generator=generator) < (0.7 if case % 2 else 2)
        mask = built(q_offset, window, key_valid, q_len)
        meaning = read_causal(mask)
        assert meaning is not None or case % 2, "a mask without padding is not known"
        changed = mask.clone()
        changed[draw(generator, batch), draw(generator, q_len), draw(generator, kv_len)] ^= True
        for entries, said in ((mask, meaning), (changed, read_causal(changed))):
            if said is not None:
                found += 1
                assert torch.equal(built(said.q_offset, said.window, said.key_valid, q_len), entries)
                everything = torch.ones_like(said.key_valid)
                assert said.padded or torch.equal(
                    built(said.q_offset, said.window, everything, q_len), entries
                )
    assert found > 350


LEFT = torch.arange(12) >= torch.tensor([0, 5])[:, None]
RIGHT = torch.arange(12) < torch.tensor([12, 7])[:, None]
ALL = torch.ones(2, 12, dtype=torch.bool)


@pytest.mark.parametrize("q_offset, window", [(0, 0), (4, 0), (0, 5), (4, 5)])
@pytest.mark.parametrize("key_valid", [ALL, LEFT, RIGHT], ids=["all", "left-padded", "right-padded"])
def test_masks_that_models_make(q_offset, window, key_valid):
    meaning = read_causal(built(q_offset, window, key_valid, 8))
    assert meaning is not None
    assert (meaning.q_offset, meaning.window) == (q_offset, window)
    first = max(q_offset - window + 1, 0) if window else 0
    assert meaning.padded == (not key_valid[:, first : q_offset + 8].all())


PREFIX = built(0, 0, ALL, 12) | (torch.arange(12) < 4)
IMAGE = built(0, 0, ALL, 12)
IMAGE[:, 3:6, 3:6] = True


@pytest.mark.parametrize(
    "mask",
    [
        pytest.param(torch.ones(2, 8, 12).bool(), id="nothing masked"),
        pytest.param(torch.zeros(2, 8, 12).bool(), id="nothing allowed"),
        pytest.param(LEFT[:, None].expand(-1, 8, -1), id="padding alone"),
        pytest.param(PREFIX, id="prefix"),
        pytest.param(IMAGE, id="image tokens see each other"),
        pytest.param(built(0, 0, ALL, 12).flip(1), id="reversed rows"),
        pytest.param(built(5, 0, ALL, 12), id="rows past the keys"),
        pytest.param(torch.eye(12).bool().expand(2, -1, -1) & False, id="empty"),
    ],
)
def test_other_masks_are_not_causal(mask):
    assert read_causal(mask) is None
