"""The backend as users call it: by its name, with modes and options, and what it says when they are wrong."""

import subprocess
import sys

import pytest
import torch
from support.models import LOSSLESS, tiny_llama
from torch._dynamo.exc import BackendCompilerFailed

pytestmark = pytest.mark.filterwarnings("ignore")


def compiled(model, **kwargs):
    return torch.compile(model, backend="sampleattn", **kwargs)


@torch.no_grad()
@pytest.mark.parametrize("inner", ["inductor", "aot_eager", "eager"])
def test_with_every_block_kept_the_logits_are_the_models(llama, tokens, inner):
    expected = llama(tokens).logits
    actual = compiled(llama, options={**LOSSLESS, "inner": inner})(tokens).logits
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("mode", ["default", "reduce-overhead", "max-autotune-no-cudagraphs"])
def test_inductors_modes_are_taken(llama, tokens, mode):
    expected = llama(tokens).logits
    torch.testing.assert_close(compiled(llama, mode=mode)(tokens).logits, expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_inductors_options_reach_inductor_for_this_graph_only(llama, tokens, monkeypatch):
    seen = []
    from torch._inductor import compile_fx, config

    original = compile_fx.compile_fx_inner

    def spy(*args, **kwargs):
        seen.append(config.max_fusion_size)
        return original(*args, **kwargs)

    monkeypatch.setattr(compile_fx, "compile_fx_inner", spy)
    before = config.max_fusion_size
    compiled(llama, options={**LOSSLESS, "inductor": {"max_fusion_size": 7, "fx_graph_cache": False}})(tokens)
    assert config.max_fusion_size == before
    assert not seen or seen == [7]


@torch.no_grad()
@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        pytest.param(
            {"options": {"alpha": 1}}, "unknown option 'alpha'.*known options: method", id="unknown-option"
        ),
        pytest.param({"options": {"alpha_c": 2.0}}, r"'alpha_c' must be in \(0, 1\], got 2.0", id="alpha"),
        pytest.param({"options": {"chunk_n": "2"}}, "'chunk_n' must be an int", id="wrong-type"),
        pytest.param({"mode": "fast"}, "mode must be one of default, .*got 'fast'", id="unknown-mode"),
        pytest.param(
            {"options": {"inductor": {"max_fusion": 1}}},
            "unknown key 'max_fusion' in option 'inductor'",
            id="inductor",
        ),
        pytest.param(
            {"options": {"inner": "eager", "inductor": {"max_fusion_size": 1}}},
            "option 'inductor' needs inner='inductor', got inner='eager'",
            id="inductor-options-without-inductor",
        ),
    ],
)
def test_errors_name_the_argument_and_what_is_allowed(llama, tokens, kwargs, message):
    with pytest.raises(BackendCompilerFailed, match=message):
        compiled(llama, **kwargs)(tokens)


@torch.no_grad()
def test_a_dtype_without_kernels_stays_as_it_was_and_says_so(tokens):
    import sa_compile

    model = tiny_llama().double()
    report = sa_compile.explain(model, tokens, options=LOSSLESS)
    assert {site.outcome for site in report.sites} <= {"exact", "kept"}
    assert all("float64" in site.reason for site in report.sites)
    actual = compiled(model, options={**LOSSLESS, "inner": "eager"})(tokens).logits
    torch.testing.assert_close(actual, model(tokens).logits)


def printed_by(script, **kwargs):
    command = [sys.executable, "-c", script]
    return subprocess.run(command, capture_output=True, text=True, check=True, **kwargs).stdout.strip()


def test_nothing_has_to_be_imported_first():
    script = (
        "import torch; f = torch.compile(lambda x: x + 1, backend='sampleattn');"
        "print(f(torch.zeros(2)).tolist(), 'sampleattn' in torch.compiler.list_backends())"
    )
    printed = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    ).stdout
    assert printed.strip() == "[1.0, 1.0] True"


def test_the_folders_passes_and_kernels_are_not_importable_on_their_own(tmp_path):
    script = "import importlib.util as u; print([u.find_spec(n) for n in ('passes', 'kernels')])"
    assert printed_by(script, cwd=tmp_path) == "[None, None]"
