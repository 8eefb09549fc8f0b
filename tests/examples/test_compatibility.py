"""The compatibility table: trials are run, and the page in docs is what its data say."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "docs" / "data" / "compatibility.json"
MODULES = ("distributed", "generating", "run", "trial", "trials")


@pytest.fixture(scope="module")
def table():
    threads = torch.get_num_threads()
    sys.path.insert(0, str(ROOT / "examples" / "compatibility"))
    yield importlib.import_module("run")
    sys.path.pop(0)
    torch.set_num_threads(threads)
    for name in MODULES:
        sys.modules.pop(name, None)


def test_trials_run_and_are_recorded(table, tmp_path):
    data = tmp_path / "records.json"
    arguments = [
        "--only",
        "padding | left",
        "nn.MultiheadAttention",
        "--models",
        "Llama",
        "--json",
        str(data),
    ]
    assert table.main(arguments) == 0
    padded, multihead = json.loads(data.read_text())["records"]
    assert (padded["status"], padded["outcomes"], padded["reasons"]) == ("right", {"sampled": 2}, [])
    assert (multihead["status"], multihead["outcomes"]) == ("right", {"kept": 1})


def test_what_is_not_installed_is_skipped_loudly(table, monkeypatch):
    monkeypatch.setattr(table, "_installed", lambda package: False)
    trial = next(trial for trial in table.TRIALS if trial.requires == ("peft",))
    record = table._record(trial, "Llama")
    assert (record["status"], record["note"]) == ("SKIPPED", "not here: peft")
    assert "SKIPPED" in table._row(trial.subject, trial.how, [record])


def test_a_failing_trial_is_a_row(table):
    def fail(name):
        raise ValueError("no such thing")

    trial = table.Trial("subject", "how", fail)
    record = table._record(trial, "Llama")
    assert (record["status"], record["note"]) == ("fails", "ValueError: no such thing")


def test_the_page_in_docs_is_made_of_the_data_in_docs(table):
    data = json.loads(DATA.read_text())
    assert table.page(data) == table.PAGE.read_text()
    statuses = {record["status"] for record in data["records"]}
    assert statuses <= {"right", "SKIPPED"}
    skipped = {record["note"] for record in data["records"] if record["status"] == "SKIPPED"}
    assert skipped <= {"not here: a GPU"}
