"""A random attention as the source text of a module, so that what fails can be read and run by itself.

``layer`` is the attention, ``forward`` builds its mask and calls it, perhaps twice, perhaps in a checkpoint,
an autocast region, a vmap or a nested compile region. A case follows from its seed and number alone.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

from fuzz import masks
from fuzz.masks import Mask
from fuzz.namesakes import FUNCTIONS

NAMES = tuple(function.__name__ for function in FUNCTIONS)
TORCH = {name: f"torch.{name}" for name in NAMES} | {
    "scaled_dot_product_attention": "F.scaled_dot_product_attention"
}
# The same operations as their dispatcher names: torch's own, in a spelling that no model's code uses.
ATEN = {"softmax": "aten.softmax.int", "matmul": "aten.matmul", "bmm": "aten.bmm.default"} | {
    name: f"aten.{name}" for name in ("transpose", "scaled_dot_product_attention", "tril", "triu")
}
SOURCES = {"custom op": "fuzz.{}", "custom packet": "torch.ops.fuzz.{}.default", "in graph": "in_graph.{}"}
METHODS: tuple[dict[str, Any], ...] = (
    {"method": "adaptive", "peak": 1.0, "tau": 0.0},
    {"method": "adaptive", "peak": 1.0, "tau": 0.0, "landmarks": 3, "last_rows": 0},
    {"method": "adaptive", "peak": 0.0, "landmarks": 3, "last_rows": 0},
    {"method": "chunked", "alpha_c": 1.0, "alpha_s": 1.0},
    {"method": "stride", "alpha_c": 1.0, "r_w": 1.0},
)


@dataclass
class Case:
    """One random graph: its source, the sizes of its inputs, how it is called and with which options."""

    number: int
    source: str
    sizes: dict[str, int]
    dtype: str
    options: dict[str, Any]
    mask: str
    wrong_mask: bool
    spelling: str
    wrapper: str
    namesake: str = ""
    padding: str = "none"
    grad: str = "no_grad"
    dynamic: str = "static"
    layout: str = "contiguous"
    changed: str = ""
    features: list[str] = field(default_factory=list)

    @property
    def provable(self) -> bool:
        """A causal mask on torch's own operations, of which the report should not say "kept" lightly."""
        return not (self.wrong_mask or self.namesake or self.changed or self.dtype == "float64")


def draw(seed: int, number: int) -> Case:
    """The case of this seed and number; a namesake that it draws is one that its source calls."""
    rng = random.Random(f"{seed}/{number}")
    ops, namesake = _operations(rng)
    while True:
        case = _case(rng, number, ops, namesake)
        if not namesake or _fits(case):
            return case


def _fits(case: Case) -> bool:
    """Namesakes have neither a gradient nor a batching rule, and must be called."""
    if case.wrapper == "vmap" or case.wrapper.startswith("checkpoint"):
        return False
    kind, _, name = case.namesake.rpartition(" ")
    return kind not in SOURCES or SOURCES[kind].format(name) in case.source


def _case(rng: random.Random, number: int, ops: dict[str, str], namesake: str) -> Case:
    sizes = _sizes(rng)
    wrapper = rng.choice(("none",) * 7 + WRAPPERS)
    offset = rng.choice(("(kv_len - q_len)", "(kv_len - q_len)", "offset", str(sizes["k"] - sizes["q"])))
    mask = masks.draw(rng, ops, batched=wrapper != "vmap", offset=offset)
    layer = _Layer(rng, ops, mask, sizes)
    source = _module(rng, layer, mask, wrapper)
    grad = rng.choice(("no_grad",) * 5 + ("inference", "training"))
    if wrapper.startswith("checkpoint"):
        grad = rng.choice(("no_grad", "training"))
    # They have no gradient, or one that a write has spoilt; that of flex_attention is not for CPUs.
    if namesake or layer.changed or layer.spelling == "flex":
        grad = "no_grad"
    options = {**rng.choice(METHODS), "min_seq_len": rng.choice((2, 2, 40)), **rng.choice(_BLOCKS)}
    options["inner"] = rng.choice(("eager", "eager", "aot_eager"))
    return Case(
        number=number,
        source=source,
        sizes=sizes,
        dtype=rng.choice(("float32",) * 7 + ("bfloat16", "bfloat16", "float64")),
        options=options,
        mask=mask.label,
        wrong_mask=mask.wrong,
        spelling=layer.spelling,
        wrapper=wrapper,
        namesake=namesake,
        padding=rng.choice(("none", "left", "right", "both")),
        grad=grad,
        dynamic="static" if wrapper == "vmap" else rng.choice(("static", "static", "dynamic", "marked")),
        layout=rng.choice(("contiguous", "contiguous", "by position")),
        changed=layer.changed,
    )


