"""A step that trains is exact everywhere: its gradient is SDPA's, however it is checkpointed or frozen."""

import functools
import warnings

import pytest
import torch
from support.models import SMALL_BLOCKS, tiny_llama
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

import sa_compile
import sa_compile.hf
from sa_compile import report
from sa_compile.passes.conditions.training import hidden_sign

# Of these tokens a sampled attention drops most blocks: a gradient through one would be far off.
SPARSE = {**SMALL_BLOCKS, "peak": 1.0, "tau": 1.0, "budget": 1.0, "last_rows": 0}
COMPILED = {"backend": "sampleattn", "options": {**SPARSE, "inner": "eager"}}
LENGTH = 128


def tokens():
    return torch.randint(0, 96, (1, LENGTH), generator=torch.Generator().manual_seed(1))


def compiled_whole(model):
    model.compile(**COMPILED)
    return model


def compiled_by_layer(model):
    for layer in model.model.layers:
        layer.compile(**COMPILED)
    return model


def compiled_attentions(model):
    for layer in model.model.layers:
        layer.self_attn.compile(**COMPILED)
    return model


def attn_implementation(model):
    model.set_attn_implementation("sampleattn")
    sa_compile.hf.configure(model, SPARSE)
    return model


USES = [compiled_whole, compiled_by_layer, compiled_attentions, attn_implementation]


def checkpointed(model, reentrant):
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    model.enable_input_require_grads()
    return model.train()


def first_layer_frozen(model):
    for part in (model.model.embed_tokens, model.model.layers[0]):
        part.requires_grad_(False)
    return model.eval()  # frozen layers without gradient checkpointing: only grad mode tells


def only_outputs_of_attention_train(model):
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("o_proj" in name or "mlp" in name)
    return model.eval()


STEPS = {
    "reentrant": functools.partial(checkpointed, reentrant=True),
    "non-reentrant": functools.partial(checkpointed, reentrant=False),
    "reentrant, first layer frozen": lambda model: first_layer_frozen(model) and checkpointed(model, True),
    "first layer frozen": first_layer_frozen,
    "LoRA behind the attention": only_outputs_of_attention_train,
}


def gradients(model, forward=None):
    forward = forward or (lambda: model(tokens(), use_cache=False).logits)
    forward().square().mean().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_same_gradients(actual, expected):
    assert actual.keys() == expected.keys() and actual
    for name in expected:
        error = (actual[name] - expected[name]).norm() / expected[name].norm()
        assert error <= 1e-5, f"{name}: relative error {error:.1e}"


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
def test_the_gradient_of_a_step_is_sdpas(step, use):
    expected = gradients(step(tiny_llama()))
    with warnings.catch_warnings(), report.collect() as reports:
        warnings.filterwarnings("error", message="attention is not sampled")
        model = use(step(tiny_llama()))
        assert_same_gradients(gradients(model), expected)
    sites = [site for graph in reports for site in graph.sites] or sa_compile.hf.report(model).sites
    assert {site.outcome for site in sites} <= {"exact", "kept"}
    assert all("training" in site.reason for site in sites)


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "non-reentrant"])
@pytest.mark.parametrize("use", [compiled_whole, attn_implementation])
def test_a_checkpoint_around_the_whole_model(use, reentrant, mode):
    def step(model):
        getattr(model, mode)()
        embedded = model.model.embed_tokens(tokens())

        def forward(embedded):
            return model(inputs_embeds=embedded, use_cache=False).logits

        return gradients(model, lambda: checkpoint(forward, embedded, use_reentrant=reentrant))

    expected = step(tiny_llama())
    model = use(tiny_llama())
    model.eval()
    with torch.no_grad():
        model(tokens(), use_cache=False)  # sampled: this graph must not serve the step
    assert_same_gradients(step(model), expected)


def test_a_function_without_modules_under_a_reentrant_checkpoint():
    def attention(q, k, v):
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)

    tensors = [torch.randn(1, 2, LENGTH, 16, requires_grad=True) for _ in range(3)]
    compiled = torch.compile(attention, **COMPILED)
    assert not hidden_sign()
    with torch.inference_mode():
        assert not hidden_sign()
    with report.collect() as reports:
        out = checkpoint(compiled, *tensors, use_reentrant=True)
        assert torch.equal(out, attention(*tensors))
        with torch.no_grad():
            compiled(*tensors)
    assert [graph.sites[0].outcome for graph in reports] == ["exact", "sampled"]
    assert "autograd.Function" in reports[0].sites[0].reason


@torch.no_grad()
def test_a_function_under_forward_mode_ad_keeps_its_tangents():
    def attention(q, k, v):
        mask = torch.full((LENGTH, LENGTH), float("-inf")).triu(1)
        return (q @ k.mT * 0.25 + mask).softmax(-1) @ v

    tensors = [torch.randn(1, 2, LENGTH, 16) for _ in range(3)]
    compiled = torch.compile(attention, **COMPILED)
    compiled(*tensors)  # sampled: this graph must not serve what follows
    with forward_ad.dual_level():
        dual = [forward_ad.make_dual(x, torch.ones_like(x)) for x in tensors]
        tangents = [forward_ad.unpack_dual(function(*dual)).tangent for function in (compiled, attention)]
    torch.testing.assert_close(*tangents)


class Attention(torch.nn.Module):
    """Reads its training flag nowhere, so Dynamo holds no guard on it by itself."""

    def forward(self, x):
        return torch.nn.functional.scaled_dot_product_attention(x, x, x, is_causal=True)


@torch.no_grad()
@pytest.mark.parametrize("inside", [False, True], ids=["the module itself", "inside another"])
def test_training_mode_without_gradients_is_exact_and_says_so(inside):
    attention = Attention()
    module = torch.nn.Sequential(attention) if inside else attention
    x = torch.randn(1, 2, LENGTH, 16)
    compiled = torch.compile(module, **COMPILED)
    with report.collect() as reports:
        with pytest.warns(UserWarning, match=r"call model.eval\(\)"):
            assert torch.equal(compiled(x), module(x))
        module.eval()
        sampled = compiled(x)
        module.train()
        assert torch.equal(compiled(x), module(x))
    assert not torch.allclose(sampled, module(x), atol=1e-3)
    assert [graph.sites[0].outcome for graph in reports] == ["exact", "sampled"]
    assert "model.eval()" in reports[0].sites[0].reason


@torch.no_grad()
def test_training_mode_without_gradients_in_transformers_is_exact_and_says_so():
    model = attn_implementation(tiny_llama()).train()
    with pytest.warns(UserWarning, match=r"call model.eval\(\)"):
        actual = model(tokens(), use_cache=False).logits
    torch.testing.assert_close(actual, tiny_llama()(tokens(), use_cache=False).logits)
    assert {site.outcome for site in sa_compile.hf.report(model).sites} <= {"exact", "kept"}


@torch.no_grad()
def test_short_prompts_in_training_mode_warn_of_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.compile(Attention(), **COMPILED)(torch.randn(1, 2, 24, 16))
