"""The settings that tuning tries, as data: a method is one entry of ``FAMILIES``.

An entry says which options it varies, which of them the time of selection depends on, and how the harness
names the settings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from sa_compile.config import SampleAttentionConfig
from sa_compile.kernels.defaults import BEFORE_THE_BUDGET
from sa_compile.lab.eval.rules.adaptive import Adaptive
from sa_compile.lab.eval.rules.sample import Chunked, Stride
from sa_compile.passes.rewrite.selection import forced_slashes

Axis = tuple[Mapping[str, Any], ...]

BLOCKS = ((128, 128), (128, 64))  # rows and keys of a block


@dataclass(frozen=True)
class Family:
    """A method's settings. ``axes``: one entry of each is taken; ``timed``: of options, or of a rule's
    settings, what the time of selection depends on, beside the block sizes; ``rule``: the harness's name of
    the settings."""

    method: str
    axes: tuple[Axis, ...]
    timed: Callable[[Mapping[str, Any]], dict[str, Any]]
    rule: Callable[[SampleAttentionConfig], str]

    def timed_as(self, settings: Mapping[str, Any], blocks: str) -> str:
        """What selection's time depends on, as text: a key for its measured cost."""
        options = "".join(f" {name}={value}" for name, value in self.timed(settings).items())
        return f"{self.method}{options} {blocks}"


@dataclass(frozen=True)
class Candidate:
    """One setting: the options as the backend takes them, and the harness's name for the same."""

    family: Family
    config: SampleAttentionConfig

    @property
    def rule(self) -> str:
        return self.family.rule(self.config)

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
            for chosen in product(*family.axes):
                options = {name: value for part in chosen for name, value in part.items()}
                options |= {"method": family.method, "block_q": block_q, "block_k": block_k}
                yield Candidate(family, SampleAttentionConfig.from_options(options))


def axis(name: str, *values: Any) -> Axis:
    """An axis of one option."""
    return tuple({name: value} for value in values)


def _chunked_rule(config: SampleAttentionConfig) -> str:
    rule = Chunked(
        alpha_c=config.alpha_c,
        alpha_s=config.alpha_s,
        chunk_n=config.chunk_n,
        sample_rows=config.sample_rows,
        sink=config.keep_sink,
        window=forced_slashes(config),
        last=config.last_rows,
    )
    return rule.spec


def _one(name: str) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """Selection's time depends on this option alone."""
    return lambda settings: {name: settings[name]}


def _adaptive_timed(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The landmarks, and how many rows a budget samples. Settings that are older than it have none, and take
    what is left out by its means."""
    settings = {**BEFORE_THE_BUDGET, **settings}
    found = {"landmarks": settings["landmarks"]}
    if settings["budget"] < 1:
        found["rows"] = settings["budget_rows"] if "budget_rows" in settings else settings["rows"]
    if settings["means"] != ("rows" not in found):
        found["means"] = settings["means"]
    return found


def _stride_rule(config: SampleAttentionConfig) -> str:
    return Stride(config.alpha_c, config.r_row, config.r_w, config.keep_sink).spec


def _adaptive_rule(config: SampleAttentionConfig) -> str:
    rule = Adaptive(
        tau=config.tau,
        landmarks=config.landmarks,
        sink=config.keep_sink,
        window=forced_slashes(config),
        last=config.last_rows,
        budget=config.budget,
        rows_tau=config.budget_tau,
        rows=config.budget_rows,
        means=config.means,
    )
    return rule.spec


# Columns and slashes need not share an alpha: columns carry what is looked up, slashes what is near.
_ALPHAS = ((0.8, 0.8), (0.85, 0.85), (0.9, 0.9), (0.95, 0.95), (0.98, 0.98), (0.95, 0.8), (0.98, 0.9))

# What sampled rows add to tau: nothing, with the means of what is left out, or a budget.
_SAMPLED = (
    {"budget": 1.0, "means": True},
    {"budget": 0.018, "means": False},
    {"budget": 0.025, "means": False},
    {"budget": 0.025, "budget_rows": 8, "means": False},
    {"budget": 0.035, "means": False},
    {"budget": 0.05, "means": False},
    {"budget": 0.07, "budget_rows": 8, "means": False},
)

FAMILIES: tuple[Family, ...] = (
    Family(
        "chunked",
        (tuple({"alpha_c": c, "alpha_s": s} for c, s in _ALPHAS), axis("chunk_n", 1, 2, 4)),
        timed=_one("chunk_n"),
        rule=_chunked_rule,
    ),
    Family(
        "stride",
        (axis("alpha_c", 0.9, 0.95, 0.98), axis("r_row", 0.02, 0.05)),
        timed=_one("r_row"),
        rule=_stride_rule,
    ),
    Family(
        "adaptive",
        (axis("tau", 0.1, 0.2, 0.3, 0.5, 0.8), axis("landmarks", 7, 15), _SAMPLED),
        timed=_adaptive_timed,
        rule=_adaptive_rule,
    ),
)
