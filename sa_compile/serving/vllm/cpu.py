"""vLLM's CPU backend, with long prefills sampled where ``--attention-backend CUSTOM`` was chosen."""

from __future__ import annotations

from torch import Tensor
from vllm.config import get_current_vllm_config
from vllm.logger import init_logger
from vllm.v1.attention.backends.cpu_attn import (
    CPUAttentionBackend,
    CPUAttentionBackendImpl,
    CPUAttentionMetadataBuilder,
)
from vllm.v1.attention.backends.registry import AttentionBackendEnum

from sa_compile.serving.vllm.backend import SampledBuilder, SampledImpl
from sa_compile.serving.vllm.options import are_given

logger = init_logger(f"vllm.plugins.{__name__}")

# Instruction sets under which vLLM keeps the keys of a page as a matrix [D, page]; others weave them.
_READABLE = ("vec", "vec16")


class SampleAttentionCPUImpl(SampledImpl, CPUAttentionBackendImpl):
    """Attention of one layer."""

    def pages(self, kv_cache: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [n_pages, page, Hkv, D] of a cache [n_pages, Hkv, page, 2 D]."""
        n_pages, heads, page, _ = kv_cache.shape
        key, value = kv_cache.view(n_pages, heads, 2 * page, -1).chunk(2, dim=2)
        key = key.view(n_pages, heads, -1, page).permute(0, 3, 1, 2)
        return key, value.transpose(1, 2)


class SampleAttentionCPUBuilder(SampledBuilder, CPUAttentionMetadataBuilder):
    """Metadata of one step."""

    def obstacle(self) -> str | None:
        """Why no layer of this group is sampled."""
        if self.isa not in _READABLE:
            return f"the keys in the cache are laid out for {self.isa}; we read {' and '.join(_READABLE)}"
        return super().obstacle()


class SampleAttentionCPUBackend(CPUAttentionBackend):
    """What stands in the place of vLLM's CPU backend, and is no other unless it was chosen."""

    @staticmethod
    def get_impl_cls() -> type[CPUAttentionBackendImpl]:
        """The attention: ours if it was chosen."""
        vllm_config = get_current_vllm_config()
        chosen = vllm_config.attention_config
        kinds = getattr(chosen, "backend_per_kind", None) or {}
        if AttentionBackendEnum.CUSTOM in (chosen.backend, *kinds.values()):
            return SampleAttentionCPUImpl
        if are_given(vllm_config.additional_config):
            logger.warning_once(
                "sampleattn: there are options, but nothing is sampled without --attention-backend CUSTOM"
            )
        return CPUAttentionBackendImpl

    @staticmethod
    def get_builder_cls() -> type[SampleAttentionCPUBuilder]:
        """The metadata builder, which plans nothing where no layer has our attention."""
        return SampleAttentionCPUBuilder