WRAPPERS = (
    *("checkpoint", "checkpoint reentrant", "checkpoint outside", "checkpoint outside reentrant"),
    *("autocast inside", "autocast outside", "vmap", "nested region", "pinned backend"),
    *("graph break", "graph break"),
)
_BLOCKS = ({"block_q": 16, "block_k": 16}, {"block_q": 32, "block_k": 16}, {"block_q": 64, "block_k": 64}, {})


def _sizes(rng: random.Random) -> dict[str, int]:
    q_len = rng.choice((1, 2, 9, 16, 33, 48, 64, 70, 97, 97))
    kv_heads = rng.choice((1, 2, 4))
    return {
        "batch": rng.choice((1, 2, 3)),
        "heads": kv_heads * rng.choice((1, 1, 2)),
        "kv_heads": kv_heads,
        "q": q_len,
        "k": q_len + rng.choice((0, 0, 0, 1, 16, 29)),
        "dim": rng.choice((8, 16, 32)),
    }


def _operations(rng: random.Random) -> tuple[dict[str, str], str]:
    """How each operation is spelt, and which of them is a namesake."""
    roll = rng.random()
    if roll < 0.7:
        return dict(TORCH), ""
    if roll < 0.76:
        return TORCH | ATEN, ""
    if roll < 0.8:
        return dict(TORCH), rng.choice(("subclass by function", "subclass by dispatch"))
    kind, name = rng.choice(list(SOURCES)), rng.choice(NAMES)
    return TORCH | {name: SOURCES[kind].format(name)}, f"{kind} {name}"


