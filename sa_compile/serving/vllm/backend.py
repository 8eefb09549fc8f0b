"""What the backends of GPU and CPU share: a builder that plans a step, and attention that follows the plan.

Both are mixed in before vLLM's own classes (flash_attn.py, cpu.py), which keep the cache, decode steps, CUDA
graphs and every request that is not sampled.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from vllm.config import get_current_vllm_config, get_layers_from_vllm_config
from vllm.logger import init_logger
from vllm.model_executor.layers.attention import Attention
from vllm.platforms import current_platform
from vllm.v1.attention.backend import (
    AttentionCGSupport,
    AttentionImpl,
    AttentionMetadataBuilder,
    AttentionType,
)
from vllm.v1.worker.ubatch_utils import UBatchSlice, split_attn_metadata

from sa_compile import prefill
from sa_compile.config import SampleAttentionConfig
from sa_compile.kernels import ops
from sa_compile.passes.conditions.kernels import why_no_kernel, why_not_dtypes
from sa_compile.prefill import CausalAttention
from sa_compile.serving.vllm.counters import COUNTERS, allowed_blocks
from sa_compile.serving.vllm.options import options_of
from sa_compile.serving.vllm.plan import Long, Plan, Run, fewest_rows, long_requests, rehearsal, runs_between

# A logger below vLLM's: others have no handler in its processes.
logger = init_logger(f"vllm.plugins.{__name__}")

_PLAN = "sampleattn_plan"  # of a step, on the parent's metadata
_PLAIN_CACHES = ("auto", "float32", "float16", "bfloat16")


class SampledImpl(AttentionImpl):
    """Attention of one layer, to be mixed in before vLLM's.

    ``not_sampled`` says why every request is the parent's; ``index`` numbers the sampled layers.
    """

    kv_sharing_target_layer_name: str | None

    def __init__(self, num_heads: int, head_size: int, *args: Any, **kwargs: Any) -> None:
        super().__init__(num_heads, head_size, *args, **kwargs)
        vllm_config = get_current_vllm_config()
        self.index = 0
        self.config: SampleAttentionConfig = options_of(vllm_config.additional_config)
        self.max_q_len = vllm_config.scheduler_config.max_num_batched_tokens
        self.max_kv_len = vllm_config.model_config.max_model_len
        self.not_sampled = _why_not_sampled(self, vllm_config)

    def pages(self, kv_cache: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [n_pages, page, Hkv, D] as views of the layer's cache."""
        raise NotImplementedError

    def forward(
        self,
        layer: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        kv_cache: Tensor,
        attn_metadata: Any,
        output: Tensor,
        output_scale: Tensor | None = None,
        output_block_scale: Tensor | None = None,
    ) -> Tensor:
        """vLLM's call: query [T, Hq, D]; keys and values of the step are in the cache already."""
        parent = super().forward
        whole = (layer, query, key, value, kv_cache, attn_metadata, output, output_scale, output_block_scale)
        if attn_metadata is None:
            self._rehearse(query)
            return parent(*whole)
        plan: Plan | None = getattr(attn_metadata, _PLAN, None)
        if plan is None or plan.failed or self.not_sampled is not None:
            return parent(*whole)
        if output_scale is not None or output_block_scale is not None:
            logger.warning_once("sampleattn: attention's output is quantized in it: nothing is sampled there")
            return parent(*whole)
        try:
            self._sample(plan, query, (key, value), kv_cache, attn_metadata.block_table, output)
            for run in plan.rest:
                inputs = (x if x is None else x[run.tokens] for x in (query, key, value))
                parent(layer, *inputs, kv_cache, run.metadata, output[run.tokens])
        except Exception:  # what leaves this method ends the engine, with every request in it
            plan.failed = True
            COUNTERS.failed(len(plan.long))
            lengths = ", ".join(f"{one.q_len} of {one.kv_len}" for one in plan.long)
            logger.exception(
                "sampleattn failed in %s: vLLM's own backend computes the prompts of this step (%s tokens) "
                "from here on",
                getattr(layer, "layer_name", "a layer"),
                lengths,
            )
        if plan.failed:  # behind the except block: what the exception held of memory is free
            return parent(*whole)
        return output

    def _sample(
        self,
        plan: Plan,
        query: Tensor,
        of_step: tuple[Tensor, Tensor],
        kv_cache: Tensor,
        block_table: Tensor,
        output: Tensor,
    ) -> None:
        for one in plan.long:
            key, value = self._seen(one, of_step, kv_cache, block_table)
            observed = one if plan.observed == self.index else None
            out = self._attend(query[one.tokens], key, value, one.config, observed)
            output[one.tokens].view(out.shape).copy_(out)
        if not plan.counted:
            plan.counted = True
            for one in plan.long:
                COUNTERS.sampled(one.q_len)

    def _seen(
        self, one: Long, of_step: tuple[Tensor, Tensor], kv_cache: Tensor, block_table: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Keys and values [1, Hkv, kv_len, D] of a request: the step's own [T, Hkv, D], or from its pages."""
        # A layer that reads another's cache is handed keys that are not those.
        if one.q_len == one.kv_len and self.kv_sharing_target_layer_name is None:
            key, value = (x[one.tokens].transpose(0, 1)[None] for x in of_step)
        else:
            table = block_table[one.row]
            key, value = (_gathered(x, table, one.kv_len) for x in self.pages(kv_cache))
        return key, value

    def _attend(
        self, query: Tensor, key: Tensor, value: Tensor, config: SampleAttentionConfig, observed: Long | None
    ) -> Tensor:
        """The last rows, query [q_len, Hq, D], over key and value [1, Hkv, kv_len, D]: out like query."""
        offset = key.shape[2] - query.shape[0]

        def observe(block_mask: Tensor) -> None:
            blocks = (config.block_q, config.block_k)
            COUNTERS.observe(block_mask, allowed_blocks(query.shape[0], offset, query.shape[1], *blocks))

        rows = query.transpose(0, 1)[None]
        attention = CausalAttention(rows, key, value, self.scale, offset, sinks=self.sinks)
        out, _ = prefill.sampled(attention, config, observe if observed is not None else None)
        return out[0].transpose(0, 1)

    def _rehearse(self, query: Tensor) -> None:
        """The prefills that can come, while vLLM measures the memory that a step takes.

        Kernels are compiled here and not in a request, and what cannot run stops the start.
        """
        shape = (*query.shape[1:], self.num_kv_heads, query.dtype)
        if self.not_sampled is not None or shape in _rehearsed or not _runs_kernels(query.device):
            return
        _rehearsed.add(shape)
        start = time.perf_counter()
        rows = query.new_zeros((self.max_q_len, *query.shape[1:]))
        keys = query.new_zeros((1, self.num_kv_heads, self.max_kv_len, query.shape[-1]))
        values = torch.zeros_like(keys)
        lengths = rehearsal(self.config, self.max_q_len, self.max_kv_len)
        for q_len, kv_len, config in lengths:
            self._attend(rows[:q_len], keys[:, :, :kv_len], values[:, :, :kv_len], config, None)
        torch.cuda.synchronize()
        logger.info_once(
            "sampleattn: rehearsed %d prefills of up to %d keys in %.1f s",
            len(lengths),
            self.max_kv_len,
            time.perf_counter() - start,
        )


_rehearsed: set[tuple[Any, ...]] = set()


class SampledBuilder(AttentionMetadataBuilder):
    """Metadata of one step with its plan, to be mixed in before vLLM's builder."""

    def __init__(self, kv_cache_spec: Any, layer_names: list[str], vllm_config: Any, device: Any) -> None:
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)
        layers = get_layers_from_vllm_config(vllm_config, Attention, layer_names)
        ours = {name: layer for name, layer in layers.items() if isinstance(layer.impl, SampledImpl)}
        self._config: SampleAttentionConfig | None = None
        self._n_sampled = self._steps = 0
        obstacle = self.obstacle()
        for layer in ours.values():
            layer.impl.not_sampled = layer.impl.not_sampled or obstacle or _why_not_layer(layer)
            if layer.impl.not_sampled is None:
                layer.impl.index = self._n_sampled
                self._n_sampled += 1
                self._config = layer.impl.config
        if ours:
            logger.info_once(_report(ours, device))

    def obstacle(self) -> str | None:
        """Why no layer of this group is sampled, as far as the builder tells."""
        if not type(self).__module__.startswith("sa_compile."):
            return f"vLLM changes what the layer attends to ({type(self).__name__})"
        return None

    def kept(self, metadata: Any) -> Any:
        """Metadata that the next build does not write to."""
        return metadata

    @classmethod
    def get_cudagraph_support(cls, vllm_config: Any, kv_cache_spec: Any) -> AttentionCGSupport:
        """At most decode steps: a graph of a mixed batch would hold the parent's attention for all of it."""
        parent = super().get_cudagraph_support(vllm_config, kv_cache_spec)
        return min(parent, AttentionCGSupport.UNIFORM_BATCH, key=lambda support: support.value)

    def build(self, common_prefix_len: int, common_attn_metadata: Any, fast_build: bool = False) -> Any:
        """The parent's metadata of the whole batch, with a plan where a request is sampled."""
        plan = None
        if self._config is not None:
            with _no_error_leaves():
                plan = self._plan(common_prefix_len, common_attn_metadata, fast_build)
                COUNTERS.say(lambda text: logger.info("sampleattn: %s", text))
        metadata = super().build(common_prefix_len, common_attn_metadata, fast_build)
        if plan is not None:
            setattr(metadata, _PLAN, plan)
        return metadata

    def update_block_table(self, metadata: Any, blk_table: Tensor, slot_mapping: Tensor) -> Any:
        """The same step for another group of layers, whose cache is elsewhere."""
        updated = super().update_block_table(metadata, blk_table, slot_mapping)
        plan: Plan | None = getattr(metadata, _PLAN, None)
        if plan is not None:
            setattr(updated, _PLAN, None)  # not the one that may have been copied
            with _no_error_leaves():
                setattr(updated, _PLAN, self._elsewhere(plan, blk_table, slot_mapping))
        return updated

    def _elsewhere(self, plan: Plan, blk_table: Tensor, slot_mapping: Tensor) -> Plan:
        parent = super().update_block_table
        rest = (
            Run(run.rows, run.tokens, parent(run.metadata, blk_table[run.rows], slot_mapping[run.tokens]))
            for run in plan.rest
        )
        return Plan(plan.long, tuple(rest), plan.observed)

    def _plan(self, common_prefix_len: int, common: Any, fast_build: bool) -> Plan | None:
        if self._config is None or common.max_query_len < fewest_rows(self._config):
            return None
        other = _why_not_causal(common)
        if other is not None:
            logger.info_once("sampleattn: steps with %s are vLLM's own backend's", other)
            return None
        starts = common.query_start_loc_cpu.tolist()
        if common.seq_lens_cpu_upper_bound is None:
            common = common.replace(seq_lens_cpu_upper_bound=common.seq_lens.cpu())
        kv_lens = common.seq_lens_cpu_upper_bound.tolist()  # exact for requests that read their prompt
        prefilling = None if common.is_prefilling is None else common.is_prefilling.tolist()
        long = long_requests(starts, kv_lens, prefilling, self._config)
        if not long:
            return None
        rest = tuple(
            self._run(run, common_prefix_len, common, fast_build) for run in runs_between(long, starts)
        )
        self._steps += 1
        return Plan(long, rest, self._steps % self._n_sampled)

    def _run(self, run: Run, common_prefix_len: int, common: Any, fast_build: bool) -> Run:
        (part,) = split_attn_metadata([UBatchSlice(run.rows, run.tokens)], common)
        part = part.replace(max_seq_len=int(part.seq_lens_cpu_upper_bound.max()))
        metadata = super().build(common_prefix_len, part, fast_build)
        return Run(run.rows, run.tokens, self.kept(metadata))


