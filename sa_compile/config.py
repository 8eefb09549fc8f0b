"""The options of the backend: their only definition, from which the documentation is generated."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from tabulate import tabulate

from sa_compile.kernels.defaults import (
    ADAPTIVE_LANDMARKS,
    ADAPTIVE_TAU,
    ALPHA,
    BUDGET,
    BUDGET_ROWS,
    BUDGET_TAU,
    LAST_ROWS,
    MEANS,
)
from sa_compile.profile import LengthRange, Profile, load_profile

METHODS = ("chunked", "stride", "adaptive")
# Options that only some methods read.
_METHODS_OF = {
    "alpha_c": ("chunked", "stride"),
    "alpha_s": ("chunked",),
    "chunk_n": ("chunked",),
    "sample_rows": ("chunked",),
    "tau": ("adaptive",),
    "landmarks": ("adaptive",),
    "budget": ("adaptive",),
    "budget_tau": ("adaptive",),
    "budget_rows": ("adaptive",),
    "means": ("adaptive",),
    "window_blocks": ("chunked", "adaptive"),
    "last_rows": ("chunked", "adaptive"),
    "r_w": ("stride",),
    "r_row": ("stride",),
}
# With ``stats``, 'adaptive' measures CRA on the rows that these say.
_OF_STATS = ("chunk_n", "sample_rows")
BLOCK_SIZES = (16, 32, 64, 128)
INNER_BACKENDS = ("inductor", "aot_eager", "eager")
# What only a compiler can follow.
_COMPILER_ONLY = ("trace", "inner", "inductor")
# Every other option says which blocks are kept: a profile sets those, for each range of lengths.
_NOT_SELECTION = ("min_seq_len", "profile", "trace", "stats", "inner", "inductor")


def _option(default: Any, help: str, **kwargs: Any) -> Any:
    return field(default=default, metadata={"help": help}, **kwargs)


@dataclass(frozen=True)
class SampleAttentionConfig:
    """Every option of ``torch.compile(model, backend="sampleattn", options={...})``.

    Values are plain comparable data, because Dynamo compares ``options`` to decide whether compiled code
    can be shared. Raises ``TypeError`` for a wrong type and ``ValueError`` for a value out of range; both
    name the option, what came and what is allowed. Source: arXiv 2406.15486, DESIGN sections 4 and 7.
    """

    method: Literal["chunked", "stride", "adaptive"] = _option(
        "adaptive",
        "Selection rule: 'adaptive' scores all rows against a few keys of every block and keeps what they "
        "look for, wherever in the prompt, and what sampled rows give too much attention to be left out "
        "(docs/pretrained.md); 'chunked' "
        "samples the tail rows of chunk_n chunks and keeps columns and slashes (arXiv 2406.15486v3), for "
        "questions that close the prompt; "
        "'stride' samples rows at a stride and keeps columns and a window (v2).",
    )
    alpha_c: float = _option(
        ALPHA,
        "Share of the sampled attention that the kept columns must reach (methods 'chunked' and 'stride'), "
        "in (0, 1].",
    )
    alpha_s: float = _option(
        ALPHA,
        "Share of the sampled attention that the kept slashes must reach (method 'chunked'), in (0, 1].",
    )
    chunk_n: int = _option(
        2,
        "Number of query chunks whose tail rows are sampled (method 'chunked'; with stats, also the rows "
        "whose CRA method 'adaptive' measures), >= 1.",
    )
    sample_rows: int = _option(
        0,
        "Rows sampled at the end of each chunk, 0 for as many as block_q (method 'chunked'; with stats, also "
        "the rows whose CRA method 'adaptive' measures), >= 0.",
    )
    tau: float = _option(
        ADAPTIVE_TAU,
        "A block is kept if the shares of attention that a query block's rows give its keys reach this in "
        "their 2-norm; 0 keeps every block (method 'adaptive'), in [0, 1].",
    )
    landmarks: int = _option(
        ADAPTIVE_LANDMARKS,
        "Keys that stand for a key block beside its mean (method 'adaptive'): large ones in different "
        "directions, in [0, block_k]; on Hopper 7 and 15 have the fastest kernel.",
    )
    budget: float = _option(
        BUDGET,
        "What may be left out of a query block's attention (method 'adaptive'): blocks go from the smallest "
        "share on, as long as a share times (itself and twice what went before it) stays below this squared; "
        "in [0, 1], 1: neither this nor 'budget_tau' is looked at, and 'tau' alone decides.",
    )
    budget_tau: float = _option(
        BUDGET_TAU,
        "A block is kept, too, if the shares of its keys on the rows that 'budget' samples reach this in "
        "their 2-norm (method 'adaptive'), in [0, 1].",
    )
    budget_rows: int = _option(
        BUDGET_ROWS,
        "Rows of a query block whose attention 'budget' is measured on, a power of two; half as many each "
        "time a prompt of more than 16384 keys doubles, 4 at least (method 'adaptive').",
    )
    means: bool = _option(
        MEANS,
        "Blocks that are left out count by their mean key and value (method 'adaptive'): better on models "
        "trained for retrieval, several times worse on pretrained ones (docs/pretrained.md).",
    )
    block_q: int = _option(128, "Rows of a query block: one of 16, 32, 64, 128.")
    block_k: int = _option(128, "Keys of a key block: one of 16, 32, 64, 128; at most block_q.")
    min_seq_len: int = _option(
        4096, "Prompts with fewer query rows stay exact: sampling would cost more than it saves, >= 1."
    )
    keep_sink: bool = _option(True, "Always keep the first key block, where attention sinks live.")
    window_blocks: int = _option(
        2,
        "Block diagonals that are always kept, the main one included (methods 'chunked' and "
        "'adaptive'), >= 1.",
    )
    last_rows: int = _option(
        LAST_ROWS,
        "Rows at the end of the prompt, where its question stands, that attend to every key: their query "
        "blocks keep every block (methods 'chunked' and 'adaptive'), >= 0. Of a prompt that is padded on the "
        "right they are the last ones before the padding.",
    )
    r_w: float = _option(
        0.08, "Window kept for every row, as a share of the keys (method 'stride'), in (0, 1]."
    )
    r_row: float = _option(0.05, "Share of the query rows that is sampled (method 'stride'), in (0, 1].")
    profile: str | None = _option(
        None,
        "File that `python -m sa_compile tune` wrote for this model: it sets the options above for each "
        "range of prompt lengths.",
    )
    trace: str | None = _option(
        None, "Folder that receives each graph before and after the rewrite, and the report."
    )
    stats: bool = _option(
        False, "Collect density and measured CRA per layer and head; results do not change."
    )
    inner: Literal["inductor", "aot_eager", "eager"] = _option(
        "inductor",
        "Backend that gets the rewritten graph: 'inductor', or 'aot_eager' / 'eager' for debugging.",
    )
    inductor: Mapping[str, Any] = _option(
        None, "Inductor options handed on, as torch.compile(options=...) takes them.", hash=False
    )

    def __post_init__(self) -> None:
        if self.inductor is not None:
            self._typed("inductor", Mapping, "a dict of Inductor options")
        object.__setattr__(self, "inductor", dict(self.inductor or {}))
        self._one_of("method", METHODS)
        self._one_of("inner", INNER_BACKENDS)
        self._one_of("block_q", BLOCK_SIZES)
        self._one_of("block_k", BLOCK_SIZES)
        if self.block_k > self.block_q:
            raise ValueError(f"option 'block_k' must be at most block_q ({self.block_q}), got {self.block_k}")
        for name in ("alpha_c", "alpha_s", "r_w", "r_row"):
            self._share(name)
        self._in_range("tau", (int, float), 0, 1)
        for name in ("budget", "budget_tau"):
            self._in_range(name, (int, float), 0, 1)
        for name in ("tau", "budget", "budget_tau"):
            object.__setattr__(self, name, float(getattr(self, name)))
        self._at_least("budget_rows", 1)
        if self.budget_rows & (self.budget_rows - 1):
            self._fail("budget_rows", "a power of two", ValueError)
        self._in_range("landmarks", int, 0, self.block_k)
        for name in ("chunk_n", "min_seq_len", "window_blocks"):
            self._at_least(name, 1)
        for name in ("sample_rows", "last_rows"):
            self._at_least(name, 0)
        for name in ("keep_sink", "means", "stats"):
            self._typed(name, bool, "a bool")
        if self.trace is not None:
            self._typed("trace", str, "a folder's path as str, or None")
        object.__setattr__(self, "_tuned", self._load_profile())
        self._check_profile(
            option.name for option in dataclasses.fields(self) if getattr(self, option.name) != option.default
        )

    @classmethod
    def from_options(cls, options: Mapping[str, Any] | None) -> SampleAttentionConfig:
        """The config that an ``options`` dict describes; an unknown name is a ``ValueError``.

        An option that the method does not read is a warning.
        """
        if options is None:
            return cls()
        if not isinstance(options, Mapping):
            raise TypeError(f"options must be a dict, got {type(options).__name__}")
        known = [f.name for f in dataclasses.fields(cls)]
        unknown = [name for name in options if name not in known]
        if unknown:
            raise ValueError(
                f"unknown option {unknown[0]!r} for backend 'sampleattn'; known options: {', '.join(known)}"
            )
        config = cls(**options)
        config._check_profile(options)
        config._warn_of_unread(options)
        return config

    def _warn_of_unread(self, given: Iterable[str]) -> None:
        if self.tuned is not None:  # it may set a method for each range
            return
        for name in given:
            methods = _METHODS_OF.get(name, METHODS)
            of_stats = self.method == "adaptive" and self.stats and name in _OF_STATS
            if self.method not in methods and not of_stats:
                warnings.warn(
                    f"option {name}={getattr(self, name)!r} has no effect with method={self.method!r}: it "
                    f"belongs to {' and '.join(map(repr, methods))}",
                    stacklevel=3,
                )

    @property
    def means_dropped(self) -> bool:
        """Is a dropped block taken by its mean key and value, instead of not at all?"""
        return self.method == "adaptive" and self.means

    @property
    def rows_of_a_chunk(self) -> int:
        """Rows sampled at the end of each chunk: ``sample_rows``, or as many as a query block holds."""
        return self.sample_rows or self.block_q

    @property
    def tuned(self) -> Profile | None:
        """The profile as read when this config was made."""
        return self._tuned  # type: ignore[attr-defined, no-any-return]

    def in_range(self, length_range: LengthRange) -> SampleAttentionConfig:
        """These options with the profile's for a range of lengths; a bad one is a ``ValueError``."""
        known, options = selection_options(), dict(length_range.options or {})
        where = f"profile {self.profile!r}, range {length_range}"
        for name in options:
            if name not in known:
                raise ValueError(f"{where}: unknown option {name!r}; a profile may set {', '.join(known)}")
        try:
            return dataclasses.replace(self, profile=None, min_seq_len=length_range.first, **options)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{where}: {error}") from None

    def _load_profile(self) -> Profile | None:
        if self.profile is None:
            return None
        self._typed("profile", str, "a file's path as str, or None")
        return load_profile(self.profile)

    def _check_profile(self, explicit: Iterable[str]) -> None:
        """The profile's options must be good ones, and none of the explicit options may contradict them."""
        if self.tuned is None:
            return
        given = set(explicit)
        if "min_seq_len" in given and self.min_seq_len != self.tuned.first_length:
            self._contradicts("min_seq_len", f"begins at {self.tuned.first_length}")
        for length_range in self.tuned.ranges:
            self.in_range(length_range)
            for name, tuned in (length_range.options or {}).items():
                if name in given and getattr(self, name) != tuned:
                    self._contradicts(name, f"says {name}={tuned!r} for {length_range}")

    def _contradicts(self, name: str, profile_says: str) -> None:
        raise ValueError(
            f"option {name}={getattr(self, name)!r} contradicts profile {self.profile!r}, which "
            f"{profile_says}: leave one of the two out"
        )

    def to_dict(self) -> dict[str, Any]:
        """All options as plain data, for JSON and cache keys."""
        return dataclasses.asdict(self)

    def _fail(self, name: str, allowed: str, error: type[Exception]) -> None:
        raise error(f"option {name!r} must be {allowed}, got {getattr(self, name)!r}")

    def _typed(self, name: str, kind: type | tuple[type, ...], allowed: str) -> None:
        value = getattr(self, name)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            self._fail(name, allowed, TypeError)

    def _one_of(self, name: str, allowed: tuple[Any, ...]) -> None:
        value = getattr(self, name)
        text = "one of " + ", ".join(repr(a) for a in allowed)
        if isinstance(value, bool) or not isinstance(value, type(allowed[0])):
            self._fail(name, text, TypeError)
        if value not in allowed:
            self._fail(name, text, ValueError)

    def _share(self, name: str) -> None:
        self._typed(name, (int, float), "a number in (0, 1]")
        if not 0.0 < getattr(self, name) <= 1.0:
            self._fail(name, "in (0, 1]", ValueError)
        object.__setattr__(self, name, float(getattr(self, name)))

    def _in_range(self, name: str, kind: type | tuple[type, ...], low: int, high: int) -> None:
        self._typed(name, kind, f"{'an int' if kind is int else 'a number'} in [{low}, {high}]")
        if not low <= getattr(self, name) <= high:
            self._fail(name, f"in [{low}, {high}]", ValueError)

    def _at_least(self, name: str, least: int) -> None:
        self._typed(name, int, f"an int >= {least}")
        if getattr(self, name) < least:
            self._fail(name, f">= {least}", ValueError)


def options_without_compiler(
    options: Mapping[str, Any] | None, place: str, refused: Iterable[str] = _COMPILER_ONLY
) -> SampleAttentionConfig:
    """The config of an options dict where no graph is compiled.

    A set option of ``refused`` is a ``ValueError``, which says that it came for ``place``.
    """
    config, default = SampleAttentionConfig.from_options(options), SampleAttentionConfig()
    for name in refused:
        if getattr(config, name) != getattr(default, name):
            raise ValueError(
                f"option {name!r} needs torch.compile(backend='sampleattn'), got {getattr(config, name)!r} "
                f"for {place}, which compiles nothing"
            )
    return config


def selection_options() -> tuple[str, ...]:
    """Names of the options that say which blocks are kept, and with which block sizes."""
    names = (option.name for option in dataclasses.fields(SampleAttentionConfig))
    return tuple(name for name in names if name not in _NOT_SELECTION)


def options_table() -> str:
    """The options as a Markdown table: what docs/options.md holds."""
    rows = [
        (f"`{option.name}`", f"`{option.default!r}`", option.metadata["help"])
        for option in dataclasses.fields(SampleAttentionConfig)
    ]
    return tabulate(rows, ("option", "default", "meaning"), tablefmt="github")
