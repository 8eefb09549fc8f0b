"""The table of CUDA kernels: which one takes a call, and what forcing one means."""

import importlib
import sys
import types
from dataclasses import replace

import pytest
import torch
from support.attention_inputs import Case, make_inputs

from sa_compile.kernels import choice, dispatch, ops
from sa_compile.kernels.choice import Call, choose, preferring

DEVICE = torch.device("cuda")


@pytest.fixture
def gpu(monkeypatch):
    """A function that pretends a GPU of some capability, the CUDA library or none, Triton or none."""

    def pretend(capability=(9, 0), library=True, triton=True):
        monkeypatch.setattr(choice, "_has_triton", lambda: triton)
        choice._from_environment.cache_clear()
        monkeypatch.setattr(choice, "_capability", lambda device: capability)
        monkeypatch.setattr(choice, "has_library_op", lambda name: library)
        choice._first_fitting.cache_clear()

    yield pretend
    choice._first_fitting.cache_clear()
    choice._from_environment.cache_clear()


def attention(dtype=torch.bfloat16, head_dims=(128, 128), block_q=128, block_k=128):
    return Call("block_sparse_attention", DEVICE, dtype, head_dims, block_q, block_k)


def mean_attention(head_dims=(128, 128), block_k=128):
    return Call("block_mean_attention", DEVICE, torch.bfloat16, head_dims, 128, block_k)


def adaptive(dtype=torch.bfloat16, head_dim=128, block_k=128, representatives=16):
    return Call("select_adaptive", DEVICE, dtype, (head_dim, head_dim), 128, block_k, representatives)


def peaks(**given):
    return replace(adaptive(**given), op="select_peaks")


def budget_rest(head_dims=(128, 128), block_k=128):
    return Call("select_budget_rest", DEVICE, torch.bfloat16, head_dims, 128, block_k)


def rest_attention(head_dims=(128, 128), block_k=128):
    return Call("block_rest_attention", DEVICE, torch.bfloat16, head_dims, 128, block_k)


def represent(dtype=torch.bfloat16, head_dim=128, block_k=128, landmarks=7):
    dims = (head_dim, head_dim)
    return Call("block_representatives", DEVICE, dtype, dims, block_k=block_k, representatives=1 + landmarks)


def test_hoppers_kernels_are_named_without_a_gpu():
    assert choice.on_hopper(attention()) == "cuda_sm90"
    assert choice.on_hopper(attention(head_dims=(80, 80))) == "triton"
    assert choice.on_hopper(attention(torch.float32)) == "pytorch"


