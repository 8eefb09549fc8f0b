"""Reports name rules by the settings that they were measured with, whatever the defaults are today."""

from dataclasses import dataclass

import pytest

from sa_compile.lab.eval.naming import present_name, with_present_names
from sa_compile.lab.eval.rules import parse_rule, settings_of
from sa_compile.methods import METHODS, Method

CASES = [
    pytest.param(
        "adaptive",
        {"tau": 0.4, "landmarks": 3, "last": 128},
        parse_rule("adaptive:peak=1,tau=0.4,landmarks=3,budget=1.0,means=1").spec,
        id="old defaults",
    ),
    pytest.param(
        "adaptive",
        {"tau": 0.4},
        parse_rule("adaptive:peak=1,tau=0.4,landmarks=15,last=0,budget=1.0,means=1").spec,
        id="before the last rows were kept whole",
    ),
    pytest.param(
        "chunked:alpha=0.95",
        {"alpha": 0.95, "chunk_n": 2, "last": 128},
        parse_rule("chunked:alpha=0.95").spec,
        id="now default",
    ),
    pytest.param(
        "xattention+sink+w2",
        {"rule": {"stride": 8, "tau": 0.5}, "sink": True, "window_blocks": 2},
        "xattention:tau=0.5+sink+w2",
        id="forced",
    ),
    pytest.param(
        "adaptive",
        {name: value for name, value in settings_of("adaptive:landmarks=15").items() if name != "peak"},
        parse_rule("adaptive:peak=1,landmarks=15").spec,
        id="before the peak",
    ),
    pytest.param("adaptive", {"medians": 1}, "adaptive (of its commit)", id="settings that are no more"),
]


@pytest.mark.parametrize("rule, settings, expected", CASES)
def test_a_rule_is_named_by_its_settings(rule, settings, expected):
    result = {
        "plan": {"rules": ["full", rule], "seed": 3},
        "settings": {"full": {}, rule: settings},
        "scores": [{"rule": "full", "index": 0}, {"rule": rule, "index": 0}],
        "pictures": [{"rule": rule}],
    }
    named = with_present_names(result)
    assert named["plan"] == {"rules": ["full", expected], "seed": 3}
    assert named["settings"] == {"full": {}, expected: settings}
    assert [line["rule"] for line in named["scores"]] == ["full", expected]
    assert named["pictures"] == [{"rule": expected}]
    assert result["plan"]["rules"] == ["full", rule]


@dataclass(frozen=True)
class _Named:
    """Options that are called as those of ``adaptive`` are."""

    rest: int = 3
    budget: float = 0.5


class _Foreign(Method):
    name = "foreign"
    options = _Named

    def select(self, run, options, attention, forced):
        raise NotImplementedError


FORCED = {"sink": True, "window": 2, "last": 128}


@pytest.mark.parametrize(
    "settings, expected",
    [
        ({"rest": 3, "budget": 0.5, **FORCED}, "foreign"),
        ({"rest": 0, "budget": 1.0, **FORCED}, "foreign:rest=0,budget=1.0"),
        ({"budget": 1.0, **FORCED}, "foreign (of its commit)"),
        ({"rest": 3, **FORCED}, "foreign (of its commit)"),
        ({"rest": 3, "budget": 0.5, "means": True, **FORCED}, "foreign (of its commit)"),
    ],
)
def test_a_registered_method_has_no_settings_of_ours(monkeypatch, settings, expected):
    monkeypatch.setitem(METHODS, "foreign", _Foreign())
    assert present_name("foreign", settings) == expected
    if "(" not in expected:
        both = {"rule": settings, "sink": True, "window_blocks": 2, "last_rows": 0}
        assert present_name("foreign+sink+w2", both) == expected + "+sink+w2"
