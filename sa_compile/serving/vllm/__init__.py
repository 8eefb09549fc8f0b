"""vLLM's plug-in: long prefills are sampled, everything else is the attention backend that vLLM would run.

vLLM calls :func:`register` in each of its processes (entry point group ``vllm.general_plugins``). Chosen by
``--attention-backend CUSTOM``; options in ``--additional-config '{"sampleattn": {...}}'``. docs/serving.md.
"""

from __future__ import annotations

from sa_compile.serving.vllm.counters import Counted, counted

__all__ = ["Counted", "counted", "register"]

_PACKAGE = "sa_compile.serving.vllm"


def register() -> None:
    """Make the backend known to vLLM; nothing changes until it is chosen. May be called again."""
    from vllm.logger import init_logger
    from vllm.platforms import current_platform
    from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend

    if current_platform.is_cuda():
        place, path = AttentionBackendEnum.CUSTOM, f"{_PACKAGE}.flash_attn.SampleAttentionFlashBackend"
    elif current_platform.is_cpu():
        # vLLM takes its own backend on a CPU, whatever was chosen; ours stands there and looks at the choice.
        place, path = AttentionBackendEnum.CPU_ATTN, f"{_PACKAGE}.cpu.SampleAttentionCPUBackend"
    else:
        return
    if place.is_overridden() and place.get_path() != path:
        # A logger below vLLM's: others have no handler in its processes.
        init_logger(f"vllm.plugins.{_PACKAGE}").warning(
            "sampleattn: another plug-in has registered %s as attention backend %s, so that ours cannot be "
            "chosen; VLLM_PLUGINS says which plug-ins are loaded",
            place.get_path(),
            place.name,
        )
        return
    register_backend(place, path)
