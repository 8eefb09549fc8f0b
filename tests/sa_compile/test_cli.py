"""The command line prints the report, and says what is wrong with its arguments."""

import json

import pytest
import torch
from transformers import LlamaConfig

from sa_compile.cli import main
from sa_compile.kernels import ops


@pytest.fixture
def model_folder(tmp_path):
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=64,
        architectures=["LlamaForCausalLM"],
    )
    config.save_pretrained(tmp_path)
    return tmp_path


def test_explain_prints_a_row_for_equal_layers_and_writes_json(model_folder, tmp_path, capsys):
    out = tmp_path / "report.json"
    assert main(["explain", str(model_folder), "--seq-len", "8192", "--json", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "model.layers.{0-2}.self_attn" in printed
    assert "3 sites: 3 sampled, 0 exact, 0 kept" in printed
    report = json.loads(out.read_text())
    assert [site["outcome"] for site in report["sites"]] == ["sampled"] * 3
    assert report["sites"][0]["q_len"] == 8192


def test_explain_takes_options_and_a_config_file(model_folder, capsys):
    arguments = [
        "explain",
        str(model_folder / "config.json"),
        "--seq-len",
        "64",
        "--option",
        "min_seq_len=100",
    ]
    assert main(arguments) == 0
    assert "0 sampled" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(
            ["explain", "nowhere", "--seq-len", "8"],
            "no such model folder or config file: nowhere",
            id="path",
        ),
        pytest.param(
            ["explain", ".", "--seq-len", "8", "--batch", "0"],
            "--batch must be at least 1, got 0",
            id="batch",
        ),
        pytest.param(
            ["explain", ".", "--seq-len", "8", "--option", "alpha"], "NAME=VALUE, got 'alpha'", id="option"
        ),
    ],
)
def test_bad_arguments_are_named(arguments, message, capsys):
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(["explain", ".", "--seq-len"], id="explain"),
        pytest.param(["eval", "--model", ".", "--rules", "ours", "--json", "x", "--lengths"], id="eval"),
        pytest.param(["tune", "--model", ".", "--out", "x", "--lengths"], id="tune"),
        pytest.param(["bench", "memory", "--model", "llama-3.1-8b", "--lengths"], id="bench"),
    ],
)
@pytest.mark.parametrize("length", ["0", "-1", "8G", "K"])
def test_every_command_names_a_bad_length(arguments, length, capsys):
    with pytest.raises(SystemExit, match="2"):
        main([*arguments[:-1], f"{arguments[-1]}={length}"])
    assert f"a length must be a number, or one with K or M behind it: '{length}'" in capsys.readouterr().err


def test_explain_takes_a_length_in_k(model_folder, capsys):
    assert main(["explain", str(model_folder), "--seq-len", "8k"]) == 0
    assert "8192 x 8192" in capsys.readouterr().out


def test_the_options_page_is_up_to_date(capsys, request):
    assert main(["options"]) == 0
    page = (request.config.rootpath / "docs" / "options.md").read_text()
    assert capsys.readouterr().out.strip() in page, "run `make docs`"


def test_explain_names_the_kernel_of_each_attention(model_folder, capsys):
    arguments = ["explain", str(model_folder), "--seq-len", "8192", "--dtype", "float32"]
    assert main(arguments) == 0
    header, row = [
        line for line in capsys.readouterr().out.splitlines() if "kernel" in line or "self_attn" in line
    ]
    kernel = row[header.index("kernel") :].split()[0]
    expected = ops.attention_kernel(torch.device("cpu"), torch.float32, 16, 16, 128, 128)
    assert kernel == expected
