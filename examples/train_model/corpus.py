"""Text that any machine with PyTorch has: the sources and documentation of installed packages.

`collect` reads them, `split_of` says which files are held out, `prepare` trains the tokenizer and writes the
token streams. A prepared folder holds ``tokenizer.json``, ``train.npy`` and ``test.npy`` (uint16 token ids,
files one after another, each ending in a newline) and ``manifest.json`` (packages, versions, licences).
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import platform
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

# Licence as each package's own metadata states it; all permissive.
LICENCES = {
    "python": "PSF-2.0",
    "torch": "BSD-3-Clause",
    "transformers": "Apache-2.0",
    "sympy": "BSD-3-Clause",
    "numpy": "BSD-3-Clause",
    "networkx": "BSD-3-Clause",
    "mpmath": "BSD-3-Clause",
    "jinja2": "BSD-3-Clause",
    "fsspec": "BSD-3-Clause",
    "huggingface_hub": "Apache-2.0",
}
BEGIN, END = "<|begin_of_text|>", "<|end_of_text|>"
VOCABULARY = 4096
_SUFFIXES = {".py", ".md", ".rst"}
_SKIPPED_FOLDERS = {
    "site-packages", "dist-packages", "_vendor", "third_party", "lib2to3", "__pycache__", "idlelib",
}  # fmt: skip
_LONGEST_LINE = 400  # characters; longer ones are data tables, not text
# A newline is a token of its own and nothing merges across it, so text tokenizes line by line; digits go in
# pairs, which makes a six-digit number three tokens.
_PATTERN = r"\n| ?\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]+|[^\S\n]+(?!\S)|[^\S\n]+"


@dataclass(frozen=True)
class Source:
    """One file of the corpus; `name` is package/path, the same on every machine."""

    package: str
    name: str
    text: str


def split_of(name: str) -> str:
    """The split of a file, by the hash of its name: 'test' (held out, one in twenty) or 'train'."""
    return "test" if int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) % 20 == 0 else "train"


def package_root(package: str) -> Path | None:
    """Where an installed package's sources are; None if it is not installed."""
    if package == "python":
        return Path(sysconfig.get_paths()["stdlib"])
    spec = importlib.util.find_spec(package)
    return Path(spec.origin).parent if spec and spec.origin else None


def collect(
    packages: Iterable[str] = tuple(LICENCES), *, split: str | None = None, limit: int = 9_000_000
) -> Iterator[Source]:
    """The files of `packages` (those installed), in an order set by the hash of their names.

    `split` keeps one split only; `limit` is the most characters taken from one package. Files seen before
    under another name, non-ASCII-heavy files and files with over-long lines are left out.
    """
    seen: set[bytes] = set()
    for package in packages:
        root = package_root(package)
        if root is None:
            continue
        taken = 0
        names = {f"{package}/{path.relative_to(root).as_posix()}": path for path in _files(root)}
        for name in sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest()):
            if split is not None and split_of(name) != split:
                continue
            text = _read(names[name])
            digest = hashlib.sha256(text.encode()).digest()
            if len(text) < 500 or digest in seen:
                continue
            seen.add(digest)
            taken += len(text)
            if taken > limit:
                break
            yield Source(package, name, text)


def _files(root: Path) -> Iterator[Path]:
    for path in root.rglob("*"):
        if path.suffix in _SUFFIXES and not _SKIPPED_FOLDERS & set(path.relative_to(root).parts[:-1]):
            yield path


def _read(path: Path) -> str:
    """A file's text, ending in one newline; empty if it is not the kind of text wanted."""
    try:
        text = path.read_text(encoding="utf-8").replace("\r\n", "\n").replace("\t", "    ")
    except (UnicodeDecodeError, OSError):
        return ""
    if any(len(line) > _LONGEST_LINE for line in text.split("\n")):
        return ""
    if sum(ord(character) > 127 for character in text) > len(text) // 100:
        return ""
    return text.rstrip() + "\n"


def train_tokenizer(texts: Iterable[str]) -> Tokenizer:
    """A byte-level BPE tokenizer that puts the beginning-of-text token before every text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[BEGIN, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    begin = tokenizer.token_to_id(BEGIN)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A", special_tokens=[(BEGIN, begin)]
    )
    return tokenizer


def encode_stream(tokenizer: Tokenizer, texts: list[str]) -> np.ndarray:
    """The tokens of texts one after another, uint16."""
    encodings = tokenizer.encode_batch(texts, add_special_tokens=False)
    return np.concatenate([np.array(encoding.ids, dtype=np.uint16) for encoding in encodings])


def prepare(folder: Path, task_lines: Iterable[str]) -> None:
    """Collect the corpus, train the tokenizer on it and on `task_lines`, and write the token streams."""
    folder.mkdir(parents=True, exist_ok=True)
    sources = list(collect())
    train = [source for source in sources if split_of(source.name) == "train"]
    tokenizer = train_tokenizer([*(source.text for source in train[::2]), *task_lines])
    tokenizer.save(str(folder / "tokenizer.json"))
    manifest: dict = {"packages": {}, "tokens": {}}
    for package in dict.fromkeys(source.package for source in sources):
        texts = [source for source in sources if source.package == package]
        manifest["packages"][package] = {
            "version": platform.python_version() if package == "python" else version(package),
            "licence": LICENCES[package],
            "files": len(texts),
            "characters": sum(len(source.text) for source in texts),
        }
    for split in ("train", "test"):
        kept = [source.text for source in sources if split_of(source.name) == split]
        stream = encode_stream(tokenizer, kept)
        np.save(folder / f"{split}.npy", stream)
        manifest["tokens"][split] = len(stream)
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
