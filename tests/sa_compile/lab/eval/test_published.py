"""The published benchmarks' formats are read, prompted and scored as their own scripts do."""

import json
import zipfile

import pytest

from sa_compile.lab.eval.benchmark import benchmark_table, prompt_tokens, run_benchmark
from sa_compile.lab.eval.tasks import metrics, published
from sa_compile.lab.eval.tasks.metrics import Reference

ROWS = {
    ("ruler", "niah_single_1"): {
        "index": 0,
        "input": "Some special magic numbers are hidden within the following text. The plum is blue.",
        "answer_prefix": " The special magic number is",
        "outputs": ["4821337"],
        "length": 4096,
    },
    ("ruler", "qa_1"): {"index": 0, "input": "Question: Where?", "outputs": ["Paris", "the city of Paris"]},
    ("longbench", "qasper"): {
        "input": "What is it?",
        "context": "It is a plum.",
        "answers": ["a plum"],
        "length": 4,
        "dataset": "qasper",
        "language": "en",
        "all_classes": None,
        "_id": "x",
    },
    ("longbench", "trec"): {
        "input": "Question: Who?",
        "context": "Question: Where?\nType: Place",
        "answers": ["Person"],
        "all_classes": ["Person", "Place", "Date"],
    },
    ("babilong", "4k/qa1"): {
        "input": "Mary went to the garden. ",
        "question": "Where is Mary? ",
        "target": "garden",
    },
    ("infinitebench", "passkey"): {
        "id": 0,
        "context": "Grass. The pass key is 71432. Sky.",
        "input": "What is the pass key?",
        "answer": ["71432"],
        "options": [],
    },
    ("infinitebench", "code_run"): {
        "id": 0,
        "context": "def func_3(x):\n    return x",
        "input": "Please give me the exact number of the return value of func_3(-7).",
        "answer": [-7],
        "options": [],
    },
    ("infinitebench", "longbook_choice_eng"): {
        "id": 0,
        "context": "A book.",
        "input": "Who?",
        "answer": ["Ann"],
        "options": ["Bob", "Ann", "Eve", "Joe"],
    },
    ("infinitebench", "math_find"): {
        "id": 0,
        "context": "[1, 5, 3]",
        "input": "You should answer with only one number. The largest number of the list is:",
        "answer": [5],
        "options": [],
    },
}
# What each example's prompt must hold, an answer that is right, and one that is not.
EXPECTED = {
    ("ruler", "niah_single_1"): ("blue. The special magic number is", " 4821337.", "482133"),
    ("ruler", "qa_1"): ("Question: Where?", "It is PARIS", "Rome"),
    ("longbench", "qasper"): ("Article: It is a plum.\n\n Answer the question", "Plum!", "cherry"),
    ("longbench", "trec"): ("Type: Place\nQuestion: Who?", "Person\nPlace", "Place\nPerson"),
    ("babilong", "4k/qa1"): (
        "Mary went to the garden.\n</context>\nQuestion: Where is Mary?",
        "the garden.",
        "office",
    ),
    ("infinitebench", "passkey"): ("The pass key is 71432. Sky.\n\nWhat is", " 71432", "7143"),
    ("infinitebench", "code_run"): ("There is a function called func_3 in", "is -7", "-8"),
    ("infinitebench", "longbook_choice_eng"): ("B. Ann\nC. Eve", "B. Ann", "A"),
    ("infinitebench", "math_find"): (
        "What is the largest number in the following list?\n\n[1, 5, 3]",
        "5",
        "3",
    ),
}


@pytest.mark.parametrize("benchmark, task", ROWS, ids=["-".join(key).replace("/", "-") for key in ROWS])
def test_a_published_row_becomes_a_scored_prompt(benchmark, task, tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps(ROWS[benchmark, task]) + "\n\n")
    (example,) = published.load(benchmark, task, path)
    part, right, wrong = EXPECTED[benchmark, task]
    assert part in example.prompt and "{" not in example.prompt
    assert example.score(right) == 1.0 and example.score(wrong) == 0.0
    assert example.new_tokens > 0


def test_a_folder_holds_one_file_a_task(tmp_path):
    (tmp_path / "qasper.jsonl").write_text(json.dumps(ROWS["longbench", "qasper"]))
    assert len(list(published.load("longbench", "qasper", tmp_path))) == 1


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A folder that stands for the hub: the published layout of each dataset, written by ``datasets``."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)  # else it refuses archives, local ones too
    monkeypatch.setattr(published, "_FILES", str(tmp_path))
    monkeypatch.setattr(published, "_BABILONG_NAME", str(tmp_path / "RMT-team" / "babilong"))

    def write(name, rows):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        datasets.Dataset.from_list(rows).to_json(path)
        return path

    lines = write("qasper.jsonl", [ROWS["longbench", "qasper"]] * 2)
    archive = tmp_path / "THUDM" / "LongBench" / "data.zip"
    archive.parent.mkdir(parents=True)
    with zipfile.ZipFile(archive, "w") as file:
        file.write(lines, "data/qasper.jsonl")
        file.writestr("data/other.jsonl", "{}")
    for task in ("passkey", "code_run"):  # whose answers have different types
        write(f"xinrongzhang2022/InfiniteBench/{task}.jsonl", [ROWS["infinitebench", task]] * 2)
    write("RMT-team/babilong/data/qa1/4k.json", [ROWS["babilong", "4k/qa1"]] * 2)
    card = (
        "---\nconfigs:\n- config_name: 4k\n  data_files:\n  - split: qa1\n    path: data/qa1/4k.json\n---\n"
    )
    (tmp_path / "RMT-team" / "babilong" / "README.md").write_text(card)


