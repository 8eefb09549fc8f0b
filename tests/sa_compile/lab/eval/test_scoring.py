"""What a rule predicts, against full attention: KL and equal tokens, by the model's head, in parts."""

import math

import pytest
import torch
from support.text_model import small_hybrid

from sa_compile.lab.eval import scoring
from sa_compile.lab.eval.rules import parse_rule
from sa_compile.lab.eval.scoring import score_document

BLOCKS = {"block_q": 64, "block_k": 64}
SPARSE = "streaming:sink=1,window=64"


def plain_logits(model, document, spec):
    """Those that predict the text, from one forward pass with everything in memory."""
    tokens = torch.from_numpy(document.tokens)[None]
    with torch.no_grad(), scoring.sparse_prefill(model, parse_rule(spec), **BLOCKS):
        logits = model(tokens, use_cache=False).logits[0, :-1]
    return logits[torch.from_numpy(document.is_text[1:])]


@pytest.mark.parametrize("at_a_time", [1 << 26, 5000], ids=["at once", "in parts"])
def test_divergence_from_full_attention_is_that_of_the_whole_logits(model, builder, monkeypatch, at_a_time):
    document = builder.build("seed", 1280, ("needle", "kv"))
    monkeypatch.setattr(scoring, "_LOGITS_AT_A_TIME", at_a_time)
    full = score_document(model, document, parse_rule("full"), **BLOCKS)
    sparse = score_document(model, document, parse_rule(SPARSE), full.states, **BLOCKS)
    expected, found = (plain_logits(model, document, spec).double() for spec in ("full", SPARSE))
    ratio = expected.log_softmax(-1) - found.log_softmax(-1)
    divergence = (expected.softmax(-1) * ratio).sum(-1).mean().item()
    assert sparse.kl == pytest.approx(divergence, rel=1e-4) and divergence > 0.01
    same = (expected.argmax(-1) == found.argmax(-1)).double().mean().item()
    assert sparse.agree == pytest.approx(same) and same < 1
    assert math.isnan(full.kl) and math.isnan(full.agree)
    itself = score_document(model, document, parse_rule("full"), full.states, **BLOCKS)
    assert itself.kl == pytest.approx(0, abs=1e-9) and itself.agree == 1


def test_no_more_logits_are_held_than_are_asked_for(model, builder, monkeypatch):
    document = builder.build("seed", 1280, ("needle", "kv"))
    monkeypatch.setattr(scoring, "_LOGITS_AT_A_TIME", 5000)
    states = score_document(model, document, parse_rule("full")).states
    sizes = [logits.numel() for _, logits in states.logits()]
    assert max(sizes) <= 5000 and sum(sizes) == len(states.hidden) * model.config.vocab_size
    assert "forward" not in vars(model.base_model), "the model's body is as it was"


def test_what_the_model_does_to_its_logits_is_done(builder):
    """A cap of the logits, which stands behind the head."""
    capped = small_hybrid(700)
    document = builder.build("seed", 1280, ("needle", "kv"))
    plain = score_document(capped, document, parse_rule("full"))
    capped.config.final_logit_softcapping = 0.5
    capped_score = score_document(capped, document, parse_rule("full"), plain.states)
    tokens = torch.from_numpy(document.tokens)
    with torch.no_grad():
        logits = capped(tokens[None], use_cache=False).logits[0, :-1]
    nll = torch.nn.functional.cross_entropy(logits, tokens[1:], reduction="none")
    assert logits.abs().max() <= 0.5
    expected = nll[torch.from_numpy(document.is_text[1:])].mean().item()
    assert capped_score.text_nll == pytest.approx(expected, rel=1e-4)


def test_text_positions_are_spread_over_the_document(model, builder):
    document = builder.build("seed", 1280, ("needle", "kv"))
    few = score_document(model, document, parse_rule("full"), text_positions=40)
    assert len(few.states.text.hidden) == 40
    every = score_document(model, document, parse_rule("full"))
    assert few.text_nll != every.text_nll and few.right == every.right
