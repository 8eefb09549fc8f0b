"""Names of rules in results that were written when other settings were the defaults.

A rule's string leaves out settings at their defaults, so ``adaptive`` means another rule once its defaults
have changed. Results keep every setting; reports name rules by them.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from sa_compile.kernels.defaults import BEFORE_THE_BUDGET, BEFORE_THE_PEAK, BEFORE_THE_REST
from sa_compile.lab.eval.rules import RULES, kind_of

# Settings that a rule was given since, with what stood for them before. Of methods that others registered
# nothing is known: a setting of the same name is another one.
_BEFORE: dict[str, dict[str, Any]] = {
    "chunked": {"last": 0},
    "adaptive": {"last": 0, **BEFORE_THE_BUDGET, **BEFORE_THE_PEAK},
}


def with_present_names(result: dict[str, Any]) -> dict[str, Any]:
    """A result of the harness whose rules are named as the code's present defaults would have it."""
    names = {rule: present_name(rule, result["settings"][rule]) for rule in result["settings"]}
    plan = {**result["plan"], "rules": [names.get(rule, rule) for rule in result["plan"]["rules"]]}
    return {
        **result,
        "plan": plan,
        "settings": {names[rule]: settings for rule, settings in result["settings"].items()},
        "scores": [_renamed(line, names) for line in result["scores"]],
        "pictures": [_renamed(picture, names) for picture in result.get("pictures", [])],
    }


def _renamed(entry: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    return {**entry, "rule": names.get(entry["rule"], entry["rule"])}


def present_name(rule: str, settings: dict[str, Any]) -> str:
    """The name, by the code's present defaults, of a rule that was measured with ``settings``.

    A rule that no longer has the settings it was measured with keeps its name, with "(of its commit)" behind;
    so does a registered method that has others since, whose values then are not known.
    """
    base, plus, forced = rule.partition("+")
    kind = kind_of(base.partition(":")[0])
    own = settings["rule"] if plus else settings
    known = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    if not own.keys() <= known or kind.name not in RULES and own.keys() != known:
        return f"{rule} (of its commit)"
    settings = {**_BEFORE.get(kind.name, {}), **own}
    if kind.name == "adaptive" and not settings["means"]:  # with means it is not looked at
        settings = {**BEFORE_THE_REST, **settings}
    return kind(**settings).spec + plus + forced
