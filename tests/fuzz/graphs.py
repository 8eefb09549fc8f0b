"""Fuzz: random small attention graphs, compiled and compared with eager.

    python tests/fuzz/graphs.py --count 2000 --seed 0 --out /tmp/fuzz.json
    python tests/fuzz/graphs.py --only 123 --show

Selection keeps every block, so whatever is sampled, exact or kept must equal the uncompiled function: in fp32
and fp64 itself, in bf16 and under autocast as closely to fp32 as the uncompiled one. The exit status is 1 if
a result is wrong, or if the backend fails where plain torch.compile does not.
"""

from __future__ import annotations

import argparse
import json
import linecache
import math
import sys
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.utils.checkpoint import checkpoint

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from fuzz import namesakes
from fuzz.draw import Case, draw

from sa_compile import report
from sa_compile.provenance import provenance

ARGUMENTS = ("q", "k", "v", "pad", "ids", "offset", "noise", "heads")
TOLERANCE = {"float32": 2e-4, "float64": 1e-9, "bfloat16": 2e-4}


@dataclass
class Outcome:
    """What became of one case. ``status``: "right", "wrong", "crash", or why there was nothing to compare."""

    case: Case
    status: str
    error: float = 0.0
    message: str = ""
    sites: list[tuple[str, str, str]] = field(default_factory=list)  # spelling, outcome, reason


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the cases, print the summary, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--only", type=int, nargs="*", help="run the cases of these numbers alone")
    parser.add_argument("--show", action="store_true", help="print each case and what became of it")
    parser.add_argument("--out", type=Path, help="JSON file of the counts and of every failure")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    torch._logging.set_logs(all=50)
    numbers = given.only or range(given.first, given.first + given.count)
    outcomes = []
    for outcome in run(given.seed, numbers):
        outcomes.append(outcome)
        if given.show or outcome.status in ("wrong", "crash"):
            print(describe(outcome), flush=True)
    result = {**provenance(command=_command(given)), **summary(outcomes)}
    if given.out:
        given.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({name: result[name] for name in ("statuses", "outcomes")}, indent=1))
    return 1 if result["failures"] else 0


def run(seed: int, numbers: Iterable[int]) -> Iterator[Outcome]:
    """Each case in turn, in a fresh Dynamo."""
    for number in numbers:
        case = draw(seed, number)
        torch._dynamo.reset()
        yield _compare(case)


