"""What the selection of the evaluation's rules costs on this machine, for ``eval-report --costs``.

Rules of peers are plain PyTorch here, without kernels of their own: on a GPU their times are replays of a
CUDA graph, so that launches cost them nothing. A rule that cannot be captured is named with its error.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch

from sa_compile.fingerprint import AttentionKind
from sa_compile.lab.eval.rules import parse_rule
from sa_compile.lab.tune.costs import milliseconds, random_tensors


@torch.no_grad()
def measure_rules(
    length: int, kinds: Iterable[AttentionKind], rules: Iterable[str], device: torch.device
) -> dict[str, Any]:
    """``length``, ``rule_ms`` (milliseconds of a forward pass's selections) and ``errors`` by rule."""
    tensors = [(kind.count, *random_tensors(kind, length, device)) for kind in kinds]
    costs: dict[str, Any] = {"length": length, "rule_ms": {}, "errors": {}}
    for text in rules:
        rule = parse_rule(text)
        try:
            spent = [
                count * milliseconds(partial(rule.select, query, key), device)
                for count, query, key, _ in tensors
            ]
        except RuntimeError as error:
            costs["errors"][rule.spec] = str(error).splitlines()[0]
        else:
            costs["rule_ms"][rule.spec] = sum(spent)
    return costs