class _Layer:
    """The lines of ``layer(q, k, v, mask)``: scores, mask, softmax, output."""

    def __init__(self, rng: random.Random, ops: dict[str, str], mask: Mask, sizes: dict[str, int]) -> None:
        self.rng, self.ops, self.mask = rng, ops, mask
        self.groups = sizes["heads"] // sizes["kv_heads"]
        self.changed = rng.choice(("",) * 40 + tuple(_CHANGES))
        self.lines = ["b, h, q_len, d = q.shape", "kv_len = k.shape[-2]"]
        if self.changed:
            self.lines.append("q, k, v = q.clone(), k.clone(), v.clone()")
        kind = rng.random()
        if kind < 0.08:
            self._flex()
        elif kind < 0.54:
            self._sdpa()
        else:
            self._eager()
        self.lines.append(
            rng.choice(("return out", "return out", "return out.transpose(1, 2).reshape(b, q_len, -1)"))
        )

    def _pick(self, *choices: str) -> str:
        return self.rng.choice(choices)

    def _repeats(self) -> None:
        if self.groups == 1:
            return
        line = self._pick(
            "{x}[:, :, None].expand(b, {x}.shape[1], {n}, kv_len, d).reshape(b, h, kv_len, d)",
            "{x}[:, :, None, :, :].expand(-1, -1, {n}, -1, -1).flatten(1, 2)",
            "{x}.repeat_interleave({n}, 1)",
            "{repeat_interleave}({x}, {n}, 1)",
            "{x}.repeat(1, {n}, 1, 1)",
            "{x}[:, torch.arange(h) // {n}]",
        )
        self.lines += [f"{x} = " + line.format(x=x, n=self.groups, **self.ops) for x in ("k", "v")]

    def _sdpa(self) -> None:
        self.spelling = self._pick("sdpa", "sdpa", "sdpa positional", "sdpa 3-D")
        call = self.ops["scaled_dot_product_attention"]
        grouped = self.groups > 1 and self.spelling != "sdpa 3-D" and self.rng.random() < 0.5
        if grouped:
            self.spelling += " gqa"
        else:
            self._repeats()
        scale = self._pick("", "", "scale=0.3", "scale=d**-0.5 * 1.5")
        if self.rng.random() < 0.15:
            self.lines.append("q = q * d**-0.5")
            scale = "scale=1.0"
        self._change("early")
        tensors = "q, k, v"
        mask = "mask" if self.mask.kind != "none" else "None"
        if self.spelling.startswith("sdpa 3-D"):
            tensors = "q.reshape(b * h, q_len, d), k.reshape(b * h, kv_len, d), v.reshape(b * h, kv_len, d)"
            mask = mask and mask.replace("mask", _MERGED_MASK)
        causal = self.mask.is_causal
        if self.spelling.startswith("sdpa positional"):
            options = [f"{mask}, 0.0, {causal}"]
        else:
            options = [f"attn_mask={mask}"] if mask != "None" else []
            options += ["is_causal=True"] if causal else []
        options += [scale] if scale else []
        options += ["enable_gqa=True"] if grouped else []
        self.lines.append(f"out = {call}({', '.join((tensors, *options))})")
        if self.spelling.startswith("sdpa 3-D"):
            self.lines.append("out = out.reshape(b, h, q_len, d)")
        self._change("late")

    def _flex(self) -> None:
        self.spelling = "flex"
        grouped = self.groups > 1 and self.rng.random() < 0.5
        if not grouped:
            self._repeats()
        self._change("early")
        options = ["enable_gqa=True"] if grouped else []
        entry = "nq >= nk" if self.mask.is_causal else "entries[nb, nh, nq, nk]"
        if self.mask.kind != "none":
            entries = "mask" if self.mask.kind == "bool" else "(mask == 0)"
            self.lines.append(f"entries = {entries}.expand(b, h, q_len, kv_len)")
        if self.mask.kind != "none" or self.mask.is_causal:
            block = self._pick("16", "32", "128")
            heads = self._pick("None", "h")
            self.lines.append(
                f"blocks = create_block_mask(lambda nb, nh, nq, nk: {entry}, b, {heads}, q_len, kv_len, "
                f'device="cpu", BLOCK_SIZE={block})'
            )
            options.append("block_mask=blocks")
        score = self._pick(
            "", "", "s", "s * 0.5", "s / 2.0 * 3", "s + (nk - nq) * 0.1", "5 * torch.tanh(s / 5)"
        )
        options += [f"score_mod=lambda s, nb, nh, nq, nk: {score}"] if score else []
        options += self._pick("", "scale=0.3").split()
        self.lines.append(f"out = flex_attention({', '.join(('q, k, v', *options))})")
        self._change("late")

    def _eager(self) -> None:
        name = self._pick(*_SCORES)
        self.spelling = f"eager {name}"
        merged = name in ("bmm", "baddbmm")
        self._repeats()
        if self.mask.is_causal:
            self.lines.append("mask = torch.ones(q_len, kv_len, dtype=torch.bool).tril()")
        self._scale_before()
        if merged:
            self.lines.append("q = q.reshape(b * h, q_len, d)")
            self.lines.append("k, v = k.reshape(b * h, kv_len, d), v.reshape(b * h, kv_len, d)")
        self.lines.append("s = " + _SCORES[name].format(**self.ops))
        if not self.scaled and name != "baddbmm":
            self.lines.append(
                self._pick("s = s * d**-0.5", "s = s / d**0.5", "s *= 0.3", "s.div_(d**0.5)", "s = s * 1.0")
            )
        self._change("early")
        if merged and self.rng.random() < 0.4:
            self.lines.append("s = s.view(b, h, q_len, kv_len)")
            merged = False
            remerge = True
        else:
            remerge = False
        self._add_mask(merged)
        sinks = () if merged or self.rng.random() < 0.75 else _SINKS[self._pick(*_SINKS)]
        joining, dropping, sharing = sinks or ((), (), ())
        self.spelling += " sinks" if sinks else ""
        self.lines += [_A_SINK_A_HEAD, *joining] if sinks else []
        self.lines.append("w = " + self._pick(*_SOFTMAX).format(**self.ops))
        self.lines += dropping
        if self.rng.random() < 0.25:
            self.lines.append(self._pick("w = F.dropout(w, 0.0)", "w = F.dropout(w, 0.1, training=False)"))
        self._change("late")
        if remerge:
            self.lines.append("w = w.reshape(b * h, q_len, kv_len)")
        product = self._pick("bmm", "matmul") if name in ("bmm", "baddbmm") else self._pick(*_PRODUCTS)
        self.lines.append("out = " + (_PRODUCTS | _BMM)[product].format(**self.ops))
        if name in ("bmm", "baddbmm"):
            self.lines.append("out = out.view(b, h, q_len, d)")
        self.lines += sharing
        if self.rng.random() < 0.06:
            self.lines.append("out = out + w.reshape(b, h, q_len, kv_len).sum(-1, keepdim=True)")
            self.changed = self.changed or "weights read too"

    def _scale_before(self) -> None:
        self.scaled = self.rng.random() < 0.3
        if self.scaled:
            self.lines.append(
                self._pick("q = q * d**-0.5", "k = k / d**0.5", "q, k = q * d**-0.25, k * d**-0.25")
            )

    def _add_mask(self, merged: bool) -> None:
        if self.mask.kind == "none" and not self.mask.is_causal:
            return
        mask = f"({_MERGED_MASK})" if merged else "mask"
        if self.mask.kind == "float":
            lines = (f"s = s + {mask}", f"s = {mask} + s", f"s += {mask}", f"s = torch.add(s, {mask})")
        else:
            fill = self._pick('float("-inf")', "torch.finfo(s.dtype).min")
            lines = (
                f"s = s.masked_fill(~{mask}, {fill})",
                f"s.masked_fill_({mask}.logical_not(), {fill})",
                f"s = {self.ops['where']}({mask}, s, torch.tensor({fill}, dtype=s.dtype))",
                f"s = {self.ops['masked_fill']}(s, ~{mask}, {fill})",
            )
        self.lines.append(self._pick(*lines))

    def _change(self, place: str) -> None:
        """A write between the steps: what was read before it must not be read after it."""
        if self.changed and _CHANGES[self.changed][0] == place:
            self.lines.append(_CHANGES[self.changed][1])


