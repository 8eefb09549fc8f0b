"""Where a run's documents come from: written when asked for, or read from a file of written ones.

A file makes several processes, and machines with other packages installed, see the same documents.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from sa_compile.lab.eval.plan import FACTS, Plan, Unit
from sa_compile.lab.eval.scoring import States
from sa_compile.lab.eval.tasks.corpus import corpus_sources
from sa_compile.lab.eval.tasks.documents import Document, DocumentBuilder, Question, document_seed
from sa_compile.lab.eval.tasks.haystack import Haystack, files_sources, installed_sources

FORMAT = 1
_MOST_REFERENCES = 64  # documents; a run goes through them one by one, a search comes back to a few


class Source(Protocol):
    """Gives documents, and a digest of the text behind each kind of them."""

    def document(self, unit: Unit) -> Document: ...

    def digest(self, kind: str) -> str: ...


class Documents:
    """Documents of a run, one held at a time; ``references``: what full attention predicts in recent ones."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._last: tuple[Unit, Document] | None = None
        self._asked: dict[tuple[int, int], tuple[Question, ...]] = {}
        self.references: dict[Unit, States] = {}

    def get(self, kind: str, length: int, index: int) -> Document:
        unit = (kind, length, index)
        if self._last is None or self._last[0] != unit:
            self._last = unit, self._source.document(unit)
            if kind == FACTS:
                self._asked[length, index] = self._last[1].questions
        return self._last[1]

    def refer(self, unit: Unit, states: States | None) -> None:
        """Keep what full attention predicts of a document, for as long as few others follow."""
        if states is not None:
            self.references[unit] = states
        while len(self.references) > _MOST_REFERENCES:
            del self.references[next(iter(self.references))]

    def digests(self, kinds: set[str]) -> dict[str, str]:
        """A digest of the text behind each kind of document, to tell whether two runs saw the same."""
        return {kind: self._source.digest(kind) for kind in sorted(kinds)}

    def questions(self, scored: set[tuple[int, int]]) -> dict[str, list[list[Any]]]:
        """Task, place and depth of every question, in the order of "right", by "length/index"."""
        for length, index in sorted(scored - self._asked.keys()):
            self.get(FACTS, length, index)
        return {
            f"{length}/{index}": [[q.task, q.place, round(q.depth, 3)] for q in self._asked[length, index]]
            for length, index in sorted(scored)
        }


class Writer:
    """Writes the documents of a plan, from held-out text of installed packages or the plan's own."""

    def __init__(self, plan: Plan, tokenizer: Any) -> None:
        self._plan, self._tokenizer = plan, tokenizer
        self._builders: dict[str, DocumentBuilder] = {}

    def document(self, unit: Unit) -> Document:
        kind, length, index = unit
        plan = self._plan
        seed = document_seed(plan.split, plan.seed, kind, length, index)
        if kind == FACTS:
            return self._builder(kind).build(seed, length, plan.tasks, plan.places)
        return self._builder(kind).text(seed, length)

    def digest(self, kind: str) -> str:
        return self._builder(kind).haystack.digest

    def _builder(self, kind: str) -> DocumentBuilder:
        if kind not in self._builders:
            domains = ("code", "prose") if kind == FACTS else (kind,)
            if self._plan.haystack:
                sources = files_sources(map(Path, self._plan.haystack), self._plan.split)
            elif self._plan.corpus:
                sources = corpus_sources(Path(self._plan.corpus), self._plan.split, domains)
            else:
                sources = installed_sources(self._plan.split, domains)
            haystack = Haystack(self._tokenizer, sources)
            self._builders[kind] = DocumentBuilder(self._tokenizer, haystack)
        return self._builders[kind]


class Stored:
    """Documents of a file that :func:`store` wrote."""

    def __init__(self, path: Path, plan: Plan) -> None:
        """ValueError if the file is of another format or holds other documents than the plan asks for."""
        with np.load(path) as arrays:
            header = json.loads(str(arrays["header"]))
            self._tokens, self._is_text = arrays["tokens"], arrays["is_text"]
        if header.get("format") != FORMAT:
            raise ValueError(f"{path} has format {header.get('format')}; this version reads {FORMAT}")
        if header["documents"] != plan.documents():
            raise ValueError(
                f"{path} holds other documents: {header['documents']}; asked for: {plan.documents()}"
            )
        self._digests: dict[str, str] = header["digests"]
        self._questions: dict[Unit, list[list[Any]]] = {
            (kind, length, index): asked for kind, length, index, asked in header["units"]
        }
        lengths = [0, *(length for _, length, _ in self._questions)]
        self._begins = dict(zip(self._questions, np.cumsum(lengths).tolist(), strict=False))
        missing = [unit for unit in plan.units() if unit not in self._begins]
        if missing:
            raise ValueError(f"{path} lacks {len(missing)} documents, such as {missing[0]}: write more")

    def document(self, unit: Unit) -> Document:
        part = slice(self._begins[unit], self._begins[unit] + unit[1])
        questions = tuple(Question(*fields) for fields in self._questions[unit])
        return Document(self._tokens[part].astype(np.int64), questions, self._is_text[part])

    def digest(self, kind: str) -> str:
        return self._digests[kind]


def store(path: Path, plan: Plan, source: Source) -> dict[Unit, Document]:
    """Write a plan's documents to a compressed .npz file that :class:`Stored` reads; returns them."""
    documents = {unit: source.document(unit) for unit in plan.units()}
    header = {
        "format": FORMAT,
        "documents": plan.documents(),
        "digests": {kind: source.digest(kind) for kind in sorted({unit[0] for unit in documents})},
        "units": [
            [*unit, [[q.task, q.place, q.depth, q.start, q.stop] for q in document.questions]]
            for unit, document in documents.items()
        ],
    }
    tokens = np.concatenate([document.tokens for document in documents.values()])
    with path.open("wb") as file:
        np.savez_compressed(
            file,
            header=np.array(json.dumps(header)),
            tokens=tokens.astype(np.min_scalar_type(int(tokens.max()))),
            is_text=np.concatenate([document.is_text for document in documents.values()]),
        )
    return documents