@pytest.mark.parametrize(
    "call, machine, expected",
    [
        pytest.param(attention(), {}, "cuda_sm90", id="hopper"),
        pytest.param(attention(torch.float16, (192, 128), 128, 64), {}, "cuda_sm90", id="fp16 192/128"),
        pytest.param(attention(torch.float32), {}, "pytorch", id="fp32"),
        pytest.param(attention(head_dims=(80, 80)), {}, "triton", id="head dim without a native kernel"),
        pytest.param(attention(block_q=64), {}, "triton", id="short query blocks"),
        pytest.param(attention(block_k=32), {}, "triton", id="narrow key blocks"),
        pytest.param(attention(), {"capability": (10, 0)}, "triton", id="newer than hopper"),
        pytest.param(attention(), {"capability": (8, 0)}, "triton", id="ampere"),
        pytest.param(attention(), {"capability": (7, 5)}, "triton", id="turing"),
        pytest.param(attention(), {"capability": (8, 9)}, "triton", id="ada"),
        pytest.param(attention(), {"library": False}, "triton", id="no library"),
        pytest.param(attention(), {"library": False, "triton": False}, "pytorch", id="neither"),
        pytest.param(Call("sample_scores", DEVICE, torch.bfloat16), {}, "triton", id="sampling"),
        pytest.param(Call("sample_scores", DEVICE, torch.float32), {}, "pytorch", id="sampling in fp32"),
        pytest.param(Call("select_blocks", DEVICE), {}, "triton", id="selection"),
        pytest.param(Call("select_blocks", DEVICE), {"triton": False}, "pytorch", id="without triton"),
        pytest.param(mean_attention((128, 64)), {}, "triton", id="means"),
        pytest.param(Call("block_mean_attention", DEVICE, torch.float32), {}, "pytorch", id="means in fp32"),
        pytest.param(mean_attention(), {}, "cuda_sm90", id="attention with means"),
        pytest.param(mean_attention((96, 96)), {}, "triton", id="attention with means, head dim 96"),
        pytest.param(mean_attention(block_k=64), {}, "triton", id="attention with means, narrow key blocks"),
        pytest.param(mean_attention(), {"capability": (8, 0)}, "triton", id="attention with means on ampere"),
        pytest.param(adaptive(), {}, "cuda_sm90", id="adaptive"),
        pytest.param(adaptive(torch.float16, 64, 128, 8), {}, "cuda_sm90", id="adaptive fp16 64"),
        pytest.param(adaptive(head_dim=96), {}, "cuda_sm90", id="adaptive head dim 96"),
        pytest.param(adaptive(head_dim=192), {}, "cuda_sm90", id="adaptive head dim 192"),
        pytest.param(adaptive(head_dim=256), {}, "cuda_sm90", id="adaptive head dim 256"),
        pytest.param(adaptive(head_dim=512), {}, "triton", id="adaptive head dim 512"),
        pytest.param(attention(head_dims=(512, 512)), {}, "cuda_sm90", id="head dim 512"),
        pytest.param(
            attention(head_dims=(512, 512), block_k=64), {}, "cuda_sm90", id="512, narrow key blocks"
        ),
        pytest.param(attention(head_dims=(512, 512), block_q=64), {}, "triton", id="512, short query blocks"),
        pytest.param(attention(head_dims=(512, 256)), {}, "triton", id="head dim 512, values of 256"),
        pytest.param(attention(head_dims=(384, 384)), {}, "triton", id="head dim 384"),
        pytest.param(attention(torch.float32, (512, 512)), {}, "pytorch", id="head dim 512 in fp32"),
        pytest.param(attention(head_dims=(512, 512)), {"capability": (8, 0)}, "triton", id="512 on ampere"),
        pytest.param(mean_attention((512, 512)), {}, "triton", id="attention with means, head dim 512"),
        pytest.param(adaptive(block_k=64), {}, "triton", id="adaptive narrow key blocks"),
        pytest.param(adaptive(representatives=17), {}, "triton", id="adaptive other landmarks"),
        pytest.param(adaptive(torch.float32), {}, "pytorch", id="adaptive fp32"),
        pytest.param(adaptive(), {"capability": (8, 0)}, "triton", id="adaptive ampere"),
        pytest.param(adaptive(), {"library": False}, "triton", id="adaptive, no library"),
        pytest.param(peaks(), {}, "cuda_sm90", id="peaks"),
        pytest.param(peaks(head_dim=256, representatives=8), {}, "cuda_sm90", id="peaks head dim 256"),
        pytest.param(peaks(head_dim=80), {}, "triton", id="peaks head dim 80"),
        pytest.param(peaks(representatives=4), {}, "triton", id="peaks other landmarks"),
        pytest.param(peaks(dtype=torch.float32), {}, "pytorch", id="peaks fp32"),
        pytest.param(peaks(), {"library": False}, "triton", id="peaks, no library"),
        pytest.param(budget_rest(), {}, "cuda_sm90", id="budget with a rest"),
        pytest.param(budget_rest((192, 128)), {}, "cuda_sm90", id="budget with a rest, 192/128"),
        pytest.param(budget_rest((128, 64)), {}, "triton", id="budget with a rest, other values"),
        pytest.param(budget_rest(block_k=64), {}, "triton", id="budget with a rest, narrow key blocks"),
        pytest.param(budget_rest(), {"capability": (8, 0)}, "triton", id="budget with a rest on ampere"),
        pytest.param(rest_attention(), {}, "cuda_sm90", id="attention with a rest"),
        pytest.param(rest_attention((192, 128), 64), {}, "cuda_sm90", id="attention with a rest, 192/128"),
        pytest.param(rest_attention((512, 512)), {}, "triton", id="attention with a rest, head dim 512"),
        pytest.param(rest_attention((128, 64)), {}, "triton", id="attention with a rest, other values"),
        pytest.param(
            rest_attention(), {"capability": (8, 0)}, "triton", id="attention with a rest on ampere"
        ),
        pytest.param(represent(), {}, "cuda_sm90", id="representatives"),
        pytest.param(represent(), {"capability": (10, 0)}, "triton", id="representatives, newer"),
        pytest.param(represent(), {"capability": (8, 0)}, "triton", id="representatives on ampere"),
        pytest.param(represent(head_dim=256), {}, "cuda_sm90", id="representatives, head dim 256"),
        pytest.param(represent(head_dim=512), {}, "triton", id="representatives, head dim 512"),
        pytest.param(represent(landmarks=8), {}, "triton", id="representatives, other landmarks"),
        pytest.param(represent(torch.float32), {}, "pytorch", id="representatives in fp32"),
        pytest.param(represent(), {"library": False}, "triton", id="representatives, no library"),
    ],
)
def test_the_default_takes_the_fastest_kernel_that_fits(call, machine, expected, gpu):
    gpu(**machine)
    assert choose(call) == expected


