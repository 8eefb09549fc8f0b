"""The search picks the setting of least predicted time that keeps the bound on the calibration documents."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from sa_compile.lab.eval.plan import Plan
from sa_compile.lab.eval.report import Results
from sa_compile.lab.tune import search
from sa_compile.lab.tune.bound import Bound, Evidence, best_case, bound_for, evidence, parse_bound
from sa_compile.lab.tune.costs import LengthCosts
from sa_compile.lab.tune.space import FAMILIES, candidates

LENGTH = 4096
TRIED = tuple(candidates(FAMILIES[:1], [(128, 128)]))[:6]
QUESTIONS = {f"{LENGTH}/{n}": [["kv", "end", 0.1], ["kv", "middle", 0.5]] for n in range(12)}


def line(rule, index, density, nll, agree, right="11", kind="facts", kl=0.0):
    return {"rule": rule, "kind": kind, "length": LENGTH, "index": index, "right": right, "nll": nll,
            "density": density, "cra": 0.9, "agree": agree, "kl": kl}  # fmt: skip


def results_of(lines, rules):
    plan = {"model": "m", "rules": ["full", *rules], "lengths": [LENGTH], "tasks": ["kv"],
            "places": ["end", "middle"], "domains": ["legal"]}  # fmt: skip
    return Results({"plan": plan, "questions": QUESTIONS, "scores": lines})


class Measured:
    """A harness whose measurements are given: per rule and document (density, nll, agreement)."""

    def __init__(self, table, documents=3, full_right="11"):
        self.table, self.documents, self.full_right = table, documents, full_right
        self.scored = []

    def score(self, candidates, length, documents=None):
        count = min(documents or self.documents, self.documents)
        lines = [line("full", n, 1.0, 1.0, 1.0, self.full_right) for n in range(count)]
        for candidate in candidates:
            self.scored.append((candidate.rule, count))
            lines += [line(candidate.rule, n, *self.table[candidate.rule][n]) for n in range(count)]
        return {(128, 128): results_of(lines, [c.rule for c in candidates])}

    def seconds(self, length):
        return 1.0


def choose(table, asked, selection=None, dense=10.0, tmp="profile.json", documents=3):
    plan = Plan("m", (), (LENGTH,), count=documents)
    request = search.Request(plan, TRIED, asked, 1, tmp)
    costs = LengthCosts(
        LENGTH, dense, {"128x128": 10.0}, selection or {c.timed_as: 0.1 for c in TRIED}, {"128x128": 0.0}
    )
    harness = Measured(table, documents)
    return search._search_length(request, harness, costs), harness


def steady(density, loss):
    """The same on every document: ``loss`` in nats, and the agreement that goes with it."""
    return [(density, 1.0 + loss, 1.0 - loss)] * 3


measured = st.tuples(st.floats(0.05, 1.0), st.floats(0.0, 0.03))


@hypothesis_settings(max_examples=60, deadline=None)
@given(
    table=st.lists(measured, min_size=len(TRIED), max_size=len(TRIED)),
    chunk_costs=st.lists(st.floats(0.01, 5.0), min_size=3, max_size=3),
)
def test_no_setting_that_keeps_the_bound_is_predicted_faster(table, chunk_costs):
    selection = dict(zip(sorted({c.timed_as for c in TRIED}), chunk_costs, strict=True))
    by_rule = {c.rule: steady(*row) for c, row in zip(TRIED, table, strict=True)}
    choice, _ = choose(by_rule, {"nll": 0.01}, selection)
    good = [
        selection[c.timed_as] + 10.0 * density
        for c, (density, loss) in zip(TRIED, table, strict=True)
        if (1.0 + loss) - 1.0 <= 0.01
    ]
    best = min((ms for ms in good if ms < 10.0), default=None)
    found = choice.chosen and choice.chosen.predicted_ms
    assert (found is None) == (best is None)
    assert best is None or found == pytest.approx(best)


def test_a_setting_that_fails_on_the_other_documents_is_passed_over():
    table = {c.rule: steady(0.5 + n / 100, 0.0) for n, c in enumerate(TRIED)}
    first, second = TRIED[0].rule, TRIED[1].rule
    table[first] = [(0.1, 1.0, 1.0), (0.1, 1.5, 0.5), (0.1, 1.5, 0.5)]
    choice, harness = choose(table, {"nll": 0.01})
    assert choice.chosen.candidate.rule == second
    assert choice.chosen.evidence.documents == 3 and choice.confirmed == 2
    # The default is confirmed for comparison; no other setting sees more than the screening document.
    assert {rule for rule, count in harness.scored if count == 3} <= {first, second, "chunked"}


def test_a_setting_is_left_as_soon_as_chance_does_not_explain_what_it_misses():
    table = {c.rule: steady(0.5 + n / 100, 0.0) * 4 for n, c in enumerate(TRIED)}
    first, second = TRIED[0].rule, TRIED[1].rule
    table[first] = [(0.1, 1.0, 1.0), *[(0.1, 1.5 + n / 1000, 0.5) for n in range(11)]]
    choice, harness = choose(table, {"nll": 0.01}, documents=12)
    assert choice.chosen.candidate.rule == second and choice.confirmed == 2
    assert [count for rule, count in harness.scored if rule == first] == [1, 2, 4]
    assert [count for rule, count in harness.scored if rule == second] == [1, 2, 4, 8, 12]


def test_a_setting_that_misses_the_bound_in_screening_is_not_confirmed():
    table = {c.rule: steady(0.5, 0.0) for c in TRIED}
    table[TRIED[0].rule] = steady(0.1, 0.5)
    choice, _ = choose(table, {"nll": 0.01})
    assert choice.confirmed == 1 and choice.chosen.candidate.rule != TRIED[0].rule


def test_what_cannot_beat_dense_attention_is_not_even_screened():
    table = {c.rule: steady(0.1, 0.0) for c in TRIED}
    slow = {c.timed_as: 50.0 for c in TRIED}
    choice, harness = choose(table, {"nll": 0.01}, slow, dense=10.0)
    assert choice.chosen is None and len(harness.scored) == 1


@pytest.mark.parametrize(
    "right, asked, expected",
    [
        pytest.param("11", {}, Bound(accuracy=0.99, nll=0.005, kl=0.01), id="knows-the-tasks"),
        pytest.param("00", {}, Bound(nll=0.005, kl=0.01), id="knows-none"),
        pytest.param("01", {}, Bound(accuracy=0.99, nll=0.005, kl=0.01), id="knows-those-in-one-place"),
        pytest.param("00", {"agreement": 0.9}, Bound(agreement=0.9), id="as-asked"),
    ],
)
def test_the_bound_fits_what_the_model_knows(right, asked, expected):
    results = results_of([line("full", n, 1.0, 1.0, 1.0, right) for n in range(3)], [])
    assert bound_for(results, LENGTH, asked) == expected


def test_a_bound_on_tasks_that_the_model_does_not_know_is_an_error():
    results = results_of([line("full", 0, 1.0, 1.0, 1.0, "00")], [])
    with pytest.raises(ValueError, match="full attention solves none of the tasks at 4096 tokens"):
        bound_for(results, LENGTH, {"accuracy": 0.99})


def test_evidence_takes_the_worst_place_and_means_over_documents():
    lines = [line("full", n, 1.0, 1.0, 1.0, "11") for n in range(2)]
    lines += [line("r", 0, 0.2, 1.1, 0.9, "11", kl=0.1), line("r", 1, 0.4, 1.3, 0.8, "10", kl=0.3)]
    found = evidence(results_of(lines, ["r"]), "r", LENGTH)
    measured = {"nll": pytest.approx(0.2), "kl": pytest.approx(0.2), "agreement": pytest.approx(0.85)}
    assert found == Evidence(2, pytest.approx(0.3), 0.5, **measured)
    nothing = evidence(results_of(lines, ["s"]), "s", LENGTH)
    assert nothing.documents == 0 and math.isnan(nothing.nll)


def test_measures_of_text_are_of_the_kind_that_has_the_worst():
    lines = [line("full", n, 1.0, 1.0, 1.0, kind=kind) for n in range(2) for kind in ("facts", "legal")]
    lines += [line("r", n, 0.2, 1.1, 0.7, kl=0.01) for n in range(2)]
    lines += [line("r", n, 0.3, 1.0, 0.9, kind="legal", kl=0.02 + n / 100) for n in range(2)]
    results = results_of(lines, ["r"])
    found = evidence(results, "r", LENGTH)
    measured = {"nll": pytest.approx(0.1), "kl": pytest.approx(0.025), "agreement": pytest.approx(0.7)}
    assert found == Evidence(4, pytest.approx(0.25), 1.0, **measured)
    assert best_case(results, "r", LENGTH).kl == pytest.approx(0.025 - 1.96 * 0.005, abs=1e-4)


def test_the_best_case_is_what_a_few_documents_do_not_rule_out():
    lines = [line("full", n, 1.0, 1.0, 1.0) for n in range(3)]
    lines += [line("unlucky", n, 0.2, 1.0 + 0.01 * n, 0.99, "10" if n == 1 else "11") for n in range(3)]
    lines += [line("bad", n, 0.2, 1.5, 0.5, "00") for n in range(3)]
    results = results_of(lines, ["unlucky", "bad"])
    assert evidence(results, "unlucky", LENGTH).accuracy == pytest.approx(2 / 3)
    unlucky, bad = (best_case(results, rule, LENGTH) for rule in ("unlucky", "bad"))
    assert unlucky.accuracy == 1.0 and bad.accuracy == 0.0
    assert unlucky.nll == pytest.approx(0.01 - 1.96 * 0.01 / 3**0.5, abs=1e-5)
    assert (bad.nll, bad.agreement) == (pytest.approx(0.5), pytest.approx(0.5))


def test_of_one_document_the_best_case_is_what_was_measured():
    lines = [line("full", 0, 1.0, 1.0, 1.0), line("r", 0, 0.2, 1.02, 0.9, "10")]
    results = results_of(lines, ["r"])
    assert best_case(results, "r", LENGTH) == evidence(results, "r", LENGTH)


GOOD = Evidence(3, 0.3, accuracy=1.0, nll=0.0, kl=0.0, agreement=1.0)


@pytest.mark.parametrize(
    "found, kept",
    [
        pytest.param(GOOD, True, id="within"),
        pytest.param(replace(GOOD, accuracy=0.98), False, id="accuracy"),
        pytest.param(replace(GOOD, nll=0.02), False, id="nll"),
        pytest.param(replace(GOOD, kl=0.02), False, id="kl"),
        pytest.param(replace(GOOD, agreement=0.9), False, id="agreement"),
        pytest.param(replace(GOOD, accuracy=math.nan), False, id="not-measured"),
    ],
)
def test_all_that_is_asked_for_must_hold(found, kept):
    assert found.keeps(Bound(0.99, 0.01, 0.01, 0.98)) == kept
    assert found.keeps(Bound())


@pytest.mark.parametrize(
    "text, message",
    [
        pytest.param(
            "speed=1", "takes accuracy=NUMBER, nll=NUMBER, kl=NUMBER, agreement.*'speed=1'", id="name"
        ),
        pytest.param("nll", "got 'nll'", id="no-value"),
        pytest.param("nll=x", "nll must be a number, got 'x'", id="no-number"),
        pytest.param("nll=nan", "must be finite", id="nan"),
    ],
)
def test_bad_bounds_are_named(text, message):
    with pytest.raises(ValueError, match=message):
        parse_bound([text])