_MERGED_MASK = "mask if mask.dim() == 2 else mask.expand(b, h, q_len, kv_len).reshape(b * h, q_len, kv_len)"
_CHANGES = {
    "query written early": ("early", "q.mul_(0.5)"),
    "key written early": ("early", "k[..., :3, :] = 0.25"),
    "value written early": ("early", "v[..., -2:, :].zero_()"),
    "query written late": ("late", "q.fill_(2.0)"),
    "key written late": ("late", "k.neg_()"),
    "value written late": ("late", "v.mul_(-1.0)"),
    "values as one late": ("late", "v.copy_(k)"),
}
_SCORES = {
    "matmul": "{matmul}(q, {transpose}(k, -1, -2))",
    "matmul method": "q @ k.transpose(2, 3)",
    "mT": "torch.matmul(q, k.mT)",
    "permute": "{matmul}(q, k.permute(0, 1, 3, 2))",
    "swapped": "{matmul}(k, q.transpose(-1, -2)).transpose(-1, -2)",
    "einsum": 'torch.einsum("bhqd,bhkd->bhqk", q, k)',
    "einsum by position": 'torch.einsum("bqhd,bkhd->bhqk", q.transpose(1, 2), k.transpose(1, 2))',
    "bmm": "{bmm}(q, {transpose}(k, 1, 2))",
    "baddbmm": "torch.baddbmm(torch.zeros(1, q_len, kv_len, dtype=q.dtype), q, k.transpose(1, 2), "
    "beta=0.0, alpha=d**-0.5)",
}
_SOFTMAX = (
    *("{softmax}(s, -1)",) * 6,
    *("s.softmax(-1)", "F.softmax(s, dim=-1)") * 2,
    "F.softmax(s, dim=-1, dtype=torch.float32).to(q.dtype)",
    "F.softmax(s.float(), dim=-1).type_as(s)",
    "torch.softmax(s, dim=s.dim() - 1)",
    "torch.softmax(s, dim=-2)",
    "(s - s.amax(-1, keepdim=True)).exp() / (s - s.amax(-1, keepdim=True)).exp().sum(-1, keepdim=True)",
)
# Lines before the softmax, after it, and after the product; those below "wrong" are no attention sinks.
_A_SINK_A_HEAD = "sinks = (torch.arange(h) * 0.7 - 1).to(s.dtype).view(1, -1, 1, 1)"
_JOIN, _DROP = "s = torch.cat([s, sinks.expand(b, -1, q_len, -1)], -1)", "w = w[..., :-1]"
_LESS, _SHARE = "s = s - s.amax(-1, keepdim=True)", "out = out * share.to(out.dtype)"
_OF = "share = torch.sigmoid({scores}.logsumexp(-1, keepdim=True) - sinks)"
_SINKS = {
    "joined": ((_JOIN,), (_DROP,), ()),
    "joined, less the maximum": ((_JOIN, _LESS), (_DROP,), ()),
    "share": ((_OF.format(scores="s"),), (), (_SHARE,)),
    "wrong column": ((_JOIN,), ("w = w[..., 1:]",), ()),
    "wrong order": ((_LESS, _JOIN), (_DROP,), ()),
    "wrong scale": ((_JOIN, "s = s * 0.5"), (_DROP,), ()),
    "wrong for tokens": (("s = torch.cat([s, s[..., :1]], -1)",), (_DROP,), ()),
    "wrong share": ((_OF.format(scores="(s * 0.5)"),), (), (_SHARE,)),
    "wrong share of what is shifted": ((_LESS, _OF.format(scores="s")), (), (_SHARE,)),
}
_PRODUCTS = {
    "matmul": "{matmul}(w, v)",
    "operator": "w @ v",
    "method": "w.matmul(v)",
    "einsum": 'torch.einsum("bhqk,bhkd->bhqd", w, v)',
}
_BMM = {"bmm": "{bmm}(w, v)"}


