"""KL by kind of text, and what it costs to be near full attention, of results counted by hand."""

import json
import math

import pytest

from sa_compile import cli
from sa_compile.lab.eval import divergence
from sa_compile.lab.eval.report import Results, answered_table
from sa_compile.lab.eval.rules import settings_of

RULES = ["full", "adaptive:tau=0.1", "adaptive", "xattention+sink", "oracle"]
#             density, KL of two documents
MEASURED = {
    "full": (1.0, 0.0, 0.0),
    "adaptive:tau=0.1": (0.4, 0.0009, 0.0011),
    "adaptive": (0.2, 0.09, 0.11),
    "xattention+sink": (0.5, 0.004, 0.006),
    "oracle": (0.3, 0.04, 0.06),
}


def results(kinds=("facts", "code")):
    scores = [
        {
            "rule": rule,
            "kind": kind,
            "length": 4096,
            "index": n,
            "right": "11",
            "nll": 1.0,
            "density": density,
        }
        | {"cra": 1.0, "kl": kl[n], "agree": 0.9}
        for rule, (density, *kl) in MEASURED.items()
        for kind in kinds
        for n in range(2)
    ]
    questions = {f"4096/{n}": [["kv", "end", 0.1], ["kv", "middle", 0.1]] for n in range(2)}
    plan = {"model": "m", "rules": RULES, "lengths": [4096], "tasks": ["kv"], "domains": ["code", "prose"]}
    return Results({"plan": plan, "scores": scores, "questions": questions, "pictures": []})


def cells(table):
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]


def test_a_row_says_what_is_kept_the_kl_and_the_same_tokens():
    assert divergence.kinds(results()) == ["facts", "code"]
    rows = cells(divergence.divergence_table(results()))
    assert rows[0] == ["4K", "adaptive:tau=0.1", *["0.400, 0.0010 ± 0.0002, 0.9000"] * 2]
    found = divergence.prediction(results(), "adaptive", 4096, "code")
    assert found.kl == pytest.approx(0.1) and found.documents == 2
    assert divergence.prediction(results(), "adaptive", 4096, "prose") is None


def test_results_without_kl_have_no_table():
    """Those of earlier versions."""
    old = results()
    for own, _ in (pair for rule in RULES for pair in old.lines(rule, 4096)):
        del own["kl"]
    old = Results(
        {**old.result, "scores": [line for line in old.result["scores"] if line["kind"] == "facts"]}
    )
    assert divergence.divergence_table(old) == "" and divergence.cost_table(old) == ""


def test_cost_at_a_kl_lies_between_the_settings_around_it():
    """Log KL is interpolated: of .1 and .001, .01 is in the middle."""
    rows = {row[1]: row[2:] for row in cells(divergence.cost_table(results()))}
    assert rows["adaptive"] == ["0.300"] * 2
    assert rows["xattention+sink"] == ["<= 0.500"] * 2
    assert rows["oracle"] == ["> 0.300"] * 2
    times = {(4096, "adaptive"): 2.0, (4096, "adaptive:tau=0.1"): 8.0}
    assert cells(divergence.cost_table(results(), times)) == [["4K", "adaptive", "5.000", "5.000"]]


def test_a_setting_that_costs_more_and_is_farther_off_counts_for_nothing():
    assert divergence.cost_at([(0.2, 0.1), (0.3, 0.2), (0.4, 0.001)]) == ("", pytest.approx(0.3))
    sign, cost = divergence.cost_at([(0.2, 0.1), (0.4, 0.0)])
    assert sign == "" and 0.2 < cost < 0.4
    with pytest.raises(ValueError, match="'points' is empty"):
        divergence.cost_at([])


def test_curves_are_drawn_by_model_kind_and_length(tmp_path):
    panels = [("a", results(), None), ("b", results(("facts",)), None)]
    path = divergence.draw_curves(panels, tmp_path / "kl.png")
    assert path is not None and path.stat().st_size > 1000
    times = {(4096, rule): 1.0 for rule in RULES}
    assert divergence.draw_curves([("", results(), times)], tmp_path / "t.png", of_times=True) is not None
    assert divergence.draw_curves([("", results(), {})], tmp_path / "none.png", of_times=True) is None
    assert not (tmp_path / "none.png").exists()


def test_only_questions_that_full_attention_answers_are_counted():
    """Ten questions a place of one document, nine of them known to full attention; a gain is none."""
    asked = [["kv", "end", 0.1]] * 10
    marks = {"full": "1" * 9 + "0", "oracle": "1" * 6 + "000" + "1"}
    scores = [
        {"rule": rule, "kind": "facts", "length": 4096, "index": 0, "right": right}
        for rule, right in marks.items()
    ]
    plan = {"rules": list(marks), "lengths": [4096], "tasks": ["kv"]}
    table = answered_table(Results({"plan": plan, "scores": scores, "questions": {"4096/0": asked}}))
    ((length, rule, end, tenth, middle),) = cells(table)
    assert (length, rule, tenth, middle) == ("4K", "oracle", "-", "-")
    assert end.startswith("0.667 [") and " of 9 [" in end


def test_facts_said_again_count_where_full_attention_knows_four_in_five():
    asked = [["recall_number", "end", 0.1]] * 5 + [["kv", "end", 0.1]] * 5
    score = {"rule": "full", "kind": "facts", "length": 4096, "index": 0, "right": "1111011110"}
    plan = {"rules": ["full"], "lengths": [4096], "tasks": ["recall_number", "kv"]}
    found = Results({"plan": plan, "scores": [score], "questions": {"4096/0": asked}})
    assert found.solved(4096, "end") == ["recall_number"]
    assert math.isclose(found.kept("full", 4096, ["recall_number"], "end"), 1)


def test_results_of_several_models_get_a_report_each_and_an_overview(tmp_path, capsys):
    for name in ("one", "two"):
        result = results().result
        more = {"tasks": ["kv"], "places": ["end"], "split": "dev", "seed": 0, "block_q": 128, "block_k": 128}
        plan = {**result["plan"], **more, "model": f"models/{name}", "haystack": []}
        settings = {rule: settings_of(rule) for rule in RULES}
        source = {"command": "eval", "device": "a CPU", "dtype": "float32", "versions": {}, "revision": "abc"}
        whole = {**result, "plan": plan, "settings": settings, "provenance": source, "haystack": {}}
        (tmp_path / f"{name}.json").write_text(json.dumps(whole))
    files = [str(tmp_path / f"{name}.json") for name in ("one", "two")]
    assert cli.main(["eval-report", *files, "--out", str(tmp_path / "out")]) == 0
    text = (tmp_path / "out/report.md").read_text()
    assert (
        "## one" in text and "[the whole report](two/report.md)" in text and "| 4K       | adaptive" in text
    )
    assert (tmp_path / "out/kl_density.png").exists()
    own = (tmp_path / "out/two/report.md").read_text()
    assert "## Kept share at KL 0.01" in own and "## Predictions" in own and "## Answered questions" in own
    assert (tmp_path / "out/two/kl_density.png").exists()
    capsys.readouterr()
    arguments = ["eval-report", *files, "--out", str(tmp_path / "out"), "--merged", str(tmp_path / "m.json")]
    assert cli.main(arguments) == 2
    assert "for results of one model, got one, two" in capsys.readouterr().err
