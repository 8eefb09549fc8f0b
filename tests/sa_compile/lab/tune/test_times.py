"""What rules cost: density times the op's time, with the selection where that is known."""

from sa_compile.lab.eval.report import Results
from sa_compile.lab.tune.times import note, time_table

PROFILE = {
    "provenance": {"device": "a GPU", "revision": "abc"},
    "costs": [
        {
            "length": 4096,
            "dense_ms": 8.0,
            "block_ms": {"128x128": 10.0},
            "selection_ms": {"adaptive landmarks=7 128x128": 0.5},
        }
    ],
}


def result(**densities):
    """Two questions of one document a length; every rule but the last answers both."""
    rules = ["full", *densities]
    scores = [
        {"rule": rule, "kind": "facts", "length": length, "index": 0, "nll": 1.0, "cra": 1.0}
        | {"density": densities.get(rule, 1.0), "right": "10" if rule == rules[-1] else "11"}
        for rule in rules
        for length in (4096, 8192)
    ]
    asked = [["kv", "end", 0], ["kv", "middle", 1]]
    plan = {"rules": rules, "lengths": [4096, 8192], "tasks": ["kv"], "block_q": 128, "block_k": 128}
    settings = {"full": {}, "adaptive": {"landmarks": 7}, "xattention": {"stride": 8}}
    questions = {"4096/0": asked, "8192/0": asked}
    return Results({"plan": plan, "scores": scores, "questions": questions, "settings": settings})


def test_a_row_a_rule_at_the_lengths_that_were_timed():
    lines = time_table(result(adaptive=0.25, xattention=0.2), [PROFILE]).splitlines()[2:]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    assert rows == [
        ["4K", "adaptive", "0.250", "1.000", "+0.0000", "0.50", "2.50", "3.00", "2.67"],
        ["4K", "xattention", "0.200", "0.000", "+0.0000", "-", "2.00", ">= 2.00", "<= 4.00"],
    ]
    assert "a GPU, `abc`" in note([PROFILE])


def test_what_attention_takes_at_any_density_counts_where_a_profile_knows_it():
    known = {**PROFILE["costs"][0], "floor_ms": {"128x128": 2.0}}
    last = time_table(result(adaptive=0.25), [{**PROFILE, "costs": [known]}]).splitlines()[-1]
    assert [cell.strip() for cell in last.split("|")[-5:-1]] == ["0.50", "4.00", "4.50", "1.78"]


def test_selection_of_other_rules_counts_where_rule_costs_measured_it():
    measured = {
        "provenance": PROFILE["provenance"],
        "costs": [{"length": 4096, "rule_ms": {"xattention": 1.5}}],
    }
    forced = "xattention+sink+w2"
    table = result(adaptive=0.25, **{forced: 0.2})
    table.result["settings"][forced] = {"rule": {"stride": 8}, "sink": True}
    for files in ([PROFILE, measured], [measured, PROFILE]):
        last = time_table(table, files).splitlines()[-1]
        assert [cell.strip() for cell in last.split("|")[-5:-1]] == ["1.50", "2.00", "3.50", "2.29"]


def test_no_table_without_times_of_a_length():
    assert time_table(result(adaptive=0.25), [{**PROFILE, "costs": []}]) == ""
