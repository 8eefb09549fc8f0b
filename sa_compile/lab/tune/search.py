"""The search: screen every setting on a few documents, then confirm them in order of predicted time.

The first setting that keeps the bound on all calibration documents is chosen, so that no faster one that was
tried keeps it. One that misses the bound by more than chance explains (95 %), on the screening documents or
on twice, four times .. as many, is not looked at again. Every measurement is journalled by the harness beside
the profile, so that an interrupted search goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from sa_compile.config import SampleAttentionConfig
from sa_compile.fingerprint import AttentionKind
from sa_compile.inspection import explain
from sa_compile.lab.eval.plan import Plan
from sa_compile.lab.eval.report import Results
from sa_compile.lab.eval.run import Journal, run
from sa_compile.lab.eval.supply import Documents
from sa_compile.lab.tune.bound import Bound, Evidence, best_case, bound_for, evidence
from sa_compile.lab.tune.costs import LengthCosts, measure_costs
from sa_compile.lab.tune.space import Candidate, blocks_text
from sa_compile.passes.site_record import SiteRecord

_EXPLAINED = 256  # tokens of the forward pass that shows the model's attentions


@dataclass(frozen=True)
class Request:
    """What to tune: ``plan`` is the calibration set (its rules are not read), ``screen`` the number of its
    documents of a kind that every candidate sees, ``bound`` the measures asked for (empty: as fits the
    model), ``journal`` the profile's path, beside which the journals lie."""

    plan: Plan
    candidates: tuple[Candidate, ...]
    bound: dict[str, float]
    screen: int
    journal: Path
    resume: bool = False


@dataclass(frozen=True)
class Tried:
    """A setting with what was measured of it, and the milliseconds of a forward pass's attentions."""

    candidate: Candidate
    evidence: Evidence
    predicted_ms: float


@dataclass(frozen=True)
class Choice:
    """The outcome at one length; ``chosen`` None: nothing beats exact attention within the bound."""

    length: int
    bound: Bound
    costs: LengthCosts
    chosen: Tried | None
    default: Tried | None  # the options' defaults on the same documents; None if they were not tried
    screened: int
    confirmed: int
    seconds: float  # of scoring documents, those of earlier, resumed runs included


def search(
    request: Request, model: nn.Module, documents: Documents, kinds: Sequence[AttentionKind]
) -> Iterator[Choice]:
    """The choice for each length of the plan, in order. ``documents``: those of the plan; ``kinds``: the
    model's attentions, with counts."""
    device = next(model.parameters()).device
    harness = _Harness(request, model, documents)
    for length in sorted(set(request.plan.lengths)):
        costs = measure_costs(length, kinds, request.candidates, device)
        yield _search_length(request, harness, costs)


class _Harness:
    """Scores candidates on the calibration documents, through a journal for each pair of block sizes."""

    def __init__(self, request: Request, model: nn.Module, documents: Documents) -> None:
        self._request, self._model, self._documents = request, model, documents
        self._journals: dict[tuple[int, int], Journal] = {}
        for blocks in dict.fromkeys(candidate.blocks for candidate in request.candidates):
            path = request.journal.with_suffix(f".{blocks_text(blocks)}.jsonl")
            self._journals[blocks] = Journal(path, self._plan(blocks, ()), resume=request.resume)

    def _plan(self, blocks: tuple[int, int], rules: Sequence[str], **changes: Any) -> Plan:
        block_q, block_k = blocks
        changes |= {"block_q": block_q, "block_k": block_k, "cra_chunks": 0}  # no bound asks for CRA
        return replace(self._request.plan, rules=tuple(rules), **changes)

    def score(
        self, candidates: Sequence[Candidate], length: int, documents: int | None = None
    ) -> dict[tuple[int, int], Results]:
        """Results by block sizes, after scoring candidates of those on the first documents of each kind
        (None: on all)."""
        base, found = self._request.plan, {}
        counts = (base.count, base.texts)
        if documents is not None:
            counts = (min(counts[0], documents), min(counts[1], documents))
        for blocks in dict.fromkeys(candidate.blocks for candidate in candidates):
            rules = [candidate.rule for candidate in candidates if candidate.blocks == blocks]
            plan = self._plan(blocks, rules, lengths=(length,), count=counts[0], texts=counts[1])
            result = run(plan, self._model, self._documents, self._journals[blocks])
            found[blocks] = Results(result)
        return found

    def seconds(self, length: int) -> float:
        """That scoring took at a length, in this run and in those that it resumes."""
        lines = (line for journal in self._journals.values() for line in journal.lines.values())
        return sum(line["seconds"] for line in lines if line["length"] == length)


