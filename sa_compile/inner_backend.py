"""The backend that gets the rewritten graph: Inductor, or a plain one for debugging and fast tests."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch._inductor
import torch._inductor.config as inductor_config
from torch import fx
from torch._dynamo.backends.registry import lookup_backend

from sa_compile.caching import KernelFingerprintPass
from sa_compile.config import SampleAttentionConfig
from sa_compile.kernels import ops

CUSTOM_PASS = "post_grad_custom_post_pass"


def check(config: SampleAttentionConfig, mode: str | None) -> None:
    """Reject what the inner backend could not honour: an unknown mode, an unknown Inductor option."""
    modes = torch._inductor.list_mode_options()
    if mode is not None and mode not in modes and mode != "default":
        raise ValueError(f"mode must be one of {', '.join(sorted({'default', *modes}))}, got {mode!r}")
    if config.inner != "inductor":
        if mode not in (None, "default"):
            raise ValueError(f"mode={mode!r} needs inner='inductor', got inner={config.inner!r}")
        if config.inductor:
            raise ValueError(f"option 'inductor' needs inner='inductor', got inner={config.inner!r}")
    if config.inductor:
        _check_inductor_names(config.inductor)


def _check_inductor_names(options: Mapping[str, Any]) -> None:
    known = inductor_config.get_config_copy()
    for name in options:
        if name.replace("-", "_") not in known:
            raise ValueError(
                f"unknown key {name!r} in option 'inductor'; allowed: the names that "
                "torch._inductor.list_options() prints"
            )


def compile_inner(
    gm: fx.GraphModule,
    example_inputs: Sequence[Any],
    config: SampleAttentionConfig,
    *,
    mode: str | None,
    rewritten: bool,
) -> Callable[..., Any]:
    """Compile the graph. An untouched graph compiles to what the inner backend alone would give."""
    if config.inner != "inductor":
        return lookup_backend(config.inner)(gm, list(example_inputs))
    from torch._inductor.compile_fx import compile_fx

    patches: dict[str, Any] = {}
    if mode not in (None, "default"):
        patches.update(torch._inductor.list_mode_options(mode))
    patches.update({name.replace("-", "_"): value for name, value in config.inductor.items()})
    if rewritten:
        ops.declare_to_inductor()
        wrapped = patches.get(CUSTOM_PASS, getattr(inductor_config, CUSTOM_PASS))
        patches[CUSTOM_PASS] = KernelFingerprintPass(wrapped, config.tuned.digest if config.tuned else "")
    compiled: Any = compile_fx(gm, list(example_inputs), config_patches=patches or None)
    return compiled
