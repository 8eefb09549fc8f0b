"""The options of the backend, those of the methods among them; from here the documentation is generated."""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

from tabulate import tabulate

from sa_compile.methods import METHODS, Method, method_of
from sa_compile.methods.adaptive import AdaptiveOptions
from sa_compile.methods.base import SharedOptions
from sa_compile.methods.chunked import ChunkedOptions
from sa_compile.methods.options import flag, one_of, option, typed
from sa_compile.methods.stride import StrideOptions
from sa_compile.profile import LengthRange, Profile, load_profile

DEFAULT = "adaptive"
INNER_BACKENDS = ("inductor", "aot_eager", "eager")
# What only a compiler can follow.
_COMPILER_ONLY = ("trace", "inner", "inductor")
# Every other option says which blocks are kept: a profile sets those, for each range of lengths.
_NOT_SELECTION = ("min_seq_len", "profile", "trace", "stats", "inner", "inductor")
# What checks of other options read.
_CHECKED_FIRST = ("method", "inner", "block_q", "block_k")


def _known_method(options: Any, name: str, value: Any) -> Any:
    return one_of(*METHODS)(options, name, value)


def _path(what: str) -> Any:
    """None, or a path."""
    check = typed(str, f"{what} path as str, or None")
    return lambda options, name, value: None if value is None else check(options, name, value)


def _inductor_options(options: Any, name: str, value: Any) -> dict[str, Any]:
    if value is not None:
        typed(Mapping, "a dict of Inductor options")(options, name, value)
    return dict(value or {})


@dataclass(frozen=True)
class _Choice:
    method: str = option(
        DEFAULT,
        "Selection rule: "
        + "; ".join(f"'{name}' {METHODS[name].summary}" for name in sorted(METHODS, key=DEFAULT.__ne__))
        + ".",
        _known_method,
    )


