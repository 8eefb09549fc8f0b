"""``--density`` and ``--density-from``: which share of the causal blocks a benchmark attends."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from pathlib import Path
from typing import Any


def curve(results: str | Path, rule: str) -> dict[int, float]:
    """Mean density of ``rule`` by length, from a result file of ``python -m sa_compile eval``.

    Errors: ``OSError`` if there is no such file, ``ValueError`` if it holds no scores of the rule.
    """
    scores = json.loads(Path(results).read_text())["scores"]
    found: dict[int, list[float]] = defaultdict(list)
    for score in scores:
        if score["rule"] == rule:
            found[score["length"]].append(score["density"])
    if not found:
        rules = sorted({score["rule"] for score in scores})
        raise ValueError(
            f"--density-from: no scores of rule {rule!r} in {results}; rules: {', '.join(rules)}"
        )
    return {length: sum(values) / len(values) for length, values in sorted(found.items())}


def at_length(points: dict[int, float], length: int) -> tuple[float, str]:
    """The density at ``length``, and in words where it comes from.

    Between two measured lengths it is interpolated over the logarithm of the length; outside them the nearest
    measured one holds, which is pessimistic for longer prompts.
    """
    known = sorted(points)
    if length in points:
        return points[length], "measured at this length"
    if length < known[0] or length > known[-1]:
        nearest = known[0] if length < known[0] else known[-1]
        return points[nearest], f"measured at {nearest} tokens, held"
    below, above = max(n for n in known if n < length), min(n for n in known if n > length)
    share = math.log(length / below) / math.log(above / below)
    value = points[below] * (1 - share) + points[above] * share
    return value, f"between those measured at {below} and {above} tokens"


def for_length(arguments: Any, length: int) -> tuple[float | None, str]:
    """The density that the command line sets at ``length`` (None: none), and where it comes from."""
    if arguments.density is not None:
        return arguments.density, "set (--density)"
    if arguments.density_from is not None:
        density, where = at_length(curve(arguments.density_from, arguments.density_rule), length)
        return density, f"{arguments.density_rule}, {where} ({Path(arguments.density_from).name})"
    return None, "chosen by selection"
