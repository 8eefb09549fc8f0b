"""No op synchronises with the host: each is captured in a CUDA graph, and its replay gives the same."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import torch
from gpu import attention_cases
from gpu.attention_cases import BASE
from gpu.kernels import ATTENTION_KERNELS, skip_without
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from sa_compile.kernels import ops
from sa_compile.kernels.choice import preferring
from sa_compile.lab.bench.ops.timing import workspace_bytes

SAMPLERS = ("triton", "pytorch")


@contextmanager
def no_synchronisation():
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def check_replay(op: Callable[[], tuple[Tensor, ...]]) -> None:
    """Capture ``op``, spoil its outputs, replay: they must be what a plain call gives."""
    expected = op()
    torch.cuda.synchronize()
    with no_synchronisation():
        op()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            found = op()
    for _ in range(2):
        for output in found:
            output.fill_(77)
        graph.replay()
        torch.cuda.synchronize()
        for output, wanted in zip(found, expected, strict=True):
            assert torch.equal(output, wanted)


def padding(device: str) -> Tensor:
    """Key segments of two prompts of 2000 keys, padded on the left and on the right."""
    place = torch.arange(2000, device=device)
    return -torch.stack((place < 300, place >= 1300)).int()


@pytest.fixture(params=SAMPLERS)
def sampler(request: pytest.FixtureRequest, cuda: str):
    """The device, with sampling and selection on Triton or PyTorch."""
    if request.param == "triton":
        pytest.importorskip("triton")
    with preferring(request.param):
        yield cuda


@pytest.mark.parametrize("padded", [False, True], ids=["plain", "padded"])
def test_sampling_and_selection(padded: bool, sampler: str) -> None:
    query = torch.randn(2, 4, 2000, 64, device=sampler, dtype=torch.bfloat16)
    key = torch.randn(2, 2, 2000, 64, device=sampler, dtype=torch.bfloat16)
    segment = padding(sampler) if padded else None
    check_replay(lambda: ops.sample_scores(query, key, key_segment=segment))
    scores = ops.sample_scores(query, key, key_segment=segment)
    check_replay(lambda: (ops.select_blocks(*scores, q_len=2000, kv_len=2000, key_segment=segment),))


@pytest.mark.parametrize("padded", [False, True], ids=["plain", "padded"])
@pytest.mark.parametrize("kernels", [("cuda_sm90", "triton"), ("triton",), ("pytorch",)], ids="-".join)
def test_adaptive_selection(kernels: tuple[str, ...], padded: bool, cuda: str) -> None:
    query = torch.randn(2, 4, 2000, 64, device=cuda, dtype=torch.bfloat16)
    key = torch.randn(2, 2, 2000, 64, device=cuda, dtype=torch.bfloat16)
    segment = padding(cuda) if padded else None
    if "triton" in kernels:
        pytest.importorskip("triton")
    with preferring(*kernels):
        check_replay(lambda: ops.block_representatives(key, key_segment=segment))
        terms = ops.block_representatives(key, key_segment=segment)
        for sinks in (None, torch.zeros(4, device=cuda)):
            given = {"key_segment": segment, "sinks": sinks}
            for select in (ops.select_adaptive, ops.select_peaks):
                check_replay(partial(_alone, select, query, key, terms, **given))
            check_replay(partial(_alone, ops.select_budget, query, key, **given, budget=0.04, tau=0.08))


def _alone(op: Callable, *arguments: Any, **given: Any) -> tuple[Tensor]:
    return (op(*arguments, **given),)


@pytest.mark.parametrize("segments", ["none", "left_padding", "packed"])
def test_mask_blocks(segments: str, cuda: str) -> None:
    case = BASE.with_(q_len=1000, kv_len=1000, batch=2, segments=segments)
    inputs = attention_cases.random_inputs(case, cuda, seed=4)
    check_replay(
        lambda: (
            ops.mask_blocks(
                inputs.query,
                inputs.key,
                query_segment=inputs.query_segment,
                key_segment=inputs.key_segment,
                window=300,
            ),
        )
    )


@pytest.mark.parametrize("segments", ["none", "left_padding", "packed"])
@pytest.mark.parametrize("kernel", [*ATTENTION_KERNELS, "pytorch"])
def test_attention(kernel: str, segments: str, cuda: str) -> None:
    if kernel == "triton":
        pytest.importorskip("triton")
    case = BASE.with_(q_len=1000, kv_len=1000, batch=2, segments=segments)
    inputs = attention_cases.random_inputs(case, cuda, seed=1)
    with preferring(kernel):
        skip_without(kernel)
        check_replay(lambda: ops.block_sparse_attention_op(*inputs.arguments(case)))


@pytest.mark.parametrize("padded", [False, True], ids=["plain", "padded"])
@pytest.mark.parametrize("kernels", [("cuda_sm90", "triton"), ("triton",), ("pytorch",)], ids="-".join)
def test_attention_with_means(kernels: tuple[str, ...], padded: bool, cuda: str) -> None:
    if "triton" in kernels:
        pytest.importorskip("triton")
    case = BASE.with_(q_len=1000, kv_len=1000, batch=2, segments="left_padding" if padded else "none")
    x = attention_cases.random_inputs(case, cuda, seed=2)
    with preferring(*kernels):
        skip_without(kernels[0])
        check_replay(
            lambda: ops.block_mean_attention(x.query, x.key, x.value, x.block_mask, key_segment=x.key_segment)
        )


@pytest.mark.parametrize("padded", [False, True], ids=["plain", "padded"])
@pytest.mark.parametrize("kernels", [("cuda_sm90", "triton", "pytorch"), ("pytorch",)], ids="-".join)
def test_selection_and_attention_with_a_rest(kernels: tuple[str, ...], padded: bool, cuda: str) -> None:
    if "triton" in kernels:
        pytest.importorskip("triton")
    case = BASE.with_(
        q_len=1000, kv_len=1000, batch=2, segments="left_padding" if padded else "none", sinks="a_head"
    )
    x = attention_cases.random_inputs(case, cuda, seed=3)
    given = {"key_segment": x.key_segment, "sinks": x.sinks}
    with preferring(*kernels):
        skip_without(kernels[0])
        select = partial(
            ops.select_budget_rest, x.query, x.key, x.value, x.block_mask, **given, budget=0.2, tau=0.3
        )
        check_replay(select)
        chosen = select()
        check_replay(lambda: ops.block_rest_attention(x.query, x.key, x.value, *chosen, **given))


@pytest.mark.parametrize("kernels", [("cuda_sm90", "triton"), ("triton",)], ids=str)
def test_reduce_overhead_replays_a_models_prefill(kernels: tuple[str, ...], cuda: str) -> None:
    """``mode="reduce-overhead"`` records graphs, skips none, and gives what the default mode gives."""
    from torch._dynamo.utils import counters
    from torch._inductor import cudagraph_trees

    pytest.importorskip("triton")
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=256,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=96,
        max_position_embeddings=8192,
    )
    model = LlamaForCausalLM(config).to(cuda, torch.bfloat16).eval()
    prompts = [torch.randint(0, 96, (1, 5120), device=cuda) for _ in range(4)]
    results = {}
    with preferring(*kernels), torch.no_grad():
        skip_without(kernels[0])
        for mode in ("default", "reduce-overhead"):
            torch._dynamo.reset()
            counters.clear()
            compiled = torch.compile(model, backend="sampleattn", mode=mode)
            results[mode] = [compiled(prompt, use_cache=False).logits.clone() for prompt in prompts]
        assert counters["inductor"]["cudagraph_skips"] == 0
        manager = cudagraph_trees.get_container(torch.cuda.current_device()).tree_manager
        assert manager is not None and manager.roots
    for found, expected in zip(results["reduce-overhead"], results["default"], strict=True):
        torch.testing.assert_close(found, expected, atol=2e-2, rtol=2e-2)


def test_the_workspace_of_a_million_tokens_is_bounded(cuda: str) -> None:
    """Sampling, selection and attention of 1M tokens, 32 heads: at most 320 MiB beside inputs and outputs."""
    pytest.importorskip("triton")
    length = 1 << 20
    with preferring("cuda_sm90", "triton"):
        skip_without("cuda_sm90")
        query = torch.randn(1, 32, length, 64, device=cuda, dtype=torch.bfloat16)
        key, value = (torch.randn(1, 2, length, 64, device=cuda, dtype=torch.bfloat16) for _ in range(2))

        def attend() -> tuple[Tensor, ...]:
            scores = ops.sample_scores(query, key)
            peaked = [score * torch.exp(3 * torch.randn_like(score)) for score in scores]
            mask = ops.select_blocks(*peaked, q_len=length, kv_len=length, alpha_c=0.3, alpha_s=0.3)
            return ops.block_sparse_attention(query, key, value, mask)

        attend()
        assert workspace_bytes(attend) <= 320 << 20