@dataclass(frozen=True)
class SampleAttentionConfig(StrideOptions, SharedOptions, AdaptiveOptions, ChunkedOptions, _Choice):
    """Every option of ``torch.compile(model, backend="sampleattn", options={...})``.

    Values are plain comparable data, because Dynamo compares ``options`` to decide whether compiled code
    can be shared. Raises ``TypeError`` for a wrong type and ``ValueError`` for a value out of range; both
    name the option, what came and what is allowed. Source: arXiv 2406.15486, DESIGN sections 4 and 7.
    """

    profile: str | None = option(
        None,
        "File that `python -m sa_compile tune` wrote for this model: it sets the options above for each "
        "range of prompt lengths.",
        _path("a file's"),
    )
    trace: str | None = option(
        None,
        "Folder that receives each graph before and after the rewrite, and the report.",
        _path("a folder's"),
    )
    stats: bool = option(
        False, "Collect density and measured CRA per layer and head; results do not change.", flag
    )
    inner: Literal["inductor", "aot_eager", "eager"] = option(
        "inductor",
        "Backend that gets the rewritten graph: 'inductor', or 'aot_eager' / 'eager' for debugging.",
        one_of(*INNER_BACKENDS),
    )
    inductor: Mapping[str, Any] = option(
        None,
        "Inductor options handed on, as torch.compile(options=...) takes them.",
        _inductor_options,
        hash=False,
    )

    def __new__(cls, *arguments: Any, **options: Any) -> SampleAttentionConfig:
        """Of a method that was registered since, the options are those here and its own."""
        method = options.get("method", *arguments[:1])
        return super().__new__(cls._with_options_of(method))

    @classmethod
    def _with_options_of(cls, method: Any) -> type[SampleAttentionConfig]:
        known, kind = METHODS.get(method) if isinstance(method, str) else None, cast(Any, cls)
        return cls if known is None or issubclass(cls, known.options) else _extended(kind, known)

    def __post_init__(self) -> None:
        declared = {field.name: field for field in dataclasses.fields(self)}
        for name in dict.fromkeys((*_CHECKED_FIRST, *declared)):
            check = declared[name].metadata["check"]
            if check is not None:
                object.__setattr__(self, name, check(self, name, getattr(self, name)))
        object.__setattr__(self, "_tuned", load_profile(self.profile) if self.profile is not None else None)
        self._check_profile(
            option.name for option in dataclasses.fields(self) if getattr(self, option.name) != option.default
        )

    @classmethod
    def from_options(cls, options: Mapping[str, Any] | None) -> SampleAttentionConfig:
        """The config that an ``options`` dict describes; an unknown name is a ``ValueError``.

        An option that the method does not read, or not with what others are set to, is a warning.
        """
        if options is None:
            return cls()
        if not isinstance(options, Mapping):
            raise TypeError(f"options must be a dict, got {type(options).__name__}")
        known = [f.name for f in dataclasses.fields(cls._with_options_of(options.get("method")))]
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
        method = method_of(self)
        unread = method.unread(self)
        for name in given:
            if name in unread:
                other = unread[name]
                warnings.warn(
                    f"option {name}={getattr(self, name)!r} has no effect with {other}="
                    f"{getattr(self, other)!r}: method {method.name!r} does not look at it",
                    stacklevel=3,
                )
            readers = [other for other in METHODS.values() if name in other.reads]
            of_stats = self.stats and name in method.read_by_stats
            if readers and method not in readers and not of_stats:
                warnings.warn(
                    f"option {name}={getattr(self, name)!r} has no effect with method={self.method!r}: it "
                    f"belongs to {' and '.join(repr(reader.name) for reader in readers)}",
                    stacklevel=3,
                )

    @property
    def tuned(self) -> Profile | None:
        """The profile as read when this config was made."""
        return self._tuned  # type: ignore[attr-defined, no-any-return]

    def in_range(self, length_range: LengthRange) -> SampleAttentionConfig:
        """These options with the profile's for a range of lengths; a bad one is a ``ValueError``."""
        options = dict(length_range.options or {})
        known = selection_options(self._with_options_of(options.get("method", self.method)))
        where = f"profile {self.profile!r}, range {length_range}"
        for name in options:
            if name not in known:
                raise ValueError(f"{where}: unknown option {name!r}; a profile may set {', '.join(known)}")
        try:
            return dataclasses.replace(self, profile=None, min_seq_len=length_range.first, **options)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{where}: {error}") from None

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


@functools.cache
def _extended(cls: Any, method: Method) -> type[SampleAttentionConfig]:
    """The options with those of a method that ``cls`` does not name. ValueError if one is there already."""
    known = {field.name for field in dataclasses.fields(cls)}
    taken = known.intersection(method.own_options)
    if taken:
        raise ValueError(f"method {method.name!r} declares an option that is there already: {min(taken)!r}")
    return dataclasses.make_dataclass(cls.__name__, (), bases=(method.options, cls), frozen=True)


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


def without_compiler_options(options: Mapping[str, Any] | None) -> dict[str, Any]:
    """The options that mean something where no graph is compiled."""
    return {name: value for name, value in (options or {}).items() if name not in _COMPILER_ONLY}


def selection_options(
    options: SampleAttentionConfig | type[SampleAttentionConfig] | None = None,
) -> tuple[str, ...]:
    """Names of the options that say which blocks are kept, and with which block sizes.

    ``options``: those of whose method; None: those of the methods that come with the package.
    """
    names = (option.name for option in dataclasses.fields(options or SampleAttentionConfig))
    return tuple(name for name in names if name not in _NOT_SELECTION)


def options_table() -> str:
    """The options as a Markdown table: what docs/options.md holds."""
    own = (field for method in METHODS.values() for field in dataclasses.fields(method.options))
    declared = {field.name: field for field in (*dataclasses.fields(SampleAttentionConfig), *own)}
    rows = [(f"`{name}`", f"`{field.default!r}`", field.metadata["help"]) for name, field in declared.items()]
    return tabulate(rows, ("option", "default", "meaning"), tablefmt="github")