def _search_length(request: Request, harness: _Harness, costs: LengthCosts) -> Choice:
    length = costs.length
    default = _default(request.candidates)
    hopeful = [c for c in request.candidates if c is default or costs.predict(c, 0.0) < costs.dense_ms]
    if not hopeful:
        hopeful = [request.candidates[0]]  # full attention's own scores decide about the bound
    screened = harness.score(hopeful, length, request.screen)
    bound = bound_for(next(iter(screened.values())), length, request.bound)
    order = sorted(
        (_tried(c, evidence(screened[c.blocks], c.rule, length), costs) for c in hopeful),
        key=lambda tried: tried.predicted_ms,
    )
    chosen, confirmed = None, 0
    for first in tqdm(order, desc=f"confirm {length}", unit="setting", leave=False):
        if first.predicted_ms >= costs.dense_ms:
            break
        if not best_case(screened[first.candidate.blocks], first.candidate.rule, length).keeps(bound):
            continue
        confirmed += 1
        if any(
            not best_case(results, first.candidate.rule, length).keeps(bound)
            for results in _on_more(first.candidate, harness, length, request)
        ):
            continue
        again = _confirm(first.candidate, harness, costs)
        if again.evidence.keeps(bound) and again.predicted_ms < costs.dense_ms:
            chosen = again
            break
    by_default = _confirm(default, harness, costs) if default else None
    return Choice(length, bound, costs, chosen, by_default, len(hopeful), confirmed, harness.seconds(length))


def _on_more(candidate: Candidate, harness: _Harness, length: int, request: Request) -> Iterator[Results]:
    """Results on twice, four times .. the screening documents, as long as those are not all."""
    documents = 2 * request.screen
    while documents < max(request.plan.count, request.plan.texts):
        yield harness.score([candidate], length, documents)[candidate.blocks]
        documents *= 2


def _confirm(candidate: Candidate, harness: _Harness, costs: LengthCosts) -> Tried:
    results = harness.score([candidate], costs.length)[candidate.blocks]
    return _tried(candidate, evidence(results, candidate.rule, costs.length), costs)


def _tried(candidate: Candidate, found: Evidence, costs: LengthCosts) -> Tried:
    return Tried(candidate, found, costs.predict(candidate, found.density))


def _default(candidates: Sequence[Candidate]) -> Candidate | None:
    """The candidate that is the options' defaults."""
    plain = SampleAttentionConfig()
    return next((candidate for candidate in candidates if candidate.config == plain), None)


@torch.no_grad()
def sampled_sites(model: nn.Module) -> tuple[SiteRecord, ...]:
    """The report's sites of one forward pass of ``model`` that would be sampled.

    Those with a sliding window stay exact, with any options, and are left out. ValueError if another
    attention would not be sampled, which the harness could not measure, or if none is left.
    """
    device = next(model.parameters()).device
    text = model.config.get_text_config()  # type: ignore[operator, union-attr]
    window = getattr(text, "sliding_window", None) or 0
    # In a prompt that the window covers a sliding layer looks like any other.
    ids = torch.zeros((1, max(_EXPLAINED, 2 * window)), dtype=torch.long, device=device)
    sites = explain(model, ids, use_cache=False, options={"min_seq_len": _EXPLAINED}).sites
    sampled = tuple(site for site in sites if "window(" not in site.mask)
    for site in sampled:
        if site.outcome != "sampled":
            raise ValueError(
                f"attention {site.module_path} would not be sampled ({site.outcome}: {site.reason}); tuning "
                "is for models whose attentions are all plainly causal, or have a sliding window"
            )
    if not sampled:
        raise ValueError("the model has no attention that would be sampled: there is nothing to tune")
    return sampled
