"""benchmarks/serving/merge.py: each section is that of the last run which measured it."""

import importlib
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks" / "serving"


@pytest.fixture(scope="module")
def merged():
    sys.path.insert(0, str(FOLDER))
    yield importlib.import_module("merge").merged
    sys.path.remove(str(FOLDER))
    for name in ("merge", "run"):  # other folders have files of these names
        sys.modules.pop(name, None)


def _run(revision, errors=None, **sections):
    """A file of run.py."""
    head = {"command": f"run {revision}", "revision": revision, "engines": {"llama": revision}}
    return {**head, "errors": errors or {}, "sections": sections}


OLD = _run("old", failing={"failures": 1}, layer={"default": 1}, answers={"took_s": 0.0})
NEW = _run(
    "new",
    {"layer": "TimeoutError: no time was left", "failing": "Lost: it ended: INFO a log\nof many lines"},
    failing={"failures": 2, "took_s": 1.0},
    layer={"took_s": 0.0},
    **{"short requests": {"requests": 96, "seconds": {"a": [], "b": []}, "took_s": 1.0}},
)


def test_sections_are_those_of_the_last_run_that_measured_them(merged):
    found = merged([OLD, NEW])
    assert found["sections"] == {
        "failing": {"revision": "new", "failures": 2, "took_s": 1.0},
        "layer": {"revision": "old", "default": 1},
    }
    assert {"answers", "short requests"} < set(found["missing"])
    assert found["runs"]["new"]["errors"] == {"failing": "Lost: it ended"}
    assert list(found["runs"]) == ["old", "new"]


def test_what_was_merged_is_a_run_too(merged):
    one_by_one = merged([merged([OLD]), NEW])
    assert one_by_one == merged([OLD, NEW])
    assert merged([one_by_one]) == one_by_one


def test_a_revision_that_nothing_is_left_of_is_gone(merged):
    assert list(merged([_run("older", failing={"failures": 0}), NEW, OLD])["runs"]) == ["old"]


def test_a_run_that_is_repeated_keeps_the_errors_that_still_hold(merged):
    lost = _run("old", {"failing": "Lost: it ended", "layer": "Lost: too late"}, failing={"failures": 1})
    assert merged([lost, OLD])["runs"]["old"]["errors"] == {}
    assert merged([OLD, lost])["runs"]["old"]["errors"] == lost["errors"]
    again = _run("old", {"layer": "TimeoutError: no time was left"}, failing={"failures": 0})
    assert merged([lost, again])["runs"]["old"]["errors"] == {"layer": "Lost: too late"}
    assert merged([merged([lost]), again]) == merged([lost, again])


def test_two_commands_at_one_revision_are_refused(merged):
    with pytest.raises(ValueError, match="two runs of revision 'old'"):
        merged([OLD, {**OLD, "command": "another"}])
