"""Tables of a report from results that are small enough to count by hand."""

from sa_compile.lab.eval.report import Results, cells_table


def test_a_cell_counts_as_kept_from_99_percent_of_full_attention_on():
    """200 questions at the end, of which a rule may lose two; one in mid-document, which it loses."""
    asked = [["kv", "end", n] for n in range(200)] + [["kv", "middle", 200]]
    right = {
        "full": "1" * 201,
        "lossless": "1" * 201,
        "two": "00" + "1" * 198 + "0",
        "three": "000" + "1" * 198,
    }
    scores = [
        {"rule": rule, "kind": "facts", "length": 4096, "index": 0, "right": marks}
        for rule, marks in right.items()
    ]
    plan = {"rules": list(right), "lengths": [4096], "tasks": ["kv"]}
    lines = cells_table(
        Results({"plan": plan, "scores": scores, "questions": {"4096/0": asked}})
    ).splitlines()
    assert [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:]] == [
        ["lossless", "1 of 1", "0 of 0", "1 of 1", "2 of 2"],
        ["two", "1 of 1", "0 of 0", "0 of 1", "1 of 2"],
        ["three", "0 of 1", "0 of 0", "1 of 1", "1 of 2"],
    ]
