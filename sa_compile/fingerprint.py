"""Which model a profile was tuned for: what can be told of it from the model, and from its graphs.

A fingerprint holds the model's class, its number of parameters, a digest of all their names, shapes and
dtypes, its attentions (heads, head dims, dtype, how many), and digests of values of a few weights.

A backend sees graphs, not the model. From a graph it can tell the attentions in it, and the weights among its
inputs with their names: ``check_graph`` compares those. With the model at hand, ``check_model`` compares all.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensor

_WEIGHTS = 8  # that are digested, evenly spread over the model's matrices
_VALUES = 256  # of each
_NAME_PARTS = re.compile(r"\._(?:modules|parameters)\['([^']+)'\]")


class WrongModel(ValueError):
    """A profile is used with another model than the one it was tuned for."""


class ReportedAttention(Protocol):
    """What is read of an attention's row in a report (``passes.site_record``)."""

    @property
    def module_path(self) -> str: ...
    @property
    def q_heads(self) -> int | str: ...
    @property
    def kv_heads(self) -> int | str: ...
    @property
    def head_dim(self) -> int | str: ...
    @property
    def value_head_dim(self) -> int | str: ...
    @property
    def dtype(self) -> str: ...


@dataclass(frozen=True)
class AttentionKind:
    """Attentions that look alike, and how many of them one forward pass of the model has."""

    q_heads: int
    kv_heads: int
    head_dim: int
    value_head_dim: int
    dtype: str
    count: int = 0

    def __str__(self) -> str:
        dims = f"{self.head_dim}"
        if self.value_head_dim != self.head_dim:
            dims += f" (values {self.value_head_dim})"
        return f"{self.q_heads}/{self.kv_heads} heads of {dims}, {self.dtype}"


