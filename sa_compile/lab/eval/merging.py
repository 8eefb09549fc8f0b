"""Several results over the same documents as one: other rules, other lengths, or shards of one run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def merge(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One result from several runs over the same documents. ValueError if the documents differ.

    They must also agree in the settings of a rule: its string leaves out settings at their defaults, which
    may have changed between the runs.
    """
    first = results[0]
    same = ("model", "tasks", "places", "split", "seed", "block_q", "block_k", "haystack")
    merged = {
        **first,
        "scores": [],
        "questions": {},
        "haystack": {},
        "pictures": [],
        "settings": {},
        "runs": [],
    }
    rules: dict[str, None] = {}
    lengths: set[int] = set()
    for result in results:
        for name in same:
            if result["plan"][name] != first["plan"][name]:
                raise ValueError(
                    f"the results differ in {name!r}: {first['plan'][name]}, {result['plan'][name]}"
                )
        for kind, digest in result["haystack"].items():
            known = merged["haystack"].setdefault(kind, digest)
            if digest != known:
                raise ValueError(
                    f"the results saw different {kind} documents (digests {known} and {digest}): the "
                    "installed packages or the files differ"
                )
        merged["scores"] += result["scores"]
        for rule, settings in result["settings"].items():
            known = merged["settings"].setdefault(rule, settings)
            if settings != known:
                raise ValueError(f"the results differ in the settings of {rule!r}: {known}, {settings}")
        merged["questions"].update(result["questions"])
        merged["pictures"] += result.get("pictures", [])
        merged["runs"] += result.get("runs", [result["provenance"]])
        rules.update(dict.fromkeys(result["plan"]["rules"]))
        lengths |= {*result["plan"]["lengths"]}
    merged["plan"] = {**first["plan"], "rules": list(rules), "lengths": sorted(lengths), "shard": [1, 1]}
    return merged