@pytest.mark.parametrize("capability", [(8, 0), (8, 9), (10, 0), (12, 0)], ids=str)
def test_a_forced_kernel_that_does_not_fit_is_an_error_and_no_fallback(capability, gpu):
    gpu(capability=capability)
    with (
        preferring("cuda_sm90"),
        pytest.raises(ValueError, match="none of the kernels asked for .cuda_sm90."),
    ):
        choose(attention())
    with preferring("cuda_sm90", "pytorch"):
        assert choose(attention()) == "pytorch"


def test_each_op_takes_the_first_kernel_that_has_it(gpu):
    gpu()
    with preferring("cuda_sm90", "triton"):
        assert choose(attention()) == "cuda_sm90"
        assert choose(attention(head_dims=(80, 80))) == "triton"
        assert choose(Call("sample_scores", DEVICE, torch.float16)) == "triton"
        assert choose(Call("select_blocks", DEVICE)) == "triton"


def test_the_environment_variable_names_the_order(gpu, monkeypatch):
    gpu()
    monkeypatch.setenv(choice.ENVIRONMENT, "triton,pytorch")
    choice._from_environment.cache_clear()
    assert choice.preference() == ("triton", "pytorch")
    assert choose(attention()) == "triton"


@pytest.mark.parametrize("name", ["cuda", "cuda_sm80"])
def test_a_name_that_is_no_kernel_is_an_error_that_names_those_that_are(name, gpu, monkeypatch):
    gpu()
    monkeypatch.setenv(choice.ENVIRONMENT, f"{name},pytorch")
    choice._from_environment.cache_clear()
    expected = f"must name kernels out of cuda_sm90, triton, pytorch, got .'{name}'."
    with pytest.raises(ValueError, match=f"{choice.ENVIRONMENT} {expected}"):
        choice.preference()
    with pytest.raises(ValueError, match=f"preferring {expected}"), preferring(name):
        pass


def test_triton_on_request_must_be_installed(monkeypatch):
    monkeypatch.setattr(choice.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="triton is not installed"), preferring("triton"):
        pass


def on_cuda(op, monkeypatch):
    """What a CUDA call of the op runs; implementations say their name and how many arguments came."""
    for name, file in (("pytorch", "eager"), ("triton", "triton")):
        says = types.SimpleNamespace(**{op.NAME: lambda a, name=name: (name, len(a))})
        monkeypatch.setitem(sys.modules, f"sa_compile.kernels.{op.NAME}.{file}", says)
    return dispatch.on_cuda(op)


