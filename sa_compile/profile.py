"""A tuned profile: selection options per range of prompt lengths, in a JSON file that ``tune`` writes.

The file holds ``format`` and ``version``; ``model``, the fingerprint of the model that it was tuned for;
``ranges``, each ``{"first": 4096, "last": 8191, "options": {...}}`` with more that is there to be read; and
where it comes from. ``last`` null: no end; ``options`` null: attention stays exact. Prompts shorter than the
first range stay exact too.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sa_compile.fingerprint import Fingerprint
from sa_compile.kernels.defaults import BEFORE_THE_BUDGET, BEFORE_THE_PEAK, FIRST_BUDGET, SECOND_BUDGET

FORMAT = "sa_compile profile"
VERSION = 5
# Files leave out options at their defaults: what those of method 'adaptive' were in older versions.
_DEFAULTS_OF: dict[int, Mapping[str, Any]] = {
    1: {**BEFORE_THE_BUDGET, **BEFORE_THE_PEAK},
    2: {**FIRST_BUDGET, **BEFORE_THE_PEAK},
    3: {**SECOND_BUDGET, **BEFORE_THE_PEAK},
    4: BEFORE_THE_PEAK,
    VERSION: {},
}


@dataclass(frozen=True)
class LengthRange:
    """Numbers of query rows from ``first`` to ``last`` (None: no end), and the options they get."""

    first: int
    last: int | None
    options: Mapping[str, Any] | None  # None: exact attention

    def __str__(self) -> str:
        return f"{self.first} and more" if self.last is None else f"{self.first} to {self.last}"


@dataclass(frozen=True)
class Profile:
    """What a profile file says; ``digest`` is the SHA-256 of its bytes."""

    path: str
    digest: str
    model: Fingerprint
    ranges: tuple[LengthRange, ...]

    @property
    def first_length(self) -> int:
        """The shortest prompt that has a range."""
        return self.ranges[0].first


def load_profile(path: str) -> Profile:
    """Read a profile file.

    Raises ``FileNotFoundError`` if it is not there, and ``ValueError``, naming the file, if it is no profile,
    of another version of the format, or its ranges are not in order, one after the other.
    """
    try:
        content = Path(path).read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(f"option 'profile': no such file: {path!r}") from None
    try:
        data = json.loads(content)
    except ValueError as error:
        raise ValueError(f"profile {path!r} is not JSON: {error}") from None
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise ValueError(f"{path!r} is no profile: 'format' must be {FORMAT!r}")
    version = data.get("version")
    if version not in tuple(_DEFAULTS_OF):  # of a list or an object a dict would ask for a hash
        raise ValueError(
            f"profile {path!r} has format version {version!r}, this sa_compile reads 1 to {VERSION}: "
            "tune again"
        )
    try:
        model = Fingerprint.from_dict(data["model"])
        ranges = tuple(
            LengthRange(row["first"], row["last"], _options(row["options"], version))
            for row in data["ranges"]
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"profile {path!r} is incomplete: {error!r}") from None
    _check_ranges(path, ranges)
    return Profile(path, hashlib.sha256(content).hexdigest(), model, ranges)


def _options(options: Any, version: int) -> Any:
    """A range's options as this version means them."""
    if isinstance(options, Mapping) and options.get("method", "adaptive") == "adaptive":
        return {**_DEFAULTS_OF[version], **options}
    return options


def _check_ranges(path: str, ranges: tuple[LengthRange, ...]) -> None:
    """Ranges must follow each other without gaps, so that one guard an end decides."""
    if not ranges:
        raise ValueError(f"profile {path!r} has no ranges")
    for one in ranges:
        if not isinstance(one.first, int) or one.first < 1 or not isinstance(one.last, int | None):
            raise ValueError(f"profile {path!r}: a range's ends must be ints >= 1, got {one}")
        if one.options is not None and not isinstance(one.options, Mapping):
            raise ValueError(f"profile {path!r}: 'options' of the range {one} must be an object or null")
    for one, following in zip(ranges, ranges[1:], strict=False):
        if one.last is None or one.last < one.first or following.first != one.last + 1:
            raise ValueError(f"profile {path!r}: the range {one} must end where {following} begins")
    last = ranges[-1]
    if last.last is not None and last.last < last.first:
        raise ValueError(f"profile {path!r}: the range {last} is empty")
