"""One document through a model with one rule: right answers, prediction of the text, sparsity."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sa_compile.lab.eval.attention import sparse_prefill
from sa_compile.lab.eval.rules import Rule
from sa_compile.lab.eval.tasks.documents import Document

TEXT_POSITIONS = 2048  # of a document whose prediction is scored, evenly spread, unless asked otherwise
_LOGITS_AT_A_TIME = 1 << 26  # elements; a long document's logits of a large vocabulary would not fit


@dataclass(frozen=True)
class States:
    """What a model predicts at some positions, kept as the hidden states that its head takes.

    ``hidden`` is [N, H] in the model's dtype; ``answers`` of them, the first ones, belong to questions.
    """

    model: nn.Module
    tokens: Tensor  # int64 [1, length], on the model's device
    output: type  # of the model without its head
    hidden: Tensor
    answers: int

    @property
    def text(self) -> States:
        """Those of the text alone."""
        return States(self.model, self.tokens, self.output, self.hidden[self.answers :], 0)

    def logits(self) -> Iterator[tuple[slice, Tensor]]:
        """(positions, their logits [n, V] in the model's dtype), a few positions at a time.

        The model's own forward makes them, behind a body that gives back what is kept: scaling and caps of
        logits are the model's.
        """
        body = self.model.base_model
        step = max(_LOGITS_AT_A_TIME // self.model.config.get_text_config().vocab_size, 1)  # type: ignore[operator, union-attr]
        for start in range(0, len(self.hidden), step):
            part = slice(start, start + step)
            given = self.output(last_hidden_state=self.hidden[None, part])
            with _gives(body, given):  # type: ignore[arg-type]
                logits = self.model(input_ids=self.tokens, use_cache=False, logits_to_keep=0).logits[0]
            yield part, logits


@dataclass(frozen=True)
class Score:
    """What one rule does to one document."""

    right: str  # one character a question: "1" if its answer is what greedy decoding would write
    text_nll: float  # mean negative log-likelihood (nats) of the scored text tokens; NaN without text
    density: list[list[float]]  # kept share of causal blocks, [layer][head]
    cra: list[list[float]]  # measured CRA, [layer][head]
    exact: dict[str, list[list[float]]]  # "error", "bound", "sd", [layer][head], as far as asked for
    states: States
    # Against a reference, at the scored text positions; NaN without one or without text.
    kl: float  # mean KL(reference || this) of the next token's distribution (nats)
    agree: float  # share of positions with the same most likely token


@torch.no_grad()
def score_document(
    model: nn.Module,
    document: Document,
    rule: Rule,
    reference: States | None = None,
    *,
    text_positions: int = TEXT_POSITIONS,
    **settings: Any,
) -> Score:
    """Score a document by teacher forcing, every attention layer prefilling with ``rule``.

    ``reference``: what another rule predicts of the same document and positions (its score's ``states``).
    ``settings`` go to :func:`~sa_compile.lab.eval.attention.sparse_prefill`. ValueError for a model without
    an attention that the rule could run in.
    """
    device = next(model.parameters()).device
    tokens = torch.from_numpy(document.tokens).to(device)
    answers = [np.arange(q.start, q.stop) for q in document.questions]
    text = _spread(np.flatnonzero(document.is_text[1:]) + 1, text_positions)
    targets = torch.from_numpy(np.concatenate([*answers, text]).astype(np.int64)).to(device)
    ends = np.cumsum([0, *map(len, answers)])
    with sparse_prefill(model, rule, **settings) as run:
        states = _states(model, tokens, targets, int(ends[-1]))
    if not run.masks:
        raise ValueError("every attention of the model has a sliding window: there is nothing to sample")
    best, nll = _predictions(states, tokens[targets])
    hit = best == document.tokens[targets.cpu().numpy()]
    right = "".join("01"[bool(hit[a:b].all())] for a, b in zip(ends[:-1], ends[1:], strict=True))
    text_nll = float(nll[ends[-1] :].mean()) if len(text) else float("nan")
    measured = {"error": run.errors, "bound": run.bounds, "sd": run.sds}
    exact = {name: _rounded(layers, 6) for name, layers in measured.items() if layers}
    kl, agree = (float("nan"),) * 2
    if reference is not None and len(text):
        kl, agree = _divergence(reference.text, states.text)
    return Score(right, text_nll, _rounded(run.densities), _rounded(run.cras), exact, states, kl, agree)


def _states(model: nn.Module, tokens: Tensor, targets: Tensor, answers: int) -> States:
    """The hidden states that predict the tokens at ``targets``: those of the positions before them."""
    seen: list[Any] = []
    hook = model.base_model.register_forward_hook(lambda *call: seen.append(call[-1]))  # type: ignore[operator, union-attr]
    try:
        model(input_ids=tokens[None], use_cache=False, logits_to_keep=1)
    finally:
        hook.remove()
    (output,) = seen
    return States(model, tokens[None], type(output), output.last_hidden_state[0, targets - 1], answers)


@contextmanager
def _gives(module: nn.Module, output: Any) -> Iterator[None]:
    """While it lasts, ``module`` returns ``output`` and computes nothing."""
    module.forward = lambda *_, **__: output
    try:
        yield
    finally:
        del module.forward


def _predictions(states: States, expected: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Per position: the most likely token, and the negative log-likelihood of the expected one."""
    best, nll = [torch.empty(0, dtype=torch.int64)], [torch.empty(0)]
    for part, logits in states.logits():
        best.append(logits.argmax(-1).cpu())
        nll.append(F.cross_entropy(logits.float(), expected[part], reduction="none").cpu())
    return torch.cat(best).numpy(), torch.cat(nll).numpy()


def _divergence(reference: States, states: States) -> tuple[float, float]:
    """Mean KL(reference || states) in nats, and the share of positions with the same most likely token."""
    divergence, same = [], []
    for (_, expected), (_, found) in zip(reference.logits(), states.logits(), strict=True):
        same.append(expected.argmax(-1) == found.argmax(-1))
        expected, found = (logits.float().log_softmax(-1) for logits in (expected, found))
        divergence.append(F.kl_div(found, expected, reduction="none", log_target=True).sum(-1))
    return float(torch.cat(divergence).double().mean()), float(torch.cat(same).double().mean())


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
