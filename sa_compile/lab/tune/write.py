"""From the search's choices to the profile file and what is printed of it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from tabulate import tabulate

from sa_compile.config import selection_options
from sa_compile.fingerprint import Fingerprint
from sa_compile.lab.tune.search import Choice, Tried
from sa_compile.profile import FORMAT, VERSION


def profile_of(
    choices: Sequence[Choice],
    model: Fingerprint,
    calibration: dict[str, Any],
    provenance: dict[str, Any],
) -> dict[str, Any]:
    """The profile as plain data. Settings tuned at a length apply from it up to the next tuned one.

    ``calibration`` describes the documents, ``provenance`` where and with what it was measured.
    """
    ends = [choice.length - 1 for choice in choices[1:]]
    return {
        "format": FORMAT,
        "version": VERSION,
        "model": model.to_dict(),
        "provenance": provenance,
        "calibration": calibration,
        "seconds": round(sum(choice.seconds + choice.costs.seconds for choice in choices), 1),
        "ranges": [_range(choice, last) for choice, last in zip(choices, [*ends, None], strict=True)],
        "costs": [dataclasses.asdict(choice.costs) for choice in choices],
    }


def _range(choice: Choice, last: int | None) -> dict[str, Any]:
    chosen = choice.chosen
    options = None
    if chosen is not None:
        options = {
            name: getattr(chosen.candidate.config, name)
            for name in selection_options(chosen.candidate.config)
        }
    return {
        "first": choice.length,
        "last": last,
        "options": options,
        "bound": vars(choice.bound),
        "chosen": _tried(chosen),
        "default": _tried(choice.default),
        "dense_ms": round(choice.costs.dense_ms, 4),
        "screened": choice.screened,
        "confirmed": choice.confirmed,
        "seconds": round(choice.seconds + choice.costs.seconds, 1),
    }


def _tried(tried: Tried | None) -> dict[str, Any] | None:
    if tried is None:
        return None
    return {
        "rule": tried.candidate.rule,
        "blocks": list(tried.candidate.blocks),
        "measured": tried.evidence.to_dict(),
        "predicted_ms": round(tried.predicted_ms, 4),
    }


def summary(choices: Sequence[Choice]) -> str:
    """A table of what was chosen, the bounds, the cost of tuning, and when it pays back."""
    rows = [row for choice in choices for row in _rows(choice)]
    headers = ("tokens", "setting", "density", "accuracy", "text NLL", "KL", "same token", "ms", "dense / ms")
    lines = [tabulate(rows, headers, tablefmt="github", disable_numparse=True), ""]
    for bound in dict.fromkeys(str(choice.bound) for choice in choices):
        lengths = ", ".join(str(choice.length) for choice in choices if str(choice.bound) == bound)
        lines.append(f"Bound at {lengths} tokens: {bound}.")
    seconds = sum(choice.seconds + choice.costs.seconds for choice in choices)
    tried = sum(choice.screened for choice in choices)
    confirmed = sum(choice.confirmed for choice in choices)
    lines.append(f"Tuning took {seconds:.0f} s: {tried} settings screened, {confirmed} confirmed.")
    for choice in choices:
        lines.append(f"Pays back at {choice.length} tokens: {_payback(choice, seconds)}.")
    return "\n".join(lines)


def _rows(choice: Choice) -> list[list[str]]:
    dense = choice.costs.dense_ms
    rows = [[str(choice.length), "dense", "1.000", "-", "-", "-", "-", f"{dense:.2f}", "1.00"]]
    for name, tried in (("default", choice.default), ("chosen", choice.chosen)):
        if tried is None:
            continue
        found, blocks = tried.evidence, "x".join(map(str, tried.candidate.blocks))
        measured = [
            f"{found.density:.3f}",
            *map(_number, (found.accuracy, found.nll, found.kl, found.agreement)),
        ]
        times = [f"{tried.predicted_ms:.2f}", f"{dense / tried.predicted_ms:.2f}"]
        rows.append(["", f"{name}: {tried.candidate.rule} {blocks}", *measured, *times])
    return rows


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4f}"


def _payback(choice: Choice, seconds: float) -> str:
    """After how many prompts the time saved in attention makes up for the tuning."""
    if choice.chosen is None:
        return "never, no setting that was tried beats dense attention within the bound"
    parts = []
    rivals = [("dense attention", choice.costs.dense_ms)]
    if choice.default is not None:
        rivals.append(("the defaults", choice.default.predicted_ms))
    for rival, rival_ms in rivals:
        saved = (rival_ms - choice.chosen.predicted_ms) / 1e3
        prompts = f"after {math.ceil(seconds / saved)} prompts" if saved > 0 else "never"
        parts.append(f"{prompts} against {rival}")
    return ", ".join(parts)
