"""The settings that tuning tries: those that each method names (``sa_compile.methods``)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from sa_compile.config import SampleAttentionConfig
from sa_compile.lab.eval.rules import kind_of
from sa_compile.methods import METHODS

BLOCKS = ((128, 128), (128, 64))  # rows and keys of a block


@dataclass(frozen=True)
class Family:
    """The settings of one method."""

    method: str

    def timed_as(self, settings: Mapping[str, Any], blocks: str) -> str:
        """What selection's time depends on, of options or of a rule's settings, as text: a key for its
        measured cost."""
        timed = METHODS[self.method].timed(settings)
        options = "".join(f" {name}={value}" for name, value in timed.items())
        return f"{self.method}{options} {blocks}"


@dataclass(frozen=True)
class Candidate:
    """One setting: the options as the backend takes them, and the harness's name for the same."""

    family: Family
    config: SampleAttentionConfig

    @property
    def rule(self) -> str:
        settings = METHODS[self.family.method].rule_settings(self.config)
        return kind_of(self.family.method)(**settings).spec

    @property
    def blocks(self) -> tuple[int, int]:
        return self.config.block_q, self.config.block_k

    @property
    def timed_as(self) -> str:
        """The key of its selection's measured cost."""
        return self.family.timed_as(vars(self.config), blocks_text(self.blocks))


def blocks_text(blocks: tuple[int, int]) -> str:
    """Block sizes as files and tables name them: "128x64"."""
    return f"{blocks[0]}x{blocks[1]}"


def candidates(families: Sequence[Family], blocks: Sequence[tuple[int, int]]) -> Iterator[Candidate]:
    """Every setting of the families with every pair of block sizes."""
    for block_q, block_k in blocks:
        for family in families:
            for chosen in product(*METHODS[family.method].tried):
                options = {name: value for part in chosen for name, value in part.items()}
                options |= {"method": family.method, "block_q": block_q, "block_k": block_k}
                yield Candidate(family, SampleAttentionConfig.from_options(options))


FAMILIES: tuple[Family, ...] = tuple(Family(method.name) for method in METHODS.values() if method.tried)
