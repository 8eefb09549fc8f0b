"""What a run measures: rules, lengths, and which documents there are."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from sa_compile.lab.eval.rules import parse_rule
from sa_compile.lab.eval.scoring import TEXT_POSITIONS
from sa_compile.lab.eval.tasks.documents import PLACES

FACTS = "facts"  # documents with questions; the other kinds are domains of plain text
DEFAULT_TASKS = ("needle", "multikey", "kv", "vt0", "vt1", "vt2", "babi1", "babi2")
Unit = tuple[str, int, int]  # (kind, length, index) of a document
# What decides which documents there are, whatever rules see them and however many.
_OF_DOCUMENTS = ("model", "tasks", "places", "split", "seed", "haystack", "corpus")


@dataclass(frozen=True)
class Plan:
    """What to measure. Rules are strings of ``parse_rule``; 'full' is always among them.

    ``shard`` (k, n) takes every n-th document, from the k-th on (1 to n): n processes share the work, and
    ``eval-report`` joins what they write.
    """

    model: str
    rules: tuple[str, ...]
    lengths: tuple[int, ...]
    tasks: tuple[str, ...] = DEFAULT_TASKS
    places: tuple[str, ...] = PLACES
    count: int = 10  # documents with questions, per length
    texts: int = 0  # documents of plain text, per length and domain
    domains: tuple[str, ...] = ("code", "prose", "legal")
    text_positions: int = TEXT_POSITIONS  # of a document whose prediction is scored
    greedy: int = 0  # documents, per length, whose first question at the end is also decoded
    split: str = "dev"
    seed: int = 0
    block_q: int = 128
    block_k: int = 128
    cra_chunks: int = 16
    cra_rows: int = 4
    haystack: tuple[str, ...] = ()  # the user's text files instead of installed packages
    corpus: str = ""  # a folder of fetch-texts instead of installed packages
    theorem: int = 0  # documents with questions, per length, whose error is compared with its bound
    sparsity: int = 0  # documents with questions, per length, whose heads' SD(0.95) is measured
    shard: tuple[int, int] = (1, 1)

    def __post_init__(self) -> None:
        specs = [parse_rule(rule).spec for rule in ("full", *self.rules)]
        object.__setattr__(self, "rules", tuple(dict.fromkeys(specs)))
        if self.haystack and self.corpus:
            raise ValueError("'haystack' and 'corpus' are two sources of text: give one")
        number, of = self.shard
        if not 1 <= number <= of:
            raise ValueError(f"'shard' must be k/n with 1 <= k <= n, got {number}/{of}")

    def units(self) -> list[Unit]:
        """Every document of the shard, in an order that fills all lengths evenly.

        A shard takes whole indices: one document of each length and kind, so that shards cost the same.
        """
        facts = [(FACTS, length, index) for index in range(self.count) for length in self.lengths]
        texts = [(d, n, i) for i in range(self.texts) for d in self.domains for n in self.lengths]
        number, of = self.shard
        own = [unit for unit in facts + texts if unit[2] % of == number - 1]
        return sorted(own, key=lambda unit: unit[2])

    def documents(self, *more: str) -> dict[str, Any]:
        """What decides which documents there are, and ``more`` of the plan, as JSON gives it back."""
        return json.loads(json.dumps({name: getattr(self, name) for name in (*_OF_DOCUMENTS, *more)}))


def parse_shard(text: str) -> tuple[int, int]:
    """(2, 6) of "2/6"; ValueError for anything else."""
    number, _, of = text.partition("/")
    if not (number.isdigit() and of.isdigit()):
        raise ValueError(f"a shard is written k/n, such as 2/6, got {text!r}")
    return int(number), int(of)
