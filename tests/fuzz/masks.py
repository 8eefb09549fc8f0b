"""Random masks, as source text: causal ones in many spellings, and ones that only look so.

A mask is a bool expression over ``i`` (query positions) and ``j`` (key positions); it becomes the line
``allowed = ...`` and then, for some, an additive tensor ``mask``.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

Ops = dict[str, str]  # operation -> how it is spelt here: torch's, or a namesake's


@dataclass
class Mask:
    """Lines that build the variable ``mask``; ``kind`` is "none", "bool" or "float", ``label`` for counts."""

    kind: str
    label: str
    lines: list[str] = field(default_factory=list)
    is_causal: bool = False
    wrong: bool = False  # only looks like a causal mask: must not be taken for one


_CAUSAL = {
    "<=": "(j[None, :] <= i[:, None])",
    ">=": "(i[:, None] >= j[None, :])",
    "le": "{le}(j.view(1, -1), i.view(-1, 1))",
    "not >": "~(j[None, :] > i[:, None])",
    "difference": "((i[:, None] - j[None, :]) >= 0)",
    "tril": "{tril}(torch.ones(q_len, kv_len, dtype=torch.bool), kv_len - q_len)",
    "tril method": "torch.ones(q_len, kv_len).tril(kv_len - q_len).bool()",
    "tril == 1": "({tril}(torch.ones(q_len, kv_len), kv_len - q_len) == 1)",
    "not triu": "~{triu}(torch.ones(q_len, kv_len, dtype=torch.bool), kv_len - q_len + 1)",
    "masked_fill": "torch.ones(q_len, kv_len, dtype=torch.bool).masked_fill(j[None, :] > i[:, None], False)",
    "square cut": "torch.ones(128, 128, dtype=torch.bool).tril()[kv_len - q_len : kv_len, :kv_len]",
    "4-D": "(j[None, None, None, :] <= i[None, None, :, None]).expand(q4.shape[0], -1, -1, -1)",
}
_LIMITS = {
    "window": "(j[None, :] > i[:, None] - {n})",
    "window tril": "~torch.ones(q_len, kv_len, dtype=torch.bool).tril(kv_len - q_len - {n})",
    "chunk": "(j[None, :] // {n} == i[:, None] // {n})",
}
_PER_KEY = {
    "padding bool": "pad[:, None, None, :].bool()",
    "padding != 0": "(pad[:, None, None, :] != 0)",
    "padding index": "pad.bool()[torch.arange(pad.shape[0])[:, None, None, None], j[None, None, None, :]]",
    "padding == 1": "pad.unsqueeze(1).unsqueeze(2).eq(1)",
    "segments": "(ids[:, None, -q_len:, None] == ids[:, None, None, :])",
}
# What is not causal, or is only for some heads, rows or values.
_WRONG = {
    "anti-causal": "(j[None, :] >= i[:, None])",
    "off by one, later": "(j[None, :] <= i[:, None] + 1)",
    "off by one, earlier": "((j[None, :] < i[:, None]) | (j[None, :] == 0))",
    "transposed tril": "torch.ones(kv_len, kv_len, dtype=torch.bool).tril().t()[kv_len - q_len :]",
    "top left tril": "torch.ones(q_len, kv_len, dtype=torch.bool).tril()",
    "double speed": "(j[None, :] <= i[:, None] * 2)",
    "dilated": "((j[None, :] <= i[:, None]) & ((i[:, None] - j[None, :]) % 2 == 0))",
    "prefix": "((j[None, :] <= i[:, None]) | (j[None, :] < 7))",
    "causal or padding": "((j[None, :] <= i[:, None]) | pad[:, None, None, :].bool())",
    "padded rows": "((j[None, :] <= i[:, None]) & pad[:, None, -q_len:, None].bool() | (j[None, :] == 0))",
    "two-sided window": "((i[:, None] - j[None, :]).abs() < 9)",
    "window of a head": "((j[None, :] <= i[:, None]) & (j > i[:, None] - 5 - 8 * heads[:, None, None]))",
    "data": "((j[None, :] <= i[:, None]) & ((noise[None, :] > -0.5) | (j[None, :] == 0)))",
    "data of queries": "((j[None, :] <= i[:, None]) & ((q4[:, :, :, :1] > 0) | (j[None, :] == 0)))",
    "random": "((noise[None, :] * (i[:, None] + 1)).sin() > -0.5)",
    "scattered": "(torch.ones(q_len, kv_len).tril(kv_len - q_len).index_fill(1, j[1:3], 1.0) == 1)",
    "flipped": "(j[None, :] <= i[:, None]).flip(-1)",
    "rolled": "(j[None, :] <= i[:, None]).roll(1, -1)",
    "cumulative": "(torch.eye(q_len, kv_len).cumsum(-1) == 0) | (j[None, :] == 0)",
}
# The value of what is masked; the last ones only dampen it.
_VALUES = {"-inf": 'float("-inf")', "finfo.min": "torch.finfo(q.dtype).min"}
_DAMPING = {"-2": "-2.0", "-1e4": "-1e4"}
_ADDITIVE = {
    "masked_fill": "torch.zeros(allowed.shape, dtype=q.dtype).masked_fill(~allowed, {value})",
    "masked_fill function": "{masked_fill}(torch.zeros(allowed.shape, dtype=q.dtype), ~allowed, {value})",
    "where": "{where}(allowed, torch.tensor(0.0, dtype=q.dtype), torch.tensor({value}, dtype=q.dtype))",
    "where scalars": "torch.where(allowed, 0.0, {value}).to(q.dtype)",
    "one minus": "(1.0 - allowed.to(q.dtype)) * {value}",
    "two steps": "torch.full(allowed.shape, {value}, dtype=q.dtype) * (~allowed)",
}


def draw(rng: random.Random, ops: Ops, batched: bool, offset: str) -> Mask:
    """A random mask. ``batched``: padding and segments may take part; ``offset``: source of the first query's
    position."""
    roll = rng.random()
    if roll < 0.05:
        return Mask("none", "none")
    if roll < 0.18:
        return Mask("none", "is_causal", is_causal=True)
    lines = [f"i = torch.arange(q_len) + {offset}", "j = torch.arange(kv_len)"]
    wrong = rng.random() < 0.25
    label, condition = _condition(rng, ops, batched, wrong)
    lines.append(f"allowed = {condition}")
    if rng.random() < 0.05:
        lines.append(rng.choice(_WRITES))
        label += ", written in place"
        wrong = True
    if rng.random() < 0.5:
        return Mask("bool", label, [*lines, "mask = allowed"], wrong=wrong)
    return _additive(rng, ops, lines, label, wrong)


_WRITES = (
    "allowed = allowed.clone(); allowed[..., :2] = True",
    "allowed = allowed.clone(); allowed[..., -1:] |= True",
    "allowed = allowed.clone().logical_not_().logical_not_()",
    "allowed = allowed.clone(); allowed[..., 0, :].fill_(True)",
)


def _condition(rng: random.Random, ops: Ops, batched: bool, wrong: bool) -> tuple[str, str]:
    batched_only = ("pad", "q4")
    if wrong:
        names = [name for name in _WRONG if batched or not any(x in _WRONG[name] for x in batched_only)]
        name = rng.choice(names)
        return name, _WRONG[name]
    names = [name for name in _CAUSAL if batched or "q4" not in _CAUSAL[name]]
    name = rng.choice(names)
    parts, labels = [_CAUSAL[name].format(**ops)], [name]
    if rng.random() < 0.25:
        limit = rng.choice(list(_LIMITS))
        parts.append(_LIMITS[limit].format(n=rng.choice((5, 16, 24))))
        labels.append(limit)
    if batched and rng.random() < 0.4:
        per_key = rng.choice(list(_PER_KEY))
        parts.append(_PER_KEY[per_key])
        labels.append(per_key)
    rng.shuffle(parts)
    join = rng.choice((" & ", " * "))
    return " & ".join(labels), join.join(parts)


def _additive(rng: random.Random, ops: Ops, lines: list[str], label: str, wrong: bool) -> Mask:
    damping = rng.random() < 0.12
    values = _DAMPING if damping else _VALUES
    value = rng.choice(list(values))
    names = [name for name in _ADDITIVE if value != "-inf" or "*" not in _ADDITIVE[name]]  # 0 * inf is NaN
    name = rng.choice(names)
    source = _ADDITIVE[name].format(value=values[value], **ops)
    label = f"{label}, {name} {value}"
    lines = [*lines, f"mask = {source}"]
    if rng.random() < 0.1:
        lines.append(rng.choice(("mask = mask + 0.3 * noise", "mask = mask * 1.0", "mask = mask.clone()")))
        label += ", changed"
        wrong = wrong or "noise" in lines[-1]
    return Mask("float", label, lines, wrong=wrong or damping)
