"""One document through a model with one rule: right answers, prediction of the text, sparsity."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from sa_compile.eval.attention import sparse_prefill
from sa_compile.eval.rules import Rule
from sa_compile.eval.tasks.documents import Document

# Text positions of a document whose prediction is scored, evenly spread: logits of all would not fit for
# a large vocabulary.
TEXT_POSITIONS = 2048
_LOGITS_AT_A_TIME = 1 << 28  # elements


@dataclass(frozen=True)
class Score:
    """What one rule does to one document."""

    right: str  # one character a question: "1" if its answer is what greedy decoding would write
    text_nll: float  # mean negative log-likelihood (nats) of the scored text tokens; NaN without text
    density: list[list[float]]  # kept share of causal blocks, [layer][head]
    cra: list[list[float]]  # measured CRA, [layer][head]
    best: np.ndarray  # int64: the most likely token at each scored text position
    exact: dict[str, list[list[float]]]  # "error", "bound", "sd", [layer][head], as far as asked for


@torch.no_grad()
def score_document(model: nn.Module, document: Document, rule: Rule, **settings: Any) -> Score:
    """Score a document by teacher forcing, every attention layer prefilling with ``rule``.

    ``settings`` go to :func:`~sa_compile.eval.attention.sparse_prefill`. ValueError for a model without an
    attention that the rule could run in.
    """
    device = next(model.parameters()).device
    tokens = torch.from_numpy(document.tokens).to(device)
    answers = [np.arange(q.start, q.stop) for q in document.questions]
    text = _spread(np.flatnonzero(document.is_text[1:]) + 1, TEXT_POSITIONS)
    targets = np.concatenate([*answers, text]).astype(np.int64)
    with sparse_prefill(model, rule, **settings) as run:
        # The token at position t is predicted by the logits at t - 1.
        best, nll = _predictions(model, tokens, torch.from_numpy(targets).to(device))
    if not run.masks:
        raise ValueError("every attention of the model has a sliding window: there is nothing to sample")
    hit = best == document.tokens[targets]
    ends = np.cumsum([0, *map(len, answers)])
    right = "".join("01"[bool(hit[a:b].all())] for a, b in zip(ends[:-1], ends[1:], strict=True))
    text_nll = float(nll[ends[-1] :].mean()) if len(text) else float("nan")
    measured = {"error": run.errors, "bound": run.bounds, "sd": run.sds}
    exact = {name: _rounded(layers, 6) for name, layers in measured.items() if layers}
    return Score(right, text_nll, _rounded(run.densities), _rounded(run.cras), best[ends[-1] :], exact)


def _predictions(model: nn.Module, tokens: torch.Tensor, targets: torch.Tensor) -> tuple[Any, Any]:
    """Per target position: the most likely token, and the negative log-likelihood of the token there."""
    logits = model(input_ids=tokens[None], use_cache=False, logits_to_keep=targets - 1).logits[0]
    expected = tokens[targets]
    step = max(_LOGITS_AT_A_TIME // logits.shape[-1], 1)
    nll = [
        F.cross_entropy(logits[n : n + step].float(), expected[n : n + step], reduction="none")
        for n in range(0, len(targets), step)
    ]
    return logits.argmax(-1).cpu().numpy(), torch.cat(nll).cpu().numpy()


def _spread(positions: np.ndarray, most: int) -> np.ndarray:
    """At most ``most`` of the positions, evenly spread."""
    if len(positions) <= most:
        return positions
    return positions[np.linspace(0, len(positions) - 1, most).round().astype(int)]


def _rounded(layers: list[torch.Tensor], digits: int = 4) -> list[list[float]]:
    """[layer][head] of [B, Hq] tensors of a batch of one, copied to the host at once."""
    if not layers:
        return []
    return [[round(value, digits) for value in layer] for layer in torch.stack(layers)[:, 0].tolist()]


@torch.no_grad()
def greedy_tokens(
    model: nn.Module, prompt: list[int], rule: Rule, new_tokens: int, **settings: Any
) -> list[int]:
    """Tokens that the model writes, greedily, behind a prompt: sparse prefill, dense decoding."""
    ids = torch.tensor([prompt], device=next(model.parameters()).device)
    with sparse_prefill(model, rule, **settings):
        out = model.generate(  # type: ignore[operator]
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=new_tokens, do_sample=False
        )
    return out[0, ids.shape[1] :].tolist()
