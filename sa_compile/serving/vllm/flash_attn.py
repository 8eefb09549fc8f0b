"""vLLM's FlashAttention backend, with long prefills sampled."""

from __future__ import annotations

from torch import Tensor
from vllm.v1.attention.backends.flash_attn import (
    FlashAttentionBackend,
    FlashAttentionImpl,
    FlashAttentionMetadata,
    FlashAttentionMetadataBuilder,
)

from sa_compile.serving.vllm.backend import SampledBuilder, SampledImpl


class SampleAttentionFlashImpl(SampledImpl, FlashAttentionImpl):
    """Attention of one layer."""

    def pages(self, kv_cache: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [n_pages, page, Hkv, D]; vLLM packed them side by side after 0.25."""
        if kv_cache.dim() == 5:
            key, value = kv_cache.unbind(1)
        else:
            key, value = kv_cache.transpose(1, 2).split(self.head_size, dim=-1)
        return key, value


class SampleAttentionFlashBuilder(SampledBuilder, FlashAttentionMetadataBuilder):
    """Metadata of one step."""

    def kept(self, metadata: FlashAttentionMetadata) -> FlashAttentionMetadata:
        """Metadata whose schedule is no buffer of the builder."""
        if metadata.scheduler_metadata is not None:
            metadata.scheduler_metadata = metadata.scheduler_metadata.clone()
        return metadata


class SampleAttentionFlashBackend(FlashAttentionBackend):
    """What ``--attention-backend CUSTOM`` is on a GPU. Its name stays the parent's, whose cache it has."""

    @staticmethod
    def get_impl_cls() -> type[SampleAttentionFlashImpl]:
        """The attention."""
        return SampleAttentionFlashImpl

    @staticmethod
    def get_builder_cls() -> type[SampleAttentionFlashBuilder]:
        """The metadata builder."""
        return SampleAttentionFlashBuilder

    @classmethod
    def supports_batch_invariance(cls) -> bool:
        """A request that comes in other chunks has other blocks selected."""
        return False
