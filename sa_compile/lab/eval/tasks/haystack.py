"""The text that facts are hidden in, cut into parts that development, test and training do not share.

A file belongs to a part by the hash of its name. One file in twenty is held out from the training of the
model under ``examples/model`` (its corpus goes by the same hash and the same names); of those, half are
for development and half for the test. Files that training never reads (licence texts, files that the user
names) are only halved.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import random
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

SPLITS = ("dev", "test")
DOMAINS = ("code", "prose", "legal")
# The packages whose sources and documentation stand for long text: those of the example model's corpus.
PACKAGES = (
    "python",
    "torch",
    "transformers",
    "sympy",
    "numpy",
    "networkx",
    "mpmath",
    "jinja2",
    "fsspec",
    "huggingface_hub",
)
_DOMAIN_OF_SUFFIX = {".py": "code", ".md": "prose", ".rst": "prose"}
_SKIPPED = {
    "site-packages",
    "dist-packages",
    "_vendor",
    "third_party",
    "lib2to3",
    "__pycache__",
    "idlelib",
}
_LONGEST_LINE = 400  # characters; longer ones are data tables, not text
_SHORTEST_FILE = 500  # characters
_MOST_TEXT = 2_500_000  # characters of a domain


@dataclass(frozen=True)
class Source:
    """A file of long text; ``name`` is the same on every machine."""

    name: str
    domain: str
    text: str


def held_out(name: str) -> bool:
    """Whether training on the corpus of ``examples/train_model`` leaves this file out."""
    return int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) % 20 == 0


def split_of(name: str) -> str:
    """'dev' or 'test', by the hash of a file's name."""
    return SPLITS[int(hashlib.sha256(name.encode()).hexdigest()[8:16], 16) % 2]


def installed_sources(split: str, domains: Sequence[str] = ("code", "prose")) -> list[Source]:
    """Held-out text of installed packages, in a fixed order.

    'code' is their sources, 'prose' their documentation and the descriptions that distributions come
    with, 'legal' the licences. ValueError for an unknown split or domain.
    """
    check_domains(split, domains)
    found = [*_package_files(split)] if {"code", "prose"} & {*domains} else []
    if {"prose", "legal"} & {*domains}:
        found += _distribution_files()
    return distinct(s for s in found if s.domain in domains and split_of(s.name) == split)


def files_sources(paths: Iterable[Path], split: str) -> list[Source]:
    """The user's own files: a text file's first half is for 'dev', its second half for 'test'."""
    check_domains(split, ())
    sources = []
    for path in paths:
        lines = path.read_text(encoding="utf-8").split("\n")
        half = len(lines) // 2
        part = lines[:half] if split == "dev" else lines[half:]
        domain = _DOMAIN_OF_SUFFIX.get(path.suffix, "prose")
        sources.append(Source(path.name, domain, "\n".join(part).rstrip() + "\n"))
    return sources


def check_domains(split: str, domains: Sequence[str]) -> None:
    if split not in SPLITS:
        raise ValueError(f"'split' must be one of {', '.join(SPLITS)}, got {split!r}")
    for domain in domains:
        if domain not in DOMAINS:
            raise ValueError(f"unknown domain {domain!r}; known: {', '.join(DOMAINS)}")


def _package_files(split: str) -> Iterator[Source]:
    for package in PACKAGES:
        root = _root(package)
        if root is None:
            continue
        for folder, folders, files in os.walk(root):
            folders[:] = sorted(set(folders) - _SKIPPED)
            for file in files:
                path = Path(folder, file)
                name = f"{package}/{path.relative_to(root).as_posix()}"
                if path.suffix not in _DOMAIN_OF_SUFFIX or not held_out(name) or split_of(name) != split:
                    continue
                if text := _read(path):
                    yield Source(name, _DOMAIN_OF_SUFFIX[path.suffix], text)


def _root(package: str) -> Path | None:
    """Where an installed package's sources are; None if it is not installed."""
    if package == "python":
        return Path(sysconfig.get_paths()["stdlib"])
    spec = importlib.util.find_spec(package)
    return Path(spec.origin).parent if spec and spec.origin else None


def _distribution_files() -> Iterator[Source]:
    """Descriptions and licences of every installed distribution."""
    for distribution in metadata.distributions():
        name = distribution.metadata["Name"]
        _, _, description = (distribution.read_text("METADATA") or "").partition("\n\n")
        if text := clean(description):
            yield Source(f"{name}/description", "prose", text)
        for file in distribution.files or ():
            is_licence = file.name.upper().startswith(("LICEN", "NOTICE", "COPYING")) and file.suffix != ".py"
            if is_licence and (text := _read(Path(str(distribution.locate_file(file))))):
                yield Source(f"{name}/{file.name}", "legal", text)


def _read(path: Path) -> str:
    try:
        return clean(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, OSError):
        return ""


def clean(text: str) -> str:
    """A text, ending in one newline; empty if it is not the kind wanted (short, tables, not ASCII)."""
    text = text.replace("\r\n", "\n").replace("\t", "    ")
    if len(text) < _SHORTEST_FILE or any(len(line) > _LONGEST_LINE for line in text.split("\n")):
        return ""
    if sum(ord(character) > 127 for character in text) > len(text) // 100:
        return ""
    return text.rstrip() + "\n"


def distinct(sources: Iterable[Source]) -> list[Source]:
    """Every text once, in the order of the names' hashes, up to _MOST_TEXT of each domain."""
    left = dict.fromkeys(DOMAINS, _MOST_TEXT)
    kept: dict[str, Source] = {}
    for source in sorted(sources, key=lambda s: hashlib.sha256(s.name.encode()).digest()):
        if source.text not in kept and len(source.text) <= left[source.domain]:
            kept[source.text] = source
            left[source.domain] -= len(source.text)
    return list(kept.values())


class Haystack:
    """Tokens of long text, cut into stretches that begin at a line."""

    def __init__(self, tokenizer: Any, sources: Sequence[Source]) -> None:
        """``tokenizer``: a Hugging Face tokenizer. ValueError if there is no text."""
        if not sources:
            raise ValueError("the haystack is empty: no held-out file was found; name files with --haystack")
        lines = [f"{line}\n" for source in sources for line in source.text.rstrip("\n").split("\n")]
        ids = tokenizer(lines, add_special_tokens=False)["input_ids"]
        lengths = np.array([len(line) for line in ids])
        self._stream = np.concatenate([np.asarray(line, dtype=np.int64) for line in ids])
        self._starts = np.concatenate(([0], lengths.cumsum()))
        self._newline = np.asarray(tokenizer("\n", add_special_tokens=False)["input_ids"], dtype=np.int64)
        self.digest = hashlib.sha256("".join(s.name + s.text for s in sources).encode()).hexdigest()[:16]

    def __len__(self) -> int:
        """Number of tokens."""
        return len(self._stream)

    def draw(self, rng: random.Random, length: int) -> tuple[np.ndarray, np.ndarray]:
        """``length`` tokens from the start of a random line on, and where lines begin in them.

        The last line is cut so that a newline ends the stretch. ValueError if there is less text than that.
        """
        last = int(np.searchsorted(self._starts, len(self._stream) - length, side="right"))
        if last == 0:
            raise ValueError(f"the haystack holds {len(self)} tokens, {length} are needed: name more files")
        first = int(rng.random() * last)
        begin = int(self._starts[first])
        piece = self._stream[begin : begin + length].copy()
        piece[-len(self._newline) :] = self._newline
        starts = self._starts[first : int(np.searchsorted(self._starts, begin + length))] - begin
        return piece, starts
