"""Ablations vary one setting at a time around the default; their report reads from the JSON alone."""

import json

import pytest
from support.text_model import long_text

from sa_compile import cli
from sa_compile.config import SampleAttentionConfig
from sa_compile.lab.eval import ablation
from sa_compile.lab.eval.ablation_report import Ablation, axis_table
from sa_compile.lab.eval.rules import parse_rule


@pytest.mark.parametrize("name", ablation.AXES)
def test_an_axis_holds_the_default_once_and_changes_nothing_else(name):
    points = ablation.AXES[name].points()
    (default,) = (point for point in points if point.is_default)
    assert default.rule in ("chunked", "stride", "adaptive", parse_rule("adaptive:peak=1").spec)
    assert default.block == 128
    assert len({(point.rule, point.block) for point in points}) == len(points)
    plain = vars(parse_rule(default.rule))
    for point in points:
        changed = {n for n, v in vars(parse_rule(point.rule)).items() if v != plain[n]}
        allowed = {"window", "sample_rows"} if name == "block" else {name.removeprefix("stride_")}
        assert changed <= allowed


def test_the_defaults_that_zero_stands_for_are_the_options():
    config = SampleAttentionConfig()
    values = {"alpha_c": config.alpha_c, "alpha_s": config.alpha_s, "sample_rows": config.block_q}
    assert values == ablation._ZERO_STANDS_FOR
    rule = parse_rule("chunked")
    assert (rule.alpha, rule.chunk_n, rule.window) == (config.alpha_c, config.chunk_n, config.window_blocks)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, model, tokenizer):
    path = tmp_path_factory.mktemp("model")
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    (path / "words.txt").write_text(long_text(1500))
    return path


def test_the_command_line_measures_and_reports(folder, capsys):
    axes = ["alpha", "sink", "block", "r_w"]
    arguments = ["ablate", "--model", str(folder), "--axes", *axes, "--lengths", "1280", "--count", "1"]
    arguments += ["--tasks", "needle", "kv", "--haystack", str(folder / "words.txt"), "--device", "cpu"]
    assert cli.main([*arguments, "--json", str(folder / "a.json")]) == 0
    assert "alpha: share that columns and slashes reach" in capsys.readouterr().out
    result = json.loads((folder / "a.json").read_text())
    assert list(result["axes"]) == axes and set(result["results"]) == {"128", "64", "32"}
    rules = [line["rule"] for line in result["results"]["128"]["scores"]]
    assert len(rules) == len(set(rules)), "the default is measured once, whatever axes it is on"
    for own in result["results"].values():
        for line in own["scores"]:
            if line["rule"] == "full":
                continue
            for errors, bounds in zip(line["exact"]["error"], line["exact"]["bound"], strict=True):
                assert all(e <= b + 1e-3 for e, b in zip(errors, bounds, strict=True))
    table = axis_table(Ablation(result), "block")
    assert "128*" in table and "largest error" in table

    assert cli.main(["eval-report", str(folder / "a.json"), "--out", str(folder / "out")]) == 0
    written = {path.name for path in (folder / "out").iterdir()}
    assert written == {"report.md", *(f"ablation_{axis}.png" for axis in axes)}
    report = (folder / "out" / "report.md").read_text()
    assert all(f"## {axis}: " in report for axis in axes)
    assert report.count("Around `chunked`.") == 3 and report.count("Around `stride`.") == 1
    settings = result["results"]["128"]["settings"]["stride"]
    settings["r_row"] /= 2  # as if this had been the default when it was measured
    assert Ablation(result).default("r_w") == f"stride:r_row={settings['r_row']}"

    assert cli.main(["eval-report", *[str(folder / "a.json")] * 2, "--out", str(folder / "out")]) == 2
    assert "one ablation at a time" in capsys.readouterr().err
    assert cli.main([*arguments[:4], "depth", *arguments[8:], "--json", str(folder / "b.json")]) == 2
    assert "unknown axis 'depth'; known: alpha" in capsys.readouterr().err