HALF = torch.zeros(1, 1, 1, 128, dtype=torch.float16)
SELECTIONS = {
    "select_blocks": (HALF.float(), HALF.float(), None, 100, 100, 0, 128, 128, 0.9, 0.9, True, 2, 0),
    "sample_scores": (HALF, HALF, None, 0.1, 0, 2, 32, 128),
    "select_budget": (HALF, HALF, None, 0.1, 0, 128, 128, 0.1, 0.1, 8, True, 2),
    "select_budget_rest": (HALF, HALF, HALF, HALF, None, 0.1, 0, 128, 128, 0.1, 0.1, 8, True, 2),
}


@pytest.mark.parametrize("op", SELECTIONS)
def test_a_selection_op_goes_to_the_kernel_that_is_preferred(op, monkeypatch):
    module = getattr(dispatch, op)
    run = on_cuda(module, monkeypatch)
    arguments = module.Arguments(*SELECTIONS[op])
    monkeypatch.setattr(choice.importlib.util, "find_spec", lambda name: object())
    for name in ("pytorch", "triton"):
        with preferring(name):
            assert run(arguments) == (name, len(arguments))


DISPATCHED = {
    "block_sparse_attention": (HALF, HALF, HALF, HALF, None, None, None, 0.1, True, 0, 0, 128, 128),
    "block_mean_attention": (HALF, HALF, HALF, HALF, None, None, 0.1, 0, 128, 128),
    "block_rest_attention": (*(HALF,) * 7, None, None, 0.1, 0.5, 0, 128, 128),
    "block_representatives": (HALF, None, 128, 7),
    "select_adaptive": (HALF, HALF, HALF, HALF, HALF, None, 0.1, 0, 128, 128, 0.2, True, 2, 0),
    "select_peaks": (HALF, HALF, HALF, HALF, HALF, None, 0.1, 0, 128, 128, 0.2, True, 2, 0),
}


@pytest.mark.parametrize("op", DISPATCHED)
@pytest.mark.parametrize(
    "kernel, sign, expected",
    [
        pytest.param("cuda_sm90", 1, "library", id="native"),
        pytest.param("cuda_sm90", -1, "pytorch", id="scale below zero"),
        pytest.param("triton", 1, "triton", id="triton"),
        pytest.param("triton", -1, "pytorch", id="triton, scale below zero"),
        pytest.param("pytorch", 1, "pytorch", id="pytorch"),
    ],
)
def test_an_op_with_native_kernels_goes_to_the_one_that_fits(op, kernel, sign, expected, monkeypatch):
    if op == "block_representatives" and sign < 0:
        pytest.skip("has no scale")
    monkeypatch.setattr(choice, "choose", lambda call: kernel)
    monkeypatch.setattr(choice, "library_op", lambda name, of: lambda *values: ("library", len(values)))
    module = getattr(dispatch, op)
    run = on_cuda(module, monkeypatch)
    arguments = module.Arguments(*DISPATCHED[op])
    if op != "block_representatives":
        arguments = arguments._replace(scale=sign * arguments.scale)
    assert run(arguments) == (expected, len(arguments))


@pytest.mark.parametrize("file", ["eager", "triton"])
def test_means_are_added_to_the_attention_over_kept_blocks(file, monkeypatch):
    """Whichever kernel that is computed by."""
    if file == "triton":
        pytest.importorskip("triton")
    module = importlib.import_module(f"sa_compile.kernels.block_mean_attention.{file}")
    added = []
    monkeypatch.setattr(module, "add_block_means_", lambda a, out, lse: added.append((a, out, lse)))
    inputs = make_inputs(Case(batch=2, segments="left_padding"))
    tensors = (inputs.query, inputs.key, inputs.value, inputs.block_mask)
    given = dispatch.block_mean_attention.Arguments(*tensors, inputs.key_segment, None, 0.1, 0, 32, 32)
    found = module.block_mean_attention(given)
    assert [(a is given, out is found[0], lse is found[1]) for a, out, lse in added] == [(True, True, True)]
    where = (None, inputs.key_segment, None, 0.1, True, 0, 0, 32, 32)
    for tensor, expected in zip(found, ops.block_sparse_attention_op(*tensors, *where), strict=True):
        assert torch.equal(tensor, expected)
