"""Intervals for what the harness counts."""

from __future__ import annotations

import math

import numpy as np

_Z = 1.959964  # two-sided 95 %


def wilson(right: int, count: int) -> tuple[float, float]:
    """The 95 % Wilson interval of a share of ``right`` in ``count``; (0, 1) for no questions."""
    if count == 0:
        return 0.0, 1.0
    share = right / count
    scale = 1 + _Z**2 / count
    middle = (share + _Z**2 / (2 * count)) / scale
    spread = _Z * math.sqrt(share * (1 - share) / count + _Z**2 / (4 * count**2)) / scale
    return max(0.0, middle - spread), min(1.0, middle + spread)


def paired_ratio(
    right: np.ndarray, reference: np.ndarray, *, resamples: int = 2000, seed: int = 0
) -> tuple[float, float, float]:
    """Sum of ``right`` over sum of ``reference``, with a 95 % bootstrap interval.

    Both hold one count a document, of the same documents; documents are resampled, since questions of one
    document share its text. NaN where the reference is 0 throughout.
    """
    if not reference.sum():
        return math.nan, math.nan, math.nan
    rng = np.random.default_rng(seed)
    drawn = rng.integers(0, len(right), (resamples, len(right)))
    below = reference[drawn].sum(1)
    ratios = right[drawn].sum(1)[below > 0] / below[below > 0]
    low, high = np.quantile(ratios, (0.025, 0.975))
    return float(right.sum() / reference.sum()), float(low), float(high)


def mean_interval(values: np.ndarray) -> tuple[float, float]:
    """Mean and the half-width of its 95 % interval (normal); half-width NaN for fewer than two values."""
    if len(values) < 2:
        return float(np.mean(values)), math.nan
    return float(values.mean()), float(_Z * values.std(ddof=1) / math.sqrt(len(values)))
