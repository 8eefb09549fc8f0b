"""One thing that was tried: what it needs, how it is run with and without the backend, and what came out."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from sa_compile import report

LENGTH, VOCABULARY, WINDOW = 96, 128, 40
# Small blocks, and every block kept: what is sampled must equal the uncompiled model.
OPTIONS = {"inner": "eager", "min_seq_len": 32, "block_q": 16, "block_k": 16, "peak": 0.0}
MODELS = {
    "Llama": ("LlamaConfig", "LlamaForCausalLM", {}),
    "Qwen3": ("Qwen3Config", "Qwen3ForCausalLM", {"head_dim": 16}),
    "Gemma 3": ("Gemma3TextConfig", "Gemma3ForCausalLM", {"head_dim": 16, "sliding_window": WINDOW}),
    "Mistral": ("MistralConfig", "MistralForCausalLM", {"sliding_window": None}),
}
ALL = tuple(MODELS)
ONE = ("Llama",)

Run = Callable[[Any], Sequence[Tensor]]
Compile = Callable[[Any], Any]


@dataclass
class Measured:
    """The attentions that were reported and the largest error against the uncompiled run."""

    sites: list[tuple[str, str, str]]  # outcome, reason, query rows
    error: float
    note: str = ""

    @property
    def outcomes(self) -> dict[str, int]:
        """How many attentions were sampled, exact and kept."""
        counts = Counter(outcome for outcome, _, _ in self.sites)
        return {outcome: counts[outcome] for outcome in ("sampled", "exact", "kept") if counts[outcome]}

    @property
    def reasons(self) -> list[str]:
        """Why attentions were not sampled: "outcome: reason", each once."""
        return sorted({f"{outcome}: {reason}" for outcome, reason, _ in self.sites if outcome != "sampled"})


@dataclass
class Trial:
    """A row of the table. ``run(model name)`` measures it; ``allowed`` is the largest right error."""

    subject: str
    how: str
    run: Callable[[str], Measured]
    models: tuple[str, ...] = ONE
    requires: tuple[str, ...] = ()
    allowed: float = 1e-4
    extra: dict[str, Any] = field(default_factory=dict)


TRIALS: list[Trial] = []


def trial(subject: str, how: str, **settings: Any) -> Callable[[Callable[[str], Measured]], Any]:
    """Make a function of a model's name a row of the table."""

    def register(function: Callable[[str], Measured]) -> Callable[[str], Measured]:
        TRIALS.append(Trial(subject, how, function, **settings))
        return function

    return register


def build(name: str, attn: str = "sdpa", seed: int = 0, **overrides: Any) -> nn.Module:
    """A tiny model with random weights, large enough that attention shows in the logits."""
    config_class, model_class, special = MODELS[name]
    shape = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    shape |= {"num_key_value_heads": 2, "vocab_size": VOCABULARY, "max_position_embeddings": 512}
    shape |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    if name == "Gemma 3":
        shape["layer_types"] = ["sliding_attention", "full_attention"]
    config = getattr(transformers, config_class)(**{**shape, **special, **overrides})
    config._attn_implementation = attn
    torch.manual_seed(seed)
    model = getattr(transformers, model_class)(config).eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear):
                module.weight.normal_(0, module.in_features**-0.5)
    return model  # type: ignore[no-any-return]


def tokens(batch: int = 2, length: int = LENGTH, seed: int = 1) -> Tensor:
    """Random token ids without special ones."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(4, VOCABULARY, (batch, length), generator=generator)


def in_place(model: Any, **options: Any) -> Any:
    """``model.compile(backend="sampleattn")``, the spelling that generate and everything else sees."""
    model.compile(backend="sampleattn", options={**OPTIONS, **options})
    return model


def wrapped(model: Any, **settings: Any) -> Any:
    """``torch.compile(model, backend="sampleattn")``."""
    return torch.compile(model, backend="sampleattn", options=OPTIONS, **settings)


def measure(model: Any, run: Run, compile: Compile = in_place, grad: bool = False) -> Measured:
    """Run a model, and a compiled copy of it; ``run`` returns what is compared."""
    torch._dynamo.reset()
    with torch.set_grad_enabled(grad):
        expected = run(copy.deepcopy(model))
        with report.collect() as reports:
            actual = run(compile(copy.deepcopy(model)))
    return Measured(sites(reports), largest_error(actual, expected))


def sites(reports: Sequence[Any]) -> list[tuple[str, str, str]]:
    """Outcome, reason and query rows of every attention reported."""
    return [(s.outcome, s.reason, str(s.q_len)) for graph in reports for s in graph.sites]


def largest_error(actual: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Relative to the largest value; infinite where shapes differ or NaN is not where it was."""
    errors = [float("inf")] if len(actual) != len(expected) or not expected else [0.0]
    for one, other in zip(actual, expected, strict=False):
        if one.shape != other.shape or not torch.equal(one.isnan(), other.isnan()):
            return float("inf")
        one, other = one.detach().double().nan_to_num(), other.detach().double().nan_to_num()
        errors.append(float((one - other).abs().max() / other.abs().max().clamp(min=1e-6)))
    return max(errors)


def logits(**inputs: Any) -> Run:
    """A forward of the tokens."""
    return lambda model: [model(tokens(), **inputs).logits]


def step(model: Any, **inputs: Any) -> list[Tensor]:
    """One training step: the loss and the gradient of every parameter that has one."""
    ids = tokens()
    loss = model(ids, labels=ids, **inputs).loss
    loss.backward()
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    return [loss.detach(), *gradients]