def _gathered(pages: Tensor, table: Tensor, kv_len: int) -> Tensor:
    """The keys or values of one request, [1, Hkv, kv_len, D], from pages [n_pages, page, Hkv, D].

    table int32 [>= n_pages of the request]: its pages in order.
    """
    n_pages = -(-kv_len // pages.shape[1])
    by_head = pages.permute(2, 0, 1, 3)
    wide = by_head.stride(-1) == 1 and by_head.shape[-1] * by_head.element_size() % 8 == 0
    # Eight bytes at a time: index_select computes an address for every element.
    source = by_head.view(torch.int64) if wide else by_head
    taken = source.index_select(1, table[:n_pages]).view(pages.dtype)
    return taken.flatten(1, 2)[None, :, :kv_len]


def _runs_kernels(device: torch.device) -> bool:
    """Kernels are compiled and memory is measured on this device, and no graph records what runs now."""
    return device.type == "cuda" and not torch.cuda.is_current_stream_capturing()


def _why_not_causal(common: Any) -> str | None:
    """What a step has besides plain causal attention: who looks ahead, or sees a window of its own."""
    if common.causal is not True:
        return "attention that is not causal"
    if common.rswa_prefix_lens is not None:
        return "reference sliding windows"
    return "images that are seen as a whole" if any((common.mm_req_doc_ranges or {}).values()) else None


@contextmanager
def _no_error_leaves() -> Iterator[None]:
    """While a step is planned: what leaves a builder ends the engine, without a plan the step is vLLM's."""
    try:
        yield
    except Exception:
        COUNTERS.failed(1)
        logger.exception("sampleattn failed to plan a step: vLLM's own backend computes all of it")


def _why_not_sampled(impl: Any, vllm_config: Any) -> str | None:
    """Why a layer's requests all stay the parent's, as far as its attention tells; None if they do not."""
    window = impl.sliding_window
    left = max(window) if isinstance(window, tuple) else window
    if impl.attn_type != AttentionType.DECODER:
        return f"{impl.attn_type} attention"
    if left is not None and left >= 0:
        return f"sliding window of {left + 1 if isinstance(window, tuple) else left}"
    if impl.alibi_slopes is not None:
        return "ALiBi"
    if impl.logits_soft_cap:
        return f"soft cap of {impl.logits_soft_cap}"
    if impl.kv_cache_dtype not in _PLAIN_CACHES:
        return f"KV cache of {impl.kv_cache_dtype}: our kernels read it as the model computes"
    parallel = vllm_config.parallel_config
    if parallel.decode_context_parallel_size > 1 or parallel.prefill_context_parallel_size > 1:
        return "context parallel: a rank holds only part of the keys"
    if vllm_config.model_config.rswa_window is not None:
        return "reference sliding window attention"
    dtype, device = vllm_config.model_config.dtype, torch.device(current_platform.device_type)
    reasons = [why_not_dtypes([dtype])]
    for config in _configs(impl.config):
        reasons.append(why_no_kernel(device, dtype, impl.head_size, impl.head_size, config))
    return next((reason for reason in reasons if reason is not None), None)


def _configs(config: SampleAttentionConfig) -> list[SampleAttentionConfig]:
    """The options that requests can get: one of each range of a profile."""
    if config.tuned is None:
        return [config]
    return [config.in_range(one) for one in config.tuned.ranges if one.options is not None]


def _why_not_layer(layer: Any) -> str | None:
    if layer.head_size_v != layer.head_size:
        return f"values of {layer.head_size_v} and keys of {layer.head_size}"
    return None


def _report(layers: dict[str, Any], device: torch.device) -> str:
    """What becomes of the layers of one group, for the log."""
    sampled = [layer for layer in layers.values() if layer.impl.not_sampled is None]
    lines = [f"sampleattn: {len(sampled)} of {len(layers)} layers are sampled"]
    if sampled:
        impl = sampled[0].impl
        config: SampleAttentionConfig = impl.config
        dims, blocks = (impl.head_size, impl.head_size), (config.block_q, config.block_k)
        kernel = ops.attention_kernel(torch.device(device), sampled[0].dtype, *dims, *blocks)
        what = f"method {config.method}, prompts of {config.min_seq_len} tokens and more"
        if config.tuned is not None:
            what = f"profile {config.profile} (not checked against the model's weights)"
        lines[0] += f": {what}, kernel {kernel}"
    reasons: dict[str, list[str]] = {}
    for name, layer in layers.items():
        if layer.impl.not_sampled is not None:
            reasons.setdefault(layer.impl.not_sampled, []).append(name)
    for reason, names in reasons.items():
        lines.append(f"  not sampled: {reason} ({len(names)} layers, {names[0]} the first)")
    return "\n".join(lines)