def _module(rng: random.Random, layer: _Layer, mask: Mask, wrapper: str) -> str:
    body = "\n    ".join(layer.lines)
    regional = "@torch.compiler.nested_compile_region\n" if wrapper == "nested region" else ""
    call = "layer({q}, k, v, mask)"
    if wrapper in ("checkpoint", "checkpoint reentrant"):
        call = f"checkpoint(layer, {{q}}, k, v, mask, use_reentrant={wrapper.endswith('reentrant')})"
    lines = ["q_len, kv_len = q.shape[-2], k.shape[-2]", "q4 = q", *(mask.lines or ["mask = None"])]
    inner = ["out = " + call.format(q="q")]
    if rng.random() < 0.3:
        inner += [*_between(rng, mask), "out = out + 2 * " + call.format(q="q + 0.1")]
    if wrapper == "graph break":  # the mask is made in one graph and used in the next
        lines += ["torch._dynamo.graph_break()", *inner]
    elif wrapper == "autocast inside":
        lines += ['with torch.autocast("cpu", torch.bfloat16):', *(f"    {line}" for line in inner)]
    elif wrapper == "pinned backend":
        lines += ["with sdpa_kernel(SDPBackend.MATH):", *(f"    {line}" for line in inner)]
    else:
        lines += inner
    lines.append("return out")
    forward = "\n    ".join(lines)
    arguments = "q, k, v, pad, ids, offset, noise, heads"
    return f"{regional}def layer(q, k, v, mask):\n    {body}\n\n\ndef forward({arguments}):\n    {forward}\n"


def _between(rng: random.Random, mask: Mask) -> list[str]:
    """Between two layers that share it, the mask may change."""
    if rng.random() < 0.5:
        return []
    if mask.kind == "bool":
        return [rng.choice(("mask = mask.clone(); mask[..., :1] = True", "mask = mask | (noise > 1)"))]
    if mask.kind == "float":
        return [rng.choice(("mask = mask.clone(); mask[..., :1] = 0.5", "mask = mask + 0.1 * noise"))]
    return []