@dataclass(frozen=True)
class Weight:
    """A parameter, with a digest of 256 values at even distances as they lie in memory."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    digest: str


@dataclass(frozen=True)
class Fingerprint:
    """See the module's docstring; ``layout`` is the digest of all parameters' names, shapes and dtypes."""

    model_class: str
    parameters: int
    layout: str
    attentions: tuple[AttentionKind, ...]
    weights: tuple[Weight, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Fingerprint:
        """The inverse of :meth:`to_dict`. KeyError or TypeError for data that lacks a part."""
        attentions = tuple(AttentionKind(**entry) for entry in data["attentions"])
        weights = tuple(Weight(**{**entry, "shape": tuple(entry["shape"])}) for entry in data["weights"])
        return cls(data["model_class"], data["parameters"], data["layout"], attentions, weights)


@dataclass(frozen=True)
class Compared:
    """How much of a fingerprint a graph showed: attentions, weights, and weights with their values."""

    attentions: int
    weights: int
    values: int

    def __str__(self) -> str:
        return f"{self.attentions} attentions, {self.weights} weights, values of {self.values}"


def fingerprint(model: nn.Module, sites: Iterable[ReportedAttention]) -> Fingerprint:
    """The fingerprint of a model; ``sites`` are the causal attentions that ``explain`` reports of it."""
    matrices = [(name, p) for name, p in model.named_parameters() if p.ndim >= 2]
    spread = {round(n * (len(matrices) - 1) / max(_WEIGHTS - 1, 1)) for n in range(_WEIGHTS)}
    chosen = [matrices[index] for index in sorted(spread)] if matrices else []
    return Fingerprint(
        type(model).__name__,
        sum(p.numel() for p in model.parameters()),
        _layout(model),
        tuple(dataclasses.replace(kind, count=count) for kind, count in Counter(map(kind_of, sites)).items()),
        tuple(_weight(name, parameter) for name, parameter in chosen),
    )


def kind_of(site: ReportedAttention) -> AttentionKind:
    """The kind of an attention in a report, without a count. ValueError for one that was not understood."""
    sizes = (site.q_heads, site.kv_heads, site.head_dim, site.value_head_dim)
    if not all(isinstance(size, int) for size in sizes):
        raise ValueError(
            f"{site.module_path}: heads and head dims of an attention must be fixed, got {sizes}"
        )
    q_heads, kv_heads, head_dim, value_head_dim = map(int, sizes)
    return AttentionKind(q_heads, kv_heads, head_dim, value_head_dim, site.dtype)


def check_model(expected: Fingerprint, model: nn.Module, profile: str) -> None:
    """Compare everything but the attentions with a model at hand; :class:`WrongModel` says what differs.

    Weights that are not there (fake or meta tensors) are compared by name, shape and dtype.
    """
    wrong = []
    if type(model).__name__ != expected.model_class:
        wrong.append(f"class {expected.model_class}, here {type(model).__name__}")
    count = sum(p.numel() for p in model.parameters())
    if count != expected.parameters:
        wrong.append(f"{expected.parameters} parameters, here {count}")
    elif _layout(model) != expected.layout:
        wrong.append("parameters of other names, shapes or dtypes")
    parameters = dict(model.named_parameters())
    for weight in expected.weights:
        if weight.name in parameters:
            wrong += _differences(weight, parameters[weight.name])
    _raise(profile, wrong)


def check_graph(
    expected: Fingerprint,
    gm: fx.GraphModule,
    example_inputs: Sequence[Any],
    sites: Sequence[ReportedAttention],
    profile: str,
) -> Compared:
    """Compare what a graph shows of the model; returns how much was compared.

    ``sites`` are those that take the profile's settings. Raises :class:`WrongModel` for an attention of a
    kind that the profile does not know, for more of a kind than the model has, and for a weight that the
    profile names and that has another shape, dtype or other values.
    """
    known = {dataclasses.replace(kind, count=0): kind.count for kind in expected.attentions}
    found = Counter(map(kind_of, sites))
    wrong = []
    for kind, count in found.items():
        if kind not in known:
            wrong.append(f"attention with {_listed(known)}, here {kind}")
        elif count > known[kind]:
            wrong.append(f"{known[kind]} attentions with {kind}, here {count}")
    seen = values = 0
    for name, tensor in _named_weights(gm, example_inputs):
        for weight in expected.weights:
            if _same_name(weight.name, name):
                wrong += _differences(weight, tensor)
                seen += 1
                values += _has_values(tensor)
    _raise(profile, wrong)
    return Compared(sum(found.values()), seen, values)


def _listed(kinds: Iterable[AttentionKind]) -> str:
    return " or ".join(map(str, kinds))


def _raise(profile: str, wrong: Sequence[str]) -> None:
    if wrong:
        raise WrongModel(
            f"profile {profile!r} was tuned for another model: it has {'; '.join(wrong)}. Tune this model, "
            "or leave the option 'profile' out"
        )


def _named_weights(gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Iterable[tuple[str, Tensor]]:
    """Parameters among a Dynamo graph's inputs, with their dotted names as Dynamo reached them."""
    placeholders = [node for node in gm.graph.nodes if node.op == "placeholder"]
    for node, value in zip(placeholders, example_inputs, strict=False):
        source = getattr(node.meta.get("grapharg"), "source", None)
        if not isinstance(value, Tensor) or source is None:
            continue
        name = source.name() if callable(source.name) else source.name
        parts = _NAME_PARTS.findall(name)
        if parts and "._parameters[" in name:
            yield ".".join(parts), value


def _same_name(one: str, other: str) -> bool:
    """Equal, or one of the two was reached through a module around the model."""
    return one == other or one.endswith(f".{other}") or other.endswith(f".{one}")


def _layout(model: nn.Module) -> str:
    lines = [f"{name} {tuple(p.shape)} {_dtype(p)}" for name, p in model.named_parameters()]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _weight(name: str, tensor: Tensor) -> Weight:
    return Weight(name, tuple(tensor.shape), _dtype(tensor), _digest(tensor))


def _differences(weight: Weight, tensor: Tensor) -> list[str]:
    shape, dtype = tuple(tensor.shape), _dtype(tensor)
    if (shape, dtype) != (weight.shape, weight.dtype):
        return [f"{weight.name} of {list(weight.shape)} {weight.dtype}, here {list(shape)} {dtype}"]
    if _has_values(tensor) and _digest(tensor) != weight.digest:
        return [f"other values in {weight.name}"]
    return []


def _has_values(tensor: Tensor) -> bool:
    return not isinstance(tensor, FakeTensor) and tensor.device.type != "meta"


@torch.no_grad()
def _digest(tensor: Tensor) -> str:
    """SHA-256 of up to 256 values at even distances."""
    flat = tensor.detach().reshape(-1)
    count = min(_VALUES, flat.numel())
    index = torch.arange(count, device=flat.device) * (flat.numel() - 1) // max(count - 1, 1)
    values = flat[index].contiguous().cpu().view(torch.uint8)
    return hashlib.sha256(bytes(values.tolist())).hexdigest()


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