@pytest.mark.parametrize(
    "benchmark, task",
    [
        ("longbench", "qasper"),
        ("infinitebench", "passkey"),
        ("infinitebench", "code_run"),
        ("babilong", "4k/qa1"),
    ],
    ids=["longbench", "passkey", "code_run", "babilong"],
)
def test_what_datasets_loads_is_what_the_file_holds(benchmark, task, hub, tmp_path):
    local = tmp_path / "local.jsonl"
    local.write_text(json.dumps(ROWS[benchmark, task]) + "\n")
    loaded = list(published.load(benchmark, task))
    assert loaded == 2 * list(published.load(benchmark, task, local))


@pytest.mark.parametrize(
    "benchmark, task, source, message",
    [
        pytest.param(
            "longbank", "qasper", None, "unknown benchmark 'longbank'; known: ruler", id="benchmark"
        ),
        pytest.param("longbench", "vcsum", None, "unknown longbench task 'vcsum'", id="task"),
        pytest.param("ruler", "vt", None, "ruler has no dataset to load", id="no dataset"),
    ],
)
def test_what_is_unknown_is_an_error(benchmark, task, source, message):
    with pytest.raises(ValueError, match=message):
        list(published.load(benchmark, task, source))


TWO_CLASSES = Reference(("Date",), choices=("Person", "Date"))
NESTED = Reference(("Date of birth",), choices=("Date", "Date of birth"))
GARDEN = Reference(("garden",), "Where is Mary?", ("garden", "office"))
FRED = Reference(("Fred",), "Who got the apple?", ("Fred", "apple"))


@pytest.mark.parametrize(
    "metric, prediction, reference, expected",
    [
        pytest.param(metrics.string_match_all, "one TWO", Reference(("two", "three")), 0.5, id="match all"),
        pytest.param(metrics.exact_match, "The  plum.", Reference(("plum",)), 1.0, id="exact"),
        pytest.param(metrics.token_f1, "the red plum", Reference(("a plum", "x")), 2 / 3, id="f1"),
        pytest.param(metrics.token_f1, "", Reference(("plum",)), 0.0, id="f1 of nothing"),
        pytest.param(metrics.rouge_l, "a c b d", Reference(("a b c d",)), 0.75, id="rouge-l"),
        pytest.param(metrics.code_similarity, "# note\nx = 1\ny", Reference(("x = 1",)), 1.0, id="code"),
        pytest.param(metrics.classification, "Person or Date", TWO_CLASSES, 0.5, id="two classes"),
        pytest.param(metrics.classification, "Date of birth", NESTED, 1.0, id="class within a class"),
        pytest.param(
            metrics.number_share, "Paragraph 3 or 4", Reference(("Paragraph 3",)), 0.5, id="numbers"
        ),
        pytest.param(metrics.first_number, "it is 3.50", Reference(("3.5",)), 1.0, id="float"),
        pytest.param(metrics.word_match, "name: BOB.", Reference(("Bob",)), 1.0, id="word"),
        pytest.param(metrics.choice, "The answer is: C", Reference(("C",)), 1.0, id="choice"),
        pytest.param(metrics.choice, "", Reference(("C",)), 0.0, id="no choice"),
        pytest.param(metrics.leading_share, "[1, 4, 9]", Reference(("1", "4", "8", "7")), 0.5, id="leading"),
        pytest.param(metrics.label_match, "In the garden. Not the office.", GARDEN, 1.0, id="label"),
        pytest.param(metrics.label_match, "garden or office", GARDEN, 0.0, id="two labels"),
        pytest.param(metrics.label_match, "The apple: to Fred", FRED, 1.0, id="label of the question"),
    ],
)
def test_metric(metric, prediction, reference, expected):
    assert metric(prediction, reference) == pytest.approx(expected)


def test_a_long_prompt_loses_its_middle(tokenizer):
    ids = tokenizer("plum cherry mango lemon olive walnut almond")["input_ids"]
    cut = prompt_tokens(tokenizer, "plum cherry mango lemon olive walnut almond", 5)
    assert cut == ids[:2] + ids[-3:]
    assert prompt_tokens(tokenizer, "plum", 5) == tokenizer("plum")["input_ids"]


def test_a_benchmark_runs_and_goes_on_from_its_journal(model, tokenizer, tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps(ROWS["infinitebench", "passkey"]))
    examples = list(published.load("infinitebench", "passkey", path))
    journal = tmp_path / "lines.jsonl"
    options = {"max_length": 200, "journal": journal, "block_q": 16, "block_k": 16}
    lines = run_benchmark(model, tokenizer, examples, ["streaming:window=16"], **options)
    assert [line["rule"] for line in lines] == ["full", "streaming:window=16"]
    assert lines[0]["density"] == 1.0 > lines[1]["density"]
    assert "infinitebench/passkey" in benchmark_table(lines)
    assert len(journal.read_text().splitlines()) == 2
    again = run_benchmark(model, tokenizer, examples, ["streaming:window=16"], **options)
    assert again == lines and len(journal.read_text().splitlines()) == 2
    journal.write_text(journal.read_text().replace('"window": ', '"window": 1', 1))
    with pytest.raises(ValueError, match="was written with other settings of 'streaming:window=16'"):
        run_benchmark(model, tokenizer, examples, ["streaming:window=16"], **options)