def summary(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Counts of statuses and of attentions, by what the case is made of, and the failures in full."""
    compared = [outcome for outcome in outcomes if outcome.status in ("right", "wrong")]
    by_outcome: Counter[str] = Counter(site[1] for outcome in compared for site in outcome.sites)
    parts: dict[str, dict[str, Counter[str]]] = {}
    for outcome in compared:
        case = outcome.case
        values = {"wrapper": case.wrapper, "dtype": case.dtype, "grad": case.grad, "dynamic": case.dynamic}
        values |= {"spelling": case.spelling, "namesake": case.namesake, "changed": case.changed}
        values |= {"mask": "not causal" if case.wrong_mask else "causal"}
        for part, value in values.items():
            counts = parts.setdefault(part, {}).setdefault(value or "none", Counter())
            counts.update(site[1] for site in outcome.sites or [("", "no attention found", "")])
    reasons = Counter(
        site[2]
        for outcome in compared
        if outcome.case.provable
        for site in outcome.sites
        if site[1] == "kept"
    )
    return {
        "statuses": dict(Counter(outcome.status for outcome in outcomes)),
        "outcomes": dict(by_outcome),
        "largest_error": max((o.error for o in compared if o.status == "right"), default=0.0),
        "parts": {part: dict(sorted(values.items())) for part, values in parts.items()},
        "kept_though_provable": dict(reasons.most_common()),
        "failures": [
            {"error": o.error, "message": o.message, "sites": o.sites, **asdict(o.case)}
            for o in outcomes
            if o.status in ("wrong", "crash")
        ],
    }


def describe(outcome: Outcome) -> str:
    """A case and its outcome as text."""
    case = {name: value for name, value in asdict(outcome.case).items() if name != "source" and value}
    head = f"--- {outcome.case.number} {outcome.status} {outcome.error:.2e} {outcome.message}"
    return f"{head}\n{case}\n{outcome.sites}\n{outcome.case.source}"


def _compare(case: Case) -> Outcome:
    """Two calls of the same shapes: what the first one compiles must also serve other values and masks."""
    function, in_float = _function_of(case), _in_float(case)
    rounds = [_inputs(case, again) for again in (False, True)]
    try:
        expected = [_call(case, function, inputs) for inputs in rounds]
        truth = [_call(in_float, _function_of(in_float), map(_as_float, inputs)) for inputs in rounds]
    except Exception as error:
        return Outcome(case, "eager refuses", message=_short(error))
    with report.collect() as reports:
        try:
            actual = [_call(case, function, inputs, _with_backend) for inputs in rounds]
        except Exception as error:
            text = traceback.format_exc()[-3000:]
            if _plain_refuses(case, function, rounds[0]):
                return Outcome(case, "torch.compile refuses", message=_short(error))
            return Outcome(case, "crash", message=text)
    sites = [(s.spelling, s.outcome, s.reason) for graph in reports for s in graph.sites]
    error, allowed = max(_errors(case, actual, expected, truth), key=lambda pair: pair[0] - pair[1])
    if error <= allowed:
        return Outcome(case, "right", error, sites=sites)
    plain = [_call(case, function, inputs, _without_backend) for inputs in rounds]
    if any(wrong > right for wrong, right in _errors(case, plain, expected, truth)):
        return Outcome(case, "torch.compile differs", error, sites=sites)
    return Outcome(case, "wrong", error, f"allowed {allowed:.1e}", sites)


def _with_backend(case: Case, function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function, backend="sampleattn", options=case.options, **_dynamic(case))


def _without_backend(case: Case, function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function, backend=case.options["inner"], **_dynamic(case))


def _plain_refuses(case: Case, function: Callable[..., Any], inputs: list[Any]) -> bool:
    torch._dynamo.reset()
    try:
        _call(case, function, inputs, _without_backend)
    except Exception:
        return True
    return False


def _function_of(case: Case) -> Callable[..., Any]:
    name = f"<fuzz {case.number}>"
    linecache.cache[name] = (len(case.source), None, case.source.splitlines(True), name)
    namespace: dict[str, Any] = {
        **{"torch": torch, "F": F, "aten": torch.ops.aten, "fuzz": torch.ops.fuzz, "checkpoint": checkpoint},
        **{"flex_attention": flex_attention, "create_block_mask": create_block_mask},
        **{"in_graph": namesakes.in_graph, "sdpa_kernel": sdpa_kernel, "SDPBackend": SDPBackend},
    }
    exec(compile(case.source, name, "exec"), namespace)
    forward = namespace["forward"]
    if case.wrapper != "vmap":
        return forward  # type: ignore[no-any-return]
    in_dims = (0, 0, 0, *[None] * (len(ARGUMENTS) - 3))
    return lambda *args: torch.func.vmap(forward, in_dims=in_dims)(*args)


def _inputs(case: Case, again: bool) -> list[Any]:
    """Tensors of the case's sizes; ``again``: others, with padding, segments and an offset that differ."""
    generator = torch.Generator().manual_seed(2 * case.number + again)
    padding = {"left": "right", "right": "none", "none": "both", "both": "left"}[case.padding]
    padding = padding if again else case.padding
    sizes, dtype = case.sizes, getattr(torch, case.dtype)
    lead = (2,) if case.wrapper == "vmap" else ()

    def tensor(heads: str, length: str) -> Tensor:
        shape = (*lead, sizes["batch"], sizes[heads], sizes[length], sizes["dim"])
        made = torch.randn(shape, generator=generator).to(dtype)
        if case.layout == "by position":
            made = made.transpose(-2, -3).contiguous().transpose(-2, -3)
        return _subclassed(case, made)

    pad = torch.ones(sizes["batch"], sizes["k"], dtype=torch.int64)
    amount = min(3, sizes["k"] - 1)
    if amount and padding in ("left", "both"):
        pad[0, :amount] = 0
    if amount and padding in ("right", "both"):
        pad[-1, -amount:] = 0
    ids = (
        (torch.arange(sizes["k"]) // max(1, sizes["k"] // (3 if again else 2)))
        .expand(sizes["batch"], -1)
        .contiguous()
    )
    noise = torch.randn(sizes["k"], generator=generator)
    tensors = [tensor("heads", "q"), tensor("kv_heads", "k"), tensor("kv_heads", "k")]
    offset = torch.tensor((sizes["k"] - sizes["q"]) // (2 if again else 1))
    return [*tensors, pad, ids, offset, noise, torch.arange(sizes["heads"])]


def _subclassed(case: Case, tensor: Tensor) -> Tensor:
    if case.namesake == "subclass by function":
        return tensor.as_subclass(namesakes.ByFunction)
    if case.namesake == "subclass by dispatch":
        return namesakes.ByDispatch(tensor)
    return tensor


def _dynamic(case: Case) -> dict[str, bool]:
    return {"dynamic": True} if case.dynamic == "dynamic" else {}


def _in_float(case: Case) -> Case:
    """The case without autocast and in fp32, which the low precisions are measured against."""
    wrapper = "none" if case.wrapper == "autocast outside" else case.wrapper
    source = case.source.replace("torch.bfloat16):", "enabled=False):")
    changed = {"source": source, "wrapper": wrapper, "dtype": "float32", "dynamic": "static"}
    return Case(**{**asdict(case), **changed})


def _as_float(tensor: Tensor) -> Tensor:
    if tensor.dtype != torch.bfloat16:
        return tensor
    if isinstance(tensor, namesakes.ByDispatch):
        return namesakes.ByDispatch(tensor.inner.float())
    return tensor.float()


def _call(
    case: Case,
    function: Callable[..., Any],
    inputs: Iterable[Any],
    compiled: Callable[[Case, Callable[..., Any]], Callable[..., Any]] | None = None,
) -> list[Tensor]:
    """The results, and under "training" the gradients of query, key and value."""
    training = case.grad == "training"
    inputs = [x.detach().clone().requires_grad_(training and x.is_floating_point()) for x in inputs]
    if case.dynamic == "marked" and compiled:
        for tensor in inputs[:3]:
            torch._dynamo.maybe_mark_dynamic(tensor, tensor.dim() - 2)
    called = compiled(case, function) if compiled else function
    if case.wrapper.startswith("checkpoint outside"):
        reentrant = case.wrapper.endswith("reentrant")
        inner = called

        def called(*args: Any) -> Any:
            return checkpoint(inner, *args, use_reentrant=reentrant)

    mode = torch.inference_mode if case.grad == "inference" else torch.no_grad
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=case.wrapper == "autocast outside")
    if not training:
        with mode(), autocast:
            return [_plain(called(*inputs))]
    with autocast:
        out = called(*inputs)
    weights = torch.linspace(-1, 1, out.numel()).view(out.shape)
    (out.float() * weights).sum().backward()
    return [out.detach(), *(x.grad for x in inputs[:3] if x.grad is not None)]


def _plain(tensor: Tensor) -> Tensor:
    if isinstance(tensor, namesakes.ByDispatch):
        return tensor.inner
    return tensor.as_subclass(Tensor)


def _errors(case: Case, *rounds: list[list[Tensor]]) -> list[tuple[float, float]]:
    return [_error(case, *one) for one in zip(*rounds, strict=True)]


def _error(
    case: Case, actual: list[Tensor], expected: list[Tensor], truth: list[Tensor]
) -> tuple[float, float]:
    """Largest error relative to the largest value, and what is allowed."""
    if len(actual) != len(expected):
        return math.inf, 0.0
    low = case.dtype == "bfloat16" or "autocast" in case.wrapper
    error, allowed = 0.0, 0.0
    for one, other, true in zip(actual, expected, truth, strict=True):
        if one.shape != other.shape or one.dtype != other.dtype:
            return math.inf, 0.0
        error = max(error, _distance(one, true if low else other))
        allowed = max(allowed, 4 * _distance(other, true) + 4e-3 if low else TOLERANCE[case.dtype])
    return error, allowed


def _distance(one: Tensor, other: Tensor) -> float:
    """NaN must be where NaN is."""
    one, other = one.double(), other.double()
    if not torch.equal(one.isnan(), other.isnan()):
        return math.inf
    difference = (one.nan_to_num() - other.nan_to_num()).abs().max()
    return float(difference / other.nan_to_num().abs().max().clamp(min=1.0))


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"[:300]


def _command(given: argparse.Namespace) -> str:
    return f"python tests/fuzz/graphs.py --count {given.count} --seed {given.seed} --first {given.first}"


if __name__ == "__main__":
    sys.exit(main())
